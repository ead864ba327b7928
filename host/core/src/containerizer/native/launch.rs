//! The launch of a container, as a sequence of stages.
//!
//! ```text
//! Admitted ─begin─▶ Begun ─provide─▶ Preparing ─prepare, create─▶ Created ─watch─▶ Watched ─start─▶ Running
//!                     └ pull                                        isolate, fetch, hooks ┘
//! ```
//!
//! The blocking steps run in one job, unless one of the async ones below the line is needed: if the store does not have the
//! image, if isolators have an `isolate`, or if files have to be fetched. When an optional plugin times out, its job is lost
//! and another one continues from the current stage, which is therefore kept outside of the job.
//!
//! A stop request cancels the launch before its next step. Within a step, only those that can be interrupted
//! safely are: pulling, fetching, and waiting for the command to start. Undoing a failed launch is up to `destroy.rs`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_init::plan::Plan;
use cofferdam_linux::process::Process;
use cofferdam_plugin_model::{Method, Parent};
use parking_lot::Mutex;

use super::begin::{self, Begun, begin};
use super::create::create;
use super::init_plan;
use super::phase::Event;
use super::progress::{advance, check_cancelled, internal};
use super::provide::{self, MissingImage, Provided, provide};
use super::record::Handle;
use super::supervise::{PluginWatch, wait_for_end};
use super::{LaunchError, Native, Shared};
use crate::blocking::Job;
use crate::chain::{CallSequence, ChainError, PreparedLaunch, RunAs, SequenceOutcome, Watch};
use crate::containerizer::fetched::fetched;
use crate::containerizer::lifecycle::{self, Launched, STALL_WARNING};
use crate::containerizer::record_part::RecordPart;
use crate::containerizer::user;
use crate::fetcher::FetchRequest;
use crate::launcher::{PendingInit, StartError};
use crate::model::{Cause, Phase, ProcessId, Request};
use crate::plugin::CallError;
use crate::provisioner::{Pulled, View};

/// Pause between attempts to cancel a start.
const CANCEL_RETRY: Duration = Duration::from_millis(100);

/// What exists of a container that is being launched.
enum LaunchStage {
    /// Only the handle. The request still has the values of secrets, which its record has not.
    Admitted { request: Box<Request> },
    /// Its directories and cgroup.
    Begun { begun: Box<Begun>, images: ImageState },
    /// Its root file system as well. `prepare` of the plugins is in progress.
    Preparing { provided: Arc<Provided>, calls: Arc<CallSequence<PreparedLaunch>> },
    /// Its first process, which waits for its plan. `watch` of the plugins is in progress.
    Created { init: PendingInit, plan: Box<Plan>, calls: Arc<CallSequence<Vec<Watch>>> },
    /// Watches as well.
    Watched { init: PendingInit, plan: Box<Plan>, watches: Vec<Watch> },
    /// The command is running.
    Running(Running),
    /// A step took what the stage held and failed.
    Failed,
}

/// Whether the images of a container are there.
enum ImageState {
    /// These have to be pulled before the next step.
    Missing(Vec<MissingImage>),
    /// They are, as far as pulls can help, or there are none. Those that were pulled stay until the container has them.
    There(Vec<Pulled>),
}

/// The next blocking step, with what it needs of the stage. The steps that call plugins leave the stage in place, as
/// a timeout loses their job.
enum Step {
    Begin { request: Box<Request> },
    Provide { begun: Box<Begun>, pulled: Vec<Pulled> },
    Prepare { provided: Arc<Provided>, calls: Arc<CallSequence<PreparedLaunch>> },
    Watch { calls: Arc<CallSequence<Vec<Watch>>> },
    Start { init: PendingInit, plan: Box<Plan>, watches: Vec<Watch> },
}

/// A container whose command is running.
struct Running {
    process: Arc<Process>,
    watches: Vec<Watch>,
}

impl lifecycle::Launch for Native {
    type Spec = ();
    type Watching = Vec<PluginWatch>;

    fn supports(request: &Request) -> bool {
        request.docker.is_none()
    }

    fn spec(shared: &Shared, request: &Request) -> Result<(), LaunchError> {
        if (request.image.is_some() || request.volume_images() > 0) && !shared.backend.images {
            return Err(LaunchError::NoImages { id: request.id.clone() });
        }
        Ok(())
    }

    async fn launch(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        request: Request,
        (): (),
    ) -> Result<Launched<Vec<PluginWatch>>, LaunchError> {
        let Running { process, watches } = launch(shared, handle, request).await?;
        let watches = watches.into_iter().map(|watch| PluginWatch::new(shared, handle, watch)).collect();
        Ok(Launched { pid: process.pid(), watching: watches })
    }

    async fn wait_for_end(shared: &Arc<Shared>, handle: &Arc<Handle>, watches: Vec<PluginWatch>) -> Cause {
        wait_for_end(shared, handle, watches).await
    }
}

/// Launches a container up to its running command.
async fn launch(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    request: Request,
) -> Result<Running, LaunchError> {
    let launch = Arc::new(Launch {
        shared: Arc::clone(shared),
        handle: Arc::clone(handle),
        stage: Mutex::new(LaunchStage::Admitted { request: Box::new(request) }),
    });
    let outcome = run_all_steps(&launch).await;
    let stage = launch.replace_stage(LaunchStage::Failed);
    match (outcome, stage) {
        (Ok(()), LaunchStage::Running(running)) => Ok(running),
        (Ok(()), _) => Err(internal(handle, "it was not started; this is a bug of the agent")),
        (Err(error), stage) => {
            // Closing descriptors of plugins may block.
            shared.pool.spawn(move || drop(stage));
            Err(error)
        }
    }
}

async fn run_all_steps(launch: &Arc<Launch>) -> Result<(), LaunchError> {
    let Launch { shared, handle, .. } = &**launch;
    run_blocking_steps(launch).await?;
    let missing = launch.missing_images();
    if !missing.is_empty() {
        let pulled = provide::pull(shared, handle, missing).await?;
        launch.set_pulled(pulled)?;
        run_blocking_steps(launch).await?;
    }
    if handle.phase() == Phase::Isolating {
        check_cancelled(handle)?;
        isolate(shared, handle).await?;
        advance(handle, Event::Isolated)?;
        fetch(shared, handle).await?;
        post_fetch(shared, handle).await?;
        run_blocking_steps(launch).await?;
    }
    Ok(())
}

/// Runs the blocking steps up to the next async one. A stop request during the start destroys the processes, so that
/// the start returns.
async fn run_blocking_steps(launch: &Arc<Launch>) -> Result<(), LaunchError> {
    let Launch { shared, handle, .. } = &**launch;
    let in_job = Arc::clone(launch);
    let steps = shared.chain.run_sequences(
        move |job| in_job.run_blocking_steps(job),
        |timeout| launch.skip_timed_out_plugin(timeout),
    );
    tokio::pin!(steps);
    tokio::select! {
        outcome = &mut steps => return outcome,
        _ = handle.stop_requested() => {}
    }
    // Before the start, every step checks for a stop request, except between calls of one sequence.
    if handle.phase() != Phase::Fetching {
        return steps.await;
    }
    // Killing the first process alone would not do: its command may have been forked already, and some launchers
    // find the command only through its parent.
    loop {
        let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
        let destroy = move |_: &Job| super::destroy::kill(&shared2, &handle2, handle2.process().as_deref());
        // Awaited in any case, so that it cannot affect the next container of this id.
        match shared.pool.run(STALL_WARNING, destroy).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = crate::error_chain::describe(&error);
                tracing::warn!(container = %handle.id(), "cannot cancel the start yet: {error}");
            }
            Err(abandoned) => {
                tracing::error!(container = %handle.id(), "cannot cancel the start yet: {abandoned}");
            }
        }
        tokio::select! {
            outcome = &mut steps => return outcome,
            () = tokio::time::sleep(CANCEL_RETRY) => {}
        }
    }
}

/// A launch in progress.
struct Launch {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    stage: Mutex<LaunchStage>,
}

impl Launch {
    fn replace_stage(&self, stage: LaunchStage) -> LaunchStage {
        std::mem::replace(&mut *self.stage.lock(), stage)
    }

    /// Runs steps until the next one is async or the command is running. Blocks.
    fn run_blocking_steps(&self, job: &Job) -> Result<(), LaunchError> {
        let Self { shared, handle, .. } = self;
        loop {
            check_cancelled(handle)?;
            match self.next_step() {
                None => return Ok(()),
                Some(Step::Begin { request }) => {
                    let mut begun = begin(shared, handle, *request)?;
                    begun.container.parent = parent(shared, handle);
                    let missing = provide::missing(shared, handle, &begun)?;
                    let images = match missing.is_empty() {
                        true => ImageState::There(Vec::new()),
                        false => ImageState::Missing(missing),
                    };
                    self.replace_stage(LaunchStage::Begun { begun: Box::new(begun), images });
                }
                Some(Step::Provide { begun, pulled }) => {
                    let provided = Arc::new(provide(shared, handle, *begun)?);
                    drop(pulled);
                    let participants = handle.record().part.participants.clone();
                    let calls = Arc::new(CallSequence::for_launch(participants));
                    advance(handle, Event::Provisioned)?;
                    self.replace_stage(LaunchStage::Preparing { provided, calls });
                }
                Some(Step::Prepare { provided, calls }) => {
                    let prepared = self.prepare(job, &provided, &calls)?;
                    check_cancelled(handle)?;
                    let (mut init, plan) = create(shared, handle, prepared)?;
                    let participants = handle.record().part.participants.clone();
                    if shared.chain.has_isolate(&participants) {
                        init.wait_until_ready().map_err(|source| self.start_error(source))?;
                    }
                    let calls = Arc::new(CallSequence::for_launch(participants));
                    self.replace_stage(LaunchStage::Created { init, plan: Box::new(plan), calls });
                    advance(handle, Event::Prepared)?;
                }
                Some(Step::Watch { calls }) => {
                    let watches = self.watch(job, &calls)?;
                    self.set_watched(watches)?;
                    if !self.is_async_step_needed() {
                        advance(handle, Event::Isolated)?;
                    }
                }
                Some(Step::Start { init, plan, watches }) => {
                    let running = self.start(init, *plan, watches)?;
                    self.replace_stage(LaunchStage::Running(running));
                }
            }
        }
    }

    /// The next blocking step. `None` when the next one is async, or the command is running.
    fn next_step(&self) -> Option<Step> {
        let mut stage = self.stage.lock();
        match &*stage {
            LaunchStage::Admitted { .. } => match std::mem::replace(&mut *stage, LaunchStage::Failed) {
                LaunchStage::Admitted { request } => Some(Step::Begin { request }),
                _ => None,
            },
            LaunchStage::Begun { images: ImageState::There(_), .. } => {
                match std::mem::replace(&mut *stage, LaunchStage::Failed) {
                    LaunchStage::Begun { begun, images: ImageState::There(pulled) } => {
                        Some(Step::Provide { begun, pulled })
                    }
                    _ => None,
                }
            }
            LaunchStage::Preparing { provided, calls } => {
                Some(Step::Prepare { provided: Arc::clone(provided), calls: Arc::clone(calls) })
            }
            LaunchStage::Created { calls, .. } => Some(Step::Watch { calls: Arc::clone(calls) }),
            LaunchStage::Watched { .. } if self.handle.phase() == Phase::Fetching => {
                match std::mem::replace(&mut *stage, LaunchStage::Failed) {
                    LaunchStage::Watched { init, plan, watches } => Some(Step::Start { init, plan, watches }),
                    _ => None,
                }
            }
            LaunchStage::Begun { images: ImageState::Missing(_), .. }
            | LaunchStage::Watched { .. }
            | LaunchStage::Running(_)
            | LaunchStage::Failed => None,
        }
    }

    /// What has to be pulled before the next step.
    fn missing_images(&self) -> Vec<MissingImage> {
        match &*self.stage.lock() {
            LaunchStage::Begun { images: ImageState::Missing(missing), .. } => missing.clone(),
            _ => Vec::new(),
        }
    }

    fn set_pulled(&self, pulled: Vec<Pulled>) -> Result<(), LaunchError> {
        match &mut *self.stage.lock() {
            LaunchStage::Begun { images, .. } => {
                *images = ImageState::There(pulled);
                Ok(())
            }
            _ => Err(internal(&self.handle, "it needs no image any more; this is a bug of the agent")),
        }
    }

    /// Continues without a plugin that timed out, if the container can do without it.
    fn skip_timed_out_plugin(&self, timeout: CallError) -> Result<(), LaunchError> {
        let chain = &self.shared.chain;
        let outcome = match &*self.stage.lock() {
            LaunchStage::Preparing { calls, .. } => chain.skip_current(calls, timeout),
            LaunchStage::Created { calls, .. } => chain.skip_current(calls, timeout),
            _ => Err(timeout.into()),
        };
        outcome.map_err(|source| chain_error(&self.handle, source))
    }

    /// Calls `prepare` of the plugins.
    fn prepare(
        &self,
        job: &Job,
        Provided { container, view, secrets }: &Provided,
        calls: &CallSequence<PreparedLaunch>,
    ) -> Result<SequenceOutcome<PreparedLaunch>, LaunchError> {
        let handle = &self.handle;
        let rootfs = view.as_ref().map(View::path).or_else(|| container.rootfs.clone());
        let look_up = |user: &str| Ok(user::resolve(Some(user), rootfs.as_deref(), None)?.into());
        let prepared = self.shared.chain.prepare(job, container, calls, &look_up);
        prepared.map_err(|source| chain_error(handle, source))?;
        let mut prepared = calls.take();
        prepared.result.secrets.extend(secrets.clone());
        if let Some(RunAs { uid, gid, groups }) = prepared.result.user.clone() {
            provide::own_sandbox(handle, (uid, gid))?;
            // Written to disk with the first process.
            handle.update_in_memory(|record| (record.uid, record.gid, record.groups) = (uid, gid, groups));
        }
        if container.rootfs.is_some() && prepared.result.plan.root.is_none() {
            return Err(LaunchError::NoFilesystem { id: handle.id().clone() });
        }
        // An optional plugin may have been excluded since the launch began.
        begin::check_handled(&self.shared, handle, &prepared.participants)?;
        Ok(prepared)
    }

    /// Calls `watch` of the plugins.
    fn watch(&self, job: &Job, calls: &CallSequence<Vec<Watch>>) -> Result<Vec<Watch>, LaunchError> {
        let Self { shared, handle, .. } = self;
        shared.chain.watch(job, &handle.context(), calls).map_err(|source| chain_error(handle, source))?;
        let SequenceOutcome { participants, result: watches, failed } = calls.take();
        if !failed.is_empty() {
            // Written to disk when the command runs.
            handle.update_in_memory(|record| record.part.set_participants(participants));
        }
        Ok(watches)
    }

    fn set_watched(&self, watches: Vec<Watch>) -> Result<(), LaunchError> {
        let mut stage = self.stage.lock();
        match std::mem::replace(&mut *stage, LaunchStage::Failed) {
            LaunchStage::Created { init, plan, .. } => {
                *stage = LaunchStage::Watched { init, plan, watches };
                Ok(())
            }
            _ => Err(internal(&self.handle, "it has no first process; this is a bug of the agent")),
        }
    }

    /// Whether something async has to happen before the start.
    fn is_async_step_needed(&self) -> bool {
        let record = self.handle.record();
        !record.request.uris.is_empty()
            || self.shared.chain.has_isolate(&record.part.participants)
            || self.shared.hooks.has(Method::PostFetch)
    }

    /// Sends the plan to the first process, waits until the command is executed, and records that.
    fn start(&self, init: PendingInit, plan: Plan, watches: Vec<Watch>) -> Result<Running, LaunchError> {
        let Self { shared, handle, .. } = self;
        let id = || handle.id().clone();
        let process = Arc::new(init.start(plan).map_err(|source| self.start_error(source))?);
        handle.set_process(Some(Arc::clone(&process)));
        let process_id = ProcessId { pid: process.pid(), start_time: process.start_time() };
        handle.update_in_memory(|record| (record.process, record.part.is_setup) = (Some(process_id), false));
        advance(handle, Event::Started)?;
        handle
            .update_persisted(&shared.ledger, |_| {})
            .map_err(|source| LaunchError::Ledger { id: id(), source })?;
        tracing::info!(container = %handle.id(), pid = process.pid(), "container started");
        Ok(Running { process, watches })
    }
}

impl Launch {
    /// An error of the setup process, with the plugin that requested what failed.
    fn start_error(&self, source: StartError) -> LaunchError {
        let record = self.handle.record();
        let plugin = match &source {
            StartError::Failed { step, detail, .. } => init_plan::owner(&record.part.plan, *step, detail),
            _ => None,
        };
        LaunchError::Start { id: self.handle.id().clone(), plugin: plugin.map(str::to_owned), source }
    }
}

/// The container that this one is nested in. Each plugin gets its own state for it.
fn parent(shared: &Shared, handle: &Handle) -> Option<Parent> {
    let parent = shared.table.get(&handle.id().parent()?)?.record();
    Some(Parent {
        id: parent.id.to_string(),
        pid: parent.process.map(|process| process.pid),
        sandbox: parent.sandbox.clone(),
        rootfs: parent.request.rootfs.clone(),
        uid: parent.uid,
        gid: parent.gid,
        ..Parent::default()
    })
}

/// Calls `isolate` of the plugins, all at once.
async fn isolate(shared: &Shared, handle: &Handle) -> Result<(), LaunchError> {
    let Some(process) = handle.process() else { return Ok(()) };
    let failed = shared.chain.isolate(&handle.context(), process.as_fd()).await;
    if failed.is_empty() {
        return Ok(());
    }
    let mut participants = handle.record().part.participants.clone();
    for error in failed {
        let excluded = shared.chain.exclude(&error, &mut participants);
        excluded.map_err(|source| chain_error(handle, source))?;
    }
    // Written to disk when the command runs.
    handle.update_in_memory(|record| record.part.set_participants(participants));
    Ok(())
}

/// Fetches the container's files into its sandbox.
async fn fetch(shared: &Shared, handle: &Handle) -> Result<(), LaunchError> {
    let record = handle.record();
    if record.request.uris.is_empty() {
        return Ok(());
    }
    let stop = handle.stop_requested();
    // The usual names are reserved also when the output goes elsewhere: who finds them takes them for the output.
    let logs = [&record.logs.stdout, &record.logs.stderr].into_iter().flatten();
    let logs = logs.filter_map(|log| log.strip_prefix(&record.sandbox).ok().map(Path::to_owned));
    let reserved: Vec<PathBuf> = logs.chain(["stdout".into(), "stderr".into()]).collect();
    let request = FetchRequest {
        uris: &record.request.uris,
        sandbox: &record.sandbox,
        uid: record.uid,
        gid: record.gid,
        reserved: &reserved,
    };
    let fetched = shared.fetcher.fetch(request, |progress| handle.set_fetch(Some(progress)), stop).await;
    handle.set_fetch(None);
    check_cancelled(handle)?;
    fetched.map_err(|source| LaunchError::Fetch { id: handle.id().clone(), source })
}

/// Shows hooks the sandbox.
async fn post_fetch(shared: &Shared, handle: &Handle) -> Result<(), LaunchError> {
    if !shared.hooks.has(Method::PostFetch) {
        return Ok(());
    }
    let record = handle.record();
    let fetched = fetched(&record, false);
    tokio::select! {
        biased;
        _ = handle.stop_requested() => check_cancelled(handle),
        outcome = shared.hooks.post_fetch(handle.id(), &fetched, &record.sandbox) => outcome
            .map_err(|source| LaunchError::Hook { id: handle.id().clone(), phase: handle.phase(), source }),
    }
}

fn chain_error(handle: &Handle, source: ChainError) -> LaunchError {
    LaunchError::Chain { id: handle.id().clone(), phase: handle.phase(), source }
}
