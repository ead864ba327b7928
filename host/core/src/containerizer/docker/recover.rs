//! Recovery of the containers of an earlier agent.
//!
//! What is to happen to each is decided by its record alone, so that an engine that does not answer delays neither the start
//! of the agent nor other containers. The engine is asked when the container is supervised or destroyed.

use std::sync::Arc;

use cofferdam_linux::process::{Process, ProcessError};

use super::record::{DockerRecord, Handle};
use super::{Docker, Shared, launch, removal, spec};
use crate::containerizer::RecoverError;
use crate::containerizer::lifecycle::{Recover, RecoveryAction, roll_back_interrupted, supervise, task_name};
use crate::error_chain;
use crate::model::{ContainerId, Phase, Reason, Record};

impl Recover for Docker {
    fn unknown(shared: &Shared, id: &ContainerId) -> DockerRecord {
        let mut container = cofferdam_plugin_model::Container::new(id.clone());
        container.standalone = true;
        DockerRecord {
            name: spec::name(id),
            requested: true,
            participants: shared.chain.participants(&container),
            ..DockerRecord::default()
        }
    }

    fn decide(
        shared: &Shared,
        record: &Record<DockerRecord>,
    ) -> Result<(Option<Process>, RecoveryAction), RecoverError> {
        Ok(decide(shared, record))
    }

    fn keep_process(_: &Shared, handle: &Handle, process: Process) {
        handle.set_process(Some(Arc::new(process)));
    }

    async fn resume(shared: &Arc<Shared>, running: Vec<Arc<Handle>>) {
        for handle in running {
            let (shared2, task) = (Arc::clone(shared), task_name(handle.id()));
            shared.fatal.spawn(task, async move { resume(shared2, handle).await });
        }
        removal::start(shared);
    }
}

/// Supervises a container that was running.
async fn resume(shared: Arc<Shared>, handle: Arc<Handle>) {
    tokio::select! {
        biased;
        // Its end does not wait for an engine that does not answer.
        _ = handle.stop_requested() => {}
        () = ask_engine(&shared, &handle) => {}
    }
    supervise(shared, handle, ()).await;
}

/// Asks the engine for what only it knows, and has it do what an earlier agent left undone.
async fn ask_engine(shared: &Arc<Shared>, handle: &Arc<Handle>) {
    if handle.process().is_none() {
        // Its first process was not visible, or had ended before it could be opened.
        let container = super::engine_name(&handle.record());
        if let Ok(Some(found)) = shared.backend.engine.container(&container).await
            && shared.owns(&found, &handle.record())
            && let Some(process) = launch::first_process(shared, &found).await
        {
            handle.set_process(Some(Arc::new(process)));
        }
    }
    roll_back_interrupted(shared, handle).await;
}

/// What happens to a container, and its first process if it runs.
fn decide(shared: &Shared, record: &Record<DockerRecord>) -> (Option<Process>, RecoveryAction) {
    let destroy = RecoveryAction::destroy;
    if record.phase == Phase::Ended {
        return (None, RecoveryAction::Keep);
    }
    if record.boot_id != shared.boot_id {
        return (None, destroy(Reason::Rebooted, "the machine was rebooted"));
    }
    let process = match record.process.map(|process| Process::open(process.pid, process.start_time)) {
        None | Some(Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. })) => None,
        Some(Ok(process)) => Some(process),
        // Then the engine tells when it ends, or it is opened when the engine answers.
        Some(Err(error)) => {
            let error = error_chain::describe(&error);
            tracing::warn!(container = %record.id, "its first process is not visible: {error}");
            None
        }
    };
    let action = match record.phase {
        Phase::Destroying => RecoveryAction::Destroy(record.cause.clone().unwrap_or_default()),
        Phase::Running => RecoveryAction::Continue,
        _ => destroy(Reason::LaunchFailed, "the agent died while it was being launched"),
    };
    (process, action)
}
