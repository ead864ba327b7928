//! Containers of which this agent cannot read the record, as it was written by another version or is no record at all.
//!
//! They may be healthy, so nothing is done to them, nor to those nested in them: their processes, cgroups and directories
//! stay, and their ids are taken. An operator resolves that, as docs/operator.md describes.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::model::ContainerId;

/// The ids, and why their records cannot be read.
#[derive(Default)]
pub(crate) struct Foreign(Mutex<BTreeMap<ContainerId, String>>);

impl Foreign {
    pub(super) fn add(&self, id: ContainerId, reason: String) {
        self.0.lock().insert(id, reason);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// The one that a container is or is nested in, with the reason.
    pub(super) fn containing(&self, id: &ContainerId) -> Option<(ContainerId, String)> {
        let foreign = self.0.lock();
        if foreign.is_empty() {
            return None;
        }
        let mut next = Some(id.clone());
        while let Some(id) = next {
            if let Some(reason) = foreign.get(&id) {
                return Some((id, reason.clone()));
            }
            next = id.parent();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_in_a_foreign_one_are_foreign() {
        let id = |id: &str| ContainerId::parse(id).unwrap();
        let foreign = Foreign::default();
        assert!(foreign.is_empty() && foreign.containing(&id("pod")).is_none());
        foreign.add(id("pod.web"), "its version".into());
        for inside in ["pod.web", "pod.web.sub.sub"] {
            assert_eq!(foreign.containing(&id(inside)), Some((id("pod.web"), "its version".into())));
        }
        for outside in ["pod", "pod.other", "pod.webs", "web"] {
            assert_eq!(foreign.containing(&id(outside)), None);
        }
    }
}
