//! Clients that attach to a container's standard streams.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Handle, Shared};
use crate::containerizer::record_part::RecordPart;
use crate::model::{ContainerId, Phase};
use crate::switchboard::{AttachError, Attachment};

/// How long output is kept for the client that the launch was requested for.
const FIRST_CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects a client to the switchboard of a container.
pub(super) fn attach<B: Backend, T>(
    shared: &Shared<B>,
    id: &ContainerId,
    connect: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, AttachError> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let handle = find(shared, id)?;
    let id = id.clone();
    if handle.phase() != Phase::Running {
        return Err(AttachError::NotRunning { id });
    }
    if handle.record().part.switchboard().is_none() {
        return Err(AttachError::NotAttachable { id });
    }
    connect(&shared.ledger.directory(&id)).map_err(|source| match source.kind() {
        ConnectionRefused | NotFound => AttachError::NotRunning { id },
        _ => AttachError::Connection { id, source },
    })
}

/// The attachment that was made before the container started, or another one if its time is over.
pub(super) fn attach_first<B: Backend>(
    shared: &Shared<B>,
    id: &ContainerId,
) -> Result<Attachment, AttachError> {
    match find(shared, id)?.take_attachment() {
        Some(connection) => {
            let failed = |source| AttachError::Connection { id: id.clone(), source };
            Attachment::new(connection).map_err(failed)
        }
        None => attach(shared, id, Attachment::connect),
    }
}

fn find<B: Backend>(shared: &Shared<B>, id: &ContainerId) -> Result<Arc<Handle<B>>, AttachError> {
    shared.table.get(id).ok_or_else(|| AttachError::Unknown { id: id.clone() })
}

/// Stops keeping output for a client that does not come: the container would have to wait.
pub(super) fn expect_first_client<B: Backend>(handle: &Arc<Handle<B>>) {
    if handle.record().request.attached {
        let handle = Arc::downgrade(handle);
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_CLIENT_TIMEOUT).await;
            drop(handle.upgrade().and_then(|handle| handle.take_attachment()));
        });
    }
}
