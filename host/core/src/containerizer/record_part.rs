//! What all containerizers need of their parts of a record: above all what plugins know of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_plugin_model::service::Lease;
use cofferdam_plugin_model::{Cgroups, ContainerDetails, TerminationDetails};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::handle::ContainerHandle;
use crate::chain::{ContainerContext, Participant};
use crate::model::{ProcessId, Record};
use crate::plugin::CallError;

/// A cleanup that has not been done yet, of a container that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedCleanup {
    /// The plugin.
    pub plugin: String,
    /// Why it did not clean up.
    pub reason: String,
}

impl From<&CallError> for MissedCleanup {
    fn from(error: &CallError) -> Self {
        Self { plugin: error.plugin().to_owned(), reason: error.to_string() }
    }
}

/// A containerizer's part of a record.
pub(crate) trait RecordPart: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The plugins that participate in the container, in chain order.
    fn participants(&self) -> &Vec<Participant>;
    fn participants_mut(&mut self) -> &mut Vec<Participant>;
    /// Numbers that plugins lease for the container.
    fn leases(&self) -> &Vec<Lease>;
    fn leases_mut(&mut self) -> &mut Vec<Lease>;
    /// Plugins whose cleanup was missed.
    fn missed(&self) -> &[MissedCleanup];
    fn set_missed(&mut self, missed: Vec<MissedCleanup>);
    /// The I/O switchboard of the container, if it has one.
    fn switchboard(&self) -> Option<ProcessId>;

    /// Whether the record of a failed launch is needed after the end of the container.
    fn is_needed_after_end(&self) -> bool {
        !self.missed().is_empty()
    }

    /// The container has ended: forgets what is only of use before that.
    fn end(&mut self, missed: Vec<MissedCleanup>) {
        self.set_missed(missed);
    }

    /// Takes over the states that plugins changed.
    fn set_states(&mut self, states: BTreeMap<String, Json>) {
        for (plugin, state) in states {
            let mut participants = self.participants_mut().iter_mut();
            if let Some(participant) = participants.find(|participant| participant.plugin == plugin) {
                participant.state = state;
            }
        }
    }

    /// Takes over which plugins take part. Their states are those on record, which plugins may have put meanwhile.
    fn set_participants(&mut self, mut participants: Vec<Participant>) {
        for participant in &mut participants {
            let mut known = self.participants().iter();
            if let Some(known) = known.find(|known| known.plugin == participant.plugin) {
                participant.state = known.state.clone();
            }
        }
        *self.participants_mut() = participants;
    }

    /// Directory for what is removed when the container ends.
    fn scratch(&self) -> PathBuf {
        PathBuf::new()
    }

    /// The cgroups that plugins may change.
    fn cgroups(&self) -> Cgroups {
        Cgroups::default()
    }

    /// Whether the container has no cgroups of its own but lives in those of its parent.
    fn shares_cgroups(_: &Record<Self>) -> bool {
        false
    }
}

impl<P: RecordPart> ContainerHandle<P> {
    /// Shows which cleanups were missed.
    pub(super) fn show_missed(&self) {
        let record = self.record();
        let show = |missed: &MissedCleanup| {
            let MissedCleanup { plugin, reason } = missed;
            format!("the end was forced; plugin `{plugin}` cleans up when it can be called again: {reason}")
        };
        self.set_cleanup_errors(record.part.missed().iter().map(show).collect());
    }

    /// The container as the chain needs it.
    pub(super) fn context(&self) -> ContainerContext {
        self.context_for(Clone::clone)
    }

    /// As [`Self::context`], with some of its participants.
    pub(super) fn context_for(
        &self,
        select: impl FnOnce(&Vec<Participant>) -> Vec<Participant>,
    ) -> ContainerContext {
        let record = self.record();
        ContainerContext {
            id: record.id.clone(),
            details: ContainerDetails {
                class: record.request.class,
                pid: record.process.map(|process| process.pid),
                uid: record.uid,
                gid: record.gid,
                sandbox: record.sandbox.clone(),
                scratch: record.part.scratch(),
                rootfs: record.request.rootfs.clone(),
                cgroups: record.part.cgroups(),
                shares_cgroups: P::shares_cgroups(&record),
                resources: record.resources.clone(),
                labels: record.request.labels.clone(),
                termination: record.cause.as_ref().map(|cause| TerminationDetails {
                    status: None,
                    reason: cause.reason.as_ref().map(|reason| reason.mesos_name().to_owned()),
                    message: cause.message.clone(),
                }),
                state: Json::Null,
            },
            participants: select(record.part.participants()),
        }
    }
}
