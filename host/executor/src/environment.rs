//! What the agent tells an executor in its environment.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Variables that a task does not get: what the executor, and nobody else, talks to the agent with.
pub(crate) const PRIVATE: [&str; 2] = ["MESOS_DOMAIN_SOCKET", "MESOS_EXECUTOR_AUTHENTICATION_TOKEN"];

/// What the agent tells any executor, which is of no use to the program of an image.
pub(crate) const OWN: [&str; 11] = [
    "LIBPROCESS_PORT",
    "MESOS_AGENT_ENDPOINT",
    "MESOS_CHECKPOINT",
    "MESOS_EXECUTOR_ID",
    "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD",
    "MESOS_FRAMEWORK_ID",
    "MESOS_HTTP_COMMAND_EXECUTOR",
    "MESOS_RECOVERY_TIMEOUT",
    "MESOS_SLAVE_ID",
    "MESOS_SLAVE_PID",
    "MESOS_SUBSCRIPTION_BACKOFF_MAX",
];

/// How long an executor that has never been subscribed tries to, if the agent does not say.
const REGISTRATION: Duration = Duration::from_secs(60);

/// The environment of an executor.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) framework_id: String,
    pub(crate) executor_id: String,
    pub(crate) agent: Endpoint,
    pub(crate) token: Option<String>,
    pub(crate) shutdown_grace: Duration,
    pub(crate) recovery: Recovery,
    pub(crate) backoff_max: Duration,
}

/// Where the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// What an executor does when the agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// How long it tries to subscribe for the first time.
    pub(crate) registration: Duration,
    /// How long it tries to subscribe again.
    pub(crate) resubscription: Duration,
}

/// A variable that is absent or not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum EnvironmentError {
    #[error("{0} is not set; this program is started by the agent, not by hand")]
    Absent(&'static str),
    #[error("{name} is `{value}`; expected {expected}")]
    Invalid { name: &'static str, value: String, expected: &'static str },
}

impl Environment {
    /// Reads the variables.
    pub(crate) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvironmentError> {
        let text = |name: &'static str| match get(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(value)) => Err(invalid(name, &value, "text in UTF-8")),
        };
        let required = |name| text(name)?.ok_or(EnvironmentError::Absent(name));
        let duration = |name: &'static str, default| match text(name)? {
            None => Ok(default),
            Some(value) => parse_duration(&value)
                .ok_or_else(|| invalid(name, OsStr::new(&value), "a duration such as `5secs`")),
        };
        let checkpoint = text("MESOS_CHECKPOINT")?.as_deref() == Some("1");
        let recovery_timeout = duration("MESOS_RECOVERY_TIMEOUT", Duration::from_secs(15 * 60))?;
        let recovery = if checkpoint {
            Recovery { registration: recovery_timeout, resubscription: recovery_timeout }
        } else {
            Recovery { registration: REGISTRATION, resubscription: Duration::ZERO }
        };
        let agent = match get("MESOS_DOMAIN_SOCKET").filter(|path| !path.is_empty()) {
            Some(path) => Endpoint::Unix(path.into()),
            None => {
                let name = "MESOS_AGENT_ENDPOINT";
                let value = required(name)?;
                let address = value.parse();
                Endpoint::Tcp(address.map_err(|_| {
                    invalid(
                        name,
                        OsStr::new(&value),
                        "an address such as `127.0.0.1:5051`, or a unix socket in MESOS_DOMAIN_SOCKET",
                    )
                })?)
            }
        };
        let token = text("MESOS_EXECUTOR_AUTHENTICATION_TOKEN")?;
        if token.iter().any(|token| token.bytes().any(|byte| !byte.is_ascii_graphic())) {
            let name = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN";
            return Err(invalid(name, OsStr::new("…"), "printable characters without space"));
        }
        Ok(Self {
            framework_id: required("MESOS_FRAMEWORK_ID")?,
            executor_id: required("MESOS_EXECUTOR_ID")?,
            agent,
            token,
            shutdown_grace: duration("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", Duration::from_secs(5))?,
            recovery,
            backoff_max: duration("MESOS_SUBSCRIPTION_BACKOFF_MAX", Duration::from_secs(2))?,
        })
    }
}

fn invalid(name: &'static str, value: &OsStr, expected: &'static str) -> EnvironmentError {
    EnvironmentError::Invalid { name, value: value.to_string_lossy().into_owned(), expected }
}

/// A duration as Mesos writes it: a number and a unit.
fn parse_duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..end].parse().ok()?;
    let unit = match &text[end..] {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "secs" => 1.0,
        "mins" => 60.0,
        "hrs" => 3600.0,
        "days" => 86_400.0,
        "weeks" => 604_800.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] =
        [("MESOS_FRAMEWORK_ID", "f"), ("MESOS_EXECUTOR_ID", "e"), ("MESOS_DOMAIN_SOCKET", "/s")];

    fn read(variables: &[(&str, &str)]) -> Result<Environment, EnvironmentError> {
        let all = [&REQUIRED, variables].concat();
        Environment::read(|name| {
            let found = all.iter().rev().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn durations_are_read_as_mesos_writes_them() {
        assert_eq!(parse_duration("5secs"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("1.5mins"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for text in ["", "5", "secs", "5 secs", "-5secs", "1e9secs", "5s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn without_checkpoints_an_executor_does_not_outlive_its_agent() {
        let default = read(&[]).unwrap();
        assert_eq!(default.recovery.resubscription, Duration::ZERO);
        assert_eq!(default.shutdown_grace, Duration::from_secs(5));
        let checkpoint = read(&[("MESOS_CHECKPOINT", "1"), ("MESOS_RECOVERY_TIMEOUT", "2mins")]).unwrap();
        assert_eq!(checkpoint.recovery.resubscription, Duration::from_secs(120));
        assert_eq!(checkpoint.agent, Endpoint::Unix("/s".into()));
    }

    #[test]
    fn a_variable_that_is_not_valid_is_named() {
        let socket = read(&[("MESOS_DOMAIN_SOCKET", "")]);
        assert_eq!(socket.err(), Some(EnvironmentError::Absent("MESOS_AGENT_ENDPOINT")));
        let grace = read(&[("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", "5")]).err().unwrap();
        assert_eq!(
            grace.to_string(),
            "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD is `5`; expected a duration such as `5secs`"
        );
        // A line feed would begin another header; the token itself is not printed.
        let token = read(&[("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", "secret\nX: y")]).err().unwrap();
        assert!(!token.to_string().contains("secret"));
        let tcp = [("MESOS_DOMAIN_SOCKET", ""), ("MESOS_AGENT_ENDPOINT", "127.0.0.1:5051")];
        assert!(matches!(read(&tcp).unwrap().agent, Endpoint::Tcp(_)));
    }
}
