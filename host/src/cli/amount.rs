//! Amounts of resources as people type them, and as they read them.

use std::time::Duration;

use cofferdam_plugin_model::units;

use cofferdam_core::model::{Limit, Resources};

/// The unit of `mem`.
const MIB: f64 = 1024.0 * 1024.0;

/// Reads a number of processors: `0.5`, `2`.
pub(super) fn cpus(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|cpus: &f64| cpus.is_finite() && *cpus > 0.0)
        .ok_or_else(|| format!("`{text}` is not a number of processors such as `0.5`"))
}

/// Reads an amount of memory into MiB: `64m`, `1g`, `64 MiB`, or bytes.
#[expect(clippy::cast_precision_loss, reason = "nobody has so much memory that a byte counts")]
pub(super) fn memory(text: &str) -> Result<f64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let shifts = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let short = shifts
        .into_iter()
        .find_map(|(suffix, shift)| lower.strip_suffix(suffix)?.parse::<u64>().ok()?.checked_mul(1 << shift));
    let bytes = short.or_else(|| units::size(text.trim())).filter(|bytes| *bytes > 0);
    bytes
        .map(|bytes| bytes as f64 / MIB)
        .ok_or_else(|| format!("`{text}` is not an amount of memory such as `64m` or `64 MiB`"))
}

/// [`cpus`], or `none` for no limit.
pub(super) fn cpu_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit::Unlimited) } else { cpus(text).map(Limit::At) }
}

/// [`memory`], or `none` for no limit.
pub(super) fn memory_limit(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit::Unlimited) } else { memory(text).map(Limit::At) }
}

/// What a container may use, as flags of `run` and `update` say it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Amounts {
    /// Processors to set aside, such as `0.5`
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<f64>,
    /// Where to stop it using processors: a number, or `none`; without this, at `--cpus`
    #[arg(long, value_name = "N|none", value_parser = cpu_limit)]
    cpu_limit: Option<Limit>,
    /// Memory to set aside, such as `64m` or `1g`
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<f64>,
    /// Where to stop it using memory: a size, or `none`; without this, at `--memory`
    #[arg(long, value_name = "SIZE|none", value_parser = memory_limit)]
    memory_limit: Option<Limit>,
}

impl Amounts {
    /// Puts what was said over what there is.
    pub(super) fn apply(&self, resources: Resources) -> Resources {
        let requests = [("cpus", self.cpus), ("mem", self.memory)];
        let limits = [("cpus", self.cpu_limit), ("mem", self.memory_limit)];
        let resources = requests
            .into_iter()
            .filter_map(|(name, amount)| Some((name, amount?)))
            .fold(resources, |resources, (name, amount)| resources.with(name, amount));
        limits
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)))
            .fold(resources, |resources, (name, limit)| resources.with_limit(name, limit))
    }

    /// Whether nothing was said.
    pub(super) fn is_empty(&self) -> bool {
        self.cpus.is_none()
            && self.cpu_limit.is_none()
            && self.memory.is_none()
            && self.memory_limit.is_none()
    }
}

/// Bytes, with three figures and a unit.
#[expect(clippy::cast_precision_loss, reason = "three figures are shown")]
pub(super) fn bytes(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        // What would round up to four figures belongs to the next unit.
        if amount < 999.5 {
            let decimals = if unit == "B" || amount >= 99.95 { 0 } else { 1 };
            return format!("{amount:.decimals$} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.0} PiB")
}

/// A length of time, with its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} m {} s", seconds % 60),
        3600..86400 => format!("{hours} h {minutes} m"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_typed_the_short_way_or_the_long_way() {
        assert_eq!(memory("64m"), Ok(64.0));
        assert_eq!(memory("1G"), Ok(1024.0));
        assert_eq!(memory("64 MiB"), Ok(64.0));
        assert_eq!(memory("524288"), Ok(0.5));
        for bad in
            ["", "m", "0", "-1m", "1.5g", "NaN", "99999999999999999999m", "18446744073709551615t", "64 q"]
        {
            assert!(memory(bad).is_err(), "{bad:?}");
        }
        assert_eq!(memory_limit("none"), Ok(Limit::Unlimited));
        for bad in ["0", "-1", "inf", "NaN", "x"] {
            assert!(cpus(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn amounts_read_well() {
        let shown: Vec<String> =
            [0, 999, 1000, 1023, 1 << 20, 64 << 20, 10_240_000, u64::MAX].map(bytes).into();
        assert_eq!(
            shown,
            ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "1.0 MiB", "64.0 MiB", "9.8 MiB", "16384 PiB"]
        );
        let shown: Vec<String> = [0, 59, 60, 3599, 3600, 90_000].map(Duration::from_secs).map(span).into();
        assert_eq!(shown, ["0 ms", "59 s", "1 m 0 s", "59 m 59 s", "1 h 0 m", "1 d 1 h"]);
    }
}
