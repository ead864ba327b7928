//! `cofferdam events`: shows what happens to containers and plugins.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unicode_width::UnicodeWidthStr;

use super::client::Client;
use super::failure::Failure;
use super::output::{Tone, escape_control, has_colour, truncated};
use super::ps::{exit_description, fetch_description, pull_description};
use super::{Outcome, block_on, output, time};
use crate::api::operator::types::{Event, EventKind, Subscribe, TimeInfo};

/// Where subjects begin, and the lines of a long description but for the first one.
const INDENT: usize = 26;

/// The least space for the first line of a description, beside what it is about.
const MIN_DESCRIPTION: usize = 20;

/// Shows what happens to containers and plugins, as it happens
///
/// The agent keeps the last 8192 events since its start, of which `--since` shows those that are asked for. Who reads too slowly
/// misses events, and is told how many.
///
/// Examples:
///   cofferdam events
///   cofferdam events --since 1h --until 0s
///   cofferdam events --filter container=web --filter state=ENDED --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Begin with the events since a time (2026-11-28T15:35:00Z, in UTC) or for some time (10m)
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    since: Option<SystemTime>,
    /// End at a time, or with what was some time ago (`0s` is now) [default: when the agent stops]
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    until: Option<SystemTime>,
    /// Show only events of a container (`container=ID`, with those nested in it), a plugin (`plugin=NAME`), a state
    /// (`state=ENDED`) or a type (`type=container`, `type=plugin`). Of the filters with one key, one must match
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<(Key, String)>,
    /// Print JSON: an `Event` as in SUBSCRIBE (docs/api.md) on each line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Container,
    Plugin,
    State,
    Type,
}

impl Key {
    const ALL: [Self; 4] = [Self::Container, Self::Plugin, Self::State, Self::Type];
}

fn filter(text: &str) -> Result<(Key, String), String> {
    let wrong =
        || "expected `container=ID`, `plugin=NAME`, `state=STATE` or `type=container|plugin`".to_owned();
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let key = match key {
        "container" | "id" => Key::Container,
        "plugin" => Key::Plugin,
        "state" | "status" => Key::State,
        "type" if matches!(value, "container" | "plugin") => Key::Type,
        _ => return Err(wrong()),
    };
    Ok((key, value.to_owned()))
}

pub(super) fn run(arguments: &Arguments, client: &Client) -> Outcome {
    let subscribe = Subscribe { since: arguments.since.map(to_wire), until: arguments.until.map(to_wire) };
    block_on(async {
        let mut events = client.subscribe(subscribe).await?;
        while let Some(event) = events.next().await? {
            warn_of_gap(arguments.since, &event);
            if event.kind == EventKind::EventsMissed || is_shown(&event, &arguments.filter) {
                show(&event, arguments.json)?;
            }
        }
        match arguments.until {
            Some(until) if until <= SystemTime::now() => Ok(0),
            _ => Err(Failure::message("the agent has stopped; its containers keep running")),
        }
    })
}

/// Says that events are missing between the time that was asked for and those that the agent has.
fn warn_of_gap(since: Option<SystemTime>, event: &Event) {
    let kept = event.subscribed.as_ref().and_then(|subscribed| subscribed.kept_since.as_ref());
    if let (Some(since), Some(kept)) = (since, kept)
        && since < from_wire(kept)
    {
        let kept = humantime::format_rfc3339_millis(from_wire(kept));
        drop(writeln!(io::stderr(), "cofferdam: events before {kept} are not kept any more"));
    }
}

fn to_wire(time: SystemTime) -> TimeInfo {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeInfo { nanoseconds: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX) }
}

/// Times after the year 9999 cannot be shown.
fn from_wire(time: &TimeInfo) -> SystemTime {
    let since = Duration::from_nanos(time.nanoseconds.try_into().unwrap_or_default());
    UNIX_EPOCH + since.min(Duration::from_secs(253_402_300_799))
}

/// Whether an event matches a filter of each key.
fn is_shown(event: &Event, filters: &[(Key, String)]) -> bool {
    if event.container.is_none() && event.plugin.is_none() {
        return false;
    }
    Key::ALL.into_iter().all(|key| {
        let mut values = filters.iter().filter(|(of, _)| *of == key).map(|(_, value)| &**value).peekable();
        values.peek().is_none() || values.any(|value| matches(event, key, value))
    })
}

fn matches(event: &Event, key: Key, value: &str) -> bool {
    let container = event.container.as_ref();
    match key {
        Key::Container => container.is_some_and(|container| {
            let id = container.container_id.to_string();
            let nested = id.strip_prefix(value);
            nested.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }),
        Key::Plugin => event.plugin.as_ref().is_some_and(|plugin| plugin.name == value),
        Key::State => container
            .and_then(|container| container.state.as_ref())
            .is_some_and(|state| state.eq_ignore_ascii_case(value)),
        Key::Type => (value == "container") == container.is_some(),
    }
}

fn show(event: &Event, as_json: bool) -> io::Result<()> {
    if as_json {
        return output::json_line(event);
    }
    let has_colour = has_colour(&io::stdout());
    let time = event.time.as_ref().map_or_else(
        || format!("{:24}", "-"),
        |time| humantime::format_rfc3339_millis(from_wire(time)).to_string(),
    );
    let (subject, what, tone) = describe(event);
    let (begin, what) = layout(&time, &subject, &escape_control(&what), output::width());
    output::line(&format!("{begin}{}", tone.paint(&what, has_colour)))
}

/// A line before the description, and the description, for a terminal of so many columns, if any. A long subject is shortened,
/// and the description begins on a line of its own where there is no space beside it.
fn layout(time: &str, subject: &str, what: &str, width: Option<usize>) -> (String, String) {
    let Some(columns) = width else { return (format!("{time}  {subject}  "), what.to_owned()) };
    let subject = truncated(subject, columns.saturating_sub(INDENT).max(MIN_DESCRIPTION));
    let column = INDENT + subject.width() + 2;
    let (gap, column) = match column + what.width().min(MIN_DESCRIPTION) > columns {
        true => (format!("\n{}", " ".repeat(INDENT)), INDENT),
        false => ("  ".to_owned(), column),
    };
    (format!("{time}  {subject}{gap}"), output::wrapped(what, column, INDENT, width))
}

/// What an event is about, what has happened, and how that is.
fn describe(event: &Event) -> (String, String, Tone) {
    let subject = match (&event.container, &event.plugin) {
        (Some(container), _) => format!("container {}", container.container_id),
        (None, Some(plugin)) => format!("plugin {}", escape_control(&plugin.name)),
        (None, None) => "events".to_owned(),
    };
    let container = event.container.clone().unwrap_or_default();
    let message = event.plugin.as_ref().and_then(|plugin| plugin.message.clone()).unwrap_or_default();
    let plugin = |what: &str| if message.is_empty() { what.to_owned() } else { format!("{what}: {message}") };
    let (what, tone) = match event.kind {
        EventKind::ContainerStateChanged => state(&container),
        EventKind::ContainerImagePull => {
            let pull = event.container.as_ref().and_then(|container| container.pull.as_ref());
            let pull = pull.map(pull_description).unwrap_or_default();
            (format!("pulling its image: {pull}"), Tone::Plain)
        }
        EventKind::ContainerFetch => {
            let fetch = event.container.as_ref().and_then(|container| container.fetch.as_ref());
            let fetch = fetch.map(fetch_description).unwrap_or_default();
            (format!("fetching its files: {fetch}"), Tone::Plain)
        }
        EventKind::ContainerUpdated => ("resources updated".to_owned(), Tone::Plain),
        EventKind::ContainerCleanupFailed => {
            (format!("cleanup failed: {}", container.errors.join("; ")), Tone::Bad)
        }
        EventKind::ContainerRemoved => ("removed".to_owned(), Tone::Faint),
        EventKind::PluginLoaded => (format!("loaded, {message}"), Tone::Plain),
        EventKind::PluginPanicked => (plugin("panicked"), Tone::Bad),
        EventKind::PluginRestarted => (plugin("restarted"), Tone::Warning),
        EventKind::PluginQuarantined => (plugin("quarantined"), Tone::Bad),
        EventKind::PluginOutOfService => (plugin("out of service"), Tone::Bad),
        EventKind::EventsMissed => {
            let count = event.events_missed.as_ref().map_or(0, |missed| missed.count);
            (format!("{count} missed"), Tone::Bad)
        }
        EventKind::Unknown | EventKind::Subscribed | EventKind::Heartbeat => (String::new(), Tone::Plain),
    };
    (subject, what, tone)
}

fn state(container: &crate::api::operator::types::ContainerEvent) -> (String, Tone) {
    let state = container.state.clone().unwrap_or_default();
    if let Some(ended) = &container.termination {
        let how = exit_description(ended);
        let message = ended.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        let tone = if ended.exit_status == Some(0) { Tone::Faint } else { Tone::Bad };
        return (format!("{state} ({how}){message}"), tone);
    }
    let pid = container.pid.filter(|_| state == "RUNNING").map(|pid| format!(" (pid {pid})"));
    let recovered = (container.previous_state.is_none() && state != "STARTING").then_some(" recovered");
    let tone = if state == "RUNNING" { Tone::Good } else { Tone::Warning };
    (format!("{state}{}{}", pid.unwrap_or_default(), recovered.unwrap_or_default()), tone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(json: serde_json::Value) -> Event {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_long_subject_is_shortened_and_the_description_below_it() {
        let time = "2026-11-29T20:00:00.000Z";
        let shown = |subject: &str, what: &str, width| {
            let (begin, what) = layout(time, subject, what, width);
            begin + &what
        };
        let short = format!("{time}  container web  RUNNING (pid 7)");
        assert_eq!(shown("container web", "RUNNING (pid 7)", Some(80)), short);
        let id = format!("container {}", "x".repeat(100));
        assert_eq!(shown(&id, "RUNNING", None), format!("{time}  {id}  RUNNING"));
        let (cut, indent) = ("x".repeat(43), " ".repeat(26));
        let narrow = shown(&id, "RUNNING (pid 7)", Some(80));
        assert_eq!(narrow, format!("{time}  container {cut}…\n{indent}RUNNING (pid 7)"));
    }

    #[test]
    fn filters_select_containers_plugins_and_states() {
        let ended = event(json!({"type": "CONTAINER_STATE_CHANGED", "container": {
            "container_id": {"value": "db", "parent": {"value": "pod"}}, "state": "ENDED"}}));
        let loaded = event(json!({"type": "PLUGIN_LOADED", "plugin": {"name": "cgroups/mem"}}));
        let shown = |event: &Event, filters: &[&str]| {
            let filters: Vec<_> = filters.iter().map(|text| filter(text).unwrap()).collect();
            is_shown(event, &filters)
        };
        for filters in [
            &[][..],
            &["container=pod"],
            &["container=pod.db"],
            &["container=x", "container=pod"],
            &["state=ended"],
            &["type=container", "state=RUNNING", "state=ENDED"],
        ] {
            assert!(shown(&ended, filters), "{filters:?}");
        }
        for filters in [
            &["container=po"][..],
            &["state=RUNNING"],
            &["container=pod", "state=RUNNING"],
            &["type=plugin"],
            &["plugin=cgroups/mem"],
        ] {
            assert!(!shown(&ended, filters), "{filters:?}");
        }
        assert!(shown(&loaded, &["type=plugin", "plugin=cgroups/mem"]) && !shown(&loaded, &["state=ENDED"]));
        assert!(!shown(&event(json!({"type": "HEARTBEAT"})), &[]));
        for wrong in ["web", "label=x", "type=image", "=x"] {
            assert!(filter(wrong).unwrap_err().contains("expected `container=ID`"), "{wrong}");
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let ended = event(json!({"type": "CONTAINER_STATE_CHANGED", "container": {
            "container_id": {"value": "web"}, "state": "ENDED",
            "termination": {"exit_status": 9, "message": "too\nmuch"}}}));
        let (subject, what, tone) = describe(&ended);
        assert_eq!(
            (&*subject, &*what, tone),
            ("container web", "ENDED (killed by SIGKILL): too\nmuch", Tone::Bad)
        );
        let running = event(json!({"type": "CONTAINER_STATE_CHANGED", "container": {
            "container_id": {"value": "web"}, "state": "RUNNING", "pid": 7}}));
        assert_eq!(describe(&running).1, "RUNNING (pid 7) recovered");
        let missed = event(json!({"type": "EVENTS_MISSED", "events_missed": {"count": 3}}));
        assert_eq!(describe(&missed).1, "3 missed");
    }
}
