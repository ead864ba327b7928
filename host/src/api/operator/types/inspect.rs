//! Details of one container. Extension.

use super::{
    call::LaunchContainer,
    id::ContainerId,
    image::{FetchProgress, PullProgress},
    resource::{Resource, Scalar},
    termination::Termination,
    wire::TimeInfo,
};

message! {
    /// Details of one container.
    pub struct InspectedContainer {
        /// Its id.
        required container_id: ContainerId,
        /// Its phase, such as `RUNNING`.
        required state: String,
        /// Pid of its first process on the host.
        optional pid: i32,
        /// Its command, in one line.
        required command: String,
        /// When its launch was accepted. Unknown for one of which only the id is known.
        optional launched: TimeInfo,
        /// How far the pull of its image is, while it waits for that.
        optional pull: PullProgress,
        /// How far the fetch of its files is, while it waits for that.
        optional fetch: FetchProgress,
        /// Its sandbox on the host.
        required sandbox: String,
        /// File on the host with its standard output, if there is one.
        optional stdout: String,
        /// File on the host with its standard error, if there is one.
        optional stderr: String,
        /// Which file `stdout` is, as `device:inode`, if the agent opened it. If another file is at the path, the
        /// container has put it there.
        optional stdout_file: String,
        /// The same for `stderr`.
        optional stderr_file: String,
        /// Whether the logger stores the times of the output.
        optional log_times: bool,
        /// Numeric user of its command.
        optional uid: u32,
        /// The launch request.
        required request: LaunchContainer,
        /// Current resources, updates included.
        repeated resources: Resource,
        /// Current limits, updates included.
        map limits: Scalar,
        /// The merged launch plan.
        repeated plan: PlanEntry,
        /// Participating plugins, in chain order.
        repeated plugins: Participant,
        /// What prevents its cleanup, one sentence per step or plugin.
        repeated cleanup_errors: String,
        /// How it ended, if it has.
        optional termination: Termination,
    }
}

message! {
    /// One field of the merged launch plan.
    pub struct PlanEntry {
        /// The field: `namespaces`, `environment.PATH`, `mounts./proc`, …
        required field: String,
        /// Its value, in one line.
        required value: String,
        /// Who set it: the name of a plugin, `request` or `agent`.
        required owner: String,
    }
}

message! {
    /// Participation of a plugin in a container.
    pub struct Participant {
        /// The plugin.
        required plugin: String,
        /// Version of the plugin that wrote the state.
        optional version: String,
        /// The plugin's state for the container; `null` for none.
        required state: serde_json::Value,
        /// Why the plugin is not available for the container, if it is not.
        optional unavailable: String,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn details_survive_a_round_trip() {
        let wire = json!({
            "container_id": {"value": "web"},
            "state": "RUNNING",
            "pid": 4242,
            "command": "sleep 1",
            "launched": {"nanoseconds": 1_470_820_172_000_000_000i64},
            "sandbox": "/var/lib/cofferdam/sandboxes/web",
            "stdout": "/var/lib/cofferdam/sandboxes/web/stdout",
            "request": {"container_id": {"value": "web"}, "command": {"value": "sleep 1"}},
            "plan": [{"field": "environment.PATH", "value": "/bin", "owner": "runtime/env"}],
            "plugins": [{"plugin": "cgroups/mem", "version": "1.0.0", "state": {"v": 1}}],
            "cleanup_errors": ["plugin `cgroups/mem` failed in `cleanup`: device busy"],
        });
        let inspected: InspectedContainer = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(inspected.plan[0].owner, "runtime/env");
        assert_eq!(serde_json::to_value(&inspected).unwrap(), wire);
    }
}
