//! Scratch directories in memory.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_core::model::{Reason, Request, Resources};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, launch_error, run, with_agent};

/// The size of the tmpfs, in MiB.
const SIZE: u64 = 16;

fn world() -> World {
    let mut world = World::shipped();
    world.config.scratch_memory = Some(SIZE << 20);
    world
}

fn request(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("mem", 64.0);
    request
}

/// The line of `/proc/self/mountinfo` for a mount point.
fn mount(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.display().to_string();
    mounts.lines().find(|line| line.split(' ').nth(4) == Some(&*path)).map(str::to_owned)
}

#[test]
fn what_containers_write_is_in_memory_and_limited() {
    if !is_root("a tmpfs") {
        return;
    }
    let world = world();
    let scratch = world.config.work_dir.join("scratch");
    with_agent(&world, async |agent| {
        let mounted = mount(&scratch).expect("it is mounted");
        assert!(mounted.contains("nosuid,nodev") && mounted.contains("size=16384k"), "{mounted}");

        let line = "echo written > /file; cat /file; dd if=/dev/zero of=/big bs=1M count=32 2>&1 | grep -o 'No space.*'";
        let output = run(&agent, request(&world, "writes", line)).await;
        assert_eq!(output, "written\nNo space left on device\n");
        agent.remove(&id("writes")).await.unwrap();

        // Nothing of it is left, so there is space for the next one.
        let line = "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null && echo fits";
        assert_eq!(run(&agent, request(&world, "fits", line)).await, "fits\n");
        agent.remove(&id("fits")).await.unwrap();
        assert_eq!(fs::read_dir(scratch.join("containers")).unwrap().count(), 0);
        agent.shutdown().await;
    });
    assert_eq!(mount(&scratch), None, "it is still mounted");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The size of the tmpfs is no reason to give a container more memory than it has.
#[test]
fn what_a_container_writes_is_charged_to_its_memory_limit() {
    if !is_root("a tmpfs") {
        return;
    }
    let mut world = World::shipped();
    world.config.scratch_memory = Some(96 << 20);
    let line = "dd if=/dev/zero of=/big bs=1M count=48 2>/dev/null && echo fits";
    with_agent(&world, async |agent| {
        let mut small = request(&world, "small", line);
        small.resources = Resources::default().with("mem", 32.0);
        agent.launch(small).await.unwrap();
        let ended = agent.wait(&id("small")).await.unwrap();
        let limitation = matches!(&ended.reason, Some(Reason::Limitation(_)));
        assert!(limitation && ended.message.as_ref().is_some_and(|it| it.contains("emory")), "{ended:?}");
        agent.remove(&id("small")).await.unwrap();
        assert_eq!(run(&agent, request(&world, "large", line)).await, "fits\n");
        agent.remove(&id("large")).await.unwrap();
        agent.shutdown().await;
    });
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn an_overlay_as_work_directory_is_refused_unless_scratch_is_in_memory() {
    if !is_root("an overlay") {
        return;
    }
    let overlay = tempfile::tempdir().unwrap();
    let directory = |name| overlay.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(directory(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        directory("lower").display(),
        directory("upper").display(),
        directory("work").display()
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(directory("merged"))
        .status();
    assert!(mounted.unwrap().success());
    let _unmount = Unmount(directory("merged"));
    for (memory, refused) in [(None, true), (Some(SIZE << 20), false)] {
        let mut world = World::shipped();
        world.config.work_dir = directory("merged").join("agent");
        world.config.scratch_memory = memory;
        with_agent(&world, async |agent| {
            let web = request(&world, "web", "echo hello");
            if refused {
                let error = launch_error(&agent, web).await;
                assert!(
                    error.contains("is on an overlay file system") && error.contains("`scratch_memory`"),
                    "{error}"
                );
            } else {
                assert_eq!(run(&agent, web).await, "hello\n");
                agent.remove(&id("web")).await.unwrap();
            }
            agent.shutdown().await;
        });
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn it_stays_mounted_for_containers_that_run_without_an_agent() {
    if !is_root("a tmpfs") {
        return;
    }
    let mut world = world();
    let scratch = world.config.work_dir.join("scratch");
    with_agent(&world, async |agent| {
        let line = "echo kept > /file; while ! test -e /go; do sleep 0.01; done; cat /file";
        agent.launch(request(&world, "runs", line)).await.unwrap();
        agent.shutdown().await;
    });
    assert!(mount(&scratch).is_some());
    // The setting is changed while the container runs: the tmpfs is needed until it has ended.
    world.config.scratch_memory = None;
    with_agent(&world, async |agent| {
        let pid = agent.inspect(&id("runs")).unwrap().summary.pid.unwrap();
        fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
        agent.wait(&id("runs")).await.unwrap();
        let stdout = agent.inspect(&id("runs")).unwrap().logs.stdout.unwrap();
        assert_eq!(fs::read_to_string(stdout).unwrap(), "kept\n");
        agent.remove(&id("runs")).await.unwrap();
        agent.shutdown().await;
    });
    assert_eq!(mount(&scratch), None);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn nothing_is_mounted_over_the_directories_of_running_containers() {
    if !is_root("a tmpfs") {
        return;
    }
    let mut world = world();
    world.config.scratch_memory = None;
    let scratch = world.config.work_dir.join("scratch");
    with_agent(&world, async |agent| {
        agent.launch(request(&world, "runs", "sleep 1000")).await.unwrap();
        agent.shutdown().await;
    });
    world.config.scratch_memory = Some(SIZE << 20);
    with_agent(&world, async |agent| {
        assert_eq!(mount(&scratch), None);
        agent.destroy(&id("runs")).await.unwrap();
        agent.remove(&id("runs")).await.unwrap();
        agent.shutdown().await;
    });
    assert_eq!(world.leftovers(), Vec::<String>::new());
    with_agent(&world, async |agent| {
        assert!(mount(&scratch).is_some());
        agent.shutdown().await;
    });
}

/// Root in a container leaves programs with the rights of root in its root file system.
#[test]
fn users_of_the_host_cannot_reach_what_containers_leave_in_scratch_directories() {
    if !is_root("a container of root") {
        return;
    }
    for memory in [None, Some(SIZE << 20)] {
        let mut world = world();
        world.config.scratch_memory = memory;
        let scratch = world.config.work_dir.join("scratch");
        // As far as the directories above are concerned.
        fs::set_permissions(world.directory(), Permissions::from_mode(0o755)).unwrap();
        with_agent(&world, async |agent| {
            let line = "busybox cp /bin/busybox /busybox-raised && busybox chmod 4755 /busybox-raised && busybox chmod 777 / . && \
                        /busybox-raised id -u && echo ready; sleep 1000";
            agent.launch(request(&world, "web", line)).await.unwrap();
            cofferdam_tests::wait_for_text(
                &agent.inspect(&id("web")).unwrap().logs.stdout.unwrap(),
                "0\nready",
            );
            let raised = find(&scratch, "busybox-raised").expect("it is in the layer of the container");
            let run = |user: u32| Command::new(&raised).args(["id", "-u"]).uid(user).gid(user).output();
            assert!(run(0).unwrap().status.success());
            assert_eq!(run(1234).unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", raised.display());
            agent.destroy(&id("web")).await.unwrap();
            agent.remove(&id("web")).await.unwrap();
            agent.shutdown().await;
        });
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

/// The first file of a name below a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => directories.push(entry.path()),
                kind if kind.is_file() && entry.file_name() == name => return Some(entry.path()),
                _ => {}
            }
        }
    }
    None
}
