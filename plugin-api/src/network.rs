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

/// Unmounts a namespace from its file, with those that [`cover`] has mounted over it, and removes the file. Succeeds if nothing
/// is mounted there, and without the file.
///
/// # Errors
/// Of a system call.
pub fn release(at: &Path) -> io::Result<()> {
    loop {
        match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
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
    let text = in_namespace(namespace, || {
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

/// What identifies an interface, whatever a container calls it later.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Interface {
    /// Its number in its namespace.
    pub number: i32,
    /// The text that describes it, in which `host-device` keeps its name on the host.
    pub alias: String,
    /// Its other end in the namespace of the caller, if it is a `veth`.
    #[serde(default)]
    pub peer: Option<Peer>,
}

/// The other end of a `veth`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Peer {
    /// Its number in its namespace.
    pub number: i32,
    /// Its name.
    pub name: String,
}

/// `IFLA_INFO_KIND` of a pair of interfaces.
const VETH: &[u8] = b"veth";

/// The interface of a name in a namespace; `None` if there is none. Alternative names do not count.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call.
pub fn interface(namespace: impl AsFd, name: &str) -> io::Result<Option<Interface>> {
    let name = name.to_owned();
    let found = in_namespace(namespace, move || {
        Ok(netlink::find(name.as_bytes())?.filter(|found| found.name == name.as_bytes()))
    })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(found) = found else { return Ok(None) };
    let mut interface = Interface { number: found.index, alias: text(&found.alias), peer: None };
    if let Some(number) = found.link
        && found.is_link_elsewhere
        && found.kind == VETH
        && let Some(peer) = netlink::by_index(number)?
        // Another namespace may have an interface of that number.
        && (peer.kind == VETH && peer.is_link_elsewhere && peer.link == Some(found.index))
    {
        interface.peer = Some(Peer { number, name: text(&peer.name) });
    }
    Ok(Some(interface))
}

/// Makes sure that an interface in a namespace is as it was: has its name, these addresses and no others, and no alternative
/// names, and that no other interface has its name. A container with the capability `NET_ADMIN` may have renamed, moved, deleted
/// or changed it. Without `original`, that is the interface that has the name. If it does not exist any more, another one takes
/// its place, which leads nowhere. Addresses that are valid on the link only do not matter. Returns whether anything was changed.
///
/// For a container that has ended: interfaces may be down afterwards.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call; what does not depend on it is done nevertheless.
pub fn restore_interface(
    namespace: impl AsFd,
    name: &str,
    original: Option<&Interface>,
    addresses: &[IpAddr],
) -> io::Result<bool> {
    let (name, original) = (name.as_bytes().to_vec(), original.cloned());
    let expected: BTreeSet<IpAddr> = addresses.iter().copied().collect();
    in_namespace(namespace, move || {
        let link = match &original {
            Some(original) => netlink::by_index(original.number)?,
            None => netlink::find(&name)?.filter(|link| link.name == name),
        };
        // The kernel creates it in every namespace, so no plugin has.
        let link = link.filter(|link| link.index != netlink::LOOPBACK);
        let mut is_changed = vacate(&name, link.as_ref().map(|link| link.index))?;
        let index = match link {
            Some(link) => {
                is_changed |= restore_link(&link, &name, original.as_ref())?;
                link.index
            }
            None => {
                is_changed = true;
                netlink::create(&name)?;
                netlink::find(&name)?.ok_or(ErrorKind::NotFound)?.index
            }
        };
        Ok(restore_addresses(index, &expected)? || is_changed)
    })
}

/// Whether an interface is not in a namespace any more: it was deleted or moved.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call.
pub fn is_gone(namespace: impl AsFd, interface: &Interface) -> io::Result<bool> {
    let (number, peer) = (interface.number, interface.peer.as_ref().map(|peer| peer.number));
    in_namespace(namespace, move || {
        // A container can choose the number of an interface, but its other end would be in another namespace.
        let is_it = |link: &netlink::Link| {
            peer.is_none() || (link.link == peer && link.is_link_elsewhere && link.kind == VETH)
        };
        Ok(!netlink::by_index(number)?.as_ref().is_some_and(is_it))
    })
}

/// Deletes what is left of an interface that a CNI plugin has not found: the kernel does this when its namespace ends, but not at
/// once, and not if a container has moved it to another namespace that somebody keeps. So its other end in the namespace of the
/// caller is deleted, too, unless both are there.
///
/// # Errors
/// If the descriptor is not that of a network namespace, or of a system call. Hardware cannot be deleted.
pub fn delete_interface(namespace: impl AsFd, interface: &Interface) -> io::Result<()> {
    if let Some(peer) = &interface.peer
        && let Some(link) = netlink::by_index(peer.number)?
        && (link.kind == VETH && link.is_link_elsewhere && link.name == peer.name.as_bytes())
    {
        netlink::delete(link.index)?;
    }
    let number = interface.number;
    in_namespace(namespace, move || match netlink::by_index(number)? {
        Some(link) => netlink::delete(link.index),
        None => Ok(()),
    })
}

/// Most interfaces that take a name in turn.
const MAX_IMPOSTORS: usize = 8;

/// Takes a name from all interfaces but one. Returns whether one had it.
fn vacate(name: &[u8], except: Option<i32>) -> io::Result<bool> {
    for attempt in 0..MAX_IMPOSTORS {
        let Some(link) = netlink::find(name)?.filter(|link| Some(link.index) != except) else {
            return Ok(attempt > 0);
        };
        if link.name != name {
            netlink::remove_alternatives(link.index, &[name.to_vec()])?;
            continue;
        }
        // Not all interfaces can be deleted. A container may have taken all names of a pattern.
        if [b"old%d".as_slice(), b"renamed%d"].iter().all(|to| netlink::rename(link.index, to).is_err()) {
            netlink::delete(link.index)?;
        }
    }
    Err(io::Error::other("other interfaces have its name, and keep it"))
}

fn restore_link(link: &netlink::Link, name: &[u8], original: Option<&Interface>) -> io::Result<bool> {
    let mut is_changed = false;
    // Its name may be among them.
    if !link.alternatives.is_empty() {
        netlink::remove_alternatives(link.index, &link.alternatives)?;
        is_changed = true;
    }
    if link.name != name {
        netlink::rename(link.index, name)?;
        is_changed = true;
    }
    if let Some(original) = original
        && link.alias != original.alias.as_bytes()
    {
        netlink::set_alias(link.index, original.alias.as_bytes())?;
        is_changed = true;
    }
    Ok(is_changed)
}

/// Gives an interface exactly these addresses. Continues after an error of one of them.
fn restore_addresses(index: i32, expected: &BTreeSet<IpAddr>) -> io::Result<bool> {
    let list = || {
        netlink::addresses(index)?
            .ok_or_else(|| io::Error::other("it has too many addresses to restore them"))
    };
    let found = list()?;
    let mut outcome = Ok(());
    let others: Vec<_> = found.iter().copied().filter(|(address, _)| !expected.contains(address)).collect();
    for (address, length) in &others {
        outcome = outcome.and(netlink::remove_address(index, *address, *length));
    }
    // With one address, the kernel may have removed others of its network.
    let found = if others.is_empty() { found } else { list()? };
    let missing: Vec<_> =
        expected.iter().filter(|address| !found.iter().any(|(found, _)| found == *address)).collect();
    for address in &missing {
        outcome = outcome.and(netlink::add_address(index, **address));
    }
    outcome.map(|()| !(others.is_empty() && missing.is_empty()))
}

/// Mounts a new namespace on a file, over the one that is mounted there, until [`uncover`]: with an interface of a name that has
/// these addresses, as far as the kernel accepts them, and leads nowhere. For programs that need a namespace that nobody has
/// changed. No new file is needed.
///
/// # Errors
/// Of a system call.
pub fn cover(at: &Path, name: &str, addresses: &[IpAddr]) -> io::Result<()> {
    let (name, addresses) = (name.as_bytes().to_vec(), addresses.to_vec());
    let namespace = on_own_thread(move || {
        unshare_network()?;
        netlink::enable_loopback()?;
        netlink::create(&name)?;
        let index = netlink::find(&name)?.ok_or(ErrorKind::NotFound)?.index;
        for address in addresses {
            // Those of IPv6, if the host does not have it.
            drop(netlink::add_address(index, address));
        }
        File::open("/proc/thread-self/ns/net")
    })?;
    Ok(mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), at)?)
}

/// Unmounts what [`cover`] has mounted.
///
/// # Errors
/// Of a system call.
pub fn uncover(at: &Path) -> io::Result<()> {
    Ok(unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Runs something in a network namespace.
fn in_namespace<T: Send + 'static>(
    namespace: impl AsFd,
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.as_fd().try_clone_to_owned()?;
    on_own_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        run()
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

    /// What a container may do to its interfaces: the one that it had is `eth0`.
    #[test]
    fn an_interface_that_was_changed_is_restored_or_replaced() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("ns");
        let addresses: [IpAddr; 2] = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let many: String = (0..300).map(|number| format!(" altname {number}-{}", "x".repeat(100))).collect();
        let many = format!("ip link property add dev eth0{many}");
        let swapped = "ip link set eth0 down; ip link set eth0 name gone; ip link set lo down";
        // Whether the original is there afterwards.
        for (line, is_kept) in [
            ("true", true),
            ("ip link del eth0", false),
            ("ip link del eth0; ip link set lo down; ip link set lo name eth0", false),
            ("ip link del eth0; ip link property add dev lo altname eth0", false),
            ("ip link del eth0; ip link add eth0 type bridge", false),
            ("ip link set eth0 down; ip link set eth0 name gone", true),
            (&format!("{swapped}; ip link set lo name eth0"), true),
            (&format!("{swapped}; ip link property add dev gone altname eth0"), true),
            (&format!("{swapped}; ip link property add dev lo altname eth0"), true),
            (&format!("{swapped}; ip link add eth0 type bridge; ip link set gone master eth0"), true),
            (&many, true),
            ("ip link property add dev eth0 altname other", true),
            ("ip link set eth0 alias else", true),
            ("ip addr flush dev eth0", true),
            ("ip addr add 198.51.100.1/24 dev eth0; ip addr add 2001:db8::8/64 dev eth0", true),
            ("ip addr del 192.0.2.7/32 dev eth0; ip addr add 192.0.2.8/24 dev eth0", true),
        ] {
            let namespace = create(&at).unwrap();
            let shell = |line: &str| {
                let line = format!("nsenter --net={} sh -ec '{line}'", at.display());
                let output = std::process::Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
                assert!(output.status.success(), "{line}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            };
            shell(
                "ip link add eth0 type veth peer name peer; ip link set eth0 alias what; ip link set eth0 up",
            );
            for address in addresses {
                shell(&format!("ip addr add {address} dev eth0 nodad"));
            }
            let original = interface(&namespace, "eth0").unwrap().unwrap();
            assert_eq!(original.alias, "what");
            let restore = || restore_interface(&namespace, "eth0", Some(&original), &addresses).unwrap();
            assert!(!restore(), "{line}");
            shell(line);
            assert_eq!(restore(), line != "true", "{line}");
            assert!(!(is_kept && restore()), "{line}");
            let found = interface(&namespace, "eth0").unwrap().unwrap();
            assert_eq!(found == original, is_kept, "{line}: {found:?}");
            let text = shell("ip -o addr show dev eth0; ip link show dev eth0");
            let count = text.matches(" scope global").count();
            assert!(text.contains(" 192.0.2.7") && text.contains(" 2001:db8::7") && count == 2, "{text}");
            assert!(!text.contains("altname"), "{line}: {text}");
            delete_interface(&namespace, &original).unwrap();
            assert_eq!(interface(&namespace, "eth0").unwrap().is_none(), is_kept);
            delete_interface(&namespace, &original).unwrap();
            // Without knowing which one it was.
            restore_interface(&namespace, "eth0", None, &addresses[..1]).unwrap();
            assert!(!restore_interface(&namespace, "eth0", None, &addresses[..1]).unwrap());
            release(&at).unwrap();
        }
    }

    #[test]
    fn the_other_end_of_an_interface_is_deleted_wherever_the_interface_is() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let ends = ["host", "own", "other"].map(|name| directory.path().join(name));
        let [host, own, other] = ends.each_ref().map(|at| create(at).unwrap());
        let enter = |at: &Path, line: &str| {
            let line = format!("nsenter --net={} sh -ec '{line}'", at.display());
            assert!(std::process::Command::new("/bin/sh").args(["-c", &line]).status().unwrap().success());
        };
        let [host_at, own_at, other_at] = &ends;
        // By file, as these namespaces have no process.
        let link = |name: &str| format!("ip link set {name} netns");
        for (line, moves, is_deleted) in [
            ("true", None, true),
            ("ip link set eth0 name gone", Some(("gone", other_at)), true),
            // Given back.
            ("true", Some(("eth0", host_at)), false),
        ] {
            let create = format!(
                "ip link add outside type veth peer name eth0; {} {}",
                link("eth0"),
                own_at.display()
            );
            enter(host_at, &create);
            let (host, own) = (host.try_clone().unwrap(), own.try_clone().unwrap());
            let original = in_namespace(&host, {
                let own = own.try_clone().unwrap();
                move || interface(own, "eth0")
            });
            let original = original.unwrap().unwrap();
            assert_eq!(original.peer.as_ref().unwrap().name, "outside");
            enter(own_at, line);
            if let Some((name, to)) = moves {
                enter(own_at, &format!("{} {}", link(name), to.display()));
            }
            let found = in_namespace(&host, move || {
                let is_gone = is_gone(&own, &original)?;
                delete_interface(own, &original)?;
                Ok((is_gone, netlink::find(b"outside")?.is_none()))
            });
            assert_eq!(found.unwrap(), (moves.is_some(), is_deleted), "{line} {moves:?}");
        }
        drop(other);
        ends.iter().for_each(|at| release(at).unwrap());
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_and_the_rest_is_restored() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("ns");
        let namespace = create(&at).unwrap();
        // Of no host.
        let addresses: Vec<IpAddr> = ["::", "192.0.2.7"].map(|text| text.parse().unwrap()).into();
        restore_interface(&namespace, "eth0", None, &addresses).unwrap_err();
        assert!(!restore_interface(&namespace, "eth0", None, &addresses[1..]).unwrap());
        release(&at).unwrap();
    }

    #[test]
    fn a_namespace_can_be_covered_by_another_for_a_time() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("ns");
        let own = number(create(&at).unwrap()).unwrap();
        let address = ["192.0.2.7".parse().unwrap()];
        for _ in 0..2 {
            cover(&at, "eth0", &address).unwrap();
            let other = open(&at).unwrap().unwrap();
            assert_ne!(number(&other).unwrap(), own);
            assert!(!restore_interface(&other, "eth0", None, &address).unwrap());
            uncover(&at).unwrap();
            assert_eq!(number(open(&at).unwrap().unwrap()).unwrap(), own);
        }
        // As if it was killed meanwhile.
        cover(&at, "eth0", &address).unwrap();
        release(&at).unwrap();
        assert!(open(&at).unwrap().is_none() && !at.exists());
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
