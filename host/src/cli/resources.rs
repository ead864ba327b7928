//! Flags for resources and limits.

use std::fs;

use cofferdam_plugin_model::units;

use super::failure::Failure;
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
    #[arg(long, short, value_name = "SIZE", value_parser = memory)]
    memory: Option<f64>,
    /// Memory limit, a size or `none` [default: value of --memory]
    #[arg(long, value_name = "SIZE|none", value_parser = memory_limit)]
    memory_limit: Option<Limit>,
}

impl ResourceFlags {
    /// Replaces the resources and limits that have a flag.
    ///
    /// # Errors
    /// If this host does not have that much, which would be no limit.
    pub(super) fn apply(&self, mut resources: Resources) -> Result<Resources, Failure> {
        let at = |limit: Option<Limit>| match limit {
            Some(Limit::At(amount)) => Some(amount),
            _ => None,
        };
        let cpus = || Some((format!("{} CPUs", host_cpus()?), host_cpus()? as f64));
        let memory = || Some((format!("{:.0} MiB of memory", host_memory()), host_memory()));
        check("--cpus", self.cpus, cpus)?;
        check("--cpu-limit", at(self.cpu_limit), cpus)?;
        check("--memory", self.memory, memory)?;
        check("--memory-limit", at(self.memory_limit), memory)?;
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
        Ok(resources)
    }

    /// Whether no flag is given.
    pub(super) fn is_empty(&self) -> bool {
        self.cpus.is_none()
            && self.cpu_limit.is_none()
            && self.memory.is_none()
            && self.memory_limit.is_none()
    }
}

/// Checks an amount against that of this host.
fn check(
    flag: &str,
    amount: Option<f64>,
    host: impl FnOnce() -> Option<(String, f64)>,
) -> Result<(), Failure> {
    let Some(amount) = amount else { return Ok(()) };
    match host() {
        Some((has, most)) if amount > most => Err(Failure::message(format!(
            "{flag} is more than this host has, which is {has}; choose less, or `none` for no limit"
        ))),
        _ => Ok(()),
    }
}

/// CPUs of this host; `None` if that is not known.
fn host_cpus() -> Option<usize> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    Some(stat.lines().filter(is_cpu).count()).filter(|&count| count > 0)
}

/// Memory of this host, in MiB.
#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn host_memory() -> f64 {
    let memory = rustix::system::sysinfo();
    memory.totalram as f64 * f64::from(memory.mem_unit) / MIB
}

fn cpus(text: &str) -> Result<f64, String> {
    let cpus = text.parse().ok().filter(|cpus: &f64| cpus.is_finite() && *cpus > 0.0);
    cpus.ok_or_else(|| format!("`{text}` is not a number of CPUs such as `0.5`"))
}

/// Parses an amount of memory. Returns MiB.
#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn memory(text: &str) -> Result<f64, String> {
    bytes(text).map(|bytes| bytes as f64 / MIB)
}

/// Parses `64m`, `1g`, `64 MiB` or a number of bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let suffixes = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let with_suffix = suffixes
        .into_iter()
        .find_map(|(suffix, shift)| lower.strip_suffix(suffix)?.parse::<u64>().ok()?.checked_mul(1 << shift));
    let number = text.trim().parse::<u64>().ok();
    if let Some(number) = number.filter(|number| (1..1 << 20).contains(number)) {
        return Err(format!("`{text}` has no unit, so it is {number} bytes; `{number}m` is {number} MiB"));
    }
    let bytes =
        with_suffix.or_else(|| number.or_else(|| units::size(text.trim()))).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| format!("`{text}` is not a size such as `64m` or `64 MiB`"))
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
        assert_eq!(memory("1572864"), Ok(1.5));
        assert!(memory("64").unwrap_err().contains("`64m` is 64 MiB"));
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
