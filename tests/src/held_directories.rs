//! Directories that nobody can open for a while: who does waits until they are released.

use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::daemon::TIMEOUT;

/// Directories that are held, by permission events of fanotify that stay unanswered. Released on drop.
#[derive(Debug)]
pub struct HeldDirectories(Fanotify);

impl HeldDirectories {
    /// Holds directories.
    ///
    /// # Panics
    /// If one is missing, or without CAP_SYS_ADMIN.
    pub fn hold<P: AsRef<Path>>(directories: impl IntoIterator<Item = P>) -> Self {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let events = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC);
        let events = events.expect("fanotify with permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)");
        for directory in directories {
            let opened = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
            let marked = events.mark(MarkFlags::FAN_MARK_ADD, opened, AT_FDCWD, Some(directory.as_ref()));
            marked.expect("an existing directory");
        }
        Self(events)
    }

    /// Waits until somebody waits for one of them.
    ///
    /// # Panics
    /// If nobody does.
    pub fn wait_for_an_opener(&self) {
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let found = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
        assert_eq!(found, Ok(1), "nobody opens it");
    }
}
