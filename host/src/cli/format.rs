//! Quantities as text.

use std::time::Duration;

/// A number of bytes, with three significant digits.
#[expect(clippy::cast_precision_loss, reason = "three significant digits are shown")]
pub(super) fn bytes(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        // Larger amounts would be rounded to four digits.
        if amount < 999.5 {
            let decimals = if unit == "B" || amount >= 99.95 { 0 } else { 1 };
            return format!("{amount:.decimals$} {unit}");
        }
        amount /= 1024.0;
    }
    format!("{amount:.0} PiB")
}

/// A share, as per cent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A duration, in its two largest units.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
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
    fn bytes_have_three_significant_digits() {
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1023, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            (64 << 20, "64.0 MiB"),
            (10_240_000, "9.8 MiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0 ms"),
            (59, "59 s"),
            (60, "1 m 0 s"),
            (3599, "59 m 59 s"),
            (3600, "1 h 0 m"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
