//! Ids.

use std::fmt;

message! {
    /// Id of a container: its own name and those of the containers it is nested in.
    pub struct ContainerId {
        /// Name of the container, unique among the children of its parent.
        required value: String,
        /// Id of its parent; absent for a top-level container.
        optional parent: Box<ContainerId>,
    }
}

message! {
    /// Id of a framework.
    pub struct FrameworkId {
        required value: String,
    }
}

message! {
    /// Id of an executor.
    pub struct ExecutorId {
        required value: String,
    }
}

message! {
    /// Id of a task.
    pub struct TaskId {
        required value: String,
    }
}

impl ContainerId {
    /// Its top-level ancestor, or itself.
    pub fn root(&self) -> &Self {
        let mut id = self;
        while let Some(parent) = &id.parent {
            id = parent;
        }
        id
    }

    /// Number of its ancestors: 0 for a top-level container.
    pub fn depth(&self) -> usize {
        std::iter::successors(self.parent.as_deref(), |id| id.parent.as_deref()).count()
    }
}

/// Names separated by dots, outermost first: `web.sidecar`.
impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(parent) = &self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(&self.value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_nested_id_knows_its_ancestors() {
        let id: ContainerId = serde_json::from_value(
            json!({"value": "probe", "parent": {"value": "sidecar", "parent": {"value": "web"}}}),
        )
        .unwrap();
        assert_eq!(id.to_string(), "web.sidecar.probe");
        assert_eq!((id.root().value.as_str(), id.depth()), ("web", 2));
        assert_eq!((id.root().root(), id.root().depth()), (id.root(), 0));
    }

    #[test]
    fn an_id_without_a_parent_has_no_parent_field() {
        let id = ContainerId { value: "web".into(), parent: None };
        assert_eq!(serde_json::to_value(&id).unwrap(), json!({"value": "web"}));
    }
}
