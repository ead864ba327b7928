//! Names that agents of Mesos give, or gave, to their containers, which have no labels.
//!
//! ```text
//! mesos-CONTAINER                     until 0.22, and since 1.4
//! mesos-AGENT.CONTAINER               0.23 to 1.3
//! mesos-AGENT.CONTAINER.executor      likewise, for an executor in a container
//! mesos-CONTAINER.executor            since 1.4
//! ```
//!
//! Only a name with an agent tells whose a container is. Others are left alone: several agents can share an engine.

use super::spec::{EXECUTOR_SUFFIX, PREFIX};
use crate::model::ContainerId;

/// The parts of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OlderName<'n> {
    /// The agent, if the name has one.
    pub(super) agent: Option<&'n str>,
    pub(super) id: ContainerId,
}

/// Reads a name as the engine lists it. `None` for one that no agent of Mesos gives: the last part has to be a UUID.
pub(super) fn parse(listed: &str) -> Option<OlderName<'_>> {
    let name = listed.strip_prefix('/')?.strip_prefix(PREFIX)?;
    let name = name.strip_suffix(EXECUTOR_SUFFIX).unwrap_or(name);
    let (agent, id) = match name.split_once('.') {
        Some((agent, id)) => (Some(agent).filter(|agent| !agent.is_empty()), id),
        None => (None, name),
    };
    if !is_uuid(id) || (agent.is_none() && name.contains('.')) {
        return None;
    }
    Some(OlderName { agent, id: ContainerId::parse(id).ok()? })
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "d9ce0ba0-91cd-4b5c-8b32-b5d9b2f6a1cc";

    #[test]
    fn names_of_all_versions_are_read() {
        for (name, agent) in [
            (format!("/mesos-{ID}"), None),
            (format!("/mesos-{ID}.executor"), None),
            (format!("/mesos-20150320-S0.{ID}"), Some("20150320-S0")),
            (format!("/mesos-20150320-S0.{ID}.executor"), Some("20150320-S0")),
        ] {
            let id = ContainerId::parse(ID).unwrap();
            assert_eq!(parse(&name), Some(OlderName { agent, id }), "{name}");
        }
    }

    #[test]
    fn other_names_are_of_nobody() {
        for name in [
            "/mesos-web".to_owned(),
            "/mesos-".to_owned(),
            format!("mesos-{ID}"),
            format!("/my-mesos-{ID}"),
            format!("/mesos-{ID}.other"),
            format!("/mesos-.{ID}"),
            format!("/mesos-a.b.{ID}"),
            format!("/mesos-{}", ID.replace('-', "_")),
            format!("/mesos-x{}", &ID[1..]),
        ] {
            assert_eq!(parse(&name), None, "{name}");
        }
    }
}
