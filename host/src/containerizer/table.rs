//! All containers of the agent, and what a plugin that starts anew is told of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cofferdam_plugin_model::{RecoverReply, RecoverRequest, Recovered, Subject, Verdict};
use semver::Version;

use super::cell::Cell;
use crate::chain::Party;
use crate::container::{ContainerId, Phase};
use crate::ledger::{Ledger, Record};
use crate::plugin::Recoverer;

/// All containers of the agent.
#[derive(Default)]
pub struct Table {
    cells: Mutex<BTreeMap<ContainerId, Arc<Cell>>>,
    ledger: OnceLock<Arc<Ledger>>,
    versions: OnceLock<BTreeMap<String, Version>>,
}

impl Table {
    /// An empty table whose changes go to `ledger`.
    #[must_use]
    pub fn new(ledger: Arc<Ledger>) -> Self {
        let table = Self::default();
        // It was made a moment ago, so nobody has set it.
        let _ = table.ledger.set(ledger);
        table
    }

    /// Tells the table which version of each plugin is in the house, so that it can note who wrote a state.
    pub fn set_versions(&self, versions: BTreeMap<String, Version>) {
        // The house is set up once.
        let _ = self.versions.set(versions);
    }

    pub(super) fn get(&self, id: &ContainerId) -> Option<Arc<Cell>> {
        self.lock().get(id).cloned()
    }

    /// Every container, parents before children.
    pub(super) fn all(&self) -> Vec<Arc<Cell>> {
        self.lock().values().cloned().collect()
    }

    /// A container and all that are nested in it.
    pub(super) fn within(&self, id: &ContainerId) -> Vec<Arc<Cell>> {
        let cells = self.lock();
        cells.get(id).into_iter().chain(below(&cells, id)).cloned().collect()
    }

    /// The containers that are nested directly in one.
    pub(super) fn children(&self, id: &ContainerId) -> Vec<Arc<Cell>> {
        let depth = id.values().count() + 1;
        below(&self.lock(), id).filter(|cell| cell.id().values().count() == depth).cloned().collect()
    }

    /// Gives a container a place. `None` when its id is taken.
    pub(super) fn admit(&self, record: Record) -> Option<Arc<Cell>> {
        let mut cells = self.lock();
        if cells.contains_key(&record.id) {
            return None;
        }
        let cell = Arc::new(Cell::new(record));
        cells.insert(cell.id().clone(), Arc::clone(&cell));
        Some(cell)
    }

    /// Forgets a container and all that are nested in it.
    pub(super) fn forget(&self, id: &ContainerId) {
        let mut cells = self.lock();
        let gone: Vec<ContainerId> = below(&cells, id).map(|cell| cell.id().clone()).collect();
        for id in gone.iter().chain([id]) {
            cells.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All containers nested in one, however deep. Their ids lie together: they begin with its id and a dot.
fn below<'a>(
    cells: &'a BTreeMap<ContainerId, Arc<Cell>>,
    id: &ContainerId,
) -> impl Iterator<Item = &'a Arc<Cell>> + use<'a> {
    let first = format!("{id}.");
    // The character after the dot.
    let end = format!("{id}/");
    cells
        .range::<str, _>((Bound::Included(first.as_str()), Bound::Excluded(end.as_str())))
        .map(|(_, cell)| cell)
}

impl Recoverer for Table {
    fn request(&self, plugin: &str) -> RecoverRequest {
        let mut request = RecoverRequest::default();
        for cell in self.all() {
            let record = cell.record();
            let Some(party) = record.parties.iter().find(|party| party.plugin == plugin) else { continue };
            match record.phase {
                Phase::Ended => {}
                Phase::Running if cell.wish().is_none() && !party.left_out => {
                    request.containers.push(Recovered {
                        id: record.id.clone(),
                        subject: Subject { state: party.state.clone(), ..cell.case().subject },
                        resources: record.resources.clone(),
                        written_by: (!party.state.is_null()).then(|| party.version.clone()),
                    })
                }
                // A container on its way up when its plugin was made anew counts as one that will be cleaned
                // up: whether it gets up is not known yet. So does one that was launched without it.
                _ => request.orphans.push(record.id.clone()),
            }
        }
        request
    }

    fn settle(&self, plugin: &str, mut reply: RecoverReply) {
        let version = self.versions.get().and_then(|versions| versions.get(plugin));
        for cell in self.all() {
            let record = cell.record();
            let served = record.parties.iter().find(|party| party.plugin == plugin && !party.left_out);
            let Some(party) = served.filter(|_| record.phase == Phase::Running) else { continue };
            let verdict = reply.verdicts.remove(cell.id());
            let mut settled = party.clone();
            settle(&mut settled, verdict.clone(), version);
            let Some(ledger) = self.ledger.get().filter(|_| settled != *party) else { continue };
            // The record may have changed meanwhile; what is settled is the plugin's part in it.
            let kept = cell.amend(ledger, |record| {
                let party = record.parties.iter_mut().find(|party| party.plugin == plugin);
                party.into_iter().for_each(|party| settle(party, verdict.clone(), version));
            });
            if let Err(error) = kept {
                // The next recovery will ask the plugin again, with the state that is still on disk.
                tracing::error!(container = %cell.id(), plugin, "cannot keep a plugin's new state: {error}");
            }
        }
    }
}

/// Makes of a party what its plugin said of the container, as the version that says so.
fn settle(party: &mut Party, verdict: Option<Verdict>, version: Option<&Version>) {
    match verdict {
        Some(Verdict::Refused { reason }) => party.absent = Some(reason),
        Some(Verdict::Migrated { state }) => {
            party.state = state;
            party.absent = None;
            if let Some(version) = version {
                party.version = version.clone();
            }
        }
        _ => party.absent = None,
    }
}
