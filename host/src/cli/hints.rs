//! Hints for errors that have a common solution.

use std::error::Error;
use std::io;

use super::client::ClientError;
use crate::api::BindError;
use cofferdam_core::agent::StartError;
use cofferdam_core::ledger::LedgerError;

/// The hint for an unknown container.
pub(super) const LIST: &str = "`cofferdam ps -a` lists all containers";

/// The hint for one error in a chain of causes.
pub(super) fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return client_hint(error);
    }
    if let Some(BindError::InUse { .. }) = error.downcast_ref() {
        return Some("stop that agent, or set another `--socket` and `--runtime-dir`");
    }
    if let Some(StartError::Launcher(_)) = error.downcast_ref() {
        return Some("`cofferdam check` shows the configuration; the launcher `linux` requires root");
    }
    if let Some(LedgerError::Directory { source, .. }) = error.downcast_ref()
        && source.kind() == io::ErrorKind::PermissionDenied
    {
        return Some("set directories that you own with `--runtime-dir` and `--work-dir`");
    }
    None
}

fn client_hint(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::NotRunning { .. } => {
            Some("start an agent with `cofferdam agent`, or set its socket with `--socket`")
        }
        ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("only root and the user of the agent may use its API")
        }
        ClientError::Refused { status: 404, .. } => Some(LIST),
        _ => None,
    }
}
