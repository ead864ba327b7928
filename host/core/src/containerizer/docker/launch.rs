//! The launch of a container: fetch, pull, create, attach, start. Hooks are called before the first and after the second.
//!
//! A stop request cancels the launch at once, whatever it waits for. Steps that create something are seen through, in a task
//! of their own: what the engine has done is only known from its answer, and a thread that works does not stop. The teardown
//! waits for them, but not for an engine that does not answer: see `abandon.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::foreign;
use cofferdam_linux::process::Process;
use serde_json::Value as Json;
use tokio::time::sleep;

use super::abandon::answered;
use super::begin::{Logged, begin};
use super::hooks;
use super::parameters::Since;
use super::phase::{check_cancelled, enter, unless_stopped};
use super::processes;
use super::record::Handle;
use super::spec::{self, Spec};
use super::supervise::wait_for_end;
use super::{Docker, LaunchError, Shared, internal};
use crate::containerizer::credentials;
use crate::containerizer::invalid::InvalidContainerInfo;
use crate::containerizer::lifecycle::{Launch, Launched, STALL_WARNING};
use crate::engine::{Container, EngineError, Image};
use crate::fetcher::FetchRequest;
use crate::model::{Cause, Phase, ProcessId, Request};
use crate::switchboard::{first_attachment, switch_engine};

/// How often, and how long after each other, the engine is asked for a container whose name is taken by an earlier one that
/// it makes or removes.
const NAME_RETRIES: usize = 20;
const NAME_PAUSE: Duration = Duration::from_millis(100);

impl Launch for Docker {
    type Spec = Spec;
    type Watching = ();

    fn supports(request: &Request) -> bool {
        request.docker.is_some()
    }

    fn spec(shared: &Shared, request: &Request) -> Result<Spec, LaunchError> {
        let sandbox = shared.sandbox(&request.id);
        Ok(Spec::of(request, &sandbox, &shared.backend.config.sandbox_directory)?)
    }

    async fn launch(
        shared: &Arc<Shared>,
        handle: &Arc<Handle>,
        request: Request,
        spec: Spec,
    ) -> Result<Launched<()>, LaunchError> {
        let pid = launch(shared, handle, request, spec).await?;
        Ok(Launched { pid, watching: () })
    }

    async fn wait_for_end(shared: &Arc<Shared>, handle: &Arc<Handle>, (): ()) -> Cause {
        wait_for_end(shared, handle).await
    }
}

/// Launches a container. Returns the pid of its first process; 0 if it has ended already, or is not in a pid namespace of
/// the agent.
async fn launch(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    request: Request,
    spec: Spec,
) -> Result<i32, LaunchError> {
    if let Some(network) = &spec.network {
        unless_stopped(handle, check_network(shared, handle, network)).await?;
    }
    if let Some((parameter, since)) = &spec.needs {
        unless_stopped(handle, check_version(shared, handle, parameter, since)).await?;
    }
    let executor = request.executor.clone().map(|executor| *executor);
    let fixed = request.secret_environment.clone();
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    let logged = seen_through(handle, async move { begin(&shared2, &handle2, request).await }).await?;
    let hooked = unless_stopped(handle, hooks::pre_launch(shared, handle, executor)).await?;
    enter(handle, Phase::Fetching)?;
    fetch(shared, handle).await?;
    enter(handle, Phase::Pulling)?;
    let image = unless_stopped(handle, pull(shared, handle, &spec)).await?;
    unless_stopped(handle, hooks::post_fetch(shared, handle)).await?;
    enter(handle, Phase::Mounting)?;
    create_directories(shared, handle, spec.directories.clone()).await?;
    let launch = spec::Launch {
        agent: &shared.backend.agent,
        number: handle.record().created_unix_ms,
        environment: logged.environment.clone(),
        hooked,
        fixed,
        image: &image,
    };
    let body = spec.body(handle.id(), &launch)?;
    create(shared, handle, spec.platform.clone(), body).await?;
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    seen_through(handle, async move { attach(&shared2, &handle2, logged).await }).await?;
    start(shared, handle).await
}

async fn check_network(shared: &Shared, handle: &Handle, network: &str) -> Result<(), LaunchError> {
    let found =
        shared.backend.engine.network(network).await.map_err(|source| engine_error(handle, source))?;
    match found {
        Some(_) => Ok(()),
        None => {
            let reason =
                format!("the engine has no network `{network}`; create it with `docker network create`");
            let field = "container.network_infos".to_owned();
            Err(InvalidContainerInfo { id: handle.id().clone(), field, reason }.into())
        }
    }
}

/// Checks that the engine does not ignore a parameter, as older ones do.
async fn check_version(
    shared: &Shared,
    handle: &Handle,
    parameter: &str,
    since: &Since,
) -> Result<(), LaunchError> {
    let spoken = shared.backend.engine.api_version().await.map_err(|source| engine_error(handle, source))?;
    if spoken >= since.api {
        return Ok(());
    }
    let ((major, minor), (own_major, own_minor)) = (since.api, spoken);
    let reason = format!(
        "it needs version {major}.{minor} of the engine's API, as {} has, and this engine has {own_major}.{own_minor}; \
         leave it out, or update the engine",
        since.engine
    );
    let field = format!("container.docker.parameters.{parameter}");
    Err(InvalidContainerInfo { id: handle.id().clone(), field, reason }.into())
}

/// Fetches the container's files into its sandbox.
async fn fetch(shared: &Shared, handle: &Handle) -> Result<(), LaunchError> {
    let record = handle.record();
    if record.request.uris.is_empty() {
        return Ok(());
    }
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
    let stop = handle.stop_requested();
    let fetched = shared.fetcher.fetch(request, |progress| handle.set_fetch(Some(progress)), stop).await;
    handle.set_fetch(None);
    check_cancelled(handle)?;
    fetched.map_err(|source| LaunchError::Fetch { id: handle.id().clone(), source })
}

/// Pulls the image, unless it is present.
async fn pull(shared: &Arc<Shared>, handle: &Handle, spec: &Spec) -> Result<Image, LaunchError> {
    let failed = |source| engine_error(handle, source);
    let image = &spec.image;
    if !spec.force_pull
        && let Some(found) = shared.backend.engine.image(image).await.map_err(failed)?
    {
        return Ok(found);
    }
    let (sandbox, file) = (handle.record().sandbox.clone(), shared.backend.config.credentials.clone());
    let image2 = image.clone();
    let read = move |_: &_| credentials::find(&image2, &sandbox, file.as_deref());
    let credentials = match shared.pool.run(STALL_WARNING, read).await {
        Ok(found) => found.map_err(|source| LaunchError::Credentials { id: handle.id().clone(), source })?,
        Err(abandoned) => return Err(internal(handle, &abandoned.to_string())),
    };
    tracing::info!(container = %handle.id(), image, "pulling image");
    let platform = spec.platform.as_deref();
    shared.backend.engine.pull(image, platform, credentials.as_ref()).await.map_err(failed)?;
    match shared.backend.engine.image(image).await.map_err(failed)? {
        Some(found) => Ok(found),
        None => {
            let message = "it was pulled, but the engine does not have it under this name".to_owned();
            Err(failed(EngineError::Pull { image: image.clone(), message }))
        }
    }
}

/// Creates the directories of the sandbox that are mounted. What was fetched may be in their place, or lead elsewhere.
async fn create_directories(
    shared: &Shared,
    handle: &Handle,
    directories: Vec<PathBuf>,
) -> Result<(), LaunchError> {
    if directories.is_empty() {
        return Ok(());
    }
    let (id, record) = (handle.id().clone(), handle.record());
    let work = move |_: &_| {
        directories.into_iter().try_for_each(|path| {
            let failed = |source: std::io::Error| {
                let path = record.sandbox.join(&path);
                LaunchError::Directory { id: id.clone(), path, source }
            };
            let owner = nix::unistd::geteuid().is_root().then_some((record.uid, record.gid));
            let sandbox = foreign::directory(&record.sandbox).map_err(|errno| failed(errno.into()))?;
            let created = foreign::create_directories(sandbox, &path, owner);
            created.map(drop).map_err(|error| failed(std::io::Error::other(error)))
        })
    };
    match shared.pool.run(STALL_WARNING, work).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(internal(handle, &abandoned.to_string())),
    }
}

/// Creates the container in the engine.
async fn create(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    platform: Option<String>,
    body: Json,
) -> Result<(), LaunchError> {
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    seen_through(handle, async move {
        let (shared, handle) = (shared2, handle2);
        let id = handle.id().clone();
        let recorded = shared.update_persisted(&handle, |record| record.part.requested = true).await;
        recorded.map_err(|source| LaunchError::Ledger { id, source })?;
        let name = handle.record().part.name.clone();
        let created = async {
            let mut retries = 0..NAME_RETRIES;
            loop {
                match shared.backend.engine.create(&name, platform.as_deref(), &body).await {
                    Err(error)
                        if error.is_conflict()
                            && retries.next().is_some()
                            && remove_late(&shared, &handle).await =>
                    {
                        sleep(NAME_PAUSE).await;
                    }
                    created => return created.map_err(|source| engine_error(&handle, source)),
                }
            }
        };
        let engine_id = answered(&handle, created).await?;
        handle.update_in_memory(|record| record.part.engine_id = Some(engine_id));
        Ok(())
    })
    .await
}

/// Removes what the engine has created late for a launch of the same id that was given up. Returns whether its name is or
/// will be free.
async fn remove_late(shared: &Shared, handle: &Handle) -> bool {
    let record = handle.record();
    let found = match shared.backend.engine.container(&record.part.name).await {
        Ok(Some(found)) => found,
        // The engine has reserved the name for what it makes, or the sweep has removed that meanwhile.
        Ok(None) => return true,
        Err(_) => return false,
    };
    if !shared.is_of_launch(&found, &record.id, None) {
        return false;
    }
    match found.state.status.as_str() {
        "created" => match shared.backend.engine.remove(&found.id).await {
            Ok(()) => true,
            // The sweep is removing it.
            Err(error) => error.is_conflict(),
        },
        "removing" => true,
        _ => false,
    }
}

/// Connects the container with the logger, through a process that outlives the agent.
async fn attach(shared: &Arc<Shared>, handle: &Arc<Handle>, logged: Logged) -> Result<(), LaunchError> {
    let input = handle.record().request.interactive;
    let container = super::engine_name(&handle.record());
    let attach = async {
        let attached = shared.backend.engine.attach(&container, input).await;
        attached.map_err(|source| engine_error(handle, source))
    };
    let connection = answered(handle, attach).await?;
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    let work = move |_: &_| {
        let id = || handle2.id().clone();
        let directory = shared2.ledger.directory(handle2.id());
        let failed = |source| LaunchError::Streams { id: id(), source };
        let outputs = [&logged.stdio.stdout, &logged.stdio.stderr];
        let switched = switch_engine(&directory, &shared2.backend.keepers, outputs, &connection, input);
        let switched = switched.map_err(|source| LaunchError::Switchboard { id: id(), source })?;
        let process = switched.map_err(failed)?;
        let process = ProcessId { pid: process.pid(), start_time: process.start_time() };
        handle2.update_in_memory(|record| record.part.switchboard = Some(process));
        if handle2.record().request.attached {
            handle2.keep_attachment(first_attachment(&directory).map_err(failed)?);
        }
        Ok(())
    };
    match shared.pool.run(STALL_WARNING, work).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(internal(handle, &abandoned.to_string())),
    }
}

/// Starts the container, and records that it runs.
async fn start(shared: &Arc<Shared>, handle: &Arc<Handle>) -> Result<i32, LaunchError> {
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    seen_through(handle, async move {
        let (shared, handle) = (shared2, handle2);
        let container = super::engine_name(&handle.record());
        let failed = |source| engine_error(&handle, source);
        // What the next agent has to end, if this one dies while the container starts.
        let recorded = shared.update_persisted(&handle, |_| {}).await;
        recorded.map_err(|source| LaunchError::Ledger { id: handle.id().clone(), source })?;
        let started = async {
            shared.backend.engine.start(&container).await.map_err(failed)?;
            let found = shared.backend.engine.container(&container).await.map_err(failed)?;
            let found = found.ok_or_else(|| internal(&handle, "the engine has lost it"))?;
            let process = first_process(&shared, &found).await;
            Ok((found, process))
        };
        let (found, process) = answered(&handle, started).await?;
        let id = process
            .as_ref()
            .map(|process| ProcessId { pid: process.pid(), start_time: process.start_time() });
        handle.set_process(process.map(Arc::new));
        check_cancelled(&handle)?;
        let addresses = super::addresses(&found);
        let recorded = shared.update_persisted(&handle, move |record| {
            // It may have been stopped meanwhile.
            record.phase = record.phase.max(Phase::Running);
            record.process = id;
            record.part.addresses = addresses;
        });
        recorded.await.map_err(|source| LaunchError::Ledger { id: handle.id().clone(), source })?;
        let pid = id.map_or(0, |process| process.pid);
        tracing::info!(container = %handle.id(), pid, "container started");
        Ok(pid)
    })
    .await
}

/// The first process of a container, if it runs and is visible to the agent.
pub(super) async fn first_process(shared: &Shared, found: &Container) -> Option<Process> {
    let pid = found.state.pid;
    if pid <= 0 || !found.state.running {
        return None;
    }
    let process = Process::open_any(pid).ok()?;
    if !processes::is_of(&process, &found.id) {
        tracing::debug!(pid, engine_id = found.id, "its first process is not visible: the pid is of another");
        return None;
    }
    // It may have ended, and its pid be that of another process, before it was opened.
    let again = shared.backend.engine.container(&found.id).await.ok()??;
    (again.state.running && again.state.pid == pid).then_some(process)
}

/// Completes a step, also if the launch is cancelled meanwhile: then the launch ends at once, and the container's operation
/// lock is held until the step is complete.
async fn seen_through<T: Send + 'static>(
    handle: &Arc<Handle>,
    step: impl Future<Output = Result<T, LaunchError>> + Send + 'static,
) -> Result<T, LaunchError> {
    check_cancelled(handle)?;
    let lock = handle.op_lock_owned().await;
    let task = tokio::spawn(async move {
        let outcome = step.await;
        drop(lock);
        outcome
    });
    let answer = async {
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(LaunchError::ShuttingDown),
            },
        }
    };
    unless_stopped(handle, answer).await
}

pub(super) fn engine_error(handle: &Handle, source: EngineError) -> LaunchError {
    LaunchError::Engine { id: handle.id().clone(), phase: handle.phase(), source }
}
