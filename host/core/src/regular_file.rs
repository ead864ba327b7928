//! Small files of the agent, in directories where something else may be in their place.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a file; `None` if there is none. Waits for nobody: something else, such as a named pipe, is an error.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is no regular file of at most `max` bytes, and those of the kernel.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let other = || {
        io::Error::new(io::ErrorKind::InvalidData, format!("it is no regular file of at most {max} bytes"))
    };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Err(other()),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(other());
    }
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max { Err(other()) } else { Ok(Some(content)) }
}

/// Puts a file with this content in the place of the one that is there.
///
/// # Errors
/// Those of the kernel.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    file.write_all(content).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // Best effort: the first error is more informative.
        drop(fs::remove_file(&new));
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_no_small_regular_file_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("/dev/zero", at("link")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("large"), "12345").unwrap();
        for name in ["pipe", "directory", "link", "socket", "large"] {
            assert_eq!(read(&at(name), 4).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
        }
        assert_eq!(read(&at("none"), 4).unwrap(), None);
        assert_eq!(read(&at("large"), 5).unwrap().as_deref(), Some(&b"12345"[..]));
    }

    #[test]
    fn a_file_is_replaced_and_what_was_left_behind_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("file"), directory.path().join("other"));
        fs::write(&other, "other").unwrap();
        symlink(&other, path.with_extension("new")).unwrap();
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read(&other).unwrap(), b"other");
    }
}
