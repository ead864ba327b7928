//! The two parts of the operations, with mounts of the real kernel in a mount namespace of one thread.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use super::Operations;
use crate::failure::Failure;
use crate::plan::read;
use crate::plan::write::{Attributes, Operation, Plan};
use crate::root::{self, Root};
use crate::sys::{self, Errno};

/// How the operations of a plan are performed.
type Perform = fn(Operations<'_>) -> Result<(), Failure<'_>>;

const ALL: Perform = |operations| operations.perform_all();
const PARTS: Perform = |mut operations| {
    operations.perform_outside()?;
    let depends = |mount: &String| [" proc ", " cgroup2 "].iter().any(|kind| mount.contains(kind));
    assert!(!mounts().iter().any(depends), "mounted outside: {:#?}", mounts());
    operations.perform_inside()
};

struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        for name in ["etc", "tmp", "x/data", "source/sys"] {
            fs::create_dir_all(fixture.path(name)).unwrap();
        }
        for name in ["file", "etc/secret"] {
            fs::write(fixture.path(name), name).unwrap();
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(name)
    }

    /// Calls `body` with the root and the operations in a mount namespace of its own.
    fn run<T: Send>(
        &self,
        operations: Vec<Operation>,
        body: impl FnOnce(Root, Operations<'_>) -> T + Send,
    ) -> T {
        let message = Plan { operations, ..Plan::default() }.encode().unwrap();
        let path = CString::new(self.path("").as_os_str().as_bytes()).unwrap();
        let in_thread = || {
            sys::new_mount_namespace().unwrap();
            sys::cut_propagation(true).unwrap();
            let root = root::mount(read::Root::Directory(&path), false).unwrap();
            let list = read::Plan::parse(&message).unwrap().operations;
            let operations = Operations::new(root.directory(), true, list).unwrap();
            body(root, operations)
        };
        thread::scope(|scope| scope.spawn(in_thread).join().unwrap())
    }

    /// Performs operations and returns all mounts.
    fn perform(&self, operations: Vec<Operation>, perform: Perform) -> Result<Vec<String>, Errno> {
        self.run(operations, |_, operations| {
            perform(operations).map(|()| mounts()).map_err(|failure| failure.errno())
        })
    }
}

/// The mounts at and below the root of a fixture, without what differs from one run to the next.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(' ').collect()).collect();
    let place = |row: &[&str]| {
        let path = row[4].split_once("/rootfs").map(|(_, below)| below.to_owned());
        let kind = row.iter().skip_while(|field| **field != "-").nth(1);
        path.map(|path| format!("/{} {}", path.trim_start_matches('/'), kind.unwrap()))
    };
    let by_id: BTreeMap<&str, &Vec<&str>> = rows.iter().map(|row| (row[0], row)).collect();
    let describe = |row: &Vec<&str>| {
        let above = by_id.get(row[1]).and_then(|above| place(above)).unwrap_or_default();
        let source = Path::new(row[3]).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shared = row.iter().any(|field| field.starts_with("shared:"));
        place(row).map(|place| format!("{place} {source} {} shared={shared} on {above}", row[5]))
    };
    let mut found: Vec<String> = rows.iter().filter_map(describe).collect();
    found.sort();
    found
}

fn filesystem(kind: &str, target: &str) -> Operation {
    Operation::Filesystem {
        kind: kind.into(),
        target: target.into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    }
}

fn bind(source: PathBuf, target: &str) -> Operation {
    Operation::Bind { source, target: target.into(), attributes: Attributes::READ_ONLY, recursive: false }
}

fn mask(path: &str) -> Operation {
    Operation::Mask { path: path.into() }
}

fn read_only(path: &str) -> Operation {
    Operation::ReadOnly { path: path.into() }
}

fn moved(source: &str, target: &str) -> Operation {
    Operation::Move { source: source.into(), target: target.into() }
}

fn is_root() -> bool {
    if sys::is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "this test needs root; with CI set it must not be skipped");
    eprintln!("\n*** SKIPPED: this test needs root and was NOT run ***\n");
    false
}

#[test]
fn both_parts_mount_what_all_operations_mount() {
    if !is_root() {
        return;
    }
    let cases: [fn(&Fixture) -> Vec<Operation>; 9] = [
        |fixture| {
            vec![
                filesystem("proc", "/proc"),
                read_only("/proc/sys"),
                filesystem("tmpfs", "/dev"),
                filesystem("tmpfs", "/dev/shm"),
                bind(fixture.path("file"), "/proc/version"),
                bind(fixture.path("file"), "/etc/new"),
                mask("/proc/keys"),
                mask("/proc/version"),
                mask("/proc/none"),
                mask("/etc/secret"),
                mask("/proc/irq"),
            ]
        },
        // Covered by a later mount.
        |_| vec![filesystem("proc", "/a/proc"), mask("/a/proc/keys"), filesystem("tmpfs", "/a")],
        // Moved with what is mounted below, and replaced.
        |fixture| {
            vec![
                filesystem("proc", "/tmp/p"),
                mask("/tmp/p/keys"),
                bind(fixture.path("source"), "/tmp/p/sys"),
                moved("/tmp/p", "/proc"),
                mask("/proc/sys/sys"),
                bind(fixture.path("source"), "/tmp/p"),
            ]
        },
        // Copied with what is mounted below.
        |fixture| {
            vec![
                filesystem("tmpfs", "/x/data"),
                filesystem("proc", "/x/proc"),
                mask("/x/proc/keys"),
                read_only("/x"),
                mask("/x/proc/uptime"),
                bind(fixture.path("source"), "/x/data"),
            ]
        },
        |_| vec![filesystem("proc", "/proc"), filesystem("proc", "/proc"), mask("/proc/keys")],
        |_| {
            vec![
                filesystem("proc", "/proc"),
                filesystem("tmpfs", "/proc"),
                Operation::Directory { path: "/proc/made".into(), mode: 0o700, uid: 1, gid: 1 },
                read_only("/proc/made"),
                read_only("/proc/none"),
                filesystem("tmpfs", "/proc/none"),
                filesystem("tmpfs", "/proc/none/below"),
            ]
        },
        |_| {
            let propagation = 1 << 20;
            vec![
                filesystem("tmpfs", "/x"),
                filesystem("proc", "/x/proc"),
                Operation::Propagation { path: "/x".into(), propagation, recursive: true },
                mask("/x/proc/keys"),
            ]
        },
        |_| {
            vec![
                filesystem("tmpfs", "/tmp"),
                filesystem("cgroup2", "/tmp/cgroup"),
                read_only("/tmp"),
                mask("/tmp/cgroup/cgroup.procs"),
            ]
        },
        |_| vec![filesystem("tmpfs", "/tmp"), read_only("/tmp"), mask("/etc")],
    ];
    for (index, operations) in cases.into_iter().enumerate() {
        let [all, parts] = [ALL, PARTS].map(|perform| {
            let fixture = Fixture::new();
            fixture.perform(operations(&fixture), perform).unwrap()
        });
        assert_eq!(parts, all, "case {index}");
        assert!(all.len() > 1, "{all:?}");
    }
}

#[test]
fn the_first_part_creates_the_directory_on_which_proc_is_mounted() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let outside: Perform = |mut operations| operations.perform_outside();
    let operations =
        vec![filesystem("proc", "/new/proc"), mask("/new/proc/keys"), filesystem("tmpfs", "/tmp")];
    let mounted = fixture.perform(operations, outside).unwrap();
    assert!(fixture.path("new/proc").is_dir());
    assert_eq!(mounted.len(), 2, "the root and /tmp: {mounted:?}");
}

#[test]
fn the_second_part_needs_nothing_of_the_host() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let operations = vec![
        filesystem("proc", "/proc"),
        bind(fixture.path("file"), "/proc/version"),
        mask("/proc/keys"),
        mask("/proc/irq"),
        mask("/proc/scsi"),
        mask("/proc/timer_list"),
    ];
    fixture.run(operations, |root, mut operations| {
        operations.perform_outside().unwrap();
        root.enter(false).unwrap();
        // The mount point has another name now, as another container may have renamed it.
        fs::rename("/proc", "/renamed").unwrap();
        fs::create_dir_all("/proc").unwrap();
        operations.perform_inside().unwrap();
        assert_eq!(fs::read_to_string("/renamed/version").unwrap(), "file");
        assert_eq!(fs::read_dir("/renamed/irq").unwrap().count(), 0);
        for hidden in ["keys", "timer_list"] {
            assert_eq!(fs::read(Path::new("/renamed").join(hidden)).unwrap(), b"", "{hidden}");
        }
        assert_eq!(fs::read_dir("/proc").unwrap().count(), 0);
    });
}

#[test]
fn a_mount_of_the_first_part_cannot_be_moved_below_proc() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let operations =
        || vec![filesystem("proc", "/proc"), filesystem("tmpfs", "/tmp"), moved("/tmp", "/proc/irq")];
    assert!(fixture.perform(operations(), ALL).is_ok());
    assert_eq!(fixture.perform(operations(), PARTS), Err(Errno::INVAL));
}
