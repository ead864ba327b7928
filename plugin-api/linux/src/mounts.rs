//! The mount table, as `/proc/PID/mountinfo` prints it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

/// Whether nothing can be executed, and no library be loaded, from the mount that a path is on.
///
/// # Errors
/// The error of statvfs(3).
pub fn is_noexec(path: &Path) -> io::Result<bool> {
    Ok(statvfs(path)?.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id, unique while the mount exists.
    pub id: u64,
    /// The id of the mount it is attached to.
    pub parent: u64,
    /// Device number of the file system: major and minor.
    pub device: (u32, u32),
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Mount point, relative to the root of the reading process.
    pub target: PathBuf,
    /// Options of this mount, such as `ro` or `nosuid`.
    pub options: Vec<String>,
    /// The peer group it shares events with, if it is shared.
    pub shared: Option<u64>,
    /// The peer group it receives events from, if it is a slave.
    pub master: Option<u64>,
    /// Type of the file system, such as `ext4` or `cgroup2`.
    pub kind: String,
    /// What is mounted, such as a device or `none`.
    pub source: OsString,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Parses a line of mountinfo. `None` if it is malformed.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let root = unescape(fields.next()?).into();
        let target = unescape(fields.next()?).into();
        let options = list(fields.next()?);
        let (mut shared, mut master) = (None, None);
        loop {
            match fields.next()?.split_once(':') {
                Some(("shared", group)) => shared = Some(group.parse().ok()?),
                Some(("master", group)) => master = Some(group.parse().ok()?),
                // Kernels may add optional fields; a single hyphen ends them.
                Some(_) => {}
                None => break,
            }
        }
        Some(Self {
            id,
            parent,
            device: (major.parse().ok()?, minor.parse().ok()?),
            root,
            target,
            options,
            shared,
            master,
            kind: fields.next()?.to_owned(),
            source: unescape(fields.next()?),
            super_options: list(fields.next()?),
        })
    }
}

/// The mounts in the mount namespace of the calling process, in the order of the kernel.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Parses a mount table. Malformed lines are skipped.
pub fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(Mount::parse).collect()
}

fn list(field: &str) -> Vec<String> {
    field.split(',').map(str::to_owned).collect()
}

/// Decodes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &str) -> OsString {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        match octal(&bytes[index..]) {
            Some(byte) => {
                plain.push(byte);
                index += 4;
            }
            None => {
                plain.push(bytes[index]);
                index += 1;
            }
        }
    }
    OsString::from_vec(plain)
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = bytes else { return None };
    Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Mount, mounts, unescape};

    #[test]
    fn the_example_of_the_manual_page_is_parsed() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:7 master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (36, 35, (98, 0)));
        assert_eq!(mount.root.as_os_str(), "/mnt1");
        assert_eq!(mount.target.as_os_str(), "/mnt 2");
        assert_eq!(mount.options, ["rw", "noatime"]);
        assert_eq!((mount.shared, mount.master), (Some(7), Some(1)));
        assert_eq!(mount.kind, "ext3");
        assert_eq!(mount.source, "/dev/root");
        assert_eq!(mount.super_options, ["rw", "errors=continue"]);
    }

    #[test]
    fn optional_fields_may_be_absent_or_unknown() {
        let mount = Mount::parse("1 0 0:1 / / rw - tmpfs none rw").unwrap();
        assert_eq!((mount.shared, mount.master), (None, None));
        let mount = Mount::parse("1 0 0:1 / / rw news:1 shared:2 - tmpfs none rw").unwrap();
        assert_eq!(mount.shared, Some(2));
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        assert!(mounts().unwrap().iter().any(|mount| mount.target.as_os_str() == "/"));
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused(line in ".*") {
            // Must not panic, and a parsed line has all fields.
            if let Some(mount) = Mount::parse(&line) {
                prop_assert!(!mount.options.is_empty());
            }
        }

        #[test]
        fn escapes_are_decoded(path in "[ -~\n\t]*") {
            let escaped: String = path
                .chars()
                .map(|c| if " \t\n\\".contains(c) { format!("\\{:03o}", c as u32) } else { c.to_string() })
                .collect();
            let plain = unescape(&escaped);
            prop_assert_eq!(plain.to_str(), Some(path.as_str()));
        }
    }
}
