//! Recovery of plugins that start or restart: the existing containers, and the verdicts on them.
//!
//! A plugin recovers the containers of all containerizers at once: [`Recoverers`] has a [`TableRecoverer`] for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cofferdam_plugin_model::service::{AcquireLease, Lease};
use cofferdam_plugin_model::{ContainerDetails, RecoverReply, RecoverRequest, Recovered, Verdict};
use parking_lot::Mutex;
use semver::Version;
use serde_json::Value as Json;

use super::leases;
use super::record_part::RecordPart;
use super::table::Table;
use crate::chain::Participant;
use crate::ledger::Ledger;
use crate::model::{ContainerId, Phase, Record};
use crate::plugin::{Durability, LeaseError, MAX_STATE, Recoverer, StateError};

/// Gives plugins the containers of a table.
pub(crate) struct TableRecoverer<P> {
    pub(crate) table: Arc<Table<P>>,
    pub(crate) ledger: Arc<Ledger>,
    /// Versions of the plugins in the chain, for states that they migrate.
    pub(crate) versions: Arc<BTreeMap<String, Version>>,
}

/// The containers of one containerizer, for its plugins.
pub(crate) trait TableView: Send + Sync {
    /// Whether it has a container of that id.
    fn has(&self, container: &str) -> bool;
    fn request(&self, plugin: &str) -> RecoverRequest;
    fn apply_recovery(&self, plugin: &str, reply: RecoverReply);
    fn state(&self, plugin: &str, container: &str) -> Json;
    fn keep_state(
        &self,
        plugin: &str,
        container: &str,
        state: Json,
        durability: Durability,
    ) -> Result<(), StateError>;
    /// Leases a number that is none of `used`, which are leased for containers of other tables.
    fn acquire_lease(
        &self,
        plugin: &str,
        request: AcquireLease,
        used: &BTreeSet<u32>,
    ) -> Result<Lease, LeaseError>;
    fn release_lease(&self, plugin: &str, pool: &str, number: u32) -> Result<(), LeaseError>;
    fn leases(&self, pool: &str) -> Vec<Lease>;
}

/// Gives plugins the containers of all tables.
pub(crate) struct Recoverers {
    pub(crate) tables: Vec<Box<dyn TableView>>,
    /// Held while a number is leased, so that it is given once.
    pub(crate) acquiring: Mutex<()>,
}

impl Recoverers {
    pub(crate) fn new(tables: Vec<Box<dyn TableView>>) -> Self {
        Self { tables, acquiring: Mutex::default() }
    }

    /// The table that has a container.
    fn table(&self, container: &str) -> Option<&dyn TableView> {
        self.tables.iter().map(AsRef::as_ref).find(|table| table.has(container))
    }
}

impl Recoverer for Recoverers {
    fn request(&self, plugin: &str) -> RecoverRequest {
        let mut all = RecoverRequest::default();
        for table in &self.tables {
            let RecoverRequest { containers, orphans, .. } = table.request(plugin);
            all.containers.extend(containers);
            all.orphans.extend(orphans);
        }
        all
    }

    fn apply_recovery(&self, plugin: &str, reply: RecoverReply) {
        self.tables.iter().for_each(|table| table.apply_recovery(plugin, reply.clone()));
    }

    fn state(&self, plugin: &str, container: &str) -> Json {
        self.table(container).map(|table| table.state(plugin, container)).unwrap_or_default()
    }

    fn keep_state(
        &self,
        plugin: &str,
        container: &str,
        state: Json,
        durability: Durability,
    ) -> Result<(), StateError> {
        let not_participant =
            || StateError::NotParticipant { plugin: plugin.to_owned(), container: container.to_owned() };
        let table = self.table(container).ok_or_else(not_participant)?;
        table.keep_state(plugin, container, state, durability)
    }

    fn acquire_lease(&self, plugin: &str, request: AcquireLease) -> Result<Lease, LeaseError> {
        let _acquiring = self.acquiring.lock();
        let used = Recoverer::leases(self, &request.pool).into_iter().map(|lease| lease.number).collect();
        match self.table(request.container.as_str()) {
            Some(table) => table.acquire_lease(plugin, request, &used),
            None => {
                let container = request.container;
                Err(LeaseError::NotParticipant { plugin: plugin.to_owned(), container })
            }
        }
    }

    fn release_lease(&self, plugin: &str, pool: &str, number: u32) -> Result<(), LeaseError> {
        self.tables.iter().try_for_each(|table| table.release_lease(plugin, pool, number))
    }

    fn leases(&self, pool: &str) -> Vec<Lease> {
        let mut all: Vec<Lease> = self.tables.iter().flat_map(|table| table.leases(pool)).collect();
        all.sort_by_key(|lease| lease.number);
        all
    }
}

impl<P: RecordPart> TableView for TableRecoverer<P> {
    fn has(&self, container: &str) -> bool {
        ContainerId::parse(container).is_ok_and(|id| self.table.get(&id).is_some())
    }

    fn request(&self, plugin: &str) -> RecoverRequest {
        let mut request = RecoverRequest::default();
        for handle in self.table.all() {
            let record = handle.record();
            let mut participants = record.part.participants().iter();
            let Some(participant) = participants.find(|participant| participant.plugin == plugin) else {
                continue;
            };
            match record.phase {
                // Not cleaned up yet.
                Phase::Ended if record.part.missed().iter().any(|missed| missed.plugin == plugin) => {
                    request.orphans.push(record.id.clone());
                }
                Phase::Ended => {}
                Phase::Running if handle.stop_request().is_none() && !participant.excluded => {
                    request.containers.push(Recovered {
                        id: record.id.clone(),
                        details: ContainerDetails {
                            state: participant.state.clone(),
                            ..handle.context().details
                        },
                        written_by: (!participant.state.is_null()).then(|| participant.version.clone()),
                    });
                }
                // A container that was being launched when the plugin restarted is reported as an orphan: whether
                // it will run is not known yet. So is one that was launched without the plugin.
                _ => request.orphans.push(record.id.clone()),
            }
        }
        request
    }

    fn apply_recovery(&self, plugin: &str, mut reply: RecoverReply) {
        let version = self.versions.get(plugin);
        let serves = |participant: &&Participant| participant.plugin == plugin && !participant.excluded;
        for handle in self.table.all() {
            let record = handle.record();
            let Some(participant) = record.part.participants().iter().find(serves) else { continue };
            if record.phase != Phase::Running {
                continue;
            }
            let verdict = reply.verdicts.remove(handle.id());
            let mut changed = participant.clone();
            apply(&mut changed, verdict.clone(), version);
            if changed == *participant {
                continue;
            }
            // The record may have changed meanwhile; the verdict concerns the plugin's own entry only.
            let written = handle.update_persisted(&self.ledger, |record| {
                let mut participants = record.part.participants_mut().iter_mut();
                if let Some(participant) = participants.find(|participant| participant.plugin == plugin) {
                    apply(participant, verdict.clone(), version);
                }
            });
            if let Err(error) = written {
                // The next recovery repeats the question with the state on disk.
                tracing::error!(container = %handle.id(), plugin, "cannot record the plugin's new state: {error}");
            }
        }
    }

    fn state(&self, plugin: &str, container: &str) -> Json {
        let handle = ContainerId::parse(container).ok().and_then(|id| self.table.get(&id));
        let Some(record) = handle.map(|handle| handle.record()) else { return Json::Null };
        let mut participants = record.part.participants().iter();
        let participant = participants.find(|participant| participant.plugin == plugin);
        participant.map(|participant| participant.state.clone()).unwrap_or_default()
    }

    fn keep_state(
        &self,
        plugin: &str,
        container: &str,
        state: Json,
        durability: Durability,
    ) -> Result<(), StateError> {
        let names = || (plugin.to_owned(), container.to_owned());
        let size = serde_json::to_vec(&state).map_or(0, |encoded| encoded.len());
        if size > MAX_STATE {
            let (plugin, container) = names();
            return Err(StateError::TooLarge { plugin, container, size });
        }
        let is_own = |participant: &Participant| participant.plugin == plugin;
        let handle = ContainerId::parse(container).ok().and_then(|id| self.table.get(&id));
        let handle = handle.filter(|handle| handle.record().part.participants().iter().any(is_own));
        let Some(handle) = handle else {
            let (plugin, container) = names();
            return Err(StateError::NotParticipant { plugin, container });
        };
        let change = |record: &mut Record<P>| {
            let mut participants = record.part.participants_mut().iter_mut();
            if let Some(participant) = participants.find(|participant| is_own(participant)) {
                participant.state = state;
                if let Some(version) = self.versions.get(plugin) {
                    participant.version = version.clone();
                }
            }
        };
        match durability {
            Durability::Immediate => {
                handle.update_persisted(&self.ledger, change).map_err(|source| {
                    let (plugin, container) = names();
                    StateError::Write { plugin, container, source: Box::new(source) }
                })?;
            }
            Durability::NextWrite => handle.update_in_memory(change),
        }
        Ok(())
    }

    fn acquire_lease(
        &self,
        plugin: &str,
        request: AcquireLease,
        used: &BTreeSet<u32>,
    ) -> Result<Lease, LeaseError> {
        leases::acquire(&self.table, &self.ledger, plugin, request, used)
    }

    fn release_lease(&self, plugin: &str, pool: &str, number: u32) -> Result<(), LeaseError> {
        leases::release(&self.table, &self.ledger, plugin, pool, number)
    }

    fn leases(&self, pool: &str) -> Vec<Lease> {
        leases::list(&self.table, pool)
    }
}

fn apply(participant: &mut Participant, verdict: Option<Verdict>, version: Option<&Version>) {
    match verdict {
        Some(Verdict::Refused { reason }) => participant.unavailable = Some(reason),
        Some(Verdict::Migrated { state }) => {
            participant.state = state;
            participant.unavailable = None;
            if let Some(version) = version {
                participant.version = version.clone();
            }
        }
        _ => participant.unavailable = None,
    }
}
