//! Directory trees that containers leave behind for the agent to remove.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::held_directories::HeldDirectories;
use cofferdam_tests::mounts::in_own_namespace;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{is_root, watch};
use nix::sys::signal::Signal;
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

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

/// How many files a container leaves in the ordinary run, and the variable that sets another number.
const FILES: usize = 100_000;
const FILES_VARIABLE: &str = "COFFERDAM_FILES";

/// Creates files, a half of them in one directory and the others in directories of 1,000 each. Returns a directory that is
/// removed with them.
fn create_files(directory: &Path, count: usize) -> PathBuf {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let create = |directory: &Path, count: usize| {
        let directory = openat(CWD, directory, flags, Mode::empty()).unwrap();
        for number in 0..count {
            mknodat(&directory, number.to_string(), FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
    };
    let last = directory.join("last");
    fs::create_dir(&last).unwrap();
    File::create(last.join("file")).unwrap();
    create(directory, count / 2);
    let others = directory.join("others");
    fs::create_dir(&others).unwrap();
    for number in 0..(count - count / 2).div_ceil(1000) {
        let inner = others.join(number.to_string());
        fs::create_dir(&inner).unwrap();
        create(&inner, 1000);
    }
    last
}

/// In its sandbox, which is removed on request, and in its layer, which is removed before it has ended.
#[test]
fn other_containers_are_launched_and_removed_while_very_many_files_are() {
    if !is_root("a root file system, and fanotify") {
        return;
    }
    let number = std::env::var(FILES_VARIABLE).map(|number| number.parse().expect("a number of files"));
    let count: usize = number.unwrap_or(FILES);
    let (world, _memory) = world();
    let daemon = Daemon::start(&world);
    daemon.launch(&sleeper(&world, "web")).unwrap();
    let layer = world.config.work_dir.join("scratch/containers/web/upper");
    let of_layer = create_files(&layer, count / 2);
    let sandbox = sandbox(&daemon, "web");
    let of_sandbox = create_files(&sandbox, count - count / 2);

    let act_beside = |held: HeldDirectories, act: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            let acting = scope.spawn(act);
            held.wait_for_an_opener();
            for _ in 0..3 {
                run_another(&daemon, &world);
            }
            assert!(!acting.is_finished());
            drop(held);
            while !acting.is_finished() {
                run_another(&daemon, &world);
            }
            acting.join().unwrap();
        });
    };
    act_beside(HeldDirectories::hold([of_layer]), &|| {
        assert_eq!(daemon.destroy(&id("web")).unwrap().exit_status, Some(9));
    });
    assert!(!layer.exists());
    act_beside(HeldDirectories::hold([of_sandbox]), &|| daemon.remove(&id("web")).unwrap());
    assert!(!sandbox.exists());
    assert_nothing_left(&world);
}

/// More than the agent may have threads for blocking work.
const MANY: usize = 5;

/// The descriptors of an agent that may have 4 of them, and one for removals.
const FEW_DESCRIPTORS: u64 = 128;

/// Fills a directory of a container with more than is removed at once. Returns a directory in it that is removed last.
fn fill(directory: &Path) -> PathBuf {
    (0..1000).for_each(|file| drop(File::create(directory.join(file.to_string())).unwrap()));
    let last = directory.join("last");
    fs::create_dir(&last).unwrap();
    File::create(last.join("file")).unwrap();
    last
}

/// Waits until the removal of what [`fill`] has created has begun.
fn wait_until_begun(directory: &Path) {
    let count = || fs::read_dir(directory).unwrap().count();
    assert!(watch::until(directory, TIMEOUT, || count() < 1000));
}

/// Launches a container that ends, and removes it.
fn run_another(daemon: &Daemon, world: &World) {
    let mut other = sleeper(world, "other");
    other.command.value = Some("exit 7".into());
    daemon.launch(&other).unwrap();
    assert_eq!(daemon.wait(&other.id).unwrap().exit_status, Some(7 << 8));
    daemon.remove(&other.id).unwrap();
}

fn names() -> impl Iterator<Item = String> {
    (0..MANY).map(|number| format!("web-{number}"))
}

#[test]
fn other_containers_do_not_wait_for_removals() {
    if !is_root("a root file system, and fanotify") {
        return;
    }
    let (world, _memory) = world();
    let daemon = Daemon::start_with_descriptors(&world, FEW_DESCRIPTORS);
    let mut sandboxes = Vec::new();
    for name in names() {
        daemon.launch(&sleeper(&world, &name)).unwrap();
        sandboxes.push(sandbox(&daemon, &name));
        daemon.destroy(&id(&name)).unwrap();
    }
    let last: Vec<_> = sandboxes.iter().map(|sandbox| fill(sandbox)).collect();
    let held = HeldDirectories::hold(&last);
    std::thread::scope(|scope| {
        let daemon = &daemon;
        let removals: Vec<_> = names().map(|name| scope.spawn(move || daemon.remove(&id(&name)))).collect();
        sandboxes.iter().for_each(|sandbox| wait_until_begun(sandbox));
        held.wait_for_an_opener();
        run_another(daemon, &world);
        assert!(removals.iter().all(|removal| !removal.is_finished()));
        drop(held);
        removals.into_iter().for_each(|removal| removal.join().unwrap().unwrap());
    });
    assert_nothing_left(&world);
}

#[test]
fn other_containers_do_not_wait_for_the_end_of_those_with_large_layers() {
    if !is_root("a root file system, and fanotify") {
        return;
    }
    let (world, _memory) = world();
    let daemon = Daemon::start_with_descriptors(&world, FEW_DESCRIPTORS);
    let mut layers = Vec::new();
    for name in names() {
        daemon.launch(&sleeper(&world, &name)).unwrap();
        layers.push(world.config.work_dir.join("scratch/containers").join(&name).join("upper"));
    }
    let last: Vec<_> = layers.iter().map(|layer| fill(layer)).collect();
    let held = HeldDirectories::hold(&last);
    names().for_each(|name| daemon.signal(&id(&name), Signal::SIGKILL).unwrap());
    layers.iter().for_each(|layer| wait_until_begun(layer));
    held.wait_for_an_opener();
    run_another(&daemon, &world);
    for name in names() {
        assert_eq!(daemon.inspect(&id(&name)).unwrap().state, "DESTROYING", "{name}");
    }
    drop(held);
    for name in names() {
        assert_eq!(daemon.wait(&id(&name)).unwrap().exit_status, Some(9));
        daemon.remove(&id(&name)).unwrap();
    }
    assert_nothing_left(&world);
}
