//! The host's `/proc`, which the setup process writes to before it has the root of the container.
//!
//! A process that enters the mount namespace of a container sees what that container has at this path: another file system, or
//! links to other files. So it opens the host's before.

use core::ffi::CStr;

use crate::sys::{self, Errno, Fd, O_DIRECTORY, O_PATH, O_WRONLY};

/// Where it is mounted.
const PATH: &CStr = c"/proc";

/// The host's `/proc`.
#[derive(Clone, Copy)]
pub(crate) struct Proc(Option<Fd>);

impl Proc {
    /// By its path, as long as the mount namespace is the agent's, or a copy of that.
    pub(crate) const BY_PATH: Self = Self(None);

    /// By a descriptor, before another mount namespace is entered.
    pub(crate) fn open() -> Result<Self, Errno> {
        sys::open(PATH, O_PATH | O_DIRECTORY).map(|directory| Self(Some(directory)))
    }

    /// Writes to an existing file of it. Its path begins with `/proc/`.
    pub(crate) fn write(self, path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
        let file = match self.0 {
            None => sys::open(path, O_WRONLY)?,
            Some(directory) => {
                let below = path.to_bytes_with_nul().strip_prefix(b"/proc/").ok_or(Errno::INVAL)?;
                let below = CStr::from_bytes_with_nul(below).map_err(|_| Errno::INVAL)?;
                sys::open_beneath(directory, below, O_WRONLY)?
            }
        };
        let written = sys::write(file, bytes);
        sys::close(file);
        written.map(drop)
    }

    /// Closes the descriptor: no process of a container may have it.
    pub(crate) fn close(self) {
        if let Some(directory) = self.0 {
            sys::close(directory);
        }
    }
}
