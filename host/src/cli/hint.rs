//! An error as advice: what to do about those that have a usual remedy.

use std::error::Error;
use std::io;

use super::client::ClientError;
use crate::api::BindError;
use cofferdam_core::agent::StartError;
use cofferdam_core::ledger::LedgerError;

/// What to do about one error of a chain.
pub(super) fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return client(error);
    }
    if let Some(BindError::InUse { .. }) = error.downcast_ref() {
        return Some("stop that agent first, or give this one another `--socket` and `--runtime-dir`".into());
    }
    if let Some(StartError::Launcher(_)) = error.downcast_ref() {
        return Some("`cofferdam check` says what would be used; the launcher `linux` needs root".into());
    }
    if let Some(LedgerError::Directory { source, .. }) = error.downcast_ref()
        && source.kind() == io::ErrorKind::PermissionDenied
    {
        return Some("give a directory that is yours with `--runtime-dir` and `--work-dir`".into());
    }
    None
}

fn client(error: &ClientError) -> Option<String> {
    match error {
        ClientError::NobodyAnswers { .. } => {
            Some("start one with `cofferdam agent`, or say where it is with `--socket`".into())
        }
        ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("only root and the user that the agent runs as may use it".into())
        }
        ClientError::Refused { status: 404, .. } => Some("`cofferdam ps -a` lists what there is".into()),
        _ => None,
    }
}
