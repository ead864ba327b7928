//! The docker containerizer's part of a record.

use std::collections::BTreeMap;

use cofferdam_plugin_model::service::Lease;
use serde::{Deserialize, Serialize};

use crate::chain::Participant;
use crate::containerizer::handle::ContainerHandle;
use crate::containerizer::record_part::{MissedCleanup, RecordPart};
use crate::containerizer::table::Table;
use crate::model::ProcessId;

/// The docker containerizer's part of a record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerRecord {
    /// Name of the container in the engine.
    pub name: String,
    /// Whether the engine was asked to create it: then it may exist.
    pub requested: bool,
    /// Its id in the engine, if that is known.
    pub engine_id: Option<String>,
    /// The logger, if there is one.
    pub participants: Vec<Participant>,
    /// Numbers that the logger leases for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// Whether the logger missed its cleanup, as the end of the container was forced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<MissedCleanup>,
    /// Whether its launch was given up before the engine had answered: then the engine may have it still.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub abandoned: bool,
    /// Of a launch that was given up: whether its record stays when the engine has removed it, as the one who launched it does not
    /// know of its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Its addresses, by network.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<String, Vec<String>>,
    /// Its I/O switchboard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switchboard: Option<ProcessId>,
}

pub(super) type Handle = ContainerHandle<DockerRecord>;
pub(crate) type DockerTable = Table<DockerRecord>;

impl RecordPart for DockerRecord {
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

    fn is_needed_after_end(&self) -> bool {
        self.abandoned || !self.missed.is_empty()
    }

    fn switchboard(&self) -> Option<ProcessId> {
        self.switchboard
    }
}
