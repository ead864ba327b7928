//! The sandbox of a container, as a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_linux::foreign::{self, OpenError, Resolve};
use rustix::fs::OFlags;

/// Opens a sandbox for reading. The directories above belong to the agent; should there be a link nevertheless, it is not
/// followed.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let open = || {
        let below = path.strip_prefix("/").unwrap_or(path);
        let found = foreign::find(foreign::directory(Path::new("/"))?, below, Resolve::WithoutLinks)?;
        Ok(foreign::reopen(&found, OFlags::RDONLY | OFlags::DIRECTORY)?)
    };
    open().map_err(|error: OpenError| {
        io::Error::other(format!("cannot open the sandbox `{}`: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_sandbox_is_a_directory_and_no_link_leads_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("parent/child")).unwrap();
        open(&root.join("parent/child")).unwrap();
        symlink("parent", root.join("link")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for path in ["link/child", "link", "file", "missing"] {
            let error = open(&root.join(path)).unwrap_err().to_string();
            assert!(error.contains("cannot open the sandbox"), "{error}");
        }
    }
}
