//! Signals by name or number.

use nix::sys::signal::Signal;

/// Parses `TERM`, `SIGTERM` or `15`.
pub(super) fn parse(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        let valid = (1..=libc::SIGRTMAX()).contains(&number);
        return valid.then_some(number).ok_or_else(|| format!("there is no signal {number}"));
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("`{text}` is not a signal; use a name such as `TERM`, or a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse("term"), Ok(15));
        assert_eq!(parse("SIGKILL"), Ok(9));
        assert_eq!(parse("34"), Ok(34));
        for invalid in ["", "0", "-9", "999", "TERMINATE"] {
            assert!(parse(invalid).is_err(), "{invalid}");
        }
    }
}
