//! Clients that attach to a container's standard streams.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::process::Process;

use super::Shared;
use super::record::Handle;
use crate::model::{ContainerId, Phase, ProcessId};
use crate::switchboard::{AttachError, AttachedInput, Attachment, wait_until_logged};

/// How long output is kept for the client that the launch was requested for.
const FIRST_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a logger may take to receive what a container has written last.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// Attaches a client.
pub(super) fn attach(shared: &Shared, id: &ContainerId) -> Result<Attachment, AttachError> {
    let handle = find(shared, id)?;
    connect(shared, &handle, Attachment::connect)
}

/// The attachment that was made before the container started, or another one if its time is over.
pub(super) fn attach_first(shared: &Shared, id: &ContainerId) -> Result<Attachment, AttachError> {
    let handle = find(shared, id)?;
    match handle.take_attachment() {
        Some(connection) => {
            let failed = |source| AttachError::Connection { id: id.clone(), source };
            Attachment::new(connection).map_err(failed)
        }
        None => connect(shared, &handle, Attachment::connect),
    }
}

/// Attaches a client that wants no output.
pub(super) fn attach_input(shared: &Shared, id: &ContainerId) -> Result<AttachedInput, AttachError> {
    let handle = find(shared, id)?;
    connect(shared, &handle, AttachedInput::connect)
}

fn find(shared: &Shared, id: &ContainerId) -> Result<Arc<Handle>, AttachError> {
    shared.table.get(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })
}

fn connect<T>(
    shared: &Shared,
    handle: &Handle,
    connect: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, AttachError> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let id = handle.id().clone();
    if handle.phase() != Phase::Running {
        return Err(AttachError::NotRunning { id });
    }
    if handle.record().part.switchboard.is_none() {
        return Err(AttachError::NotAttachable { id });
    }
    connect(&shared.ledger.directory(&id)).map_err(|source| match source.kind() {
        ConnectionRefused | NotFound => AttachError::NotRunning { id },
        _ => AttachError::Connection { id, source },
    })
}

/// Stops keeping output for a client that does not come: the container would have to wait.
pub(super) fn expect_first_client(handle: &Arc<Handle>) {
    if handle.record().request.attached {
        let handle = Arc::downgrade(handle);
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_CLIENT_TIMEOUT).await;
            drop(handle.upgrade().and_then(|handle| handle.take_attachment()));
        });
    }
}

/// Waits until the logger has received everything that a container has written, whose processes have ended. A logger that
/// does not read must not prevent the end of the container: then the switchboard is killed.
pub(super) fn finish_log(shared: &Shared, handle: &Handle) {
    let Some(ProcessId { pid, start_time }) = handle.record().part.switchboard else { return };
    let problem = match wait_until_logged(&shared.ledger.directory(handle.id()), LOG_TIMEOUT) {
        Ok(true) => return,
        Ok(false) => "its logger does not read".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(container = %handle.id(), "the end of its output is not logged: {problem}");
    if let Ok(process) = Process::open(pid, start_time) {
        drop(process.kill());
    }
}
