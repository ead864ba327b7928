//! What loggers want of the standard streams of a container: that of the agent, and those that another one passes output on to.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_plugin_model::{LogFiles, LogPlace, LogTarget};
use rustix::fs::{FileType, fstat};

/// What a standard stream of a container is connected to.
#[derive(Debug, Default)]
pub enum StdioTarget {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file.
    Path(PathBuf),
    /// A descriptor of the logger.
    Descriptor(OwnedFd),
}

/// A logger takes output over a descriptor that cannot be opened by a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnnamedPipe;

/// Where loggers want the output that another logger passes on to them.
#[derive(Debug, Default)]
pub(super) struct PassedOn {
    /// In the operator's order.
    pub(super) targets: Vec<LogTarget>,
    /// Their pipes, kept open so that their readers do not see the end of the container before the other logger has opened them.
    pipes: Vec<OwnedFd>,
    /// The files of the first logger that has some.
    files: Option<LogFiles>,
}

impl PassedOn {
    /// Adds a logger with what it wants of the standard streams, and the files that it named.
    pub(super) fn add(
        &mut self,
        logger: &str,
        [_, stdout, stderr]: [StdioTarget; 3],
        files: Option<LogFiles>,
    ) -> Result<(), UnnamedPipe> {
        let files = files.or_else(|| {
            let (stdout, stderr) = (path_of(&stdout)?, path_of(&stderr));
            Some(LogFiles { stdout: Some(stdout), stderr, times: false })
        });
        self.files = self.files.take().or(files);
        let target =
            LogTarget { logger: logger.to_owned(), stdout: self.place(stdout)?, stderr: self.place(stderr)? };
        self.targets.push(target);
        Ok(())
    }

    /// The files in which output can be read that goes to these streams, unless these are files themselves.
    pub(super) fn files_behind(&mut self, [_, stdout, _]: &[StdioTarget; 3]) -> Option<LogFiles> {
        self.files.take().filter(|_| path_of(stdout).is_none())
    }

    fn place(&mut self, target: StdioTarget) -> Result<Option<LogPlace>, UnnamedPipe> {
        match target {
            StdioTarget::Null => Ok(None),
            StdioTarget::Path(path) => Ok(Some(LogPlace { path, pipe: false })),
            StdioTarget::Descriptor(pipe) => {
                let path = name_of_pipe(&pipe).ok_or(UnnamedPipe)?;
                self.pipes.push(pipe);
                Ok(Some(LogPlace { path, pipe: true }))
            }
        }
    }
}

fn path_of(target: &StdioTarget) -> Option<PathBuf> {
    match target {
        StdioTarget::Path(path) => Some(path.clone()),
        StdioTarget::Null | StdioTarget::Descriptor(_) => None,
    }
}

/// The path of a named pipe.
fn name_of_pipe(pipe: &OwnedFd) -> Option<PathBuf> {
    let is_pipe = FileType::from_raw_mode(fstat(pipe).ok()?.st_mode) == FileType::Fifo;
    let path = fs::read_link(format!("/proc/self/fd/{}", pipe.as_raw_fd())).ok()?;
    Some(path).filter(|path| is_pipe && path.is_absolute())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, OFlags, mknodat, open};

    use super::*;

    #[test]
    fn pipes_are_known_by_their_names_and_files_by_their_paths() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let pipe = open(&path, OFlags::RDWR, Mode::empty()).unwrap();
        let mut passed_on = PassedOn::default();
        let first = [StdioTarget::Null, StdioTarget::Descriptor(pipe), StdioTarget::Null];
        passed_on.add("first", first, None).unwrap();
        let file = || StdioTarget::Path("/log".into());
        passed_on.add("second", [StdioTarget::Null, file(), file()], None).unwrap();
        let [first, second] = &passed_on.targets[..] else { panic!("{passed_on:?}") };
        assert_eq!(first.stdout, Some(LogPlace { path, pipe: true }));
        assert_eq!(first.stderr, None);
        assert_eq!(second.stderr, Some(LogPlace { path: "/log".into(), pipe: false }));
        let files = passed_on.files_behind(&Default::default()).unwrap();
        assert_eq!(files.stdout, Some("/log".into()));
    }

    #[test]
    fn a_pipe_without_a_name_is_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let streams = [StdioTarget::Null, StdioTarget::Descriptor(reader), StdioTarget::Null];
        assert_eq!(PassedOn::default().add("other", streams, None), Err(UnnamedPipe));
    }
}
