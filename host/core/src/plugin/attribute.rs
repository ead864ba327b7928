//! Which plugin an abandoned job is due to.

use std::sync::Arc;

use cofferdam_plugin_model::Method;

use super::error::CallError;
use super::plugin::Plugin;
use crate::blocking::Abandoned;

/// Turns an abandoned job into an error of the plugin that caused it, which `find` finds by its name. Counts and logs it.
#[must_use]
pub fn attribute<'p>(abandoned: Abandoned, find: impl FnOnce(&str) -> Option<&'p Arc<Plugin>>) -> CallError {
    let reason = abandoned.to_string();
    let (step, error) = match abandoned {
        Abandoned::TimedOut(step) => {
            let plugin = step.plugin.to_string();
            (step, CallError::TimedOut { plugin, reason: reason.clone() })
        }
        Abandoned::ThreadChanged(step, _) => {
            let plugin = step.plugin.to_string();
            (step, CallError::ThreadChanged { plugin, reason: reason.clone() })
        }
        Abandoned::Died => return CallError::ThreadDied { plugin: "the agent".to_owned(), reason },
    };
    if let Some(plugin) = find(&step.plugin) {
        match error {
            CallError::TimedOut { .. } => plugin.count_timeout(step.method),
            _ => plugin.count_failure(step.method),
        }
        // Its instance is poisoned, and nothing tells when there will be another.
        if step.method == Method::Create {
            plugin.disable(format!("it could not be restarted after a panic: {reason}"));
        }
    }
    tracing::error!(plugin = %step.plugin, method = %step.method, "call abandoned: {reason}");
    error
}
