//! Launching tasks: their executor exists, or is launched.

use std::sync::Arc;

use cofferdam_plugin_model::ContainerId;

use super::event::Event;
use super::handle::{Handle, WriteError};
use super::ids::{ExecutorId, FrameworkId, TaskId};
use super::journal::Journal;
use super::program::{NAME, ProgramError};
use super::state::{
    Delivery, Entry, ExecutorDescription, ExecutorKind, ExecutorPhase, ExecutorState, Framework, Task,
};
use super::token::Token;
use super::update::{TaskState, Verdict};
use super::{Executors, Shared, environment, random, supervise, timestamp, uncancelled};
use crate::error_chain;
use crate::model::{InvalidRequest, Request, now_unix_ms};

/// Executors that may be known at a time, with those that ended and whose updates are not acknowledged.
const MAX_EXECUTORS: usize = 20_000;

/// Tasks of an executor that may be known at a time.
const MAX_TASKS: usize = 10_000;

/// Tasks that a default executor may run at a time: it waits for the container of each by a request of its own.
pub const MAX_RUNNING: usize = 256;

/// A request to launch tasks of one executor.
#[derive(Debug, Clone)]
pub struct LaunchTasks {
    /// Their framework.
    pub framework: Framework,
    /// Their executor.
    pub executor: ExecutorDescription,
    /// The container of the executor, should it have to be launched. The agent sets its id, its resources, what it has to
    /// know, and the command of an executor of its own.
    pub request: Request,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Whether the executor gets them as a group.
    pub group: bool,
}

/// Why tasks were not launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchTaskError {
    /// There is such a task.
    #[error(
        "framework `{framework}` has a task `{task}` already, or not all of its updates are acknowledged"
    )]
    Duplicate {
        /// The framework.
        framework: FrameworkId,
        /// The task.
        task: TaskId,
    },
    /// There is such an executor, and it is another one.
    #[error(
        "executor `{executor}` of framework `{framework}` is running with another `executor_info`; use another id, or wait until it has ended"
    )]
    OtherExecutor {
        /// The framework.
        framework: FrameworkId,
        /// The executor.
        executor: ExecutorId,
    },
    /// The executor is about to end.
    #[error(
        "executor `{executor}` of framework `{framework}` is shutting down; launch the task when it has ended"
    )]
    Terminating {
        /// The framework.
        framework: FrameworkId,
        /// The executor.
        executor: ExecutorId,
    },
    /// There are too many executors.
    #[error(
        "the agent knows {MAX_EXECUTORS} executors; acknowledge the status updates of those that have ended, so that they are forgotten"
    )]
    TooManyExecutors,
    /// There are too many tasks.
    #[error(
        "executor `{executor}` has {MAX_TASKS} tasks; acknowledge the status updates of those that have ended"
    )]
    TooManyTasks {
        /// The executor.
        executor: ExecutorId,
    },
    /// There are too many tasks that run.
    #[error(
        "executor `{executor}` of framework `{framework}` has tasks that run; with these there would be more than \
         {MAX_RUNNING}; launch them when others have ended, or with another executor"
    )]
    TooManyRunning {
        /// The framework.
        framework: FrameworkId,
        /// The executor.
        executor: ExecutorId,
    },
    /// A group is too large.
    #[error("the group has {tasks} tasks; an executor of type `DEFAULT` runs at most {MAX_RUNNING}")]
    LargeGroup {
        /// How many tasks it has.
        tasks: usize,
    },
    /// There is no program for executors that the agent generates.
    #[error(
        "this agent has no executor program; put `{NAME}` into the directory `launcher_dir`, or launch the task with an `executor_info`"
    )]
    NoProgram,
    /// The agent could not copy it when it started, nor now.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The container is invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The launch cannot be recorded.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// There are no random numbers.
    #[error("cannot read random numbers")]
    Random(#[source] std::io::Error),
}

impl LaunchTaskError {
    /// Whether the same launch may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Terminating { .. }
                | Self::Program(_)
                | Self::TooManyExecutors
                | Self::TooManyTasks { .. }
                | Self::TooManyRunning { .. }
        )
    }
}

/// Keeps the ids of tasks that are being launched.
struct Reservation {
    shared: Arc<Shared>,
    keys: Vec<(FrameworkId, TaskId)>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut launching = self.shared.launching.lock();
        for key in &self.keys {
            launching.remove(key);
        }
    }
}

impl Executors {
    /// Launches tasks: when it returns, they are recorded, and whatever happens to them is a status update. Disconnecting
    /// (dropping the future) does not cancel that.
    ///
    /// # Errors
    /// [`LaunchTaskError`]; nothing was recorded then.
    pub async fn launch(&self, launch: LaunchTasks) -> Result<(), LaunchTaskError> {
        let shared = Arc::clone(&self.0);
        uncancelled(async move { shared.launch(launch).await }).await
    }
}

impl Shared {
    /// Checks that there is a copy of the executor program; one that could not be made before is made.
    async fn require_program(&self) -> Result<(), LaunchTaskError> {
        let Some(program) = &self.program else { return Err(LaunchTaskError::NoProgram) };
        if program.copied().is_some() {
            return Ok(());
        }
        let program = Arc::clone(program);
        let copied = self.work.run(move || program.require()).await;
        match copied.map_err(WriteError::Lost)?? {
            true => Ok(()),
            false => Err(LaunchTaskError::NoProgram),
        }
    }

    async fn launch(self: &Arc<Self>, launch: LaunchTasks) -> Result<(), LaunchTaskError> {
        let _reserved = self.reserve(&launch)?;
        if launch.executor.kind != ExecutorKind::Custom {
            self.require_program().await?;
        }
        if launch.executor.kind == ExecutorKind::Default && launch.tasks.len() > MAX_RUNNING {
            return Err(LaunchTaskError::LargeGroup { tasks: launch.tasks.len() });
        }
        // The executor of a single task is its own.
        let deciding = match launch.executor.kind.is_of_one_task() {
            true => None,
            false => Some(self.custom.lock().await),
        };
        match self.executor(&launch.framework.id, &launch.executor.id) {
            Some(handle) => {
                // Other executors do not wait for the container of this one.
                drop(deciding);
                self.add_tasks(&handle, launch).await
            }
            None => self.start(launch).await,
        }
    }

    fn reserve(self: &Arc<Self>, launch: &LaunchTasks) -> Result<Reservation, LaunchTaskError> {
        let framework = &launch.framework.id;
        let duplicate =
            |task: &TaskId| LaunchTaskError::Duplicate { framework: framework.clone(), task: task.clone() };
        let mut reservation = Reservation { shared: Arc::clone(self), keys: Vec::new() };
        for task in &launch.tasks {
            let key = (framework.clone(), task.id.clone());
            if !self.launching.lock().insert(key.clone()) {
                return Err(duplicate(&task.id));
            }
            reservation.keys.push(key);
            let known = self.with_task(Some(framework), &task.id);
            let is_open = |handle: &Arc<Handle>| {
                handle.state().tasks.get(&task.id).is_some_and(|task| !task.is_completed())
            };
            if known.iter().any(is_open) {
                return Err(duplicate(&task.id));
            }
        }
        Ok(reservation)
    }

    /// The executor of that id that has not ended.
    pub(super) fn executor(&self, framework: &FrameworkId, executor: &ExecutorId) -> Option<Arc<Handle>> {
        self.handles().into_iter().find(|handle| {
            let state = handle.state();
            state.framework.id == *framework
                && state.executor.id == *executor
                && state.phase != ExecutorPhase::Terminated
        })
    }

    /// Launches an executor for tasks.
    async fn start(self: &Arc<Self>, launch: LaunchTasks) -> Result<(), LaunchTaskError> {
        if self.table.read().by_container.len() >= MAX_EXECUTORS {
            return Err(LaunchTaskError::TooManyExecutors);
        }
        let LaunchTasks { framework, executor, request, tasks, group } = launch;
        let token = Token::generate().map_err(LaunchTaskError::Random)?;
        let container = new_container_id().map_err(LaunchTaskError::Random)?;
        let mut state =
            ExecutorState::new(framework, executor, container.clone(), token.hash(), now_unix_ms());
        state.apply(Entry::Tasks { tasks, group });
        let request = environment::complete(self, &state, &token, request);
        request.check()?;
        let path = self.paths.journals.join(container.as_str());
        let create = self.work.run(move || {
            let journal = Journal::create(&path, &state)?;
            Ok::<_, super::journal::JournalError>((journal, state))
        });
        let created = create.await.map_err(WriteError::from)?;
        let (journal, state) =
            created.map_err(|error| WriteError::Journal { container, source: error.into() })?;
        let handle = self.handle_of(state, journal);
        handle.set_applied(request.resources.clone());
        self.insert(&handle);
        supervise::launched(self, &handle, request);
        Ok(())
    }

    /// Adds tasks to an executor that exists.
    async fn add_tasks(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        launch: LaunchTasks,
    ) -> Result<(), LaunchTaskError> {
        let LaunchTasks { framework, executor, tasks, group, .. } = launch;
        let _operation = handle.operation().await;
        {
            let state = handle.state();
            let ids = || (framework.id.clone(), executor.id.clone());
            // That of a single task ends with its task, and takes no other one.
            let is_generated = |executor: &ExecutorDescription| executor.kind.is_of_one_task();
            if matches!(state.phase, ExecutorPhase::Terminating | ExecutorPhase::Terminated)
                || (is_generated(&state.executor) && is_generated(&executor))
            {
                let (framework, executor) = ids();
                return Err(LaunchTaskError::Terminating { framework, executor });
            }
            if state.executor != executor {
                let (framework, executor) = ids();
                return Err(LaunchTaskError::OtherExecutor { framework, executor });
            }
            if state.tasks.len() + tasks.len() > MAX_TASKS {
                return Err(LaunchTaskError::TooManyTasks { executor: executor.id });
            }
            if executor.kind == ExecutorKind::Default && state.live_tasks().len() + tasks.len() > MAX_RUNNING
            {
                let (framework, executor) = ids();
                return Err(LaunchTaskError::TooManyRunning { framework, executor });
            }
        }
        let infos: Vec<Task> = tasks.clone();
        handle.write(vec![Entry::Tasks { tasks, group }]).await?;
        // Otherwise they are sent when it subscribes.
        if handle.is_connected() {
            let deliveries = match group {
                true => vec![Delivery::Group { number: 0, tasks: infos }],
                false => infos.into_iter().map(|task| Delivery::Task(Box::new(task))).collect(),
            };
            self.deliver(handle, deliveries).await;
        }
        Ok(())
    }

    /// Gives the container of an executor the resources of tasks, and sends these. If it does not get the resources, they
    /// have failed. Called within an operation.
    pub(super) async fn deliver(&self, handle: &Arc<Handle>, deliveries: Vec<Delivery>) {
        if deliveries.is_empty() {
            return;
        }
        if let Err(error) = self.allocate(handle).await {
            let error = error_chain::describe(&error);
            let verdict = Verdict::new(TaskState::TaskFailed, "REASON_CONTAINER_UPDATE_FAILED", error);
            let tasks = deliveries.iter().flat_map(|delivery| match delivery {
                Delivery::Task(task) => std::slice::from_ref(&**task),
                Delivery::Group { tasks, .. } => tasks,
            });
            let ends = tasks.map(|task| verdict.ends(handle.container(), &task.id, timestamp()));
            let entries = ends.map(|update| Entry::Update(Box::new(update))).collect();
            let entries = self.decorated(handle, entries).await;
            if let Err(error) = handle.write(entries).await {
                // They are tried again when it subscribes the next time.
                tracing::warn!("tasks stay undelivered: {}", error_chain::describe(&error));
                handle.disconnect();
            }
            return;
        }
        for delivery in deliveries {
            handle.send(match delivery {
                Delivery::Task(task) => Event::Launch(task.info),
                Delivery::Group { tasks, .. } => {
                    Event::LaunchGroup(tasks.into_iter().map(|task| task.info).collect())
                }
            });
        }
    }
}

/// A random id in the form of a UUID, as Mesos has them.
fn new_container_id() -> std::io::Result<ContainerId> {
    let mut bytes = random::bytes::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    ContainerId::parse(&parts.join("-")).map_err(std::io::Error::other)
}
