//! The native containerizer's part of a record.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_plugin_model::service::Lease;
use cofferdam_plugin_model::{Cgroups, ContainerDetails, Resources, TerminationDetails};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::chain::{ContainerContext, LaunchPlan, Participant};
use crate::containerizer::handle::ContainerHandle;
use crate::containerizer::table::Table;
use crate::keeper::KeeperSlot;
use crate::model::{ContainerClass, Encoded, ProcessId, Record};

/// The native containerizer's part of a record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NativeRecord {
    /// Directory for what is removed when the container ends.
    pub scratch: PathBuf,
    /// The container's cgroups.
    pub cgroups: Cgroups,
    /// The plugins that participate in the container, in chain order.
    pub participants: Vec<Participant>,
    /// Plugins whose cleanup was missed, as the end of the container was forced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<MissedCleanup>,
    /// Where its first process's end is recorded, from its creation until the end is on record here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeper: Option<KeeperSlot>,
    /// Its I/O switchboard, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switchboard: Option<ProcessId>,
    /// Numbers that plugins lease for the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// The merged launch information.
    pub plan: Encoded<LaunchPlan>,
}

/// A cleanup that has not been done yet, of a container that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedCleanup {
    /// The plugin.
    pub plugin: String,
    /// Why it did not clean up.
    pub reason: String,
}

pub(super) type Handle = ContainerHandle<NativeRecord>;
pub(crate) type NativeTable = Table<NativeRecord>;

impl Record<NativeRecord> {
    /// Completes an update: the new resources, and the states that plugins changed.
    pub(super) fn finish_update(&mut self, resources: Resources, states: BTreeMap<String, Json>) {
        self.resources = resources;
        self.updating = None;
        self.set_states(states);
    }

    /// Takes over the states that plugins changed.
    pub(super) fn set_states(&mut self, states: BTreeMap<String, Json>) {
        for (plugin, state) in states {
            let mut participants = self.part.participants.iter_mut();
            if let Some(participant) = participants.find(|participant| participant.plugin == plugin) {
                participant.state = state;
            }
        }
    }

    /// Takes over which plugins take part. Their states are those on record, which plugins may have put meanwhile.
    pub(super) fn set_participants(&mut self, mut participants: Vec<Participant>) {
        for participant in &mut participants {
            let mut known = self.part.participants.iter();
            if let Some(known) = known.find(|known| known.plugin == participant.plugin) {
                participant.state = known.state.clone();
            }
        }
        self.part.participants = participants;
    }

    /// Whether it has no cgroups of its own but lives in those of its parent.
    pub(super) fn shares_cgroups(&self) -> bool {
        let request = &self.request;
        self.id.is_nested() && (request.linux.share_cgroups || request.class == ContainerClass::Debug)
    }
}

impl Handle {
    /// Shows which cleanups were missed.
    pub(super) fn show_missed(&self) {
        let record = self.record();
        let missed = record.part.missed.iter();
        let show = |missed: &MissedCleanup| {
            let MissedCleanup { plugin, reason } = missed;
            format!("the end was forced; plugin `{plugin}` cleans up when it can be called again: {reason}")
        };
        self.set_cleanup_errors(missed.map(show).collect());
    }

    /// The container as the chain needs it.
    pub(super) fn context(&self) -> ContainerContext {
        let record = self.record();
        ContainerContext {
            id: record.id.clone(),
            details: ContainerDetails {
                class: record.request.class,
                pid: record.process.map(|process| process.pid),
                uid: record.uid,
                gid: record.gid,
                sandbox: record.sandbox.clone(),
                scratch: record.part.scratch.clone(),
                rootfs: record.request.rootfs.clone(),
                cgroups: record.part.cgroups.clone(),
                shares_cgroups: record.shares_cgroups(),
                resources: record.resources.clone(),
                labels: record.request.labels.clone(),
                termination: record.cause.as_ref().map(|cause| TerminationDetails {
                    status: None,
                    reason: cause.reason.as_ref().map(|reason| reason.mesos_name().to_owned()),
                    message: cause.message.clone(),
                }),
                state: Json::Null,
            },
            participants: record.part.participants.clone(),
        }
    }
}
