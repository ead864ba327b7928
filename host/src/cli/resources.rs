//! Flags for resources and limits.

use cofferdam_plugin_model::units;

use cofferdam_core::model::{Limit, Resources};

/// The unit of `mem`.
const MIB: f64 = 1024.0 * 1024.0;

/// Flags of `run` and `update` for resources and limits.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ResourceFlags {
    /// CPUs to reserve, such as `0.5`
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<f64>,
    /// CPU limit, a number or `none` [default: value of --cpus]
    #[arg(long, value_name = "N|none", value_parser = cpu_limit)]
    cpu_limit: Option<Limit>,
    /// Memory to reserve, such as `64m` or `1g`
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<f64>,
    /// Memory limit, a size or `none` [default: value of --memory]
    #[arg(long, value_name = "SIZE|none", value_parser = memory_limit)]
    memory_limit: Option<Limit>,
}

impl ResourceFlags {
    /// Replaces the resources and limits that have a flag.
    pub(super) fn apply(&self, mut resources: Resources) -> Resources {
        for (name, amount) in [("cpus", self.cpus), ("mem", self.memory)] {
            if let Some(amount) = amount {
                resources = resources.with(name, amount);
            }
        }
        for (name, limit) in [("cpus", self.cpu_limit), ("mem", self.memory_limit)] {
            if let Some(limit) = limit {
                resources = resources.with_limit(name, limit);
            }
        }
        resources
    }

    /// Whether no flag is given.
    pub(super) fn is_empty(&self) -> bool {
        self.cpus.is_none()
            && self.cpu_limit.is_none()
            && self.memory.is_none()
            && self.memory_limit.is_none()
    }
}

fn cpus(text: &str) -> Result<f64, String> {
    let cpus = text.parse().ok().filter(|cpus: &f64| cpus.is_finite() && *cpus > 0.0);
    cpus.ok_or_else(|| format!("`{text}` is not a number of CPUs such as `0.5`"))
}

/// Parses `64m`, `1g`, `64 MiB` or a number of bytes. Returns MiB.
#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn memory(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let suffixes = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let with_suffix = suffixes
        .into_iter()
        .find_map(|(suffix, shift)| lower.strip_suffix(suffix)?.parse::<u64>().ok()?.checked_mul(1 << shift));
    let bytes = with_suffix.or_else(|| units::size(text.trim())).filter(|bytes| *bytes > 0);
    bytes
        .map(|bytes| bytes as f64 / MIB)
        .ok_or_else(|| format!("`{text}` is not a size such as `64m` or `64 MiB`"))
}

fn cpu_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit::Unlimited) } else { cpus(text).map(Limit::At) }
}

fn memory_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit::Unlimited) } else { memory(text).map(Limit::At) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_short_and_long_units() {
        assert_eq!(memory("64m"), Ok(64.0));
        assert_eq!(memory("1G"), Ok(1024.0));
        assert_eq!(memory("64 MiB"), Ok(64.0));
        assert_eq!(memory("524288"), Ok(0.5));
        for invalid in
            ["", "m", "0", "-1m", "1.5g", "NaN", "99999999999999999999m", "18446744073709551615t", "64 q"]
        {
            assert!(memory(invalid).is_err(), "{invalid:?}");
        }
        assert_eq!(memory_limit("none"), Ok(Limit::Unlimited));
    }

    #[test]
    fn cpus_are_positive_and_finite() {
        assert_eq!(cpus("0.5"), Ok(0.5));
        for invalid in ["0", "-1", "inf", "NaN", "x"] {
            assert!(cpus(invalid).is_err(), "{invalid:?}");
        }
    }
}
