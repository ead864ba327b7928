//! Waits for changes of files with inotify.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Waits until the content of a file satisfies `enough`, and returns it. The directory of the file must exist.
///
/// # Panics
/// If it does not within `timeout`.
pub fn content(path: &Path, timeout: Duration, enough: impl Fn(&str) -> bool) -> String {
    let mut content = String::new();
    let satisfied = until(path.parent().expect("a parent"), timeout, || {
        content = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            content => content.expect("a text"),
        };
        enough(&content)
    });
    assert!(satisfied, "`{}` does not have the expected content:\n{content}", path.display());
    content
}

/// Waits until `satisfied` is true, which is evaluated at first and after each change in a directory. Returns whether
/// it is within `timeout`.
///
/// # Panics
/// If the directory does not exist.
pub fn until(directory: &Path, timeout: Duration, mut satisfied: impl FnMut() -> bool) -> bool {
    let changed = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .expect("a watch on files");
    let interesting = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&changed, directory, interesting).expect("an existing directory");
    let deadline = Instant::now() + timeout;
    // Evaluated after the watch was added and after each event, so that no change is missed.
    while !satisfied() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::new(&changed, PollFlags::IN)], Some(&left)).expect("a watch can be waited for");
        // The events themselves are not needed.
        while rustix::io::read(&changed, &mut [0; 4096]).is_ok() {}
    }
    true
}
