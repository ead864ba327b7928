//! The native containerizer's part of a record.

use std::path::PathBuf;

use cofferdam_plugin_model::service::Lease;
use cofferdam_plugin_model::{Cgroups, ImageRoot};
use serde::{Deserialize, Serialize};

use crate::chain::{LaunchPlan, Participant};
use crate::containerizer::handle::ContainerHandle;
use crate::containerizer::record_part::{MissedCleanup, RecordPart};
use crate::containerizer::table::Table;
use crate::keeper::KeeperSlot;
use crate::model::{ContainerClass, Encoded, ProcessId, Record};
use crate::provisioner::Digest;

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
    /// Whether its recorded process is the one that sets it up, and not its command yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_setup: bool,
    /// Its I/O switchboard, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switchboard: Option<ProcessId>,
    /// Numbers that plugins lease for the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// The root file system that was assembled from its image, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_root: Option<ImageRoot>,
    /// Digest of the manifest of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_manifest: Option<Digest>,
    /// The merged launch information.
    pub plan: Encoded<LaunchPlan>,
}

pub(super) type Handle = ContainerHandle<NativeRecord>;
pub(crate) type NativeTable = Table<NativeRecord>;

impl Record<NativeRecord> {
    /// Whether it has no cgroups of its own but lives in those of its parent.
    pub(super) fn shares_cgroups(&self) -> bool {
        let request = &self.request;
        self.id.is_nested() && (request.linux.share_cgroups || request.class == ContainerClass::Debug)
    }
}

impl RecordPart for NativeRecord {
    fn participants(&self) -> &Vec<Participant> {
        &self.participants
    }

    fn participants_mut(&mut self) -> &mut Vec<Participant> {
        &mut self.participants
    }

    fn leases(&self) -> &Vec<Lease> {
        &self.leases
    }

    fn leases_mut(&mut self) -> &mut Vec<Lease> {
        &mut self.leases
    }

    fn missed(&self) -> &[MissedCleanup] {
        &self.missed
    }

    fn set_missed(&mut self, missed: Vec<MissedCleanup>) {
        self.missed = missed;
    }

    fn switchboard(&self) -> Option<ProcessId> {
        self.switchboard
    }

    fn end(&mut self, missed: Vec<MissedCleanup>) {
        self.keeper = None;
        self.set_missed(missed);
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn cgroups(&self) -> Cgroups {
        self.cgroups.clone()
    }

    fn shares_cgroups(record: &Record<Self>) -> bool {
        record.shares_cgroups()
    }
}
