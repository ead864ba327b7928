//! Directory trees that containers leave behind for the agent to remove.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::is_root;
use cofferdam_tests::mounts::in_own_namespace;
use cofferdam_tests::world::{World, id};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::assert_nothing_left;

/// A world with a work directory in memory: a disk takes milliseconds for each directory of a tree.
fn world() -> (World, tempfile::TempDir) {
    let mut world = World::shipped();
    let memory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir_in("/dev/shm").unwrap();
    world.config.work_dir = memory.path().join("work");
    (world, memory)
}

/// Creates directories, each in the one before, as a container can.
fn nest(top: &Path, depth: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut innermost: OwnedFd = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&innermost, "d", Mode::RWXU).unwrap();
        innermost = openat(&innermost, "d", flags, Mode::empty()).unwrap();
    }
}

fn sleeper(world: &World, name: &str) -> Request {
    let mut request = Request::shell(id(name), "sleep 1000");
    request.rootfs = Some(world.rootfs());
    request
}

fn sandbox(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.inspect(&id(name)).unwrap().sandbox.into()
}

#[test]
fn deep_trees_in_a_sandbox_and_in_a_layer_are_removed() {
    if !is_root("a root file system") {
        return;
    }
    let (world, _memory) = world();
    let daemon = Daemon::start(&world);
    daemon.launch(&sleeper(&world, "web")).unwrap();
    nest(&sandbox(&daemon, "web"), 14_000);
    nest(&world.config.work_dir.join("scratch/containers/web/upper"), 25_000);
    assert_eq!(daemon.destroy(&id("web")).unwrap().exit_status, Some(9));
    daemon.remove(&id("web")).unwrap();
    assert_nothing_left(&world);

    // A launch that fails, and a restart.
    daemon.launch(&sleeper(&world, "web")).unwrap();
    nest(&sandbox(&daemon, "web"), 14_000);
    nest(&world.config.work_dir.join("scratch/containers/web/upper"), 25_000);
    drop(daemon);
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.destroy(&id("web")).unwrap().exit_status, Some(9));
    daemon.remove(&id("web")).unwrap();
    assert_nothing_left(&world);
}

#[test]
fn a_deep_tree_is_removed_with_few_descriptors_left() {
    if !is_root("a root file system") {
        return;
    }
    let (world, _memory) = world();
    let daemon = Daemon::start(&world);
    daemon.launch(&sleeper(&world, "web")).unwrap();
    nest(&sandbox(&daemon, "web"), 3_000);
    daemon.destroy(&id("web")).unwrap();
    daemon.limit_descriptors(8);
    daemon.remove(&id("web")).unwrap();
    assert_nothing_left(&world);
}

#[test]
fn immutable_files_and_a_replaced_sandbox_are_removed() {
    if !is_root("immutable files") {
        return;
    }
    // Not in memory, where files are immutable with recent kernels only.
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    daemon.launch(&sleeper(&world, "web")).unwrap();
    let directory = sandbox(&daemon, "web").join("full");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "").unwrap();
    for path in [directory.join("file"), directory] {
        let file = File::open(path).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).unwrap();
        rustix::fs::ioctl_setflags(&file, flags | rustix::fs::IFlags::IMMUTABLE).unwrap();
    }
    daemon.destroy(&id("web")).unwrap();
    daemon.remove(&id("web")).unwrap();

    daemon.launch(&sleeper(&world, "web")).unwrap();
    let outside = world.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "").unwrap();
    daemon.destroy(&id("web")).unwrap();
    let sandbox = sandbox(&daemon, "web");
    fs::rename(&sandbox, world.directory().join("moved")).unwrap();
    symlink(&outside, &sandbox).unwrap();
    daemon.remove(&id("web")).unwrap();
    assert!(outside.join("kept").exists() && fs::symlink_metadata(&sandbox).is_err());
    assert_nothing_left(&world);
}

#[test]
fn what_a_container_mounts_in_its_sandbox_is_not_removed_with_it() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        let world = World::posix();
        let data = world.directory().join("data");
        fs::create_dir_all(data.join("inner")).unwrap();
        fs::write(data.join("inner/kept"), "").unwrap();
        let daemon = Daemon::start(&world);
        // Without namespaces, the container shares the mounts of the agent.
        let line = format!(
            "mkdir a b && touch c && mount --bind {0} a && mount --bind {0} a && mount --bind a b && \
             mount --bind {0}/inner/kept c && mount --bind {0} .",
            data.display()
        );
        let request = Request::shell(id("web"), line);
        daemon.launch(&request).unwrap();
        assert_eq!(daemon.wait(&request.id).unwrap().exit_status, Some(0), "{}", daemon.log());
        daemon.remove(&request.id).unwrap();
        assert!(data.join("inner/kept").exists());
        assert_nothing_left(&world);
    });
}

/// The million of a real attack takes a disk a while; the number does not matter.
#[test]
fn other_containers_do_not_wait_for_a_removal() {
    if !is_root("a root file system") {
        return;
    }
    let (world, _memory) = world();
    let daemon = Daemon::start(&world);
    daemon.launch(&sleeper(&world, "web")).unwrap();
    let sandbox = sandbox(&daemon, "web");
    for directory in 0..50 {
        let directory = sandbox.join(directory.to_string());
        fs::create_dir(&directory).unwrap();
        (0..1000).for_each(|file| drop(File::create(directory.join(file.to_string())).unwrap()));
    }
    daemon.destroy(&id("web")).unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| daemon.remove(&id("web")));
        for _ in 0..3 {
            let mut other = sleeper(&world, "other");
            other.command.value = Some("exit 7".into());
            daemon.launch(&other).unwrap();
            assert_eq!(daemon.wait(&other.id).unwrap().exit_status, Some(7 << 8));
            daemon.remove(&other.id).unwrap();
        }
        removal.join().unwrap().unwrap();
    });
    assert_nothing_left(&world);
}
