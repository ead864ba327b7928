//! Messages of the v1 executor API, as far as executors use them.
//!
//! As in Mesos, unknown fields are ignored and `null` means unset.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

/// What the agent sends on the subscription.
#[derive(Debug)]
pub(crate) enum Event {
    Subscribed(Subscribed),
    Launch(Box<RawValue>),
    LaunchGroup(Vec<Box<RawValue>>),
    Kill {
        task_id: String,
        /// The grace period that replaces that of the task.
        grace: Option<Duration>,
    },
    Acknowledged {
        uuid: String,
    },
    Message,
    Shutdown,
    Error(String),
    Heartbeat,
    /// An event of a later version of the API.
    Unknown(String),
}

/// The answer to a subscription.
#[derive(Debug, Deserialize)]
pub(crate) struct Subscribed {
    framework_info: Option<FrameworkInfo>,
    /// The executor's own container, in the shape of the agent.
    pub(crate) container_id: Option<Box<RawValue>>,
}

impl Subscribed {
    /// Whether the framework handles the state TASK_KILLING.
    pub(crate) fn has_task_killing(&self) -> bool {
        let capabilities = self.framework_info.iter().flat_map(|info| info.capabilities.iter().flatten());
        capabilities.into_iter().any(|capability| capability.kind.as_deref() == Some("TASK_KILLING_STATE"))
    }
}

#[derive(Debug, Deserialize)]
struct FrameworkInfo {
    capabilities: Option<Vec<Capability>>,
}

#[derive(Debug, Deserialize)]
struct Capability {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct WireEvent {
    #[serde(rename = "type")]
    kind: String,
    subscribed: Option<Subscribed>,
    launch: Option<WireLaunch>,
    launch_group: Option<WireLaunchGroup>,
    kill: Option<WireKill>,
    acknowledged: Option<WireAcknowledged>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireLaunch {
    task: Box<RawValue>,
}

#[derive(Deserialize)]
struct WireLaunchGroup {
    task_group: WireTaskGroup,
}

#[derive(Deserialize)]
struct WireTaskGroup {
    tasks: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct WireKill {
    task_id: Id,
    kill_policy: Option<KillPolicy>,
}

#[derive(Deserialize)]
struct WireAcknowledged {
    uuid: String,
}

#[derive(Deserialize)]
struct WireError {
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Id {
    value: String,
}

#[derive(Debug, Deserialize)]
struct KillPolicy {
    grace_period: Option<DurationInfo>,
}

impl KillPolicy {
    fn grace(&self) -> Option<Duration> {
        self.grace_period.as_ref().map(DurationInfo::duration)
    }
}

#[derive(Debug, Deserialize)]
struct DurationInfo {
    nanoseconds: i64,
}

impl DurationInfo {
    fn duration(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0))
    }
}

/// Why an event of the agent cannot be handled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    #[error("the agent sent an event that is not valid: {0}")]
    Invalid(#[from] serde_json::Error),
    #[error("the agent sent the event {kind} without its body")]
    Empty { kind: String },
}

impl Event {
    /// Reads a record of the subscription.
    pub(crate) fn parse(record: &[u8]) -> Result<Self, EventError> {
        let event: WireEvent = serde_json::from_slice(record)?;
        let parsed = match event.kind.as_str() {
            "SUBSCRIBED" => event.subscribed.map(Self::Subscribed),
            "LAUNCH" => event.launch.map(|launch| Self::Launch(launch.task)),
            "LAUNCH_GROUP" => event.launch_group.map(|launch| Self::LaunchGroup(launch.task_group.tasks)),
            "KILL" => event.kill.map(|kill| Self::Kill {
                task_id: kill.task_id.value,
                grace: kill.kill_policy.and_then(|policy| policy.grace()),
            }),
            "ACKNOWLEDGED" => {
                event.acknowledged.map(|acknowledged| Self::Acknowledged { uuid: acknowledged.uuid })
            }
            "MESSAGE" => Some(Self::Message),
            "SHUTDOWN" => Some(Self::Shutdown),
            "ERROR" => event.error.map(|error| Self::Error(error.message.unwrap_or_default())),
            "HEARTBEAT" => Some(Self::Heartbeat),
            _ => Some(Self::Unknown(event.kind.clone())),
        };
        parsed.ok_or(EventError::Empty { kind: event.kind })
    }
}

/// A task, as far as executors use it.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) command: Option<CommandInfo>,
    /// Parts that are passed on to the agent as they are.
    pub(crate) parts: Parts,
    pub(crate) kill_grace: Option<Duration>,
    pub(crate) max_completion_time: Option<Duration>,
    pub(crate) health_check: Option<HealthCheck>,
    pub(crate) check: Option<Check>,
}

/// Parts of a task in the words of the framework.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) command: Option<Box<RawValue>>,
    pub(crate) container: Option<Box<RawValue>>,
    pub(crate) resources: Option<Box<RawValue>>,
    pub(crate) limits: Option<Box<RawValue>>,
}

/// A task that cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) id: String,
    pub(crate) message: String,
}

#[derive(Deserialize)]
struct TaskId {
    task_id: Id,
}

#[derive(Deserialize)]
struct WireTask {
    command: Option<Box<RawValue>>,
    container: Option<Box<RawValue>>,
    resources: Option<Box<RawValue>>,
    limits: Option<Box<RawValue>>,
    kill_policy: Option<KillPolicy>,
    max_completion_time: Option<DurationInfo>,
    health_check: Option<WireHealthCheck>,
    check: Option<WireCheck>,
}

impl Task {
    /// Reads a task. Without a usable id it is an error of the agent; otherwise the task can be reported as failed.
    pub(crate) fn parse(raw: &RawValue) -> Result<Result<Self, Refused>, EventError> {
        let TaskId { task_id: Id { value: id } } = serde_json::from_str(raw.get())?;
        Ok(Self::parse_body(&id, raw).map_err(|message| Refused { id, message }))
    }

    fn parse_body(id: &str, raw: &RawValue) -> Result<Self, String> {
        let invalid = |error: serde_json::Error| format!("The task is not valid: {error}");
        let task: WireTask = serde_json::from_str(raw.get()).map_err(invalid)?;
        let command = task.command.as_deref().map(|raw| serde_json::from_str(raw.get()));
        Ok(Self {
            id: id.to_owned(),
            command: command.transpose().map_err(invalid)?,
            kill_grace: task.kill_policy.and_then(|policy| policy.grace()),
            max_completion_time: task.max_completion_time.map(|limit| limit.duration()),
            health_check: task.health_check.map(HealthCheck::read).transpose()?,
            check: task.check.map(Check::read).transpose()?,
            parts: Parts {
                command: task.command,
                container: task.container,
                resources: task.resources,
                limits: task.limits,
            },
        })
    }
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct CommandInfo {
    shell: Option<bool>,
    pub(crate) value: Option<String>,
    arguments: Option<Vec<String>>,
    environment: Option<Environment>,
    pub(crate) working_directory: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Environment {
    variables: Option<Vec<Variable>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Variable {
    name: String,
    value: Option<String>,
}

impl CommandInfo {
    /// The program and the complete vector of arguments; `None` without a value.
    pub(crate) fn argv(&self) -> Option<(&str, Vec<&str>)> {
        let value = self.value.as_deref()?;
        if self.shell.unwrap_or(true) {
            return Some(("/bin/sh", vec!["sh", "-c", value]));
        }
        let arguments: Vec<&str> = self.arguments.iter().flatten().map(String::as_str).collect();
        Some((value, if arguments.is_empty() { vec![value] } else { arguments }))
    }

    /// With a directory to run in, if it has none itself.
    pub(crate) fn or_directory(mut self, directory: Option<&String>) -> Self {
        self.working_directory = self.working_directory.or_else(|| directory.cloned());
        self
    }

    /// Variables with a value. Secrets have none: the agent has put them into the environment of the container.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let variables =
            self.environment.iter().flat_map(|environment| environment.variables.iter().flatten());
        variables.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
    }
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Command {
        command: CommandInfo,
        /// In the shape of the agent.
        raw: String,
    },
    Network(Service),
}

/// What is checked over the network, at the loopback address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Service {
    Http { port: u16, path: String, ipv6: bool },
    Tcp { port: u16, ipv6: bool },
}

/// When a check is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) delay: Duration,
    pub(crate) interval: Duration,
    /// `None` is unlimited.
    pub(crate) timeout: Option<Duration>,
}

/// A check whose failure kills the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) target: Target,
    pub(crate) timing: Timing,
    /// Failures in a row after which the task is killed.
    pub(crate) consecutive_failures: u32,
    /// Failures before the first success do not count for so long.
    pub(crate) grace_period: Duration,
}

/// A check whose result is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) target: Target,
    pub(crate) timing: Timing,
}

#[derive(Deserialize)]
struct WireHealthCheck {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<Box<RawValue>>,
    http: Option<WireHttp>,
    tcp: Option<WireTcp>,
    consecutive_failures: Option<u32>,
    grace_period_seconds: Option<f64>,
    delay_seconds: Option<f64>,
    interval_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct WireCheck {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<WireCheckCommand>,
    http: Option<WireHttp>,
    tcp: Option<WireTcp>,
    delay_seconds: Option<f64>,
    interval_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct WireCheckCommand {
    command: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct WireHttp {
    protocol: Option<String>,
    scheme: Option<String>,
    port: Option<u32>,
    path: Option<String>,
}

#[derive(Deserialize)]
struct WireTcp {
    protocol: Option<String>,
    port: Option<u32>,
}

impl HealthCheck {
    fn read(wire: WireHealthCheck) -> Result<Self, String> {
        let target = Target::read("health check", wire.kind.as_deref(), wire.command, wire.http, wire.tcp)?;
        let timing = Timing::read(wire.delay_seconds, wire.interval_seconds, wire.timeout_seconds)?;
        Ok(Self {
            target,
            timing,
            consecutive_failures: wire.consecutive_failures.unwrap_or(3),
            grace_period: seconds("grace_period_seconds", wire.grace_period_seconds.unwrap_or(10.0))?,
        })
    }
}

impl Check {
    fn read(wire: WireCheck) -> Result<Self, String> {
        let command = wire.command.and_then(|command| command.command);
        let target = Target::read("check", wire.kind.as_deref(), command, wire.http, wire.tcp)?;
        let timing = Timing::read(wire.delay_seconds, wire.interval_seconds, wire.timeout_seconds)?;
        Ok(Self { target, timing })
    }
}

impl Target {
    fn read(
        what: &str,
        kind: Option<&str>,
        command: Option<Box<RawValue>>,
        http: Option<WireHttp>,
        tcp: Option<WireTcp>,
    ) -> Result<Self, String> {
        let absent = |field| format!("The {what} has no `{field}`");
        match kind {
            Some("COMMAND") => {
                let raw = command.ok_or_else(|| absent("command"))?;
                let command: CommandInfo = serde_json::from_str(raw.get())
                    .map_err(|error| format!("The command of the {what} is not valid: {error}"))?;
                command.argv().ok_or_else(|| absent("command.value"))?;
                Ok(Self::Command { command, raw: raw.get().to_owned() })
            }
            Some("HTTP") => {
                let http = http.ok_or_else(|| absent("http"))?;
                if let Some(scheme) = http.scheme.as_deref().filter(|scheme| *scheme != "http") {
                    return Err(format!("The {what} has the scheme `{scheme}`; expected `http`"));
                }
                let path = http.path.unwrap_or_default();
                let path = if path.starts_with('/') { path } else { format!("/{path}") };
                if path.bytes().any(|byte| !byte.is_ascii_graphic()) {
                    return Err(format!("The path of the {what} has characters that must be escaped as %XX"));
                }
                let port = port(what, http.port)?;
                Ok(Self::Network(Service::Http { port, path, ipv6: is_ipv6(http.protocol.as_deref()) }))
            }
            Some("TCP") => {
                let tcp = tcp.ok_or_else(|| absent("tcp"))?;
                let port = port(what, tcp.port)?;
                Ok(Self::Network(Service::Tcp { port, ipv6: is_ipv6(tcp.protocol.as_deref()) }))
            }
            Some(kind) => Err(format!("The {what} has the type `{kind}`; expected COMMAND, HTTP or TCP")),
            None => Err(absent("type")),
        }
    }
}

fn port(what: &str, port: Option<u32>) -> Result<u16, String> {
    let valid = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    valid.ok_or_else(|| format!("The port of the {what} is {}; expected 1 to 65535", port.unwrap_or(0)))
}

fn is_ipv6(protocol: Option<&str>) -> bool {
    protocol == Some("IPV6")
}

impl Timing {
    fn read(delay: Option<f64>, interval: Option<f64>, timeout: Option<f64>) -> Result<Self, String> {
        let timeout = seconds("timeout_seconds", timeout.unwrap_or(20.0))?;
        Ok(Self {
            delay: seconds("delay_seconds", delay.unwrap_or(15.0))?,
            interval: seconds("interval_seconds", interval.unwrap_or(10.0))?,
            timeout: (!timeout.is_zero()).then_some(timeout),
        })
    }
}

fn seconds(field: &str, seconds: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("`{field}` of a check is {seconds}; expected a number that is not negative"))
}

/// `now` and a duration later; `None` is never.
pub(crate) fn after(now: Instant, duration: Duration) -> Option<Instant> {
    now.checked_add(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(text: &str) -> Result<Task, Refused> {
        Task::parse(&RawValue::from_string(text.to_owned()).unwrap()).unwrap()
    }

    #[test]
    fn events_are_read_as_mesos_writes_them() {
        let subscribed = br#"{"type":"SUBSCRIBED","subscribed":{"executor_info":{},"framework_info":{"user":"root",
            "capabilities":[{"type":"MULTI_ROLE"},{"type":"TASK_KILLING_STATE"}]},"container_id":{"value":"c"}}}"#;
        let Event::Subscribed(subscribed) = Event::parse(subscribed).unwrap() else { panic!() };
        assert!(subscribed.has_task_killing());
        let kill = br#"{"type":"KILL","kill":{"task_id":{"value":"t"},
            "kill_policy":{"grace_period":{"nanoseconds":1500000000}}}}"#;
        let Event::Kill { task_id, grace } = Event::parse(kill).unwrap() else { panic!() };
        assert_eq!((task_id.as_str(), grace), ("t", Some(Duration::from_millis(1500))));
        assert!(matches!(Event::parse(br#"{"type":"LATER"}"#), Ok(Event::Unknown(kind)) if kind == "LATER"));
        assert!(matches!(Event::parse(br#"{"type":"KILL"}"#), Err(EventError::Empty { .. })));
        assert!(matches!(Event::parse(b"{"), Err(EventError::Invalid(_))));
    }

    #[test]
    fn a_task_has_the_defaults_of_mesos() {
        let task = task(
            r#"{"name":"n","task_id":{"value":"t"},"command":{"value":"true"},
                "health_check":{"type":"HTTP","http":{"port":80}},
                "check":{"type":"COMMAND","command":{"command":{"value":"true"}},"timeout_seconds":0}}"#,
        )
        .unwrap();
        let health = task.health_check.unwrap();
        let service = Service::Http { port: 80, path: "/".to_owned(), ipv6: false };
        assert_eq!(health.target, Target::Network(service));
        assert_eq!((health.consecutive_failures, health.grace_period), (3, Duration::from_secs(10)));
        assert_eq!(health.timing.delay, Duration::from_secs(15));
        assert_eq!(health.timing.interval, Duration::from_secs(10));
        assert_eq!(health.timing.timeout, Some(Duration::from_secs(20)));
        assert_eq!(task.check.unwrap().timing.timeout, None);
        assert_eq!(task.command.unwrap().argv(), Some(("/bin/sh", vec!["sh", "-c", "true"])));
    }

    #[test]
    fn a_program_has_its_own_arguments() {
        let argv = |text: &str| {
            let command: CommandInfo = serde_json::from_str(text).unwrap();
            command.argv().map(|(program, argv)| (program.to_owned(), argv.join(" ")))
        };
        let owned = |program: &str, argv: &str| Some((program.to_owned(), argv.to_owned()));
        assert_eq!(argv(r#"{"shell":false,"value":"ls"}"#), owned("ls", "ls"));
        assert_eq!(argv(r#"{"shell":false,"value":"ls","arguments":["l","-a"]}"#), owned("ls", "l -a"));
        assert_eq!(argv(r#"{"shell":true}"#), None);
    }

    #[test]
    fn a_task_that_cannot_be_run_is_refused_with_its_id() {
        for (part, message) in [
            (r#""health_check":{"type":"HTTP","http":{"port":80,"scheme":"https"}}"#, "expected `http`"),
            (r#""health_check":{"type":"HTTP","http":{"port":80,"path":"/a b"}}"#, "escaped"),
            (r#""health_check":{"type":"TCP","tcp":{"port":65536}}"#, "65536; expected 1 to 65535"),
            (r#""health_check":{"type":"TCP"}"#, "no `tcp`"),
            (r#""check":{"type":"COMMAND","command":{"command":{}}}"#, "no `command.value`"),
            (r#""check":{"type":"GRPC"}"#, "`GRPC`; expected COMMAND, HTTP or TCP"),
            (
                r#""check":{"type":"TCP","tcp":{"port":1},"delay_seconds":-1}"#,
                "`delay_seconds` of a check is -1",
            ),
            (r#""command":7"#, "invalid type"),
        ] {
            let refused = task(&format!(r#"{{"task_id":{{"value":"t"}},{part}}}"#)).unwrap_err();
            assert_eq!(refused.id, "t");
            assert!(refused.message.contains(message), "{}", refused.message);
        }
    }
}
