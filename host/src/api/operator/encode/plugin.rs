//! Plugins.

use std::time::Duration;

use crate::api::operator::types as wire;
use cofferdam_core::model::view::{CallCount, InterruptedCall, PluginView};

/// Encodes a plugin.
pub(in crate::api::operator) fn plugin(plugin: &PluginView) -> wire::PluginInfo {
    wire::PluginInfo {
        name: plugin.name.clone(),
        kind: match plugin.kind.as_str() {
            "logger" => wire::PluginKind::Logger,
            "hook" => wire::PluginKind::Hook,
            _ => wire::PluginKind::Isolator,
        },
        version: plugin.version.clone(),
        api_version: Some(plugin.api.clone()),
        description: Some(plugin.description.clone()).filter(|text| !text.is_empty()),
        path: plugin.file.to_string_lossy().into_owned(),
        sha256: plugin.sha256.clone(),
        nesting: plugin.nesting,
        standalone: plugin.standalone,
        health: match plugin.health.as_str() {
            "ok" => wire::PluginHealth::Healthy,
            "quarantined" => wire::PluginHealth::Quarantined,
            _ => wire::PluginHealth::OutOfService,
        },
        message: plugin.health_reason.clone(),
        methods: plugin.methods.clone(),
        calls: plugin.calls.iter().map(|(method, count)| (method.clone(), call_count(count))).collect(),
        interrupted_calls: plugin.interrupted_calls.iter().map(interrupted_call).collect(),
        lost_output_bytes: plugin.lost_output.map(|lost| lost.stdout.saturating_add(lost.stderr)),
    }
}

fn interrupted_call(call: &InterruptedCall) -> wire::InterruptedCall {
    wire::InterruptedCall {
        method: call.method.clone(),
        container: Some(call.container.clone()).filter(|container| !container.is_empty()),
        since: Duration::from_millis(call.since_unix_ms).as_secs_f64(),
    }
}

fn call_count(count: &CallCount) -> wire::CallCount {
    wire::CallCount {
        calls: count.calls,
        failures: count.failures,
        timeouts: count.timeouts,
        panics: count.panics,
        seconds: Duration::from_micros(count.micros).as_secs_f64(),
    }
}
