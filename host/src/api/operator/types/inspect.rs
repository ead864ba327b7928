//! What Mesos has no words for: plugins, and who asked for what in a container.

use super::{
    call::LaunchContainer,
    id::ContainerId,
    resource::{Resource, Scalar},
    response::Termination,
    wire::TimeInfo,
};

message! {
    /// One plugin and how it fares.
    pub struct PluginInfo {
        /// The name it has in the configuration and in errors.
        required name: String,
        /// What it plugs into.
        required kind: PluginKind,
        /// Its own version.
        required version: String,
        /// The version of the plugin API it was built for.
        optional api_version: String,
        /// What it is for, in one sentence.
        optional description: String,
        /// Where the operator put it.
        required path: String,
        /// The SHA-256 of the copy in use, in lower-case hex.
        required sha256: String,
        /// Whether it takes part in nested containers.
        required nesting: bool,
        /// Whether it takes part in containers without executor or task.
        required standalone: bool,
        /// Whether it can be called.
        required health: PluginHealth,
        /// What is wrong, unless it is healthy.
        optional message: String,
        /// The methods it implements.
        repeated methods: String,
        /// What became of the calls since the agent started, by method.
        map calls: CallCount,
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
    /// Whether a plugin can be called.
    pub enum PluginHealth {
        /// It can.
        #[default]
        Healthy,
        /// It has failed too often and is left alone.
        Quarantined,
        /// It cannot.
        OutOfService,
    }
}

message! {
    /// What became of the calls of one method.
    pub struct CallCount {
        /// All of them.
        required calls: u64,
        /// Those that answered with an error.
        required failures: u64,
        /// Those that were given up on.
        required timeouts: u64,
        /// Those that panicked.
        required panics: u64,
        /// Time spent in all of them.
        required seconds: f64,
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
        /// The process id of its first process, in the host's numbering.
        optional pid: i32,
        /// What it runs, in one line.
        required command: String,
        /// When its launch was accepted.
        required launched: TimeInfo,
        /// Its sandbox on the host.
        required sandbox: String,
        /// The file on the host with its standard output, if it is in a file.
        optional stdout: String,
        /// The file on the host with its standard error, if it is in a file.
        optional stderr: String,
        /// What was asked for.
        required request: LaunchContainer,
        /// What it may count on now, updates included.
        repeated resources: Resource,
        /// What it may use at most now, updates included.
        map limits: Scalar,
        /// What came of it, with who asked.
        repeated plan: PlanEntry,
        /// The plugins that serve it, in the order of the chain.
        repeated plugins: ServingPlugin,
        /// What keeps it from being cleaned up, one sentence per plugin.
        repeated stuck: String,
        /// How it ended, if it has.
        optional termination: Termination,
    }
}

message! {
    /// One decision about how a container is launched.
    pub struct PlanEntry {
        /// What is decided: `namespaces`, `environment.PATH`, `mounts./proc`, …
        required field: String,
        /// The decision, in one line.
        required value: String,
        /// Who asked for it: a plugin by name, `request` or `agent`.
        required owner: String,
    }
}

message! {
    /// A plugin that serves a container.
    pub struct ServingPlugin {
        /// The plugin.
        required plugin: String,
        /// The version of it that wrote the state.
        optional version: String,
        /// What the agent keeps for it, as the plugin wrote it; `null` for nothing.
        required state: serde_json::Value,
        /// Why it does not serve the container any more.
        optional refused: String,
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
            "command": "sleep 1",
            "launched": {"nanoseconds": 1_470_820_172_000_000_000i64},
            "sandbox": "/var/lib/cofferdam/sandboxes/web",
            "stdout": "/var/lib/cofferdam/sandboxes/web/stdout",
            "request": {"container_id": {"value": "web"}, "command": {"value": "sleep 1"}},
            "plan": [{"field": "environment.PATH", "value": "/bin", "owner": "runtime/env"}],
            "plugins": [{"plugin": "cgroups/mem", "version": "1.0.0", "state": {"v": 1}}],
        });
        let inspected: InspectedContainer = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(inspected.plan[0].owner, "runtime/env");
        assert_eq!(serde_json::to_value(&inspected).unwrap(), wire);
    }

    #[test]
    fn a_plugin_says_how_it_fares() {
        let wire = json!({
            "name": "cgroups/cpu", "kind": "ISOLATOR", "version": "1.2.0", "path": "/usr/lib/cofferdam/cpu.so",
            "sha256": "ab12", "nesting": true, "standalone": true, "health": "QUARANTINED",
            "message": "panicked 3 times in a minute", "methods": ["prepare", "update"],
            "calls": {"prepare": {"calls": 12, "failures": 3, "timeouts": 0, "panics": 3, "seconds": 0.5}},
        });
        let plugin: PluginInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(plugin.health, PluginHealth::Quarantined);
        assert_eq!(serde_json::to_value(&plugin).unwrap(), wire);
    }
}
