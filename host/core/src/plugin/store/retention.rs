//! Removes private copies that no agent uses, oldest first, so that a store does not grow with every version of every plugin.
//!
//! Whoever uses a copy has a shared lock on a byte of the file `lock`, at an offset from the hash of the copy. The kernel releases
//! it with the last descriptor, whatever ends the agent. Who removes a copy has an exclusive lock on that byte meanwhile. Two
//! copies with the same offset are in use if one is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

const NAME: &str = "lock";

/// How much is kept: copies beyond these bounds are removed, unless they are in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) copies: usize,
    pub(super) bytes: u64,
}

/// Several versions of all plugins of an agent.
pub(super) const DEFAULT: Bounds = Bounds { copies: 256, bytes: 1 << 30 };

/// The copies that an agent uses.
#[derive(Debug)]
pub(super) struct InUse(File);

impl InUse {
    /// None at first. The directory must exist.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(directory.join(NAME))?;
        Ok(Self(file))
    }

    /// Adds the copy with this hash. Waits while it is being removed.
    pub(super) fn add(&self, sha256: &str) -> io::Result<()> {
        let lock = byte(sha256, libc::F_RDLCK)?;
        loop {
            match fcntl(&self.0, FcntlArg::F_OFD_SETLKW(&lock)) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

/// Removes what is beyond the bounds. Returns how many.
pub(super) fn remove_unused(directory: &Path, bounds: Bounds) -> io::Result<usize> {
    // Another description of the file, so that locks of this process count as well.
    let InUse(lock) = InUse::open(directory)?;
    let mut copies: Vec<(SystemTime, u64, String)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(sha256) = name.to_str().and_then(|name| name.strip_suffix(".so")) else { continue };
        let metadata = entry.metadata()?;
        copies.push((metadata.modified()?, metadata.len(), sha256.to_owned()));
    }
    copies.sort_unstable_by(|one, other| other.cmp(one));
    let (mut kept, mut bytes, mut removed) = (0, 0, 0);
    for (_, size, sha256) in copies {
        let is_beyond = kept >= bounds.copies || bytes + size > bounds.bytes;
        if is_beyond && remove(directory, &lock, &sha256)? {
            removed += 1;
        } else {
            kept += 1;
            bytes += size;
        }
    }
    Ok(removed)
}

/// Removes a copy, unless it is in use. Returns whether it did.
fn remove(directory: &Path, lock: &File, sha256: &str) -> io::Result<bool> {
    // What has another name is not a copy.
    let Ok(exclusive) = byte(sha256, libc::F_WRLCK) else { return Ok(false) };
    match fcntl(lock, FcntlArg::F_OFD_SETLK(&exclusive)) {
        Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
        other => other?,
    };
    let removed = fs::remove_file(directory.join(format!("{sha256}.so")));
    fcntl(lock, FcntlArg::F_OFD_SETLK(&byte(sha256, libc::F_UNLCK)?))?;
    removed.map(|()| true)
}

/// The byte of a copy.
fn byte(sha256: &str, kind: libc::c_int) -> io::Result<libc::flock> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{sha256}` is not a SHA-256"));
    let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    // 60 bits, as offsets are not negative.
    let digits = sha256.get(..15).filter(|_| is_hash).ok_or_else(invalid)?;
    let offset = i64::from_str_radix(digits, 16).map_err(|_| invalid())?;
    let short = |value: libc::c_int| libc::c_short::try_from(value).map_err(io::Error::other);
    Ok(libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: offset,
        l_len: 1,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A copy of that age in seconds.
    fn copy(directory: &Path, digit: char, age: u64) -> String {
        let sha256 = digit.to_string().repeat(64);
        let path = directory.join(format!("{sha256}.so"));
        fs::write(&path, [0; 100]).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        sha256
    }

    fn names(directory: &Path) -> String {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let names = entries.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".so"));
        let mut digits: Vec<char> = names.filter_map(|name| name.chars().next()).collect();
        digits.sort_unstable();
        digits.into_iter().collect()
    }

    #[test]
    fn the_oldest_ones_are_removed_unless_somebody_uses_them() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path();
        let oldest = copy(directory, 'a', 50);
        for (digit, age) in [('b', 40), ('c', 30), ('d', 20), ('e', 10)] {
            copy(directory, digit, age);
        }
        fs::write(directory.join("index"), "").unwrap();
        fs::write(directory.join("other.so"), "").unwrap();
        let agent = InUse::open(directory).unwrap();
        agent.add(&oldest).unwrap();
        agent.add(&oldest).unwrap();

        let by_count = Bounds { copies: 4, bytes: u64::MAX };
        assert_eq!(remove_unused(directory, by_count).unwrap(), 1, "of those that are not in use");
        assert_eq!(names(directory), "acdeo");
        let by_size = Bounds { copies: 10, bytes: 250 };
        assert_eq!(remove_unused(directory, by_size).unwrap(), 1);
        assert_eq!(names(directory), "adeo");
        drop(agent);
        assert_eq!(remove_unused(directory, by_size).unwrap(), 1);
        assert_eq!(names(directory), "deo");
        assert_eq!(remove_unused(directory, DEFAULT).unwrap(), 0);
        assert!(directory.join("index").exists());
    }

    #[test]
    fn only_hashes_have_a_byte() {
        assert!(InUse::open(tempfile::tempdir().unwrap().path()).unwrap().add("../etc/passwd").is_err());
    }
}
