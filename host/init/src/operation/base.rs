//! A directory below which paths of the plan are resolved and created.

use core::ffi::CStr;

use crate::failure::Text;
use crate::sys::{self, Errno, Fd, O_DIRECTORY, O_PATH, O_RDONLY};

/// Limit of the kernel for a path, including the NUL.
pub(super) const MAX_PATH: usize = 4096;

/// Limit of the kernel for a name in a directory, including the NUL.
const MAX_NAME: usize = 256;

/// Where the resolution of a path starts. It never ends outside.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// The root, which absolute symbolic links start from.
    Root(Fd),
    /// A mount inside the root. A symbolic link that leads out of it is an error, because it would have to be
    /// resolved by the names in the root again.
    Mount(Fd),
}

impl Base {
    /// Opens a path for use in other system calls only. An empty one is the base itself, which may be a file.
    pub(super) fn open(self, path: &CStr) -> Result<Fd, Errno> {
        match self {
            Self::Root(base) | Self::Mount(base) if path.is_empty() => sys::open_again(base),
            _ => self.resolve(path, O_PATH),
        }
    }

    fn open_directory(self, path: &CStr) -> Result<Fd, Errno> {
        self.resolve(if path.is_empty() { c"." } else { path }, O_RDONLY | O_DIRECTORY)
    }

    fn resolve(self, path: &CStr, flags: u64) -> Result<Fd, Errno> {
        match self {
            Self::Root(root) => sys::open_in_root(root, path, flags),
            Self::Mount(mount) => sys::open_beneath(mount, path, flags),
        }
    }

    /// Opens the parent directory of `path`, created if it is missing, for `act`, which also gets the last component.
    pub(super) fn in_parent<T>(
        self,
        path: &CStr,
        act: impl FnOnce(Fd, &CStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let bytes = path.to_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let bytes = bytes.get(..end).unwrap_or_default();
        let start = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, last) = bytes.split_at_checked(start).unwrap_or_default();
        if matches!(last, b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        let mut name = Text::<MAX_NAME>::new();
        name.push(last);
        let name = name.as_c_str().ok_or(Errno::NAMETOOLONG)?;
        if parent.is_empty() {
            let (Self::Root(here) | Self::Mount(here)) = self;
            return act(here, name);
        }
        let mut text = Text::<MAX_PATH>::new();
        text.push(parent);
        let parent = self.make_directories(text.as_c_str().ok_or(Errno::NAMETOOLONG)?, None)?;
        let result = act(parent, name);
        sys::close(parent);
        result
    }

    /// Opens a directory, created with its parents if missing. Created ones get `owner`, a user and a group.
    pub(super) fn make_directories(self, path: &CStr, owner: Option<(u32, u32)>) -> Result<Fd, Errno> {
        match self.open_directory(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut walked = Text::<MAX_PATH>::new();
        let mut here = self.resolve(c".", O_PATH | O_DIRECTORY)?;
        for name in path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if !walked.as_bytes().is_empty() {
                walked.push(b"/");
            }
            let before = walked.as_bytes().len();
            walked.push(name);
            let step = walked.as_c_str().ok_or(Errno::NAMETOOLONG)?;
            let next = match self.open_directory(step) {
                Err(Errno::NOENT) => {
                    let name = step.to_bytes_with_nul().get(before..).unwrap_or_default();
                    let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
                    // The name exists and does not resolve: a dangling link, through which nothing is created.
                    match sys::make_directory(here, name, 0o755) {
                        Err(Errno::EXIST) => return Err(Errno::NOENT),
                        other => other?,
                    }
                    let made = Self::Mount(here).open_directory(name)?;
                    if let Some((uid, gid)) = owner {
                        sys::change_owner(made, uid, gid)?;
                    }
                    made
                }
                other => other?,
            };
            sys::close(here);
            here = next;
        }
        Ok(here)
    }
}

/// Opens a directory inside the root, created with its parents if missing. Created ones get `owner`.
pub(crate) fn make_directories(root: Fd, path: &CStr, owner: Option<(u32, u32)>) -> Result<Fd, Errno> {
    Base::Root(root).make_directories(path, owner)
}
