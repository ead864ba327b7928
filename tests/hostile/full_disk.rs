//! Full directories of the agent. A container can fill them, and must not gain anything by that.

use std::path::{Path, PathBuf};

use cofferdam_core::config::LauncherKind;
use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::disk::{Full, Resource};
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{assert_contains, is_root, wait_for_text};
use nix::sys::signal::Signal;

/// A container that exits with 42 when it gets SIGTERM.
fn ends_with_42(world: &World, name: &str) -> Request {
    let line = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done";
    let mut request = Request::shell(id(name), line);
    request.rootfs = (world.config.launcher == LauncherKind::Linux).then(|| world.rootfs());
    request
}

fn launch(daemon: &Daemon, request: &Request) {
    daemon.launch(request).unwrap();
    wait_for_text(Path::new(&daemon.inspect(&request.id).unwrap().stdout.unwrap()), "ready");
}

/// With each launcher, and each resource that a file system can run out of.
fn check_all(directory: fn(&World) -> PathBuf, limits: &str) {
    for create in [World::shipped, World::posix] {
        for resource in [Resource::Blocks, Resource::Inodes] {
            in_own_namespace(|| check(&create(), directory, resource, limits));
        }
    }
}

fn check(world: &World, directory: fn(&World) -> PathBuf, resource: Resource, limits: &str) {
    let full = directory(world);
    let _memory = Memory::mount(&full, limits);
    let daemon = Daemon::start(world);
    let (web, other) = (ends_with_42(world, "web"), ends_with_42(world, "other"));
    launch(&daemon, &web);
    launch(&daemon, &other);
    let filled = Full::make(&full, resource);

    let new = ends_with_42(world, "new");
    match daemon.launch(&new) {
        Err(CallError::Status(500, message)) => assert_contains(&message, &["`new`", "No space left"]),
        Err(error) => panic!("{error:?}"),
        // A launch needs no blocks of the work directory.
        Ok(()) => {
            assert!(full == world.config.work_dir && resource == Resource::Blocks);
            daemon.destroy(&new.id).unwrap();
            daemon.remove(&new.id).unwrap();
        }
    }
    assert!(daemon.inspect(&new.id).is_none());

    daemon.signal(&web.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(42 << 8), "{}", daemon.log());
    // The next agent finds it as well.
    drop(daemon);
    let daemon = Daemon::start(world);
    assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(42 << 8), "{}", daemon.log());
    assert_eq!(daemon.inspect(&other.id).unwrap().state, "RUNNING");
    daemon.remove(&web.id).unwrap();
    assert_eq!(daemon.destroy(&other.id).unwrap().exit_status, Some(9));
    daemon.remove(&other.id).unwrap();
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = Daemon::start(world);

    drop(filled);
    launch(&daemon, &new);
    let filled = Full::make(&full, resource);
    daemon.signal(&new.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&new.id).unwrap().exit_status, Some(42 << 8));
    drop(filled);
    // Written when there is space, by this agent or the next one.
    drop(daemon);
    let daemon = Daemon::start(world);
    assert_eq!(daemon.wait(&new.id).unwrap().exit_status, Some(42 << 8));
    daemon.remove(&new.id).unwrap();
    assert_eq!(daemon.terminate().code(), Some(0));
    // Not the mount of this test.
    let left: Vec<_> = world.leftovers().into_iter().filter(|left| !left.starts_with("mount: ")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn an_exit_status_is_recorded_when_the_runtime_directory_is_full() {
    if !is_root("a full directory") {
        return;
    }
    check_all(|world| world.config.runtime_dir.clone(), "size=2m,nr_inodes=200");
}

#[test]
fn an_exit_status_is_recorded_when_the_work_directory_is_full() {
    if !is_root("a full directory") {
        return;
    }
    check_all(|world| world.config.work_dir.clone(), "size=1g,nr_inodes=300");
}

/// The kernel mounts an overlay read-only if it has no space for what it needs in the work directory.
#[test]
fn a_launch_with_little_space_fails_for_lack_of_it_or_gets_a_root_that_can_be_written_to() {
    if !is_root("a full directory") {
        return;
    }
    in_own_namespace(|| {
        let world = World::shipped();
        let _memory = Memory::mount(&world.config.work_dir, "size=1g,nr_inodes=300");
        let daemon = Daemon::start(&world);
        let mut filled = Full::make(&world.config.work_dir, Resource::Inodes);
        for free in 1.. {
            filled.free(1);
            let mut request = ends_with_42(&world, "web");
            request.command.value = Some("touch /file".to_owned());
            match daemon.launch(&request) {
                Err(CallError::Status(500, message)) => assert_contains(&message, &["No space left"]),
                Err(error) => panic!("{free}: {error:?}"),
                Ok(()) => {
                    daemon.wait(&request.id).unwrap();
                    let stderr = daemon.inspect(&request.id).unwrap().stderr.unwrap();
                    let stderr = cofferdam_tests::text(Path::new(&stderr));
                    assert!(stderr.is_empty() || stderr.contains("No space left"), "{free}: {stderr}");
                    daemon.remove(&request.id).unwrap();
                    if stderr.is_empty() {
                        return;
                    }
                }
            }
        }
    });
}

#[test]
fn an_agent_that_was_stopped_starts_in_a_full_directory() {
    if !is_root("a full directory") {
        return;
    }
    for resource in [Resource::Blocks, Resource::Inodes] {
        in_own_namespace(|| {
            let world = World::shipped();
            let _memory = Memory::mount(&world.config.runtime_dir, "size=2m,nr_inodes=200");
            let daemon = Daemon::start(&world);
            let web = ends_with_42(&world, "web");
            launch(&daemon, &web);
            assert_eq!(daemon.terminate().code(), Some(0));
            let filled = Full::make(&world.config.runtime_dir, resource);
            let daemon = Daemon::start(&world);
            // What could not be written takes no space.
            assert!(!world.config.runtime_dir.join("calls.new").exists());
            daemon.signal(&web.id, Signal::SIGTERM).unwrap();
            assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(42 << 8), "{}", daemon.log());
            daemon.remove(&web.id).unwrap();
            drop(filled);
        });
    }
}
