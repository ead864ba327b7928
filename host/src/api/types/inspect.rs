//! What Mesos has no words for: plugins, and who asked for what in a container.

use super::{call::LaunchContainer, id::ContainerId, response::Termination, wire::TimeInfo};

message! {
    /// One plugin and how it fares.
    pub struct PluginInfo {
        /// The name it has in the configuration and in errors.
        required name: String,
        /// What it plugs into.
        required kind: PluginKind,
        /// Its own version.
        required version: String,
        /// The revision of the plugin API it was built for.
        optional api_version: String,
        /// Where the operator put it.
        required path: String,
        /// The SHA-256 of the copy in use, in lower-case hex.
        required sha256: String,
        /// Where it runs.
        required placement: Placement,
        /// What its failure means for a launch.
        required policy: FailPolicy,
        /// Whether it can be called.
        required health: PluginHealth,
        /// What is wrong, unless it is healthy.
        optional message: String,
        /// The methods it implements.
        repeated methods: String,
        /// Calls made since the agent started.
        optional calls: u64,
        /// Calls that failed, panics and late ones included.
        optional failures: u64,
        /// Calls that panicked.
        optional panics: u64,
        /// Calls that were late.
        optional late: u64,
    }
}

word! {
    /// What a plugin plugs into.
    pub enum PluginKind {
        /// The chain of isolators.
        #[default]
        Isolator,
        /// The place of the container logger.
        Logger,
    }
}

word! {
    /// Where a plugin runs.
    pub enum Placement {
        /// In the agent.
        #[default]
        InProcess,
        /// In a process of its own.
        Isolated,
    }
}

word! {
    /// What the failure of a plugin means for a launch.
    pub enum FailPolicy {
        /// The launch fails.
        #[default]
        Required,
        /// The container runs without, and its status says so.
        Optional,
    }
}

word! {
    /// Whether a plugin can be called.
    pub enum PluginHealth {
        /// It can.
        #[default]
        Healthy,
        /// It has failed and is being rebuilt.
        Restarting,
        /// It has failed too often and is left alone.
        Quarantined,
        /// It never came up.
        Refused,
    }
}

message! {
    /// A plugin that did not do its part for a container.
    pub struct PluginFailure {
        /// The plugin.
        required plugin: String,
        /// The call that failed.
        required method: String,
        /// Why.
        required message: String,
    }
}

message! {
    /// Everything about one container.
    pub struct InspectedContainer {
        /// Its name.
        required container_id: ContainerId,
        /// Where it is in its life, as the phases are called (`RUNNING`).
        required state: String,
        /// The containerizer that runs it.
        optional containerizer: String,
        /// The process id of its first process, in the host's numbering.
        optional pid: u32,
        /// Its sandbox on the host.
        optional sandbox: String,
        /// When its launch was accepted.
        optional launched: TimeInfo,
        /// What was asked for, with secrets left out.
        optional request: LaunchContainer,
        /// What came of it, with who asked.
        repeated plan: PlanEntry,
        /// Plugins it runs without, or that fail to clean up after it.
        repeated failures: PluginFailure,
        /// How it ended, if it has.
        optional termination: Termination,
    }
}

message! {
    /// One decision about how a container is launched.
    pub struct PlanEntry {
        /// What is decided: `namespaces`, `environment.PATH`, `mounts./proc`, …
        required field: String,
        /// The decision, in the form that suits the field.
        required value: serde_json::Value,
        /// Who asked for it: plugins by name, or `request`.
        repeated owners: String,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_remembers_who_asked() {
        let wire = json!({
            "container_id": {"value": "web"},
            "state": "RUNNING",
            "pid": 4242,
            "launched": {"nanoseconds": 1_470_820_172_000_000_000i64},
            "request": {"container_id": {"value": "web"}, "command": {"value": "sleep 1"}},
            "plan": [{"field": "environment.PATH", "value": "/bin", "owners": ["runtime/env", "request"]}],
            "failures": [{"plugin": "gpu/nvidia", "method": "prepare", "message": "no such device"}],
        });
        let inspected: InspectedContainer = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(inspected.plan[0].owners, ["runtime/env", "request"]);
        assert_eq!(serde_json::to_value(&inspected).unwrap(), wire);
    }

    #[test]
    fn a_plugin_says_how_it_fares() {
        let wire = json!({
            "name": "cgroups/cpu", "kind": "ISOLATOR", "version": "1.2.0", "path": "/usr/lib/cofferdam/cpu.so",
            "sha256": "ab12", "placement": "IN_PROCESS", "policy": "REQUIRED", "health": "QUARANTINED",
            "message": "panicked 3 times in a minute", "methods": ["prepare", "update"], "calls": 12, "panics": 3,
        });
        let plugin: PluginInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(plugin.health, PluginHealth::Quarantined);
        assert_eq!(serde_json::to_value(&plugin).unwrap(), wire);
    }
}
