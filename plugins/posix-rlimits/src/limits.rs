//! Checks of resource limits before a launch.

use std::fs;

use cofferdam_plugin_api::capability::{self, OwnSets};
use cofferdam_plugin_api::model::Rlimit;
use cofferdam_plugin_api::prelude::*;

/// Names of limits, and what they are called in `/proc/<pid>/limits`.
const NAMES: [(&str, &str); 16] = [
    ("AS", "Max address space"),
    ("CORE", "Max core file size"),
    ("CPU", "Max cpu time"),
    ("DATA", "Max data size"),
    ("FSIZE", "Max file size"),
    ("LOCKS", "Max file locks"),
    ("MEMLOCK", "Max locked memory"),
    ("MSGQUEUE", "Max msgqueue size"),
    ("NICE", "Max nice priority"),
    ("NOFILE", "Max open files"),
    ("NPROC", "Max processes"),
    ("RSS", "Max resident set"),
    ("RTPRIO", "Max realtime priority"),
    ("RTTIME", "Max realtime timeout"),
    ("SIGPENDING", "Max pending signals"),
    ("STACK", "Max stack size"),
];

/// What limits can be set to on this host.
pub struct Bounds {
    /// Text of `/proc/self/limits` if the agent cannot exceed its own hard limits.
    own: Option<String>,
    /// The kernel's limit for `NOFILE`.
    max_files: u64,
}

impl Bounds {
    pub fn read() -> Result<Self> {
        let sets = OwnSets::read().context("cannot read the capabilities of the agent")?;
        let may_raise = capability::number("SYS_RESOURCE")
            .is_some_and(|number| capability::contains(sets.permitted, number));
        let own = (!may_raise).then(|| fs::read_to_string("/proc/self/limits")).transpose();
        let own = own.context("cannot read `/proc/self/limits`")?;
        let max_files = fs::read_to_string("/proc/sys/fs/nr_open").context("cannot read `fs.nr_open`")?;
        let max_files = max_files.trim().parse().context("`fs.nr_open` is not a number")?;
        Ok(Self { own, max_files })
    }

    /// Checks a limit.
    pub fn check(&self, name: &str, limit: &Rlimit) -> Result<()> {
        let Some((_, line)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            return Err(Error::new(format!(
                "there is no resource limit `{name}`; expected one of {}",
                known.join(", ")
            )));
        };
        if limit.soft.is_some() != limit.hard.is_some() {
            return Err(Error::new("one of `soft` and `hard` is missing; set both, or none for no limit"));
        }
        if let (Some(soft), Some(hard)) = (limit.soft, limit.hard)
            && soft > hard
        {
            return Err(Error::new(format!("`soft` is {soft}, above `hard`, which is {hard}")));
        }
        let hard = limit.hard.unwrap_or(u64::MAX);
        if name == "NOFILE" && hard > self.max_files {
            return Err(Error::new(format!(
                "`hard` is {}; the kernel allows {} (`fs.nr_open`)",
                show(hard),
                self.max_files
            )));
        }
        let own = self.own.as_ref().and_then(|text| own_hard(text, line));
        match own.filter(|own| hard > *own) {
            Some(own) => Err(Error::new(format!(
                "`hard` is {}, but the agent has neither the capability SYS_RESOURCE nor a hard limit above {own} itself; \
                 request at most that, or start the agent with a higher one",
                show(hard)
            ))),
            None => Ok(()),
        }
    }
}

/// The hard limit of a line; `None` if it is unlimited.
fn own_hard(text: &str, line: &str) -> Option<u64> {
    let values = text.lines().find_map(|text| text.strip_prefix(line))?;
    values.split_whitespace().nth(1)?.parse().ok()
}

fn show(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(soft: impl Into<Option<u64>>, hard: impl Into<Option<u64>>) -> Rlimit {
        Rlimit { soft: soft.into(), hard: hard.into() }
    }

    const OWN: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                       Max file size             unlimited            unlimited            bytes     \n\
                       Max open files            1024                 20000                files     \n\
                       Max locked memory         8388608              8388608              bytes     \n";

    #[test]
    fn what_the_agent_cannot_exceed_is_refused_with_its_value() {
        let bounds = Bounds { own: Some(OWN.to_owned()), max_files: 1 << 20 };
        for (name, value, expected) in [
            ("NOFILE", limit(10, 20_000), ""),
            ("NOFILE", limit(10, 20_001), "a hard limit above 20000 itself"),
            ("NOFILE", limit(None, None), "`hard` is unlimited; the kernel allows 1048576"),
            ("MEMLOCK", limit(0, 8_388_608), ""),
            ("MEMLOCK", limit(None, None), "`hard` is unlimited, but the agent has neither"),
            ("FSIZE", limit(None, None), ""),
            ("FSIZE", limit(1, 0), "`soft` is 1, above `hard`, which is 0"),
            ("FSIZE", limit(1, None), "one of `soft` and `hard` is missing"),
            ("FSIZE", limit(None, 1), "one of `soft` and `hard` is missing"),
            ("FILES", limit(1, 1), "no resource limit `FILES`; expected one of AS, CORE, CPU"),
        ] {
            let message = bounds.check(name, &value).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                message.contains(expected) && message.is_empty() == expected.is_empty(),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn an_agent_that_may_raise_limits_is_bounded_by_the_kernel_only() {
        let bounds = Bounds { own: None, max_files: 1 << 20 };
        assert!(bounds.check("MEMLOCK", &limit(None, None)).is_ok());
        assert!(bounds.check("NOFILE", &limit(1, 1 << 20)).is_ok());
        assert!(bounds.check("NOFILE", &limit(1, (1 << 20) + 1)).is_err());
    }

    #[test]
    fn every_limit_is_found_in_the_file_of_this_process() {
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        for (name, line) in NAMES {
            assert!(text.lines().any(|text| text.starts_with(line)), "{name}");
        }
    }
}
