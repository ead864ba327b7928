use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, mkdirat, mknodat, openat,
    renameat,
};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::{RemoveError, remove, remove_at_most};

/// In memory if possible: a disk takes milliseconds for each directory.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

/// On a file system that has immutable files.
fn directory_on_disk() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Whether this process is root. Otherwise reports that the test is skipped.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none(),
        "this test needs root; with CI set it must not be skipped"
    );
    root
}

/// Creates `depth` directories, each in the one before, with a file in each. Returns the innermost.
fn deep(top: &Path, name: &str, depth: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut innermost = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(openat(&innermost, "file", file, Mode::RUSR).unwrap());
        mkdirat(&innermost, name, Mode::RWXU).unwrap();
        innermost = openat(&innermost, name, flags, Mode::empty()).unwrap();
    }
    innermost
}

/// Runs a test of this file again, in a process of its own, and passes it a directory.
fn run_again(test: &str, uid: u32, passed: &Path) {
    // Readable for another user.
    let program = directory();
    fs::set_permissions(program.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = program.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    let mut command = Command::new(path);
    command.args(["--exact", &format!("tree::tests::{test}"), "--nocapture"]).env(DIRECTORY, passed);
    command.current_dir("/").uid(uid);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const DIRECTORY: &str = "COFFERDAM_TREE_TEST";

/// The directory that [`run_again`] has passed to this process.
fn passed_directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

#[test]
fn empty_and_missing_directories_files_and_links_are_removed() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("target")).unwrap();
    fs::write(at("target/kept"), "").unwrap();
    symlink(at("target"), at("link")).unwrap();
    symlink(at("nowhere"), at("broken")).unwrap();
    for name in ["empty", "file", "link", "broken", "missing", "missing/too"] {
        remove(&at(name)).unwrap();
        assert!(fs::symlink_metadata(at(name)).is_err(), "{name}");
    }
    assert!(at("target/kept").exists());
    assert!(matches!(remove(Path::new("/")), Err(RemoveError::Parent { .. })));
    assert!(matches!(remove(Path::new("")), Err(RemoveError::Parent { .. })));
}

#[test]
fn entries_of_all_kinds_are_removed_and_links_are_not_followed() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/a/b")).unwrap();
    fs::create_dir(at("outside")).unwrap();
    fs::write(at("outside/kept"), "").unwrap();
    for (index, target) in ["../outside", "../outside/kept", "self", "."].iter().enumerate() {
        symlink(target, at(&format!("tree/{index}"))).unwrap();
        symlink(at("outside"), at(&format!("tree/a/b/{index}"))).unwrap();
    }
    mknodat(CWD, at("tree/fifo"), FileType::Fifo, Mode::empty(), 0).unwrap();
    drop(UnixListener::bind(at("tree/socket")).unwrap());
    fs::hard_link(at("outside/kept"), at("tree/linked")).unwrap();
    remove(&at("tree")).unwrap();
    assert!(!at("tree").exists() && at("outside/kept").exists());
}

#[test]
fn many_files_are_removed() {
    let directory = directory();
    let top = directory.path().join("tree");
    for inner in 0..20 {
        fs::create_dir_all(top.join(format!("{inner}/x"))).unwrap();
        for number in 0..1000 {
            File::create(top.join(format!("{inner}/{number}"))).unwrap();
        }
    }
    remove(&top).unwrap();
    assert!(!top.exists());
}

/// Deeper than any stack, and with paths longer than the kernel accepts.
#[test]
fn the_depth_of_a_tree_and_the_length_of_names_do_not_matter() {
    for (name, depth) in [("d", 30_000), (&*"n".repeat(255), 300)] {
        let directory = directory();
        let top = directory.path().join("tree");
        fs::create_dir(&top).unwrap();
        deep(&top, name, depth);
        deep(&top.join(name), "second", 100);
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}

#[test]
fn few_descriptors_suffice() {
    let Some(directory) = passed_directory() else {
        let own = rustix::process::geteuid().as_raw();
        return run_again("few_descriptors_suffice", own, directory().path());
    };
    let top = directory.join("tree");
    fs::create_dir(&top).unwrap();
    deep(&top, "d", 3000);
    let before = getrlimit(Resource::Nofile);
    let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // The one of the listing is closed; four are left.
    let limit = open - 1 + 4;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..before }).unwrap();
    let removed = remove(&top);
    setrlimit(Resource::Nofile, before).unwrap();
    removed.unwrap();
    assert!(!top.exists());
}

fn set_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let before = ioctl_getflags(&file).unwrap();
    ioctl_setflags(&file, before | flags).unwrap();
}

#[test]
fn immutable_and_append_only_entries_are_removed() {
    if !is_root() {
        return;
    }
    for flags in [IFlags::IMMUTABLE, IFlags::APPEND, IFlags::IMMUTABLE | IFlags::APPEND] {
        let directory = directory_on_disk();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("tree/full/inner")).unwrap();
        fs::create_dir_all(at("tree/empty")).unwrap();
        fs::write(at("tree/full/file"), "").unwrap();
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("empty")).unwrap();
        for name in ["tree/full/inner", "tree/full/file", "tree/full", "tree/empty", "tree", "file", "empty"]
        {
            set_flags(&at(name), flags);
        }
        for name in ["tree", "file", "empty"] {
            remove(&at(name)).unwrap();
            assert!(!at(name).exists());
        }
    }
}

#[test]
fn an_immutable_file_with_another_name_stays_immutable() {
    if !is_root() {
        return;
    }
    let directory = directory_on_disk();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("tree")).unwrap();
    fs::write(at("outside"), "").unwrap();
    fs::hard_link(at("outside"), at("tree/linked")).unwrap();
    set_flags(&at("outside"), IFlags::IMMUTABLE);
    remove(&at("tree")).unwrap();
    assert!(!at("tree").exists());
    let outside = File::open(at("outside")).unwrap();
    let flags = ioctl_getflags(&outside).unwrap();
    assert!(flags.contains(IFlags::IMMUTABLE));
    ioctl_setflags(&outside, flags - IFlags::IMMUTABLE).unwrap();
}

/// Calls `test` in a mount namespace of its own.
fn with_mounts(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
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
fn what_is_mounted_in_a_tree_is_detached_and_not_removed() {
    with_mounts(|| {
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("data/inner")).unwrap();
        fs::write(at("data/kept"), "").unwrap();
        fs::write(at("data/inner/kept"), "").unwrap();
        let check = |tree: &str| {
            remove(&at(tree)).unwrap();
            assert!(fs::symlink_metadata(at(tree)).is_err(), "{tree}");
            assert!(at("data/kept").exists() && at("data/inner/kept").exists(), "{tree}");
            let mounts = crate::mounts::mounts().unwrap();
            assert!(!mounts.iter().any(|mount| mount.target.starts_with(directory.path())), "{tree}");
        };
        for tree in ["on a directory", "on a deep directory", "on the top", "on a file", "on a file as top"] {
            let target = match tree {
                "on a directory" => format!("{tree}/target"),
                "on a deep directory" => format!("{tree}/{}target", "d/".repeat(40)),
                "on a file" => format!("{tree}/file"),
                _ => tree.to_owned(),
            };
            if tree.contains("file") {
                fs::create_dir_all(at(&target).parent().unwrap()).unwrap();
                fs::write(at(&target), "").unwrap();
            } else {
                fs::create_dir_all(at(&target)).unwrap();
                // Hidden by the mount, and removed.
                fs::write(at(&target).join("hidden"), "").unwrap();
            }
            let source = if tree.contains("file") { "data/kept" } else { "data" };
            // One on another, and one in another.
            mount_bind(at(source), at(&target)).unwrap();
            mount_bind(at(source), at(&target)).unwrap();
            if !tree.contains("file") {
                mount_bind(at("data"), at(&target).join("inner")).unwrap();
            }
            check(tree);
        }
        // Into itself.
        fs::create_dir_all(at("self/target")).unwrap();
        mount_bind(at("self"), at("self/target")).unwrap();
        check("self");
    });
}

#[test]
fn mounts_of_the_same_file_system_are_no_part_of_a_tree() {
    with_mounts(|| {
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("tree/target")).unwrap();
        fs::create_dir(at("data")).unwrap();
        fs::write(at("data/kept"), "").unwrap();
        for _ in 0..100 {
            mount_bind(at("data"), at("tree/target")).unwrap();
        }
        remove(&at("tree")).unwrap();
        assert!(!at("tree").exists() && at("data/kept").exists());
    });
}

#[test]
fn a_user_removes_directories_without_permissions_and_is_told_what_is_left() {
    const TEST: &str = "a_user_removes_directories_without_permissions_and_is_told_what_is_left";
    const NOBODY: u32 = 65534;
    let Some(directory) = passed_directory() else {
        if !is_root() {
            return;
        }
        let directory = directory();
        let at = |name: &str| directory.path().join(name);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::create_dir_all(at("tree/inner/theirs")).unwrap();
        fs::write(at("tree/inner/theirs/one"), "").unwrap();
        fs::write(at("tree/inner/theirs/two"), "").unwrap();
        for name in ["tree", "tree/inner"] {
            std::os::unix::fs::chown(at(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        run_again(TEST, NOBODY, directory.path());
        assert!(at("tree/inner/theirs/one").exists());
        return;
    };
    let top = directory.join("tree");
    for (number, mode) in [0o000, 0o600, 0o200, 0o100, 0o500].into_iter().enumerate() {
        let own = top.join(format!("inner/{number}"));
        fs::create_dir(&own).unwrap();
        deep(&own, "d", 40);
        for level in [0, 1, 20, 38] {
            let closed = own.join("d/".repeat(level));
            let _ = fs::set_permissions(&closed, fs::Permissions::from_mode(mode));
        }
    }
    let Err(RemoveError::Left { count, named, .. }) = remove(&top) else { panic!("nothing is left") };
    assert_eq!(count, 2, "{named:?}");
    for left in &named {
        assert!(left.path.starts_with(top.join("inner/theirs")), "{left}");
        assert_eq!(left.source.kind(), std::io::ErrorKind::PermissionDenied, "{left}");
    }
    let own = fs::read_dir(top.join("inner")).unwrap().count();
    assert_eq!((own, fs::metadata(&top).unwrap().nlink()), (1, 3));
}

/// Calls `act` repeatedly on another thread during `run`.
fn meanwhile<T>(act: impl Fn() + Sync, run: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                act();
            }
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        other.join().unwrap();
        result
    })
}

#[test]
fn the_removal_of_a_tree_that_grows_ends() {
    let directory = directory();
    let top = directory.path().join("tree");
    fs::create_dir_all(top.join("a/b")).unwrap();
    let grow = || {
        for name in ["x", "y", "z"] {
            let _ = fs::create_dir_all(top.join("a/b").join(name));
            let _ = File::create(top.join("a").join(name));
        }
    };
    let _ = meanwhile(grow, || remove_at_most(&top, 10_000));
    remove(&top).unwrap();
    assert!(!top.exists());
}

#[test]
fn a_call_ends_at_its_limit_and_the_next_one_continues() {
    let directory = directory();
    let top = directory.path().join("tree");
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    for number in 0..100 {
        File::create(top.join(format!("a/b/{number}"))).unwrap();
    }
    let mut calls = 0;
    while let Err(error) = remove_at_most(&top, 20) {
        assert!(matches!(error, RemoveError::Unfinished { entries: 20, .. }), "{error}");
        assert!(error.is_unfinished());
        calls += 1;
        assert!(calls < 20);
    }
    assert!(calls >= 5 && !top.exists());
}

/// The walk returns by `..`, which leads elsewhere when a directory has been moved.
#[test]
fn nothing_outside_is_removed_when_directories_are_moved_out_and_in() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let half = "d/".repeat(20);
    for _ in 0..5 {
        fs::create_dir_all(at("tree")).unwrap();
        fs::create_dir_all(at("outside/inner")).unwrap();
        for kept in ["outside/kept", "outside/inner/kept"] {
            fs::write(at(kept), "").unwrap();
        }
        deep(&at("tree"), "d", 400);
        let (within, outside) = (at("tree").join(&half), at("outside/inner/moved"));
        let exchange = || {
            let _ = renameat(CWD, &within, CWD, &outside);
            let _ = renameat(CWD, &outside, CWD, &within);
        };
        let _ = meanwhile(exchange, || remove(&at("tree")));
        assert!(at("outside/kept").exists() && at("outside/inner/kept").exists());
        remove(&at("tree")).unwrap();
        remove(&outside).unwrap();
    }
}

#[test]
fn directories_that_are_replaced_by_links_are_not_left() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("outside")).unwrap();
    fs::write(at("outside/kept"), "").unwrap();
    for _ in 0..5 {
        fs::create_dir_all(at("tree/a/b")).unwrap();
        for number in 0..50 {
            fs::create_dir(at(&format!("tree/a/{number}"))).unwrap();
            fs::write(at(&format!("tree/a/{number}/file")), "").unwrap();
        }
        symlink(at("outside"), at("link")).unwrap();
        let exchange = || {
            for number in 0..50 {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let entry = at(&format!("tree/a/{number}"));
                let _ = rustix::fs::renameat_with(CWD, at("link"), CWD, entry, flags);
            }
        };
        let _ = meanwhile(exchange, || remove(&at("tree")));
        remove(&at("tree")).unwrap();
        remove(&at("link")).unwrap();
        assert!(at("outside/kept").exists());
    }
}

#[test]
fn errors_name_the_tree_and_what_is_left() {
    let left = |count| RemoveError::Left {
        path: "/a".into(),
        count,
        named: vec![super::Left { path: "/a/b".into(), source: std::io::ErrorKind::PermissionDenied.into() }],
    };
    assert_eq!(
        left(1).to_string(),
        "1 entries in `/a` cannot be removed, everything else was: `/a/b`: permission denied"
    );
    assert!(left(2).to_string().ends_with("; …"));
    // Names of the kernel's are no text.
    let name = CString::new(b"\xff".to_vec()).unwrap();
    let directory = directory();
    rustix::fs::mkdirat(CWD, directory.path().join("t"), Mode::RWXU).unwrap();
    let top = openat(CWD, directory.path().join("t"), OFlags::PATH, Mode::empty()).unwrap();
    mkdirat(&top, &*name, Mode::RWXU).unwrap();
    assert!(rustix::fs::accessat(&top, &*name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok());
    remove(&directory.path().join("t")).unwrap();
}
