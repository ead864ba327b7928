//! Hosts whose mounts, file systems or clocks are not the usual ones.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::disk::{Full, Image, Resource};
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::World;
use cofferdam_tests::{assert_contains, is_root, paths, wait_for_text};
use nix::sys::signal::Signal;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::Value as Json;

use super::restarts::stdout;
use super::{COUNTING, assert_keeps_counting, id, request};

/// Bytes for what containers change in memory.
const SCRATCH: u64 = 256 << 20;

/// The mount table of this thread.
fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().map(str::to_owned).collect()
}

/// What is left of containers, beside the mounts of a test.
fn leftovers(world: &World) -> Vec<String> {
    world.leftovers().into_iter().filter(|left| !left.starts_with("mount: ")).collect()
}

/// Launches containers that write wherever they can, exchanges the agent meanwhile, and ends them.
fn use_containers(world: &World) {
    let daemon = Daemon::start(world);
    let line = "trap 'exit 42' TERM; echo written > /file && echo written > file && cat /file file && echo x > /dev/null && \
                id -u && echo ready; while :; do sleep 0.01; done";
    let mut user = request(world, "user", &line.replace("/file", "/tmp/file"));
    user.command.user = Some("1234".into());
    let root = request(world, "root", line);
    let nested = request(world, "root.nested", COUNTING);
    // Users can write there.
    let tmp = world.rootfs().join("tmp");
    fs::create_dir_all(&tmp).unwrap();
    fs::set_permissions(&tmp, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    for (request, uid) in [(&root, "0"), (&user, "1234")] {
        daemon.launch(request).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
        let log = stdout(&daemon, &request.id);
        wait_for_text(&log, "ready");
        assert_eq!(fs::read_to_string(&log).unwrap(), format!("written\nwritten\n{uid}\nready\n"));
    }
    daemon.launch(&nested).unwrap();
    daemon.kill();
    let daemon = Daemon::start(world);
    assert_keeps_counting(&stdout(&daemon, &nested.id));
    daemon.signal(&user.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&user.id).unwrap().exit_status, Some(42 << 8));
    daemon.remove(&user.id).unwrap();
    assert_eq!(daemon.destroy(&root.id).unwrap().exit_status, Some(9));
    daemon.remove(&root.id).unwrap();
    assert!(daemon.terminate().success());
    assert_eq!(leftovers(world), Vec::<String>::new());
}

/// As systemd makes it.
#[test]
fn nothing_that_agent_or_containers_mount_appears_on_a_host_whose_root_is_a_shared_mount() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED).unwrap();
        let world = World::privileged();
        let place = world.directory().join("place");
        fs::create_dir(&place).unwrap();
        let before = mounts();
        let daemon = Daemon::start(&world);
        let line = |place: &Path| {
            let place = place.display();
            format!(
                "busybox mount -t tmpfs none {place} && echo x > {place}/file && echo mounted; sleep 1000"
            )
        };
        fs::create_dir_all(world.rootfs().join("data")).unwrap();
        let inside = request(&world, "inside", &line(Path::new("/data")));
        let mut outside = request(&world, "outside", &line(&place));
        outside.rootfs = None;
        let mut shares = request(&world, "inside.shares", &line(Path::new("/data")));
        shares.linux.share_pid_namespace = true;
        for request in [&inside, &outside, &shares] {
            daemon.launch(request).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
            wait_for_text(&stdout(&daemon, &request.id), "mounted");
            assert_eq!(mounts(), before, "{}", request.id);
        }
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        for request in [&inside, &outside] {
            daemon.destroy(&request.id).unwrap();
            daemon.remove(&request.id).unwrap();
        }
        assert!(daemon.terminate().success());
        assert_eq!(mounts(), before);
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

/// `/run` is so on Debian. Containers have their own root, in which set-uid programs and devices work.
#[test]
fn containers_run_on_file_systems_that_are_mounted_with_restrictions() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        let world = World::shipped();
        let restricted = MountFlags::NOSUID | MountFlags::NODEV;
        let _runtime =
            Memory::mount_with(&world.config.runtime_dir, restricted | MountFlags::NOEXEC, "size=16m");
        let _work = Memory::mount_with(&world.config.work_dir, restricted, "size=1g");
        use_containers(&world);
    });
}

#[test]
fn an_agent_whose_work_directory_permits_no_execution_says_so() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        let world = World::shipped();
        let _work = Memory::mount_with(&world.config.work_dir, MountFlags::NOEXEC, "size=1g");
        let (mut daemon, is_ready) = Daemon::try_start(&world);
        assert!(!is_ready);
        assert_eq!(daemon.wait_ended().code(), Some(1));
        let log = daemon.log();
        assert_contains(&log, &["plugin `", "mounted `noexec`", "`work_dir`"]);
        let mut doctor = Command::new(paths::program());
        let output = doctor.args(["doctor", "--config"]).arg(world.write_config()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_contains(&text, &["mounted `noexec`", "set another `work_dir`"]);
    });
}

/// Also with all blocks used, as what is reserved at a launch must not have to be copied.
#[test]
fn containers_run_and_end_on_btrfs() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        let world = World::shipped();
        let image = world.directory().join("image");
        let Some(_image) = Image::mount(&image, "btrfs", &world.config.work_dir) else { return };
        use_containers(&world);
        let daemon = Daemon::start(&world);
        let line = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done";
        let web = request(&world, "web", line);
        daemon.launch(&web).unwrap();
        wait_for_text(&stdout(&daemon, &web.id), "ready");
        let filled = Full::make(&world.config.work_dir, Resource::Blocks);
        daemon.signal(&web.id, Signal::SIGTERM).unwrap();
        assert_eq!(daemon.wait(&web.id).unwrap().exit_status, Some(42 << 8), "{}", daemon.log());
        daemon.remove(&web.id).unwrap();
        drop(filled);
        assert!(daemon.terminate().success());
        assert_eq!(leftovers(&world), Vec::<String>::new());
    });
}

/// As the root of a container is: an overlay cannot be the upper layer of another one.
#[test]
fn on_an_overlay_containers_run_if_their_changes_are_in_memory_and_are_refused_otherwise() {
    if !is_root("mounts") {
        return;
    }
    in_own_namespace(|| {
        let mut world = World::shipped();
        let layers = world.directory().join("layers");
        let _memory = Memory::mount(&layers, "size=1g");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.join(name));
        for directory in [&lower, &upper, &work, &world.config.work_dir] {
            fs::create_dir(directory).unwrap();
        }
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options).unwrap();
        mount("test", &world.config.work_dir, "overlay", MountFlags::empty(), Some(&*options)).unwrap();
        let daemon = Daemon::start(&world);
        let Err(CallError::Status(500, message)) = daemon.launch(&request(&world, "web", "true")) else {
            panic!("it was launched")
        };
        assert_contains(&message, &["is on an overlay file system", "`scratch_memory`"]);
        // Others are not affected.
        let mut plain = request(&world, "plain", COUNTING);
        plain.rootfs = None;
        daemon.launch(&plain).unwrap();
        assert_keeps_counting(&stdout(&daemon, &plain.id));
        assert_eq!(daemon.destroy(&plain.id).unwrap().exit_status, Some(9));
        daemon.remove(&plain.id).unwrap();
        assert!(daemon.terminate().success());
        assert_eq!(leftovers(&world), Vec::<String>::new());
        world.config.scratch_memory = Some(SCRATCH);
        use_containers(&world);
    });
}

/// Changes a record, as if the clock had been another one when it was written.
fn set_launched(world: &World, name: &str, unix_ms: u64) {
    let path = cofferdam_core::ledger::nested_directory(&world.config.runtime_dir, &id(name)).join("record");
    let content = fs::read_to_string(&path).unwrap();
    let (head, body) = content.split_once('\n').unwrap();
    let mut record: Json = serde_json::from_str(body).unwrap();
    assert!(record["created_unix_ms"].is_u64(), "{record}");
    record["created_unix_ms"] = unix_ms.into();
    let body = record.to_string();
    let (head, _) = head.rsplit_once(' ').unwrap();
    fs::write(path, format!("{head} {:08x}\n{body}", crc32fast::hash(body.as_bytes()))).unwrap();
}

/// All files below a directory.
fn set_modified(directory: &Path, time: SystemTime) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            set_modified(&entry.path(), time);
        }
        if kind.is_dir() || kind.is_file() {
            File::open(entry.path()).unwrap().set_modified(time).unwrap();
        }
    }
}

/// The clock is set back, or forward, while no agent runs: what it has written is of the future, or of 1970.
#[test]
fn an_agent_whose_clock_was_changed_takes_over_its_containers() {
    if !is_root("containers of a restarted agent") {
        return;
    }
    let now = SystemTime::now();
    let year = Duration::from_secs(365 * 24 * 3600);
    for (unix_ms, modified) in
        [(4_102_444_800_000, now + 70 * year), (u64::MAX, now + 200 * year), (1, SystemTime::UNIX_EPOCH)]
    {
        let world = World::shipped();
        let daemon = Daemon::start(&world);
        daemon.launch(&request(&world, "runs", COUNTING)).unwrap();
        daemon.launch(&request(&world, "ended", "exit 3")).unwrap();
        assert_eq!(daemon.wait(&id("ended")).unwrap().exit_status, Some(3 << 8));
        daemon.kill();
        for name in ["runs", "ended"] {
            set_launched(&world, name, unix_ms);
        }
        for directory in [&world.config.runtime_dir, &world.config.work_dir] {
            set_modified(directory, modified);
        }
        let daemon = Daemon::start(&world);
        assert_keeps_counting(&stdout(&daemon, &id("runs")));
        assert_eq!(daemon.wait(&id("ended")).unwrap().exit_status, Some(3 << 8));
        for arguments in
            [&["ps", "-a"][..], &["inspect", "runs"], &["stats", "--no-stream"], &["events", "--until", "0s"]]
        {
            let mut command = Command::new(paths::program());
            let output = command.arg("--socket").arg(world.socket()).args(arguments).output().unwrap();
            let shown = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            assert!(arguments[0] == "events" || shown.contains("runs"), "{arguments:?}: {shown}");
        }
        daemon.launch(&request(&world, "new", "exit 4")).unwrap();
        assert_eq!(daemon.wait(&id("new")).unwrap().exit_status, Some(4 << 8));
        assert_eq!(daemon.destroy(&id("runs")).unwrap().exit_status, Some(9));
        for name in ["runs", "ended", "new"] {
            daemon.remove(&id(name)).unwrap();
        }
        assert!(daemon.terminate().success());
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}
