//! Events of the agent as messages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::image::{encode_fetch, pull};
use super::{encode_id, termination};
use crate::api::operator::types::{self as wire, EventKind as Kind};
use cofferdam_core::events::{Event, EventKind, PluginChange, Received, Subscription};
use cofferdam_core::model::ContainerId;

/// What a subscriber receives first.
pub(in crate::api::operator) fn subscribed(subscription: &Subscription, heartbeats: Duration) -> wire::Event {
    let subscribed = wire::Subscribed {
        heartbeat_interval_seconds: heartbeats.as_secs_f64(),
        kept_since: Some(time(subscription.kept_since())),
    };
    wire::Event { kind: Kind::Subscribed, subscribed: Some(subscribed), ..wire::Event::default() }
}

/// What a subscriber receives.
pub(in crate::api::operator) fn received(received: &Received) -> wire::Event {
    match received {
        Received::Event(happened) => event(happened),
        Received::Missed(count) => wire::Event {
            kind: Kind::EventsMissed,
            events_missed: Some(wire::EventsMissed { count: *count }),
            ..wire::Event::default()
        },
    }
}

fn event(event: &Event) -> wire::Event {
    let of = |kind| wire::Event {
        kind,
        sequence: Some(event.sequence),
        time: Some(time(event.time)),
        ..wire::Event::default()
    };
    let of_container = |kind, container| wire::Event { container: Some(container), ..of(kind) };
    let named = |id: &ContainerId| wire::ContainerEvent {
        container_id: encode_id(id),
        ..wire::ContainerEvent::default()
    };
    match &event.kind {
        EventKind::PhaseChanged { container, previous, phase, pid, termination: ended } => {
            let container = wire::ContainerEvent {
                state: Some(phase.to_string()),
                previous_state: previous.map(|phase| phase.to_string()),
                pid: *pid,
                termination: ended.as_ref().map(termination),
                ..named(container)
            };
            of_container(Kind::ContainerStateChanged, container)
        }
        EventKind::ResourcesUpdated { container } => of_container(Kind::ContainerUpdated, named(container)),
        EventKind::ImagePull { container, progress } => {
            let container = wire::ContainerEvent { pull: Some(pull(progress)), ..named(container) };
            of_container(Kind::ContainerImagePull, container)
        }
        EventKind::Fetch { container, progress } => {
            let container = wire::ContainerEvent { fetch: Some(encode_fetch(progress)), ..named(container) };
            of_container(Kind::ContainerFetch, container)
        }
        EventKind::CleanupFailed { container, errors } => {
            let container = wire::ContainerEvent { errors: errors.clone(), ..named(container) };
            of_container(Kind::ContainerCleanupFailed, container)
        }
        EventKind::Removed { container } => of_container(Kind::ContainerRemoved, named(container)),
        EventKind::Plugin { plugin, change, message } => {
            let kind = match change {
                PluginChange::Loaded => Kind::PluginLoaded,
                PluginChange::Panicked => Kind::PluginPanicked,
                PluginChange::Restarted => Kind::PluginRestarted,
                PluginChange::Quarantined => Kind::PluginQuarantined,
                PluginChange::OutOfService => Kind::PluginOutOfService,
            };
            let message = Some(message.clone()).filter(|message| !message.is_empty());
            let plugin = wire::PluginEvent { name: plugin.to_string(), message };
            wire::Event { plugin: Some(plugin), ..of(kind) }
        }
    }
}

fn time(time: SystemTime) -> wire::TimeInfo {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::TimeInfo { nanoseconds: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX) }
}
