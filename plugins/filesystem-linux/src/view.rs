//! The mounts and devices of a container with a root file system.

use std::path::Path;

use cofferdam_plugin_api::prelude::*;

/// Parts of `/proc` through which a container could change the host.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices that give no access to the host, with their device numbers, which are fixed on Linux.
const DEVICES: [(&str, u32, u32); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];

const SYMLINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Parts of `/proc` and `/sys` that reveal information about the host, or its keys and memory.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// All operations, in order: a mount hides what was created below it before.
pub fn operations(container: &Container, sandbox: &Path, shm_size: u64) -> Vec<Operation> {
    let shm_size = format!("size={shm_size}");
    let mut operations = vec![mount("proc", "/proc", &["nodev", "noexec", "nosuid"], &[])];
    operations.extend(READ_ONLY.map(|path| Operation::ReadOnly { path: path.into() }));
    operations.extend([
        mount("sysfs", "/sys", &["nodev", "noexec", "nosuid", "ro"], &[]),
        // Writable, so that isolators can create mount points for cgroup hierarchies in it.
        mount("tmpfs", "/sys/fs/cgroup", &["nodev", "noexec", "nosuid"], &["mode=755"]),
        mount("tmpfs", "/dev", &["noexec", "nosuid", "strictatime"], &["mode=755"]),
        mount(
            "devpts",
            "/dev/pts",
            &["noexec", "nosuid"],
            &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("tmpfs", "/dev/shm", &["nodev", "nosuid", "strictatime"], &["mode=1777", &shm_size]),
    ]);
    operations.extend(DEVICES.map(|(name, major, minor)| Operation::Device {
        path: Path::new("/dev").join(name),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o666,
        owner: Owner::default(),
    }));
    operations.extend(
        SYMLINKS.map(|(path, target)| Operation::Symlink { path: path.into(), target: target.into() }),
    );
    operations.push(Operation::Bind {
        source: container.sandbox.clone(),
        target: sandbox.to_owned(),
        recursive: true,
        // Set-uid programs and devices that somebody places there are not meant to be used.
        flags: ["nodev".to_owned(), "nosuid".to_owned()].into(),
    });
    if !is_privileged(container) {
        operations.extend(MASKED.map(|path| Operation::Mask { path: path.into() }));
    }
    operations
}

/// Whether the container manages the host: as in Mesos, whether it shares the pid namespace of the host.
///
/// A nested container shares it only if all of its ancestors do, which is not known here. So it counts as unprivileged.
fn is_privileged(container: &Container) -> bool {
    !container.id.is_nested() && container.linux.share_pid_namespace
}

fn mount(fstype: &str, target: &str, flags: &[&str], options: &[&str]) -> Operation {
    let owned = |text: &&str| (*text).to_owned();
    Operation::Mount {
        fstype: fstype.to_owned(),
        target: target.into(),
        flags: flags.iter().map(owned).collect(),
        options: options.iter().map(owned).collect(),
    }
}
