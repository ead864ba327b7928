//! What the tests of the whole house share: where things are, and a world of their own for each test.

pub mod paths;
pub mod world;

/// Whether this process is root. Tests that need it say so: they fail in CI, and are skipped loudly elsewhere.
pub fn is_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs root, and CI promises it");
    eprintln!("SKIPPED {test}: it needs root");
    false
}

use std::path::Path;
use std::time::{Duration, Instant};

/// A file's text.
///
/// # Panics
/// When it cannot be read.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits, by the file's own events, until a text is in it.
///
/// # Panics
/// When it is not there after a minute.
pub fn wait_for_text(path: &Path, wanted: &str) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use std::os::fd::AsFd;

    let deadline = Instant::now() + Duration::from_secs(60);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
    let folder = path.parent().expect("a file in a folder");
    let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(folder, events).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    loop {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        if found.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "`{wanted}` did not come to {}; it has: {found}", path.display());
        let mut ready = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::from(1000u16)).expect("poll");
        drop(inotify.read_events());
    }
}
