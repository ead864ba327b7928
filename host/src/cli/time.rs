//! Times as users type them.

use std::time::{Duration, SystemTime};

/// The longest duration. The end of it can be computed.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The shortest time between two samples that the use of CPUs is computed from. On cgroup v1, CPU time is counted in 10 ms.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// Parses a date, in UTC, or how long ago it is.
pub(super) fn parse(text: &str) -> Result<SystemTime, String> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let time = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok());
    time.ok_or_else(|| {
        "expected a time such as `2026-11-28T15:35:00Z`, or how long ago, such as `10m`".to_owned()
    })
}

/// Parses a duration of at most [`MAX_DURATION`]: `10s`, `5m`, or a number of seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds
        .or_else(|| humantime::parse_duration(text).ok())
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| "expected a duration such as `10s` or `5m`, of at most 100 years".to_owned())
}

/// Parses an interval in which something may have changed, of at least [`MIN_INTERVAL`].
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval >= MIN_INTERVAL { Ok(interval) } else { Err("expected half a second or more".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_how_long_ago_it_was() {
        assert_eq!(parse("1970-01-01T00:00:10Z"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(10)));
        assert_eq!(parse("1970-01-01 00:00:10"), Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(10)));
        let hour = Duration::from_secs(3600);
        assert!(parse("1h").unwrap().elapsed().unwrap() >= hour);
        for text in ["", "yesterday", "10", "99999999999999y"] {
            assert!(parse(text).unwrap_err().contains("expected a time such as"), "{text}");
        }
    }

    #[test]
    fn a_duration_is_a_number_with_a_unit_or_of_seconds() {
        let seconds = |seconds| Ok(Duration::from_secs(seconds));
        assert_eq!(
            [parse_duration("10"), parse_duration("2m"), parse_duration("0")],
            [10, 120, 0].map(seconds)
        );
        for text in ["", "-1", "soon", "1 parsec", "18446744073709551615", "101y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_interval("500ms"), Ok(MIN_INTERVAL));
        assert!(parse_interval("499ms").is_err());
    }
}
