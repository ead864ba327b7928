//! Frameworks, executors and tasks, above the containerizer: an executor runs in a container and runs tasks.
//!
//! ```text
//!   clients ──▶ launch, kill, acknowledge ─┐             ┌─▶ supervise ──▶ dyn Containerizer
//!                                          ├─▶ handle ───┤
//!   executors ──▶ serve: subscribe, update ┘   (journal) └─▶ event (to the executor), updates (to clients)
//!                                                 │
//!                                               state    what has happened, and what follows from it: no input and output
//! ```
//!
//! Whatever happens is written to the journal of its executor before anybody hears of it. The next agent reads the journals,
//! and goes on.

mod acknowledge;
mod allocation;
mod change;
mod environment;
mod event;
mod handle;
mod hooks;
mod ids;
mod journal;
mod kill;
mod launch;
mod program;
mod random;
mod recover;
mod serve;
mod state;
mod stats;
mod supervise;
mod token;
mod update;
mod updates;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cofferdam_plugin_model::ContainerId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Mutex as AsyncMutex, broadcast};

pub use acknowledge::AcknowledgeError;
pub use change::FrameworkMessage;
pub use event::{Event, Events};
pub use handle::WriteError;
pub use ids::{ExecutorId, FrameworkId, InvalidName, TaskId};
pub use kill::KillTaskError;
pub use launch::{LaunchTaskError, LaunchTasks, MAX_RUNNING};
pub(crate) use program::Program;
pub use program::{ExecutorProgram, NAME as PROGRAM_NAME, ProgramError};
pub use serve::{Executor, ServeError};
pub use state::{
    ExecutorDescription, ExecutorKind, ExecutorPhase, ExecutorState, Framework, Kill, Task, UpdateRefused,
    add,
};
pub use stats::ExecutorStats;
pub use token::Token;
pub use update::{Source, TaskState, Update, UpdateId, Verdict};
pub use updates::{Notice, StatusUpdate, StatusUpdates};

use crate::blocking::WorkPool;
use crate::config::ExecutorConfig;
use crate::containerizer::Containerizer;
use crate::fatal::FatalErrors;
use crate::hooks::Hooks;
use change::Change;
use handle::Handle;
use journal::Journal;
use stats::Counters;
use token::TokenHash;

/// Name of the socket of the executor API, in a directory of its own below the runtime directory.
pub const SOCKET: &str = "executor.sock";

/// All executors. Cheap to clone.
#[derive(Clone)]
pub struct Executors(Arc<Shared>);

/// Where things of executors are.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// Journals of executors.
    pub(crate) journals: PathBuf,
    /// Directory of the socket of the executor API.
    pub(crate) socket_directory: PathBuf,
}

/// What executors need.
pub(crate) struct Parts {
    pub(crate) containerizer: Arc<dyn Containerizer>,
    pub(crate) fatal: FatalErrors,
    pub(crate) hooks: Hooks,
    pub(crate) work: WorkPool,
    pub(crate) config: ExecutorConfig,
    pub(crate) paths: Paths,
    /// The executor program of this project, if there is one.
    pub(crate) program: Option<Program>,
    /// What identifies the agent.
    pub(crate) agent_id: String,
}

struct Shared {
    containerizer: Arc<dyn Containerizer>,
    fatal: FatalErrors,
    hooks: Hooks,
    /// For the journals.
    work: WorkPool,
    config: ExecutorConfig,
    paths: Paths,
    /// The executor program of this project, if there is one.
    program: Option<Arc<Program>>,
    /// What identifies the agent.
    agent_id: String,
    table: RwLock<Table>,
    /// Tasks whose launch is in progress.
    launching: Mutex<HashSet<(FrameworkId, TaskId)>>,
    /// One launch at a time decides whether a custom executor exists.
    custom: AsyncMutex<()>,
    /// One at a time removes executors that ended long ago.
    removal: AsyncMutex<()>,
    /// Whether a task tries a removal again.
    retries_removal: AtomicBool,
    changes: broadcast::Sender<Change>,
    counters: Arc<Counters>,
}

/// The executors, by what they are looked up by.
#[derive(Default)]
struct Table {
    by_container: BTreeMap<ContainerId, Arc<Handle>>,
    by_token: HashMap<TokenHash, Arc<Handle>>,
}

impl Shared {
    fn handles(&self) -> Vec<Arc<Handle>> {
        self.table.read().by_container.values().cloned().collect()
    }

    fn handle(&self, container: &ContainerId) -> Option<Arc<Handle>> {
        self.table.read().by_container.get(container).cloned()
    }

    /// A handle that is not in the table.
    fn handle_of(&self, state: ExecutorState, journal: Journal) -> Arc<Handle> {
        let (changes, counters, work) = (self.changes.clone(), Arc::clone(&self.counters), self.work.clone());
        Arc::new(Handle::new(state, journal, changes, counters, work))
    }

    fn insert(&self, handle: &Arc<Handle>) {
        let mut table = self.table.write();
        table.by_container.insert(handle.container().clone(), Arc::clone(handle));
        table.by_token.insert(handle.token().clone(), Arc::clone(handle));
    }

    fn remove(&self, handle: &Handle) {
        let mut table = self.table.write();
        table.by_container.remove(handle.container());
        table.by_token.remove(handle.token());
    }

    /// The executors that have a task, those in which it has not ended first.
    fn with_task(&self, framework: Option<&FrameworkId>, task: &TaskId) -> Vec<Arc<Handle>> {
        let mut found: Vec<(bool, Arc<Handle>)> = Vec::new();
        for handle in self.handles() {
            let state = handle.state();
            if framework.is_some_and(|framework| *framework != state.framework.id) {
                continue;
            }
            let ended = state.tasks.get(task).map(|task| task.is_completed());
            drop(state);
            found.extend(ended.map(|ended| (ended, handle)));
        }
        found.sort_by_key(|(ended, _)| *ended);
        found.into_iter().map(|(_, handle)| handle).collect()
    }
}

impl Executors {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { containerizer, fatal, hooks, work, config, paths, program, agent_id } = parts;
        Self(Arc::new(Shared {
            containerizer,
            fatal,
            hooks,
            work,
            config,
            paths,
            program: program.map(Arc::new),
            agent_id,
            table: RwLock::default(),
            launching: Mutex::default(),
            custom: AsyncMutex::default(),
            removal: AsyncMutex::default(),
            retries_removal: AtomicBool::default(),
            changes: broadcast::Sender::new(updates::WAITING),
            counters: Arc::default(),
        }))
    }

    /// Calls `visit` with each executor and its tasks, those that ended long ago excepted, in the order in which they were
    /// launched. None of it is copied, and an executor does not change during its visit, which must not take long.
    pub fn visit(&self, mut visit: impl FnMut(&ExecutorState)) {
        let mut all = self.0.handles();
        all.sort_by_cached_key(|handle| (handle.state().created_unix_ms, handle.container().clone()));
        all.iter().for_each(|handle| visit(&handle.state()));
    }

    /// The executor that runs in a container.
    #[must_use]
    pub fn in_container(&self, container: &ContainerId) -> Option<ExecutorState> {
        self.0.handle(container).map(|handle| handle.state().clone())
    }

    /// The framework, the executor and its name of each container that an executor runs in.
    #[must_use]
    pub fn names(&self) -> BTreeMap<ContainerId, (FrameworkId, ExecutorId, String)> {
        let name = |handle: &Arc<Handle>| {
            let state = handle.state();
            let name = state.executor.info["name"].as_str().unwrap_or_default().to_owned();
            (state.container.clone(), (state.framework.id.clone(), state.executor.id.clone(), name))
        };
        self.0.handles().iter().map(name).collect()
    }

    /// The status updates of a framework, or of all: of each task the first that is not acknowledged. Must be called in a
    /// tokio runtime.
    #[must_use]
    pub fn updates(&self, framework: Option<FrameworkId>) -> StatusUpdates {
        StatusUpdates::new(Arc::clone(&self.0), framework)
    }

    /// Socket of the executor API on the host.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.paths.socket_directory.join(SOCKET)
    }

    /// The agent's copy of the executor program of this project.
    #[must_use]
    pub fn program(&self) -> Option<ExecutorProgram> {
        self.0.program.as_ref()?.copied()
    }

    /// What identifies the agent to executors.
    #[must_use]
    pub fn agent_id(&self) -> &str {
        &self.0.agent_id
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ExecutorConfig {
        &self.0.config
    }
}

/// Runs work to completion even if the caller stops waiting: a client may disconnect at any time.
async fn uncancelled<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Now, in seconds since the Unix epoch.
fn timestamp() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for milliseconds until the year 287396")]
    let millis = crate::model::now_unix_ms() as f64;
    millis / 1000.0
}
