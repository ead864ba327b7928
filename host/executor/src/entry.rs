//! What the docker executor runs: the entry point and the command of an image.
//!
//! The agent combines them with the command of the task, as the engine would, and passes the result as arguments:
//! `docker [--stop-signal SIGNAL] -- PROGRAM [ARGUMENT…]`.

use std::ffi::OsString;
use std::str::FromStr;

use nix::sys::signal::Signal;

/// What an image is stopped with unless it says otherwise.
const DEFAULT_SIGNAL: i32 = Signal::SIGTERM as i32;

/// The program of a container, with its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The program first.
    pub(crate) argv: Vec<OsString>,
    /// The number of the signal that asks it to end.
    pub(crate) stop_signal: i32,
}

impl Entry {
    /// Reads the arguments. `None` if they are not valid.
    pub(crate) fn parse(arguments: &[OsString]) -> Option<Self> {
        let (stop_signal, rest) = match arguments {
            // As the engine does with one that it does not know.
            [option, name, rest @ ..] if option == "--stop-signal" => {
                (name.to_str().and_then(signal).unwrap_or(DEFAULT_SIGNAL), rest)
            }
            rest => (DEFAULT_SIGNAL, rest),
        };
        match rest {
            [separator, argv @ ..] if separator == "--" && !argv.is_empty() => {
                Some(Self { argv: argv.to_vec(), stop_signal })
            }
            _ => None,
        }
    }
}

/// The number of a signal: `SIGTERM`, `term`, `RTMIN+3`, `15`.
fn signal(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = || Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32);
    let number = name.parse().ok().or_else(named).or_else(|| real_time(name));
    number.filter(|number| (1..=libc::SIGRTMAX()).contains(number))
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => libc::SIGRTMIN() + offset(rest, '+')?,
        (_, Some(rest)) => libc::SIGRTMAX() - offset(rest, '-')?,
        _ => return None,
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Option<Entry> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Entry::parse(&arguments)
    }

    #[test]
    fn the_program_follows_the_separator() {
        let entry = parse(&["--", "httpd", "--", "-f"]).unwrap();
        assert_eq!((entry.argv, entry.stop_signal), (vec!["httpd".into(), "--".into(), "-f".into()], 15));
        assert_eq!(parse(&["--stop-signal", "SIGQUIT", "--", "nginx"]).unwrap().stop_signal, 3);
        for invalid in
            [&[][..], &["--"], &["httpd"], &["--stop-signal", "SIGQUIT"], &["--stop-signal", "3", "x"]]
        {
            assert_eq!(parse(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", libc::SIGRTMIN() + 3), ("RTMAX", 64)]
        {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "SIGX", "0", "-1", "65", "RTMIN+31", "RTMIN3", "RTMAX-300"] {
            assert_eq!(signal(text), None, "{text}");
            let entry = parse(&["--stop-signal", text, "--", "x"]).unwrap();
            assert_eq!(entry.stop_signal, DEFAULT_SIGNAL);
        }
    }
}
