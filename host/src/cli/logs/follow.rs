//! Shows the output of a container as it grows, across rotations.
//!
//! A thread waits for inotify events of the directory of the files. [`Follower::finish`] makes it copy the rest and exit.
//!
//! Closing an inotify descriptor takes about 20 ms, longer than many commands run. So the thread first polls, at
//! increasing intervals.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use rustix::io::Errno;

use super::files::{Content, Log, Part};
use super::print::Printer;
use super::start::{Place, Selection, seek};

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

impl Follower {
    /// Starts showing output. `on_error` is called when reading or writing fails.
    pub(super) fn start(
        mut tail: Tail,
        mut printer: Printer<impl Write + Send + 'static>,
        on_error: impl FnOnce(&io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let done = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let done = Arc::clone(&done);
            let copy = move || {
                let copied = follow(&mut tail, &mut printer, &done).and_then(|()| printer.finish());
                copied.inspect_err(on_error)
            };
            std::thread::Builder::new().name("follow".to_owned()).spawn(copy)?
        };
        Ok(Self { done, thread })
    }

    /// Shows the rest and waits for the thread. Called after the last write.
    pub(super) fn finish(self) -> io::Result<()> {
        rustix::io::write(&*self.done, &1_u64.to_ne_bytes())?;
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that copies output panicked")))
    }
}

fn follow(tail: &mut Tail, printer: &mut Printer<impl Write>, done: &OwnedFd) -> io::Result<()> {
    for poll in 0..POLLS {
        tail.copy_new(printer)?;
        let mut finished = [PollFd::new(done, PollFlags::IN)];
        if wait(&mut finished, Some(FIRST_INTERVAL * 2_u32.pow(poll)))? {
            return tail.copy_new(printer);
        }
    }
    // Watch before the next read, so that no change is missed.
    let Ok(changes) = watch_directory(&tail.log.path) else { return poll_until_done(tail, printer, done) };
    loop {
        tail.copy_new(printer)?;
        let mut ready = [PollFd::new(&changes, PollFlags::IN), PollFd::new(done, PollFlags::IN)];
        wait(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return tail.copy_new(printer);
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
fn poll_until_done(tail: &mut Tail, printer: &mut Printer<impl Write>, done: &OwnedFd) -> io::Result<()> {
    loop {
        tail.copy_new(printer)?;
        if wait(&mut [PollFd::new(done, PollFlags::IN)], Some(FALLBACK_INTERVAL))? {
            return tail.copy_new(printer);
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

/// Output that grows, from some place on.
pub(super) struct Tail {
    log: Log,
    /// Files that have been opened, the oldest first.
    next: VecDeque<Part>,
    current: Option<Part>,
    position: u64,
    /// The length of the newest of these files when it was opened.
    known: u64,
}

impl Tail {
    /// Opens all files of a log.
    pub(super) fn open(log: Log, selection: Selection) -> io::Result<Self> {
        let mut parts = log.parts()?;
        let known = match parts.last().map(|part| &part.content) {
            Some(Content::Plain(file)) => file.metadata()?.len(),
            _ => u64::MAX,
        };
        let Place { part, offset } = selection.beginning(&mut parts)?;
        let mut next = VecDeque::from(parts);
        next.drain(..part.min(next.len()));
        for part in &mut next {
            seek(&mut part.content, 0)?;
        }
        let mut current = next.pop_front();
        if let Some(current) = &mut current {
            seek(&mut current.content, offset)?;
        }
        Ok(Self { log, next, current, position: offset, known })
    }

    /// Whether there is no file.
    pub(super) const fn is_missing(&self) -> bool {
        self.current.is_none()
    }

    /// Whether the times of its output are stored.
    pub(super) const fn has_times(&self) -> bool {
        self.log.has_times
    }

    /// Whether there was anything to show when this was opened.
    pub(super) fn has_known(&self) -> bool {
        self.current.is_some() && (!self.next.is_empty() || self.position < self.known)
    }

    /// Reads what was there when this was opened. Returns where that is in its file, and how much it is; `None` at the end.
    pub(super) fn read_known(&mut self, buffer: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        loop {
            if let Some(part) = &mut self.current {
                let is_newest = self.next.is_empty();
                let left = if is_newest { self.known.saturating_sub(self.position) } else { u64::MAX };
                let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                match part.content.read(&mut buffer[..most]) {
                    Ok(0) => {}
                    Ok(count) => {
                        let at = self.position;
                        self.position += count as u64;
                        return Ok(Some((at, count)));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            let Some(next) = self.next.pop_front() else { return Ok(None) };
            self.continue_with(next);
        }
    }

    /// When something in the file that was read last was written, if that is known.
    pub(super) fn time_at(&mut self, offset: u64) -> io::Result<Option<SystemTime>> {
        let times = self.current.as_mut().and_then(|part| part.times.as_mut());
        times.map_or(Ok(None), |times| times.at(offset))
    }

    /// Shows what was read of that file.
    pub(super) fn print(
        &mut self,
        bytes: &[u8],
        offset: u64,
        printer: &mut Printer<impl Write>,
    ) -> io::Result<()> {
        match &mut self.current {
            Some(part) => printer.write(bytes, offset, &mut part.times),
            None => Ok(()),
        }
    }

    /// Copies everything that is new.
    fn copy_new(&mut self, printer: &mut Printer<impl Write>) -> io::Result<()> {
        loop {
            self.copy_rest(printer)?;
            if let Some(next) = self.next.pop_front() {
                self.continue_with(next);
                continue;
            }
            let Some(current) = &self.current else {
                let Some(first) = self.log.current()? else { return Ok(()) };
                self.continue_with(first);
                continue;
            };
            if self.log.file.is_some() {
                return Ok(());
            }
            let Some((next, is_next)) = self.log.after(current.id)? else { return Ok(()) };
            // It may have grown before it was renamed.
            self.copy_rest(printer)?;
            if !is_next {
                // Standard error may be closed.
                drop(writeln!(
                    io::stderr(),
                    "cofferdam: some output is missing: it was removed before it was shown"
                ));
            }
            self.continue_with(next);
        }
    }

    fn continue_with(&mut self, part: Part) {
        self.current = Some(part);
        self.position = 0;
    }

    fn copy_rest(&mut self, printer: &mut Printer<impl Write>) -> io::Result<()> {
        let Some(Part { content, times, .. }) = &mut self.current else { return Ok(()) };
        if let Content::Plain(file) = content
            && file.metadata()?.len() < self.position
        {
            // It was truncated.
            seek(content, 0)?;
            self.position = 0;
        }
        let mut buffer = [0; 32768];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    printer.write(&buffer[..count], self.position, times)?;
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Seek;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use cofferdam_core::model::view::FileId;

    use super::*;

    fn log(path: PathBuf, file: Option<FileId>) -> Log {
        Log { path, file, owner: None, has_times: false }
    }

    fn tail(log: Log) -> Tail {
        Tail::open(log, Selection::default()).unwrap()
    }

    fn copy_all(log: Log, sink: &mut Vec<u8>) -> io::Result<()> {
        Tail::open(log, Selection::default())?.copy_new(&mut Printer::new(sink, None, false, false))
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
        let printer = Printer::new(Lines(sender), None, false, false);
        let follower = Follower::start(tail(log(path.clone(), None)), printer, |_| {}).unwrap();

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
    fn all_output_is_copied_in_order_however_often_it_is_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (sender, lines) = channel();
        let printer = Printer::new(Lines(sender), None, false, false);
        fs::write(at("stdout"), "0").unwrap();
        let follower = Follower::start(tail(log(at("stdout"), None)), printer, |_| {}).unwrap();
        take(&lines, "0");
        let mut expected = String::new();
        // Faster than it can be followed; the file that is being read is the last one that is kept.
        for number in 1..=20 {
            for older in (1..number).rev() {
                fs::rename(at(&format!("stdout.{older}")), at(&format!("stdout.{}", older + 1))).unwrap();
            }
            fs::rename(at("stdout"), at("stdout.1")).unwrap();
            let text = format!("<{number}>");
            fs::write(at("stdout"), &text).unwrap();
            expected += &text;
        }
        take(&lines, &expected);
        follower.finish().unwrap();
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
        let printer = Printer::new(Lines(sender), None, false, false);
        let follower = Follower::start(tail(log(path.clone(), None)), printer, on_error).unwrap();
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
            copy_all(log(path.clone(), file), &mut copied).map(|()| copied).map_err(|e| e.to_string())
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
        assert!(copy_all(log(at("logs/link/secret"), None), &mut sink).is_err());
        assert!(sink.is_empty());
    }
}
