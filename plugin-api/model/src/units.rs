//! Parsers for durations and sizes in the configuration.
//!
//! The agent validates a plugin's table with these functions, and the SDK decodes it with them, so both accept the same
//! values.

use std::time::Duration;

/// Parses a duration: `"250ms"`, `"1m 30s"`. It is a sequence of integers, each directly followed by a unit: `ns`,
/// `us`, `ms`, `s`, `m`, `h` or `d`. `None` if the text is not a duration or the sum overflows.
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

/// Parses a size and returns it in bytes: `"512 KiB"`, `"64MiB"`, `"1 GB"`. The units are `B`, `kB`, `MB` and `GB`
/// (powers of 1000), and `KiB`, `MiB`, `GiB` and `TiB` (powers of 1024); without a unit, it is a number of bytes.
/// `None` if the text is not a size or it overflows.
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
    fn durations_are_sums_of_numbers_with_units() {
        assert_eq!(duration("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("2 days"), None);
        for bad in ["", " ", "5", "s", "-1s", "1.5s", "1w", "99999999999s", "4294967295d 4294967295d 9x"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        assert_eq!(size("64 MiB"), Some(64 << 20));
        assert_eq!(size("1GB"), Some(1_000_000_000));
        assert_eq!(size("17"), Some(17));
        for bad in ["", "MiB", "1.5 MiB", "-1 B", "1 parsec", "99999999999 TiB", "18446744073709551616"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }
}
