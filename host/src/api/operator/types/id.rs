//! What containers, and those who own them, are called.

use std::fmt;

message! {
    /// The name of a container, with those of all it is nested in.
    pub struct ContainerId {
        /// This container's own name, unique below its parent.
        required value: String,
        /// The container this one is nested in; absent for a top-level container.
        optional parent: Box<ContainerId>,
    }
}

message! {
    /// The framework that owns a container. This agent has none; clients find it in answers of others.
    pub struct FrameworkId {
        /// Its name.
        required value: String,
    }
}

message! {
    /// The executor a container runs. This agent has none; clients find it in answers of others.
    pub struct ExecutorId {
        /// Its name.
        required value: String,
    }
}

impl ContainerId {
    /// The top-level container that holds this one: itself, when it has no parent.
    pub fn root(&self) -> &Self {
        let mut id = self;
        while let Some(parent) = &id.parent {
            id = parent;
        }
        id
    }

    /// How many containers this one is nested in: 0 for a top-level container.
    pub fn depth(&self) -> usize {
        std::iter::successors(self.parent.as_deref(), |id| id.parent.as_deref()).count()
    }
}

/// Outermost first, separated by periods: `web.sidecar`.
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
    fn an_id_without_a_parent_does_not_mention_one() {
        let id = ContainerId { value: "web".into(), parent: None };
        assert_eq!(serde_json::to_value(&id).unwrap(), json!({"value": "web"}));
    }
}
