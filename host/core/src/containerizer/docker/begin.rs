//! The first step of a launch: intent on record, the sandbox, and the logger.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_plugin_model::{Container, LogFiles};

use super::record::Handle;
use super::{LaunchError, Shared};
use crate::chain::{CallSequence, ChainError, PreparedLaunch, SequenceOutcome};
use crate::containerizer::lifecycle::STALL_WARNING;
use crate::containerizer::record_part::RecordPart;
use crate::containerizer::stdio::{self, Stdio};
use crate::containerizer::user;
use crate::directory::create_searchable;
use crate::model::Request;
use crate::model::view::Logs;

/// What the logger takes, and what it adds.
pub(super) struct Logged {
    pub(super) stdio: Stdio,
    pub(super) environment: BTreeMap<String, String>,
}

/// Records the intent, creates the sandbox, and calls the logger.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    request: Request,
) -> Result<Logged, LaunchError> {
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    let work = move |_: &_| record_intent(&shared2, &handle2, request);
    let container = match shared.pool.run(STALL_WARNING, work).await {
        Ok(outcome) => Arc::new(outcome?),
        Err(abandoned) => return Err(super::internal(handle, &abandoned.to_string())),
    };
    let calls = Arc::new(CallSequence::for_launch(handle.record().part.participants.clone()));
    let (shared2, handle2, container2, calls2) =
        (Arc::clone(shared), Arc::clone(handle), Arc::clone(&container), Arc::clone(&calls));
    let prepare = move |job: &_| {
        // Only the logger is called. The user of the command is up to the engine.
        let no_user =
            |user: &str| Err(format!("the engine, and no plugin, looks up the user `{user}`").into());
        let prepared = shared2.chain.prepare(job, &container2, &calls2, &no_user);
        prepared.map_err(|source| chain_error(&handle2, source))
    };
    let skip = |timeout| {
        let skipped = shared.chain.skip_current(&calls, timeout);
        skipped.map_err(|source| chain_error(handle, source))
    };
    shared.chain.run_sequences(prepare, skip).await?;
    let outcome = calls.take();
    let (shared2, handle2) = (Arc::clone(shared), Arc::clone(handle));
    match shared.pool.run(STALL_WARNING, move |_: &_| open_logs(&shared2, &handle2, outcome)).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(super::internal(handle, &abandoned.to_string())),
    }
}

/// Records the intent, and creates the sandbox.
fn record_intent(shared: &Shared, handle: &Handle, request: Request) -> Result<Container, LaunchError> {
    let id = handle.id().clone();
    let user = user::resolve(request.command.user.as_deref(), None, None)
        .map_err(|source| LaunchError::User { id: id.clone(), source })?;
    let record = handle.record();
    let mut container = Container::new(id.clone());
    container.standalone = true;
    container.command = request.command;
    container.resources = request.resources;
    container.labels = request.labels;
    container.sandbox.clone_from(&record.sandbox);
    (container.uid, container.gid) = (user.uid, user.gid);
    let participants = shared.chain.participants(&container);
    handle
        .update_persisted(&shared.ledger, |record| {
            (record.uid, record.gid, record.groups) = (user.uid, user.gid, user.groups.clone());
            record.part.participants = participants;
        })
        .map_err(|source| LaunchError::Ledger { id: id.clone(), source })?;
    let directory_error =
        |path: &Path, source| LaunchError::Directory { id: id.clone(), path: path.to_owned(), source };
    create_directory(&record.sandbox).map_err(|source| directory_error(&record.sandbox, source))?;
    let agent = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (user.uid, user.gid) != agent {
        chown(&record.sandbox, Some(user.uid), Some(user.gid))
            .map_err(|source| directory_error(&record.sandbox, source))?;
    }
    Ok(container)
}

/// Creates a directory, which must not exist, in one of the agent alone. Containers have theirs mounted, so nobody passes
/// through on the way to it.
fn create_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        private_directory(parent)?;
    }
    fs::DirBuilder::new().mode(0o750).create(path)
}

/// Creates a directory of the agent alone, unless it exists. Takes the permissions of others from one that does.
fn private_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        create_searchable(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created,
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = directory.metadata()?;
    let user = nix::unistd::geteuid();
    if found.uid() != user.as_raw() {
        let (path, owner) = (path.display(), found.uid());
        return Err(io::Error::other(format!(
            "`{path}` belongs to user {owner}, not to the agent's, {user}"
        )));
    }
    if found.mode() & 0o7777 != 0o700 {
        directory.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens what the logger wants output to go to, and records that.
fn open_logs(
    shared: &Shared,
    handle: &Handle,
    outcome: SequenceOutcome<PreparedLaunch>,
) -> Result<Logged, LaunchError> {
    let id = handle.id().clone();
    let record = handle.record();
    let SequenceOutcome { participants, result: prepared, .. } = outcome;
    let failed =
        |(path, source): (PathBuf, io::Error)| LaunchError::Directory { id: id.clone(), path, source };
    let mut stdio = stdio::open(prepared.stdio, record.uid, record.gid).map_err(failed)?;
    // A logger that hands out pipes knows which files its output ends up in.
    let logs = std::mem::take(&mut stdio.logs);
    let logs = prepared.log_files.map_or(logs, |LogFiles { stdout, stderr, .. }| Logs {
        stdout,
        stderr,
        ..Logs::default()
    });
    handle
        .update_persisted(&shared.ledger, |record| {
            record.logs = logs;
            record.part.set_participants(participants);
        })
        .map_err(|source| LaunchError::Ledger { id: id.clone(), source })?;
    let environment = prepared.plan.environment.into_iter().map(|(name, value)| (name, value.value));
    Ok(Logged { stdio, environment: environment.collect() })
}

fn chain_error(handle: &Handle, source: ChainError) -> LaunchError {
    LaunchError::Chain { id: handle.id().clone(), phase: handle.phase(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sandboxes_are_in_a_directory_of_the_agent_alone() {
        let work = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let docker = work.path().join("work/docker");
        create_directory(&docker.join("web")).unwrap();
        assert_eq!((mode(&docker), mode(docker.parent().unwrap())), (0o700, 0o711));
        // As an earlier agent has left it.
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o711)).unwrap();
        create_directory(&docker.join("other")).unwrap();
        assert_eq!(mode(&docker), 0o700);
        assert_eq!(create_directory(&docker.join("web")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_link_is_no_directory_of_sandboxes() {
        let work = tempfile::tempdir().unwrap();
        fs::create_dir(work.path().join("elsewhere")).unwrap();
        symlink("elsewhere", work.path().join("docker")).unwrap();
        assert!(create_directory(&work.path().join("docker/web")).is_err());
        assert!(!work.path().join("elsewhere/web").exists());
    }
}
