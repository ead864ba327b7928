//! Copies the output of a container to a writer as it grows.
//!
//! Its file may be in a directory of the container, which can put anything in its place. So it is opened without
//! following symbolic links, must be a regular file, and is the one that the agent opened: the descriptor is kept. If a
//! logger writes the file, only that logger knows which one it is, and the file may be rotated.
//!
//! A thread waits for inotify events of the file's directory. [`Follower::finish`] makes it copy the rest and exit.
//!
//! Closing an inotify descriptor takes about 20 ms, longer than many commands run. So the thread first polls, at
//! increasing intervals.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use cofferdam_core::model::view::FileId;
use cofferdam_linux::foreign::{self, OpenError, Resolve};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;

/// First polling interval. Each interval is twice as long as the one before.
const FIRST_INTERVAL: Duration = Duration::from_millis(2);
/// Number of intervals before inotify is used: 62 ms in total.
const POLLS: u32 = 5;

/// Polling interval when inotify is not available.
const FALLBACK_INTERVAL: Duration = Duration::from_millis(100);

/// A copy in progress.
pub(super) struct Follower {
    done: Arc<OwnedFd>,
    thread: JoinHandle<io::Result<()>>,
}

/// A file with output of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) path: PathBuf,
    /// Which file it is, if the agent opened it.
    pub(super) file: Option<FileId>,
}

/// Why the output of a container cannot be read.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("cannot read the output of the container in `{}`", path.display())]
    Open { path: PathBuf, source: OpenError },
    #[error("`{}` is not the file that the agent opened; the container has put it there", path.display())]
    Replaced { path: PathBuf },
}

impl Log {
    pub(super) const fn new(path: PathBuf, file: Option<FileId>) -> Self {
        Self { path, file }
    }

    /// Opens the file; `None` if it is missing.
    fn open(&self) -> io::Result<Option<File>> {
        let path = self.path.strip_prefix("/").unwrap_or(&self.path);
        let open = || {
            let root = foreign::directory(Path::new("/"))?;
            foreign::open_regular(foreign::find(root, path, Resolve::WithoutLinks)?)
        };
        let file = match open() {
            Ok(file) => file,
            Err(error) if error.is_missing() => return Ok(None),
            Err(source) => {
                return Err(io::Error::other(LogError::Open { path: self.path.clone(), source }));
            }
        };
        if self.file.is_some_and(|expected| file.metadata().is_ok_and(|found| FileId::of(&found) != expected))
        {
            return Err(io::Error::other(LogError::Replaced { path: self.path.clone() }));
        }
        Ok(Some(file))
    }
}

impl Follower {
    /// Starts copying a file from its beginning. `on_error` is called when reading or writing fails.
    pub(super) fn start(
        log: Log,
        mut sink: impl Write + Send + 'static,
        on_error: impl FnOnce(&io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let done = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let done = Arc::clone(&done);
            std::thread::Builder::new()
                .name("follow".to_owned())
                .spawn(move || copy(&log, &mut sink, &done).inspect_err(on_error))?
        };
        Ok(Self { done, thread })
    }

    /// Copies the rest and waits for the thread. Called after the last write to the file.
    pub(super) fn finish(self) -> io::Result<()> {
        rustix::io::write(&*self.done, &1_u64.to_ne_bytes())?;
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that copies output panicked")))
    }
}

fn copy(log: &Log, sink: &mut dyn Write, done: &OwnedFd) -> io::Result<()> {
    let mut tail = Tail { log, file: None, position: 0 };
    for poll in 0..POLLS {
        tail.copy_new(sink)?;
        let mut finished = [PollFd::new(done, PollFlags::IN)];
        if wait(&mut finished, Some(FIRST_INTERVAL * 2_u32.pow(poll)))? {
            return tail.copy_new(sink);
        }
    }
    // Watch before the next read, so that no change is missed.
    let Ok(changes) = watch_directory(&log.path) else { return poll_until_done(tail, sink, done) };
    loop {
        tail.copy_new(sink)?;
        let mut ready = [PollFd::new(&changes, PollFlags::IN), PollFd::new(done, PollFlags::IN)];
        wait(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return tail.copy_new(sink);
        }
        // Any change is a reason to read again.
        let mut events = [0; 4096];
        match rustix::io::read(&changes, &mut events) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Copies with polling instead of inotify, for example if the user has too many inotify instances.
fn poll_until_done(mut tail: Tail<'_>, sink: &mut dyn Write, done: &OwnedFd) -> io::Result<()> {
    loop {
        tail.copy_new(sink)?;
        if wait(&mut [PollFd::new(done, PollFlags::IN)], Some(FALLBACK_INTERVAL))? {
            return tail.copy_new(sink);
        }
    }
}

/// Watches the directory of a file.
fn watch_directory(path: &Path) -> io::Result<OwnedFd> {
    let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let directory =
        path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    add_watch(&inotify, directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    Ok(inotify)
}

/// Waits until a descriptor is ready, or for the timeout. Returns whether one is.
fn wait(descriptors: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    match poll(descriptors, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file that grows and may be rotated.
struct Tail<'a> {
    log: &'a Log,
    file: Option<File>,
    position: u64,
}

impl Tail<'_> {
    /// Copies everything that is new.
    fn copy_new(&mut self, sink: &mut dyn Write) -> io::Result<()> {
        loop {
            if let Some(file) = &mut self.file {
                // It was truncated.
                if file.metadata()?.len() < self.position {
                    self.position = file.seek(SeekFrom::Start(0))?;
                }
                self.position += copy_rest(file, sink)?;
            }
            if self.file.is_some() && self.log.file.is_some() {
                return sink.flush();
            }
            let Some(next) = self.log.open()? else { return sink.flush() };
            if let Some(file) = &mut self.file {
                if FileId::of(&file.metadata()?) == FileId::of(&next.metadata()?) {
                    return sink.flush();
                }
                // The old file may have grown before it was renamed.
                copy_rest(file, sink)?;
            }
            self.file = Some(next);
            self.position = 0;
        }
    }
}

fn copy_rest(file: &mut File, sink: &mut dyn Write) -> io::Result<u64> {
    let mut buffer = [0; 32768];
    let mut copied = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => {
                sink.write_all(&buffer[..count])?;
                // Shows incomplete lines as well.
                sink.flush()?;
                copied += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    fn copy_all(log: &Log, sink: &mut dyn Write) -> io::Result<()> {
        Tail { log, file: None, position: 0 }.copy_new(sink)
    }

    struct Lines(Sender<Vec<u8>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn take(from: &Receiver<Vec<u8>>, expected: &str) {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.extend(from.recv().unwrap());
        }
        assert_eq!(String::from_utf8(seen).unwrap(), expected);
    }

    #[test]
    fn all_output_is_copied_once_across_rotation_and_truncation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdout");
        let (sender, lines) = channel();
        let log = Log::new(path.clone(), None);
        let follower = Follower::start(log, Lines(sender), |_| {}).unwrap();

        let mut file = File::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        take(&lines, "one");
        file.write_all(b"two").unwrap();
        take(&lines, "two");

        // Rotated: the rest of the old file comes before the new one.
        fs::rename(&path, directory.path().join("stdout.1")).unwrap();
        file.write_all(b"three").unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(b"four").unwrap();
        take(&lines, "threefour");

        // Truncated.
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(b"5").unwrap();
        take(&lines, "5");

        file.write_all(b"last").unwrap();
        follower.finish().unwrap();
        take(&lines, "last");
        assert!(lines.recv().is_err());
    }

    #[test]
    fn a_failed_write_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdout");
        let (sender, lines) = channel();
        drop(lines);
        let (broken, kinds) = channel();
        let on_error = move |error: &io::Error| broken.send(error.kind()).unwrap();
        let follower = Follower::start(Log::new(path.clone(), None), Lines(sender), on_error).unwrap();
        fs::write(&path, "text").unwrap();
        assert_eq!(kinds.recv().unwrap(), io::ErrorKind::BrokenPipe);
        assert!(follower.finish().is_err());
    }

    #[test]
    fn only_the_file_that_the_agent_opened_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let path = at("stdout");
        fs::write(&path, "output").unwrap();
        fs::write(at("secret"), "secret").unwrap();
        let file = Some(FileId::of(&fs::metadata(&path).unwrap()));
        let copied = |file| {
            let mut copied = Vec::new();
            copy_all(&Log::new(path.clone(), file), &mut copied).map(|()| copied).map_err(|e| e.to_string())
        };
        assert_eq!(copied(file).unwrap(), b"output");
        fs::rename(&path, at("old")).unwrap();
        assert_eq!(copied(file).unwrap(), b"");

        // A link to a file that the reader may read and the container may not.
        std::os::unix::fs::symlink(at("secret"), &path).unwrap();
        assert!(copied(file).unwrap_err().contains("cannot read the output"));
        assert!(copied(None).unwrap_err().contains("cannot read the output"));
        fs::remove_file(&path).unwrap();
        fs::hard_link(at("secret"), &path).unwrap();
        assert!(copied(file).unwrap_err().contains("the container has put it there"));
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for file in [file, None] {
            assert!(copied(file).unwrap_err().contains("cannot read the output"));
        }
        fs::remove_file(&path).unwrap();
        // A directory on the way is a link.
        fs::create_dir(at("logs")).unwrap();
        std::os::unix::fs::symlink(directory.path(), at("logs/link")).unwrap();
        let mut sink = Vec::new();
        assert!(copy_all(&Log::new(at("logs/link/secret"), None), &mut sink).is_err());
        assert!(sink.is_empty());
    }
}
