//! Lengths of time and sizes, as an operator writes them.
//!
//! Both the agent, which holds a plugin's table against its schema, and the plugin, which reads it, use this
//! grammar, so that no value is accepted here and refused there.

use std::time::Duration;

/// Reads a length of time: `"250ms"`, `"1m 30s"`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = split_where(rest, |c| !c.is_ascii_digit());
        let (unit, tail) = split_where(tail, |c| !c.is_alphabetic());
        let one = match unit {
            "ns" => Duration::from_nanos(1),
            "us" | "µs" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" | "sec" | "secs" => Duration::from_secs(1),
            "m" | "min" | "mins" => Duration::from_secs(60),
            "h" | "hour" | "hours" => Duration::from_secs(3600),
            "d" | "day" | "days" => Duration::from_secs(86400),
            _ => return None,
        };
        total = total.checked_add(one.checked_mul(number.parse().ok()?)?)?;
        rest = tail.trim_start();
    }
    Some(total)
}

/// Reads a number of bytes: `"512 KiB"`, `"64MiB"`, `"1 GB"`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_where(text, |c| !c.is_ascii_digit());
    let one: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(one)
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_add_up() {
        assert_eq!(duration("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("2 days"), None);
        for bad in ["", " ", "5", "s", "-1s", "1.5s", "1w", "99999999999s", "4294967295d 4294967295d 9x"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_say_which_kilo_they_mean() {
        assert_eq!(size("64 MiB"), Some(64 << 20));
        assert_eq!(size("1GB"), Some(1_000_000_000));
        assert_eq!(size("17"), Some(17));
        for bad in ["", "MiB", "1.5 MiB", "-1 B", "1 parsec", "99999999999 TiB", "18446744073709551616"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }
}
