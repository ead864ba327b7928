//! Plugins. Extension.

message! {
    /// A loaded plugin.
    pub struct PluginInfo {
        /// Its name, as in the configuration and in errors.
        required name: String,
        /// Its kind.
        required kind: PluginKind,
        /// Its version.
        required version: String,
        /// The version of the plugin API it was built against.
        optional api_version: String,
        /// Its purpose, in one sentence.
        optional description: String,
        /// The file it was loaded from.
        required path: String,
        /// SHA-256 of that file, in lower-case hexadecimal.
        required sha256: String,
        /// Whether it is called for nested containers.
        required nesting: bool,
        /// Whether it is called for standalone containers.
        required standalone: bool,
        /// Whether it can be called.
        required health: PluginHealth,
        /// Why it is not healthy.
        optional message: String,
        /// The methods it implements.
        repeated methods: String,
        /// Calls since the agent started, by method.
        map calls: CallCount,
        /// Calls that were in progress when the previous agent died.
        repeated interrupted_calls: InterruptedCall,
        /// Bytes of output of containers that it has lost since the agent started, if it is a logger.
        optional lost_output_bytes: u64,
    }
}

message! {
    /// A call that was in progress when the previous agent died: the plugin may have ended it.
    pub struct InterruptedCall {
        /// The method.
        required method: String,
        /// The container's dotted id. Not set if the call was not about a container.
        optional container: String,
        /// When the call began, in seconds since the Unix epoch.
        required since: f64,
    }
}

word! {
    /// Kind of a plugin.
    pub enum PluginKind {
        /// A member of the chain.
        #[default]
        Isolator,
        /// The container logger.
        Logger,
        /// A hook.
        Hook,
    }
}

word! {
    /// Whether a plugin can be called.
    pub enum PluginHealth {
        /// It can.
        #[default]
        Healthy,
        /// It failed too often and is not called any more.
        Quarantined,
        /// It cannot be called.
        OutOfService,
    }
}

message! {
    /// Calls of one method.
    pub struct CallCount {
        /// All calls.
        required calls: u64,
        /// Calls that returned an error.
        required failures: u64,
        /// Calls that timed out.
        required timeouts: u64,
        /// Calls that panicked.
        required panics: u64,
        /// Total duration in seconds.
        required seconds: f64,
    }
}

message! {
    /// A plugin call that failed for a container.
    pub struct PluginFailure {
        /// The plugin.
        required plugin: String,
        /// The method.
        required method: String,
        /// The error.
        required message: String,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plugin_survives_a_round_trip() {
        let wire = json!({
            "name": "cgroups/cpu", "kind": "ISOLATOR", "version": "1.2.0", "path": "/usr/lib/cofferdam/cpu.so",
            "sha256": "ab12", "nesting": true, "standalone": true, "health": "QUARANTINED",
            "message": "panicked 3 times in a minute", "methods": ["prepare", "update"],
            "calls": {"prepare": {"calls": 12, "failures": 3, "timeouts": 0, "panics": 3, "seconds": 0.5}},
            "interrupted_calls": [{"method": "usage", "container": "web.probe", "since": 1.25}],
            "lost_output_bytes": 4096,
        });
        let plugin: PluginInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(plugin.health, PluginHealth::Quarantined);
        assert_eq!(serde_json::to_value(&plugin).unwrap(), wire);
    }
}
