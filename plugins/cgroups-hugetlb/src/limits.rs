//! How many bytes of huge pages a container may have, and has.

use std::collections::BTreeMap;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::prelude::*;

use crate::page::{self, PageSize};

/// Beginning of the names of resources, which end in a page size.
const RESOURCE: &str = "hugepages-";

/// In bytes; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits(BTreeMap<PageSize, Option<u64>>);

impl Limits {
    /// Those of the configuration.
    pub fn configured(limits: &BTreeMap<String, Size>, sizes: &[PageSize]) -> Result<Self> {
        let limit = |(name, limit): (&String, &Size)| {
            Ok((page::find(sizes, name).context("cannot read `limits`")?, Some(limit.0)))
        };
        limits.iter().map(limit).collect::<Result<_>>().map(Self)
    }

    /// Those of resources `hugepages-2MB` and the like, which are in MiB.
    pub fn requested(resources: &Resources, sizes: &[PageSize]) -> Result<Self> {
        let names = resources.requests.keys().chain(resources.limits.keys());
        let mut limits = BTreeMap::new();
        for name in names {
            let Some(size) = name.strip_prefix(RESOURCE) else { continue };
            let size = page::find(sizes, size).context(format!("cannot limit `{name}`"))?;
            let limit = match resources.limit(name) {
                Some(Limit::At(mebibytes)) => Some(bytes(name, mebibytes)?),
                Some(Limit::Unlimited) => None,
                _ => return Err(Error::invalid(format!("`{name}` is a number of MiB"))),
            };
            limits.insert(size, limit);
        }
        Ok(Self(limits))
    }

    /// These, where `others` has none.
    pub fn with(&self, others: &Self) -> Self {
        let mut all = self.0.clone();
        all.extend(others.0.iter().map(|(size, limit)| (*size, *limit)));
        Self(all)
    }

    /// That of a page size; `None` for none.
    pub fn of(&self, size: PageSize) -> Option<u64> {
        self.0.get(&size).copied().flatten()
    }

    pub fn set(&mut self, size: PageSize, limit: Option<u64>) {
        self.0.insert(size, limit);
    }

    /// Writes the interface files, all or none. A limit below what is in use is refused.
    pub fn apply(&self, cgroup: &Cgroup) -> Result<()> {
        let mut changes = cgroup.changes();
        for (size, limit) in &self.0 {
            let (kinds, unlimited) = match cgroup.version() {
                CgroupVersion::V1 => (["rsvd.limit_in_bytes", "limit_in_bytes"], "-1"),
                CgroupVersion::V2 => (["rsvd.max", "max"], "max"),
            };
            let value = limit.map_or_else(|| unlimited.to_owned(), |limit| limit.to_string());
            for kind in kinds {
                let file = format!("hugetlb.{size}.{kind}");
                match changes.write(&file, &value) {
                    // Before Linux 5.7: an allocation is refused by a signal, not when it is reserved.
                    Err(error) if error.is_missing() && kind.starts_with("rsvd.") => {}
                    Err(error) if error.is_busy() => {
                        let refused = Error::from(error).retryable();
                        return Err(refused).context(format!(
                            "cannot lower the limit of huge pages of {size} to {value} bytes: the container has more"
                        ));
                    }
                    written => written?,
                }
            }
        }
        changes.keep();
        Ok(())
    }
}

/// The resource that limits huge pages of a size.
pub fn resource(size: PageSize) -> String {
    format!("{RESOURCE}{size}")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked, and float casts saturate"
)]
fn bytes(name: &str, mebibytes: f64) -> Result<u64> {
    if mebibytes >= 0.0 {
        return Ok((mebibytes * f64::from(1 << 20)) as u64);
    }
    Err(Error::invalid(format!("the container requests {mebibytes} of `{name}`; expected MiB")))
}

/// Usage, limit, and how often it was reached, by page size.
pub fn usage(cgroup: &Cgroup, sizes: &[PageSize]) -> Result<Usage, CgroupError> {
    let mut usage = Usage::default();
    for size in sizes {
        let file = |v1: &str, v2: &str| {
            let end = if cgroup.version() == CgroupVersion::V1 { v1 } else { v2 };
            format!("hugetlb.{size}.{end}")
        };
        let used: u64 = cgroup.read_as(&file("usage_in_bytes", "current"))?;
        usage = usage.with(&format!("hugetlb_{size}_usage_bytes"), used);
        let limit = cgroup.read(&file("limit_in_bytes", "max"))?.parse::<u64>();
        // No limit is `max`, on v1 the largest multiple of the page size.
        let Some(limit) = limit.ok().filter(|&limit| limit < 1 << 62) else { continue };
        usage = usage.with(&format!("hugetlb_{size}_limit_bytes"), limit);
        let reached = match cgroup.version() {
            CgroupVersion::V1 => {
                let own: u64 = cgroup.read_as(&file("failcnt", ""))?;
                own.saturating_add(cgroup.read_as(&file("rsvd.failcnt", "")).unwrap_or(0))
            }
            CgroupVersion::V2 => cgroup.read_numbers(&file("", "events"), ["max"])?[0].unwrap_or(0),
        };
        usage = usage.with(&format!("hugetlb_{size}_limit_events"), reached);
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_precedence_over_the_configuration() {
        let sizes = page::sizes().unwrap();
        let Some(&size) = sizes.first() else { return };
        let name = format!("{RESOURCE}{size}");
        let configured = Limits::configured(&[(size.to_string(), Size(8 << 20))].into(), &sizes).unwrap();
        assert_eq!(configured.0, [(size, Some(8 << 20))].into());
        let none = Limits::requested(&Resources::default().with("mem", 5.0), &sizes).unwrap();
        assert_eq!(configured.with(&none), configured);
        let requested = |resources: &Resources| Limits::requested(resources, &sizes);
        let some = Resources::default().with(&name, 4.0);
        assert_eq!(configured.with(&requested(&some).unwrap()).0, [(size, Some(4 << 20))].into());
        let free = requested(&some.clone().with_limit(&name, Limit::Unlimited)).unwrap();
        assert_eq!(configured.with(&free).0, [(size, None)].into());
        assert!(requested(&Resources::default().with(&name, -1.0)).is_err());
        let unknown = requested(&Resources::default().with("hugepages-3MB", 1.0)).unwrap_err();
        assert!(unknown.to_string().contains("hugepages-3MB"), "{unknown}");
    }
}
