//! How a container ended.

use serde_json::Value as Json;

use super::resources::encode_values;
use crate::api::operator::types as wire;
use cofferdam_core::model::{Reason, Termination};

/// Encodes a termination. Where Mesos has no reason to name, `reason` is absent and the message has to do.
pub(in crate::api::operator) fn termination(termination: &Termination) -> wire::Termination {
    use wire::TaskState as State;
    let (state, reason) = match &termination.reason {
        None => (None, None),
        Some(Reason::Killed | Reason::ParentEnded) => (Some(State::TaskKilled), None),
        Some(Reason::LaunchFailed) => {
            (Some(State::TaskFailed), Some(wire::Reason::ReasonContainerLaunchFailed))
        }
        Some(Reason::Limitation(name)) => {
            let known = serde_json::from_value(Json::from(name.as_str()));
            (Some(State::TaskFailed), Some(known.unwrap_or(wire::Reason::ReasonContainerLimitation)))
        }
        Some(Reason::Unrecoverable | Reason::Rebooted) => {
            (Some(State::TaskLost), Some(wire::Reason::ReasonAgentRestarted))
        }
    };
    let resources = encode_values(&termination.limited);
    wire::Termination {
        exit_status: termination.status,
        state,
        reason,
        limitation: (!resources.is_empty()).then_some(wire::TaskResourceLimitation { resources }),
        message: termination.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use cofferdam_core::model::Value;

    #[test]
    fn a_command_that_exited_has_only_its_status() {
        let exited = Termination { status: Some(256), ..Termination::default() };
        assert_eq!(serde_json::to_value(termination(&exited)).unwrap(), json!({"exit_status": 256}));
    }

    #[test]
    fn a_limitation_keeps_a_mesos_reason_and_replaces_others() {
        let limited = |reason: &str| Termination {
            status: Some(9),
            reason: Some(Reason::Limitation(reason.to_owned())),
            limited: BTreeMap::from([
                ("mem".to_owned(), Value::Scalar(65.5)),
                ("odd".to_owned(), Value::Scalar(f64::NAN)),
            ]),
            ..Termination::default()
        };
        let known =
            serde_json::to_value(termination(&limited("REASON_CONTAINER_LIMITATION_MEMORY"))).unwrap();
        assert_eq!(
            known,
            json!({"exit_status": 9, "state": "TASK_FAILED", "reason": "REASON_CONTAINER_LIMITATION_MEMORY",
                   "limitation": {"resources": [{"name": "mem", "type": "SCALAR", "scalar": {"value": 65.5}}]}})
        );
        let unknown = termination(&limited("REASON_OF_A_PLUGIN"));
        assert_eq!(unknown.reason, Some(wire::Reason::ReasonContainerLimitation));
    }
}
