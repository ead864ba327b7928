//! What happens to containers and plugins, as subscribers receive it.

use super::{
    id::ContainerId,
    image::{FetchProgress, PullProgress},
    termination::Termination,
    wire::TimeInfo,
};

message! {
    /// Streams what happens from now on, or since a time.
    pub struct Subscribe {
        /// Events since this time are sent first, as far as they are kept.
        optional since: TimeInfo,
        /// The stream ends at this time. Without it, when the agent stops.
        optional until: TimeInfo,
    }
}

message! {
    /// A record of the stream. The field that `type` implies is set.
    pub struct Event {
        #[serde(rename = "type")]
        required kind: EventKind,
        /// Number of the event, consecutive for one agent. Not with `SUBSCRIBED`, `HEARTBEAT` and `EVENTS_MISSED`.
        optional sequence: u64,
        /// When it happened.
        optional time: TimeInfo,
        /// With `SUBSCRIBED`.
        optional subscribed: Subscribed,
        /// With the events of containers.
        optional container: ContainerEvent,
        /// With the events of plugins.
        optional plugin: PluginEvent,
        /// With `EVENTS_MISSED`.
        optional events_missed: EventsMissed,
    }
}

word! {
    /// Kind of an [`Event`].
    pub enum EventKind {
        #[default]
        Unknown,
        /// The first record.
        Subscribed,
        /// Sent while nothing happens.
        Heartbeat,
        /// The subscriber was too slow.
        EventsMissed,
        /// A container has entered another state.
        ContainerStateChanged,
        /// The resources of a container were updated.
        ContainerUpdated,
        /// The image of a container is being pulled: it is known, or another tenth of it was received.
        ContainerImagePull,
        /// The files of a container are being fetched: it begins, or another tenth of them or of a large one was received.
        ContainerFetch,
        /// The cleanup of a container has failed, and is retried.
        ContainerCleanupFailed,
        /// A container was removed.
        ContainerRemoved,
        /// A plugin was loaded.
        PluginLoaded,
        /// A plugin has panicked.
        PluginPanicked,
        /// A plugin was restarted after a panic.
        PluginRestarted,
        /// A plugin has panicked too often and is not called any more, except for cleanup.
        PluginQuarantined,
        /// A plugin could not be restarted, or did not recover, and is not called any more, except for cleanup.
        PluginOutOfService,
    }
}

message! {
    /// The subscription has begun.
    pub struct Subscribed {
        /// Time between heartbeats.
        required heartbeat_interval_seconds: f64,
        /// Events are kept since then: since the start of the agent, or since the last one that was forgotten.
        optional kept_since: TimeInfo,
    }
}

message! {
    /// What has happened to a container.
    pub struct ContainerEvent {
        /// The container.
        required container_id: ContainerId,
        /// With `CONTAINER_STATE_CHANGED`: the state, as in `Container`.
        optional state: String,
        /// With `CONTAINER_STATE_CHANGED`: the state before. Absent for a container that is new to the agent.
        optional previous_state: String,
        /// Its first process, while there is one.
        optional pid: i32,
        /// How it ended, if it has.
        optional termination: Termination,
        /// With `CONTAINER_IMAGE_PULL`: how far the pull is.
        optional pull: PullProgress,
        /// With `CONTAINER_FETCH`: how far the fetch is.
        optional fetch: FetchProgress,
        /// With `CONTAINER_CLEANUP_FAILED`: what prevents it, one sentence per step or plugin.
        repeated errors: String,
    }
}

message! {
    /// What has happened to a plugin.
    pub struct PluginEvent {
        /// The plugin.
        required name: String,
        /// Its version if it was loaded, otherwise the reason.
        optional message: String,
    }
}

message! {
    /// Events that were forgotten before the subscriber has read them.
    pub struct EventsMissed {
        /// How many.
        required count: u64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_survive_a_round_trip() {
        for wire in [
            json!({"type": "SUBSCRIBED", "subscribed": {"heartbeat_interval_seconds": 30.0}}),
            json!({"type": "EVENTS_MISSED", "events_missed": {"count": 3}}),
            json!({
                "type": "CONTAINER_STATE_CHANGED", "sequence": 7, "time": {"nanoseconds": 1},
                "container": {
                    "container_id": {"value": "web"}, "state": "ENDED", "previous_state": "DESTROYING",
                    "termination": {"exit_status": 256},
                },
            }),
            json!({"type": "PLUGIN_OUT_OF_SERVICE", "plugin": {"name": "cgroups/mem", "message": "no"}}),
        ] {
            let event: Event = serde_json::from_value(wire.clone()).unwrap();
            assert_eq!(serde_json::to_value(&event).unwrap(), wire);
        }
    }
}
