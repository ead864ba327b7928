//! Network namespaces that exist without a process in them: each is mounted on a file, as `ip netns` does.
//!
//! A namespace is used by its descriptor: [`Prepared::enter_by_descriptor`](crate::Prepared::enter_by_descriptor) puts a
//! container into it, [`counters`] reads its interfaces. No call here changes the thread that makes it.
//!
//! Requires the capability `SYS_ADMIN`.

mod netlink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// `f_type` of a namespace.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Most of the text in which the kernel lists interfaces. A container can create as many as it likes.
const MAX_TEXT: u64 = 1 << 20;

/// Counters of a network interface, as it sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Errors while receiving.
    pub received_errors: u64,
    /// Received packets that were dropped.
    pub received_dropped: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Errors while sending.
    pub sent_errors: u64,
    /// Packets to send that were dropped.
    pub sent_dropped: u64,
}

/// Creates a network namespace whose loopback interface is up, and mounts it on a new file.
///
/// # Errors
/// If the file exists, or of a system call.
pub fn create(at: &Path) -> io::Result<OwnedFd> {
    let namespace = on_own_thread(|| {
        unshare_network()?;
        netlink::enable_loopback()?;
        File::open("/proc/thread-self/ns/net")
    })?;
    pin(&namespace, at)?;
    Ok(namespace.into())
}

/// Mounts a namespace on a new file, so that it exists until [`release`], whatever happens to its processes.
///
/// # Errors
/// If the file exists, or of a system call.
pub fn pin(namespace: impl AsFd, at: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)?;
    let source = format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd());
    if let Err(errno) = mount_bind(source, at) {
        let _ = fs::remove_file(at);
        return Err(errno.into());
    }
    Ok(())
}

/// Opens the namespace that is mounted on a file; `None` if none is mounted there, or there is no file.
///
/// # Errors
/// Of a system call.
pub fn open(at: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat(CWD, at, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let is_namespace = fstatfs(&file)?.f_type.cast_unsigned() == NSFS_MAGIC;
    Ok(is_namespace.then_some(file))
}

/// Number of a namespace, which no other one has while it exists.
///
/// # Errors
/// Of fstat(2).
pub fn number(namespace: impl AsFd) -> io::Result<u64> {
    Ok(fstat(namespace)?.st_ino)
}

/// Unmounts a namespace from its file, which is removed. Succeeds if nothing is mounted there, and without the file.
///
/// # Errors
/// Of a system call.
pub fn release(at: &Path) -> io::Result<()> {
    match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(at) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory for files on which namespaces are mounted, also if a process was killed while it did. What is
/// unmounted there is also unmounted in the mount namespaces of containers that were created meanwhile, which would keep
/// it otherwise; what is mounted there reaches nobody else.
///
/// It reads the mount table; call it once.
///
/// # Errors
/// Of a system call.
pub fn prepare_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if !is_mount_point(path)? {
        mount_bind(path, path)?;
    } else if has_own_group(path)? {
        return Ok(());
    }
    // In a peer group of its own: containers, whose mounts are slaves, get the events.
    mount_change(path, MountPropagationFlags::PRIVATE)?;
    Ok(mount_change(path, MountPropagationFlags::SHARED)?)
}

/// Whether a mount is in a peer group that its parent is not in.
fn has_own_group(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    let mounts = cofferdam_linux::mounts::mounts()?;
    // The last one covers those before.
    let Some(mount) = mounts.iter().rfind(|mount| mount.target == path) else { return Ok(false) };
    let parent = mounts.iter().find(|parent| parent.id == mount.parent);
    Ok(mount.shared.is_some() && mount.shared != parent.and_then(|parent| parent.shared))
}

/// Undoes [`prepare_directory`] if the directory is empty. Returns whether it was.
///
/// # Errors
/// Of a system call.
pub fn release_directory(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Ok(false);
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    }
    if is_mount_point(path)? {
        unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8.
    let path = fs::canonicalize(path)?;
    Ok(cofferdam_linux::mounts::mounts()?.iter().any(|mount| mount.target == path))
}

/// Counters of the interfaces in a namespace, by name.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call.
pub fn counters(namespace: impl AsFd) -> io::Result<BTreeMap<String, Counters>> {
    let namespace = namespace.as_fd().try_clone_to_owned()?;
    let text = on_own_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let mut text = Vec::new();
        File::open("/proc/thread-self/net/dev")?.take(MAX_TEXT).read_to_end(&mut text)?;
        Ok(text)
    })?;
    // A container can give its interfaces any names.
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(parse_counters).collect())
}

/// A line of `/proc/net/dev`: `eth0: 1 2 3 4 5 6 7 8 9 …`.
fn parse_counters(line: &str) -> Option<(String, Counters)> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let number = |index: usize| numbers.get(index).copied();
    let counters = Counters {
        received_bytes: number(0)?,
        received_packets: number(1)?,
        received_errors: number(2)?,
        received_dropped: number(3)?,
        sent_bytes: number(8)?,
        sent_packets: number(9)?,
        sent_errors: number(10)?,
        sent_dropped: number(11)?,
    };
    Some((name.trim().to_owned(), counters))
}

/// Makes sure that an interface in a namespace has these addresses and no others, as a container with the capability
/// `NET_ADMIN` may have renamed, deleted or changed it. If so, it is replaced by another interface of that name. Addresses that
/// are valid on the link only do not matter. Returns whether it was replaced.
///
/// For a container that has ended: no traffic reaches the other interface.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call. An interface of hardware cannot be replaced.
pub fn restore_interface(namespace: impl AsFd, name: &str, addresses: &[IpAddr]) -> io::Result<bool> {
    let namespace = namespace.as_fd().try_clone_to_owned()?;
    let (name, expected) = (name.to_owned(), addresses.iter().copied().collect::<BTreeSet<_>>());
    on_own_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        match netlink::index(&name)? {
            Some(index) if netlink::addresses(index)?.as_ref() == Some(&expected) => return Ok(false),
            Some(index) => netlink::delete(index)?,
            None => {}
        }
        netlink::create(&name)?;
        let index = netlink::index(&name)?.ok_or(ErrorKind::NotFound)?;
        for address in expected {
            netlink::add_address(index, address)?;
        }
        Ok(true)
    })
}

/// Runs something that changes the namespaces of its thread.
fn on_own_thread<T: Send + 'static>(run: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("network".to_owned()).spawn(run)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

#[expect(deprecated, reason = "its replacement is unsafe for `FILES` only")]
fn unshare_network() -> Result<(), Errno> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::skip;

    fn is_root() -> bool {
        use std::os::unix::fs::MetadataExt;
        let root = fs::metadata("/proc/self").unwrap().uid() == 0;
        if !root {
            skip("only root can create network namespaces");
        }
        root
    }

    fn own() -> u64 {
        number(File::open("/proc/thread-self/ns/net").unwrap()).unwrap()
    }

    #[test]
    fn a_namespace_exists_until_it_is_released_and_the_thread_stays_in_its_own() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("ns");
        let before = own();
        let created = number(create(&at).unwrap()).unwrap();
        assert_ne!(created, before);
        assert_eq!(own(), before);
        assert!(create(&at).is_err(), "the file is taken");
        let opened = open(&at).unwrap().unwrap();
        assert_eq!(number(&opened).unwrap(), created);
        let counters = counters(&opened).unwrap();
        assert_eq!(counters.get("lo"), Some(&Counters::default()));
        assert_eq!(own(), before);
        for _ in 0..2 {
            release(&at).unwrap();
            assert!(open(&at).unwrap().is_none() && !at.exists());
        }
    }

    #[test]
    fn the_loopback_interface_is_up() {
        if !is_root() {
            return;
        }
        let flags = on_own_thread(|| {
            unshare_network()?;
            netlink::enable_loopback()?;
            // The one of the thread's namespace has to be mounted to be seen; sockets are enough here.
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            std::net::TcpStream::connect(listener.local_addr()?)?;
            Ok(())
        });
        flags.unwrap();
    }

    #[test]
    fn a_directory_for_namespaces_is_mounted_while_it_is_used() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pins");
        let mounts = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.lines().filter(|line| line.contains(path.to_str().unwrap())).count()
        };
        for _ in 0..2 {
            prepare_directory(&path).unwrap();
        }
        assert_eq!(mounts(), 1);
        assert!(has_own_group(&path).unwrap());
        // As if the process was killed before it was shared.
        mount_change(&path, MountPropagationFlags::PRIVATE).unwrap();
        assert!(!has_own_group(&path).unwrap());
        prepare_directory(&path).unwrap();
        assert!(has_own_group(&path).unwrap() && mounts() == 1);
        create(&path.join("ns")).unwrap();
        assert!(!release_directory(&path).unwrap());
        release(&path.join("ns")).unwrap();
        assert!(release_directory(&path).unwrap());
        assert!(release_directory(&path).unwrap());
        assert_eq!((mounts(), path.exists()), (0, false));
    }

    #[test]
    fn what_is_no_namespace_is_not_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open(file.path()).unwrap().is_none());
        assert!(counters(file.as_file()).is_err());
    }

    #[test]
    fn an_interface_that_was_changed_is_replaced() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("ns");
        let namespace = create(&at).unwrap();
        let addresses: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let restore = || restore_interface(&namespace, "eth0", &addresses).unwrap();
        assert!(restore(), "it was missing");
        assert!(!restore());
        assert!(restore_interface(&namespace, "eth0", &addresses[..1]).unwrap(), "it has one too many");
        assert!(restore(), "it has one too few");
        assert!(!restore());
        assert!(counters(&namespace).unwrap().contains_key("eth0"));
        // The loopback interface stands for hardware, which cannot be deleted.
        assert!(restore_interface(&namespace, "lo", &addresses).is_err());
        release(&at).unwrap();
    }

    #[test]
    fn counters_are_read_by_column() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n\
                    eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  lo:1 2\n";
        let found: Vec<_> = text.lines().filter_map(parse_counters).collect();
        let [(name, counters)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(name, "eth0");
        assert_eq!((counters.received_dropped, counters.sent_bytes, counters.sent_dropped), (4, 9, 12));
    }
}
