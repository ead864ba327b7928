//! The executor program of this project: a private copy of it, which containers can execute and not change.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_linux::mounts::is_noexec;
use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::error_chain;
use crate::regular_file;

/// Name of the program.
pub const NAME: &str = "cofferdam-executor";

/// How large the program may be.
const MAX_SIZE: u64 = 64 << 20;

/// The program, of which an agent has a copy unless there was none to be made yet.
#[derive(Debug)]
pub(crate) struct Program {
    /// Directory of the program.
    from: PathBuf,
    /// Directory of the agent's copies.
    to: PathBuf,
    copy: Mutex<Option<ExecutorProgram>>,
}

impl Program {
    /// Copies the program from a directory to one of the agent's. `None` if there is no program. That it cannot be written,
    /// as on a full disk, is no error: containers of earlier agents can be ended all the same, and [`Program::require`]
    /// tries again. Blocks.
    pub(crate) fn open(from: &Path, to: PathBuf) -> Result<Option<Self>, ProgramError> {
        let copy = match ExecutorProgram::copy(from, &to) {
            Err(error @ ProgramError::Copy { .. }) => {
                let error = error_chain::describe(&error);
                tracing::error!("no tasks can be launched with the executor program for now: {error}");
                None
            }
            Ok(None) => return Ok(None),
            copied => copied?,
        };
        Ok(Some(Self { from: from.to_owned(), to, copy: Mutex::new(copy) }))
    }

    /// The copy, if there is one.
    pub(super) fn copied(&self) -> Option<ExecutorProgram> {
        self.copy.lock().clone()
    }

    /// Makes the copy, if there is none. Whether there is one then; there is none if the program was removed. Blocks.
    pub(super) fn require(&self) -> Result<bool, ProgramError> {
        let mut copy = self.copy.lock();
        if copy.is_none() {
            *copy = ExecutorProgram::copy(&self.from, &self.to)?;
        }
        Ok(copy.is_some())
    }
}

/// The copy of the program.
#[derive(Debug, Clone)]
pub struct ExecutorProgram {
    /// Directory that contains nothing else.
    directory: PathBuf,
}

/// Why the program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be read.
    #[error("cannot read the executor program `{path}`")]
    Read {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can be changed by others.
    #[error(
        "the executor program `{path}` belongs to user {uid} or can be written by others; it must belong to root or the agent's user, and to nobody else"
    )]
    Writable {
        /// The program.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is no file, or too large.
    #[error("the executor program `{path}` is no file of at most 64 MiB")]
    NoProgram {
        /// The program.
        path: PathBuf,
    },
    /// Nothing can be executed from the file system of the copy.
    #[error(
        "the copy `{path}` of the executor program could not be executed, as its file system is mounted `noexec`; mount that of `work_dir` without this option, or choose another `work_dir`"
    )]
    NoExec {
        /// The copy.
        path: PathBuf,
    },
    /// It cannot be copied.
    #[error("cannot copy the executor program to `{path}`")]
    Copy {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ExecutorProgram {
    /// Copies the program from a directory to one of the agent's, unless it is there already. `None` if there is no
    /// program. Blocks.
    fn copy(from: &Path, to: &Path) -> Result<Option<Self>, ProgramError> {
        let path = from.join(NAME);
        let read_error = |source| ProgramError::Read { path: path.clone(), source };
        let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut file = match options {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(read_error)?,
        };
        let metadata = file.metadata().map_err(read_error)?;
        if !metadata.is_file() || metadata.len() > MAX_SIZE {
            return Err(ProgramError::NoProgram { path });
        }
        let own = nix::unistd::geteuid().as_raw();
        if ![0, own].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
            return Err(ProgramError::Writable { path, uid: metadata.uid() });
        }
        let mut content = Vec::new();
        (&mut file).take(MAX_SIZE).read_to_end(&mut content).map_err(read_error)?;
        let directory = to.join(HEXLOWER.encode(&Sha256::digest(&content)));
        let copy = directory.join(NAME);
        let copy_error = |source| ProgramError::Copy { path: copy.clone(), source };
        write(&directory, &copy, &content).map_err(copy_error)?;
        if is_noexec(&copy).map_err(copy_error)? {
            return Err(ProgramError::NoExec { path: copy });
        }
        Ok(Some(Self { directory }))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }
}

fn write(directory: &Path, copy: &Path, content: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    // Containers may run as any user.
    for directory in directory.parent().into_iter().chain([directory]) {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    if regular_file::read(copy, MAX_SIZE).is_ok_and(|found| found.is_some_and(|found| found == content)) {
        return Ok(());
    }
    let temporary = copy.with_extension("new");
    drop(fs::remove_file(&temporary));
    let mut file = File::options().write(true).create_new(true).mode(0o555).open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
    fs::rename(&temporary, copy)
}
