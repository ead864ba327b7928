//! Full directories of the agent. A container can fill them, and must not gain anything by that.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{assert_contains, is_root, wait_for_text};
use nix::sys::signal::Signal;

/// What a file system can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Blocks,
    Inodes,
}

/// Uses up a resource of a file system, until this is dropped.
struct Full(Vec<PathBuf>);

impl Full {
    fn make(directory: &Path, resource: Resource) -> Self {
        let mut files = Vec::new();
        loop {
            let path = directory.join(format!(".fill-{}", files.len()));
            let mut file = match File::create(&path) {
                Err(error) if error.kind() == ErrorKind::StorageFull && resource == Resource::Inodes => {
                    return Self(files);
                }
                file => file.unwrap(),
            };
            files.push(path);
            if resource == Resource::Blocks {
                // The last bytes too.
                for chunk in [1 << 16, 1] {
                    while file.write_all(&vec![b'x'; chunk]).is_ok() {}
                }
                return Self(files);
            }
        }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

/// A container that exits with 42 when it gets SIGTERM.
fn ends_with_42(world: &World, name: &str) -> Request {
    let line = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done";
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request
}

fn launch(daemon: &Daemon, request: &Request) {
    daemon.launch(request).unwrap();
    wait_for_text(Path::new(&daemon.inspect(&request.id).unwrap().stdout.unwrap()), "ready");
}

fn check(directory: impl Fn(&World) -> PathBuf, resource: Resource, limits: &str) {
    let world = World::shipped();
    let full = directory(&world);
    let _memory = Memory::mount(&full, limits);
    let daemon = Daemon::start(&world);
    let (web, other) = (ends_with_42(&world, "web"), ends_with_42(&world, "other"));
    launch(&daemon, &web);
    launch(&daemon, &other);
    let filled = Full::make(&full, resource);

    let new = ends_with_42(&world, "new");
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
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(42 << 8), "{}", daemon.log());
    assert_eq!(daemon.inspect(&other.id).unwrap().state, "RUNNING");
    daemon.remove(&web.id).unwrap();
    assert_eq!(daemon.destroy(&other.id).unwrap().exit_status, Some(9));
    daemon.remove(&other.id).unwrap();

    drop(filled);
    launch(&daemon, &new);
    let filled = Full::make(&full, resource);
    daemon.signal(&new.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&new.id).unwrap().exit_status, Some(42 << 8));
    drop(filled);
    // Written when there is space, by this agent or the next one.
    drop(daemon);
    let daemon = Daemon::start(&world);
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
    for resource in [Resource::Blocks, Resource::Inodes] {
        in_own_namespace(|| {
            check(|world| world.config.runtime_dir.clone(), resource, "size=2m,nr_inodes=200")
        });
    }
}

#[test]
fn an_exit_status_is_recorded_when_the_work_directory_is_full() {
    if !is_root("a full directory") {
        return;
    }
    for resource in [Resource::Blocks, Resource::Inodes] {
        in_own_namespace(|| check(|world| world.config.work_dir.clone(), resource, "size=1g,nr_inodes=300"));
    }
}
