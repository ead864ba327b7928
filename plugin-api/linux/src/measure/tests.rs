use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::{MAX_DEPTH, MAX_ENTRIES, MeasureError, Measurement, Used, measure};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// In memory if possible: a disk takes milliseconds for each of many directories.
fn directory_in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

fn measured(directory: &Path) -> Used {
    let [one, two] = [1, 2].map(|threads| measure(File::open(directory).unwrap(), threads).unwrap());
    assert_eq!(one, two, "one and two threads");
    one
}

/// The bytes that du(1) shows.
fn du(directory: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).arg(directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Creates `depth` directories, each in the one before, with a file in each. Returns the innermost.
fn deep(top: &Path, depth: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let name = "d".repeat(200);
    let mut innermost = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&innermost, "file", file, Mode::RUSR).unwrap();
        rustix::io::write(&file, b"text").unwrap();
        mkdirat(&innermost, &*name, Mode::RWXU).unwrap();
        innermost = openat(&innermost, &*name, flags, Mode::empty()).unwrap();
    }
    innermost
}

#[test]
fn every_kind_of_entry_counts_as_with_du() {
    let outside = directory();
    fs::write(outside.path().join("outside"), [1; 100_000]).unwrap();
    let top = outside.path().join("top");
    fs::create_dir(&top).unwrap();
    let at = |name: &str| top.join(name);
    for inner in ["a", "a/b", "a/b/c", "d"] {
        fs::create_dir(at(inner)).unwrap();
        for (index, size) in [0, 1, 4096, 4097, 70_000].into_iter().enumerate() {
            fs::write(at(inner).join(format!("file{index}")), vec![1; size]).unwrap();
        }
    }
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_at(b"end", 1 << 30).unwrap();
    fs::hard_link(at("a/file4"), at("d/link")).unwrap();
    fs::hard_link(at("a/file4"), at("link")).unwrap();
    fs::hard_link(outside.path().join("outside"), at("from outside")).unwrap();
    symlink(outside.path(), at("symbolic")).unwrap();
    symlink("x".repeat(3000), at("long symbolic")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

    let used = measured(&top);
    assert_eq!(used.bytes, du(&top));
    let others = 1 + 2 + 1 + 2 + 1;
    assert_eq!((used.entries, used.unread), (1 + 4 + 4 * 5 + others, 0));
    assert!(used.bytes > 1 << 18, "{used:?}");
}

#[test]
fn an_empty_directory_and_a_file_are_told_apart() {
    let directory = directory();
    assert_eq!(measured(directory.path()).entries, 1);
    fs::write(directory.path().join("file"), "").unwrap();
    assert!(Measurement::begin(File::open(directory.path().join("file")).unwrap()).is_err());
}

#[test]
fn trees_deeper_than_paths_can_be_long_are_measured() {
    let directory = directory_in_memory();
    drop(deep(directory.path(), 1000));
    assert_eq!(measured(directory.path()).entries, 2001);
    crate::tree::remove(directory.path()).unwrap();
}

#[test]
fn nothing_is_left_out_of_wide_and_deep_directories() {
    let directory = directory_in_memory();
    let mut entries = 1;
    // More than are noted at once, and each deeper than directories are kept open.
    for index in 0..5000 {
        let inner = directory.path().join(format!("wide{index}"));
        let depth = if index % 50 == 0 { 24 } else { 1 };
        fs::create_dir_all(inner.join("x/".repeat(depth))).unwrap();
        entries += 1 + depth as u64;
    }
    let used = measured(directory.path());
    assert_eq!((used.entries, used.bytes), (entries, du(directory.path())));

    // A walk that is interrupted all the time.
    let (measurement, mut walk) = Measurement::begin(File::open(directory.path()).unwrap()).unwrap();
    while !walk.advance(7) {
        walk.interrupt();
        assert!(measurement.result().is_none());
    }
    drop(walk);
    assert_eq!(measurement.result().unwrap().unwrap(), used);
}

#[test]
fn parts_of_a_tree_can_be_measured_by_others() {
    let directory = directory_in_memory();
    for index in 0..100 {
        fs::create_dir_all(directory.path().join(format!("{index}/a/b"))).unwrap();
    }
    let (measurement, walk) = Measurement::begin(File::open(directory.path()).unwrap()).unwrap();
    let mut walks = vec![walk];
    let mut parts = 0;
    while let Some(mut walk) = walks.pop() {
        if !walk.advance(3) {
            if let Some(part) = walk.split() {
                parts += 1;
                walks.push(part);
            }
            walks.push(walk);
        }
    }
    assert!(parts > 10, "{parts}");
    assert_eq!(measurement.result().unwrap().unwrap().entries, 301);
}

#[test]
fn a_tree_that_is_removed_meanwhile_is_no_error() {
    let directory = directory_in_memory();
    let top = directory.path().join("top");
    for index in 0..50 {
        fs::create_dir_all(top.join(format!("{index}/a/b"))).unwrap();
        fs::write(top.join(format!("{index}/a/file")), "text").unwrap();
    }
    let (measurement, mut walk) = Measurement::begin(File::open(&top).unwrap()).unwrap();
    assert!(!walk.advance(20));
    crate::tree::remove(&top).unwrap();
    assert!(walk.advance(u64::MAX));
    drop(walk);
    let used = measurement.result().unwrap().unwrap();
    assert!(used.entries < 150 && used.unread == 0, "{used:?}");
}

#[test]
fn what_is_moved_out_of_a_tree_does_not_lead_out_of_it() {
    let directory = directory_in_memory();
    let (top, elsewhere) = (directory.path().join("top"), directory.path().join("elsewhere"));
    fs::create_dir_all(top.join("x/".repeat(40))).unwrap();
    fs::create_dir_all(&elsewhere).unwrap();
    for index in 0..100 {
        fs::write(elsewhere.join(index.to_string()), "text").unwrap();
    }
    let (measurement, mut walk) = Measurement::begin(File::open(&top).unwrap()).unwrap();
    // The outer half is closed by now.
    assert!(!walk.advance(38));
    fs::rename(top.join("x/x/x"), elsewhere.join("x")).unwrap();
    assert!(walk.advance(u64::MAX));
    drop(walk);
    let used = measurement.result().unwrap().unwrap();
    // Nothing was left in any of them.
    assert_eq!((used.entries, used.lost), (41, 0), "{used:?}");
}

/// A chain of directories of which each has siblings, some of which are counted on the way back.
fn chain(top: &Path, depth: usize) -> u64 {
    let mut path = top.to_owned();
    for _ in 0..depth {
        for name in ["b", "a", "c"] {
            fs::create_dir_all(path.join(name)).unwrap();
            fs::write(path.join(name).join("file"), "text").unwrap();
        }
        path.push("a");
    }
    1 + 6 * depth as u64
}

#[test]
fn a_directory_that_is_moved_meanwhile_costs_nothing_but_what_moves_with_it() {
    for (moves, lost) in [
        (&[("a/a", "a/renamed")][..], false),
        // To another place of the tree: all is counted, in it and in those that it was in.
        (&[("a/a/a", "moved")], false),
        // Those that it was in are found by their identity, whatever their names.
        (&[("a/a/a", "moved"), ("a", "renamed")], false),
        // One that it was in is moved as well: what was left in that is lost.
        (&[("a/a/a/a/a", "moved"), ("a/a", "moved too")], true),
    ] {
        let directory = directory_in_memory();
        let top = directory.path().join("top");
        let entries = chain(&top, 40);
        let (measurement, mut walk) = Measurement::begin(File::open(&top).unwrap()).unwrap();
        // All are closed but the innermost ones.
        while measurement.so_far().entries < 100 {
            assert!(!walk.advance(1));
        }
        for (from, to) in moves {
            fs::rename(top.join(from), top.join(to)).unwrap();
        }
        assert!(walk.advance(u64::MAX));
        drop(walk);
        let used = measurement.result().unwrap().unwrap();
        assert_eq!(used.lost > 0, lost, "{moves:?}: {used:?}");
        // What was moved to the top may count twice.
        assert!(used.entries >= entries - used.lost * 4, "{moves:?}: {used:?}, {entries}");
    }
}

#[test]
fn what_is_listed_again_is_bounded_too() {
    let directory = directory_in_memory();
    // Each of the many is deep, so that the outermost directory is closed and listed again for each.
    for index in 0..200 {
        fs::create_dir_all(directory.path().join(format!("{index}/{}", "d/".repeat(20)))).unwrap();
    }
    let (measurement, mut walk) = Measurement::begin(File::open(directory.path()).unwrap()).unwrap();
    let mut steps = 0;
    while !walk.advance(1 << 10) {
        steps += 1;
    }
    drop(walk);
    let used = measurement.result().unwrap().unwrap();
    assert_eq!(used.entries, 1 + 200 * 21);
    assert!(steps >= 8, "{steps}: what is listed again does not count as work");
    assert!(steps < 40, "{steps}: too much is listed again");
}

#[test]
fn a_measurement_ends_at_its_bounds() {
    let directory = directory_in_memory();
    drop(deep(directory.path(), 100));
    let end = |depth, entries| {
        let top = File::open(directory.path()).unwrap();
        let (measurement, mut walk) = Measurement::begin_with(top, depth, entries).unwrap();
        while !walk.advance(10) {}
        drop(walk);
        measurement.result().unwrap()
    };
    assert!(matches!(end(100, MAX_ENTRIES), Err(MeasureError::TooDeep)));
    assert!(matches!(end(MAX_DEPTH, 200), Err(MeasureError::TooMany)));
    assert_eq!(end(101, 201).unwrap().entries, 201);
    crate::tree::remove(directory.path()).unwrap();
}

#[test]
fn a_cancelled_or_dropped_measurement_is_not_complete() {
    let directory = directory_in_memory();
    fs::create_dir_all(directory.path().join("a/b/c")).unwrap();
    for cancel in [true, false] {
        let (measurement, mut walk) = Measurement::begin(File::open(directory.path()).unwrap()).unwrap();
        if cancel {
            measurement.cancel();
            assert!(walk.advance(u64::MAX));
        }
        drop(walk);
        assert!(matches!(measurement.result(), Some(Err(MeasureError::Cancelled))), "{cancel}");
    }
}

#[test]
fn a_measurement_of_a_tree_that_grows_and_shrinks_ends() {
    let directory = directory_in_memory();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut index = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let inner = directory.path().join((index % 1000).to_string());
                if fs::create_dir(&inner).is_err() {
                    fs::remove_dir(&inner).unwrap();
                }
                fs::write(directory.path().join(format!("file{index}")), "").unwrap();
                index += 1;
            }
        });
        for _ in 0..5 {
            let top = File::open(directory.path()).unwrap();
            match measure(top, 2) {
                Ok(used) => assert_eq!(used.unread, 0),
                Err(error) => assert!(error.is_unmeasurable(), "{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Runs a test in a mount namespace of its own, in which mounts do not propagate.
fn with_mounts(test: impl FnOnce() + Send + 'static) {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none(),
        "this test needs root; with CI set it must not be skipped"
    );
    if !root {
        return;
    }
    let thread = thread::spawn(|| {
        unshare_mounts();
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[expect(unsafe_code, reason = "a function of the standard library for this does not exist")]
fn unshare_mounts() {
    // SAFETY: the descriptor table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
}

#[test]
fn what_is_mounted_in_a_tree_does_not_count() {
    with_mounts(|| {
        let outside = directory();
        let top = outside.path().join("top");
        fs::create_dir_all(top.join("mount point")).unwrap();
        fs::create_dir_all(outside.path().join("volume/inner")).unwrap();
        fs::write(outside.path().join("volume/inner/large"), [1; 100_000]).unwrap();
        fs::write(top.join("file"), "text").unwrap();
        fs::write(top.join("mounted file"), "").unwrap();
        let before = measure(File::open(&top).unwrap(), 1).unwrap();
        mount_bind(outside.path().join("volume"), top.join("mount point")).unwrap();
        mount_bind(outside.path().join("volume/inner/large"), top.join("mounted file")).unwrap();
        let with_mounts = measure(File::open(&top).unwrap(), 1).unwrap();
        assert!(before.bytes - with_mounts.bytes < 8192, "{before:?} {with_mounts:?}");
        // The top may be a mount itself.
        let mounted = measure(File::open(top.join("mount point")).unwrap(), 1).unwrap();
        assert_eq!(mounted.entries, 3);
    });
}
