//! Entries in the agent's directories that are not its own, or of another version. They never stop it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_core::model::ContainerId;
use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::world::World;
use cofferdam_tests::{assert_contains, is_root, paths};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{COUNTING, assert_keeps_counting, assert_nothing_left, id, request, state};

fn stdout(daemon: &Daemon, id: &ContainerId) -> PathBuf {
    daemon.inspect(id).unwrap().stdout.unwrap().into()
}

fn end(daemon: &Daemon, id: &ContainerId) {
    assert_eq!(daemon.destroy(id).unwrap().exit_status, Some(9));
    daemon.remove(id).unwrap();
}

/// The content of a record, as an agent of the next version would have written it.
fn of_newer_version(record: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(record).unwrap();
    let (version, rest) = text.strip_prefix("cofferdam-record ").unwrap().split_once(' ').unwrap();
    format!("cofferdam-record {} {rest}", version.parse::<u32>().unwrap() + 1).into_bytes()
}

type Change = fn(&Path, &[u8]);

/// What replaces a record. The containers may be healthy.
const CHANGES: [(&str, Change); 6] = [
    ("newer", |path, record| fs::write(path, of_newer_version(record)).unwrap()),
    ("pipe", |path, _| mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("directory", |path, _| fs::create_dir_all(path.join("x")).unwrap()),
    ("link", |path, _| symlink("/dev/zero", path).unwrap()),
    ("broken", |path, _| symlink("/no/such/file", path).unwrap()),
    ("socket", |path, _| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
];

#[test]
fn records_that_cannot_be_read_are_left_alone_with_their_containers() {
    if !is_root("containers that are found by their cgroups") {
        return;
    }
    let mut world = World::shipped();
    world.config.launch_timeout = std::time::Duration::from_secs(20);
    let daemon = Daemon::start(&world);
    let good = request(&world, "good", COUNTING);
    daemon.launch(&good).unwrap();
    let log = stdout(&daemon, &good.id);
    let mut processes = Vec::new();
    for (name, _) in CHANGES {
        daemon.launch(&request(&world, name, COUNTING)).unwrap();
        let nested = request(&world, &format!("{name}.nested"), COUNTING);
        daemon.launch(&nested).unwrap();
        for id in [&id(name), &nested.id] {
            processes.push(Process::open_any(daemon.inspect(id).unwrap().pid.unwrap()).unwrap());
        }
    }
    daemon.kill();
    let path = |name: &str| world.config.runtime_dir.join("containers").join(name).join("record");
    let records: Vec<_> = CHANGES
        .iter()
        .map(|(name, change)| {
            let record = fs::read(path(name)).unwrap();
            fs::remove_file(path(name)).unwrap();
            change(&path(name), &record);
            record
        })
        .collect();

    let daemon = Daemon::start(&world);
    let before = daemon.log();
    assert_eq!(state(&daemon, &good.id).as_deref(), Some("RUNNING"));
    assert_keeps_counting(&log);
    assert_eq!(daemon.list().len(), 1);
    for (name, _) in CHANGES {
        let directory = world.config.runtime_dir.join("containers").join(name);
        assert_contains(&before, &[&directory.display().to_string()]);
        for name in [name, &format!("{name}.nested"), &format!("{name}.new")] {
            let error = daemon.launch(&request(&world, name, "true")).unwrap_err();
            let CallError::Status(409, message) = error else { panic!("{error:?}") };
            assert_contains(&message, &[name, "is taken", "operator's guide"]);
        }
    }
    for process in &processes {
        assert!(!process.has_ended().unwrap());
    }

    // The first way to resolve it: an agent that can read the record. Here, a record that this one can read.
    daemon.kill();
    for ((name, _), record) in CHANGES.iter().zip(&records).skip(1) {
        let path = path(name);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        fs::write(path, record).unwrap();
    }
    // The second one: without the directory, its container is destroyed by its id.
    fs::remove_dir_all(path(CHANGES[0].0).parent().unwrap()).unwrap();
    let daemon = Daemon::start(&world);
    for (name, _) in CHANGES.iter().skip(1) {
        assert_eq!(state(&daemon, &id(name)).as_deref(), Some("RUNNING"), "{name}");
        assert_eq!(state(&daemon, &id(&format!("{name}.nested"))).as_deref(), Some("RUNNING"), "{name}");
        end(&daemon, &id(name));
    }
    let newer = id(CHANGES[0].0);
    daemon.wait(&newer).unwrap();
    for process in &processes {
        assert!(process.has_ended().unwrap());
    }
    // Nobody knows when it was launched.
    let listed = Command::new(paths::program())
        .args(["ps", "--all", "--filter", "name=newer", "--format", "{{.ID}} {{.State}} {{.Age}}"])
        .env("COFFERDAM_SOCKET", world.socket())
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(listed.lines().any(|line| line == "newer ENDED -"), "{listed}");
    assert_eq!(daemon.inspect(&newer).unwrap().launched, None);
    daemon.remove(&newer).unwrap();
    end(&daemon, &good.id);
    assert_nothing_left(&world, &"in the end");
}

#[test]
fn other_entries_in_the_directories_are_named_and_stay() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let log = stdout(&daemon, &web.id);
    daemon.kill();
    let (run, work) = (&world.config.runtime_dir, &world.config.work_dir);
    let directories =
        [run.clone(), work.clone(), run.join("containers"), run.join("keepers"), work.join("containers")];
    let mut strays = Vec::new();
    for directory in &directories {
        let at = |name: &str| directory.join(name);
        fs::create_dir_all(at("lost+found")).unwrap();
        fs::write(at("a-file"), "").unwrap();
        fs::write(at("file"), "").unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        symlink(at("lost+found"), at("link")).unwrap();
        fs::create_dir(at("no id")).unwrap();
        strays.extend(["lost+found", "a-file", "file", "pipe", "link", "no id"].map(at));
    }
    let daemon = Daemon::start(&world);
    assert_eq!(state(&daemon, &web.id).as_deref(), Some("RUNNING"));
    assert_keeps_counting(&log);
    assert_eq!(daemon.list().len(), 1, "{}", daemon.log());
    end(&daemon, &web.id);
    let text = daemon.log();
    for stray in &strays {
        assert!(fs::symlink_metadata(stray).is_ok(), "{} was removed", stray.display());
        let is_listed = stray.parent().is_some_and(|directory| directories[2..].contains(&directory.into()));
        let is_named = text.contains(&stray.display().to_string());
        assert!(
            is_named || !is_listed || stray.ends_with("lost+found"),
            "{} is not named:\n{text}",
            stray.display()
        );
    }
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// Puts something at a path.
type Create = fn(&Path);

/// What is put in the place of a small file of the agent.
const NO_FILES: [(&str, Create); 4] = [
    ("pipe", |path| mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("directory", |path| fs::create_dir(path).unwrap()),
    ("link", |path| symlink("/dev/zero", path).unwrap()),
    ("binary", |path| fs::write(path, b"/\xff\0").unwrap()),
];

/// Another identity would be that of another agent.
#[test]
fn an_agent_does_not_wait_for_its_identity_and_takes_no_other_one() {
    for (name, create) in NO_FILES {
        let world = World::posix();
        fs::create_dir_all(&world.config.work_dir).unwrap();
        let path = world.config.work_dir.join("agent_id");
        create(&path);
        let (mut daemon, serves) = Daemon::try_start(&world);
        assert!(!serves, "{name}");
        assert!(!daemon.wait_ended().success());
        assert_contains(&daemon.log(), &[&path.display().to_string(), "remove what is there"]);
        assert!(fs::symlink_metadata(&path).is_ok(), "{name}");
    }
}

#[test]
fn something_else_in_the_place_of_the_last_cgroup_root_is_named_and_stays() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    let log = stdout(&daemon, &web.id);
    daemon.kill();
    let path = world.config.runtime_dir.join("cgroup_root");
    let content = fs::read(&path).unwrap();
    for (index, (name, create)) in NO_FILES.into_iter().enumerate() {
        fs::remove_file(&path).unwrap();
        create(&path);
        let daemon = Daemon::start(&world);
        assert_eq!(state(&daemon, &web.id).as_deref(), Some("RUNNING"), "{name}");
        assert_keeps_counting(&log);
        // The log is that of all of them.
        let named = format!("ignored `{}`", path.display());
        assert_eq!(daemon.log().matches(&named).count(), index + 1, "{name}");
        daemon.kill();
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => fs::remove_dir(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        fs::write(&path, &content).unwrap();
    }
    let daemon = Daemon::start(&world);
    end(&daemon, &web.id);
    assert_nothing_left(&world, &"in the end");
}

#[test]
fn an_agent_starts_without_a_copy_of_the_executor_program() {
    let mut world = World::posix();
    world.config.executors.launcher_dir = Some(paths::build());
    let daemon = Daemon::start(&world);
    assert!(daemon.terminate().success());
    let directory = world.config.work_dir.join("executor");
    let copy = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path().join("cofferdam-executor");
    fs::remove_file(&copy).unwrap();
    mkfifo(&copy, Mode::S_IRWXU).unwrap();
    // It is replaced, as a damaged copy is.
    let daemon = Daemon::start(&world);
    assert!(daemon.terminate().success());
    assert!(fs::symlink_metadata(&copy).unwrap().is_file());

    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    let daemon = Daemon::start(&world);
    assert_contains(&daemon.log(), &["no tasks can be launched", &directory.display().to_string()]);
    let web = request(&world, "web", COUNTING);
    daemon.launch(&web).unwrap();
    end(&daemon, &web.id);
    assert!(daemon.terminate().success());
    assert!(fs::symlink_metadata(&directory).unwrap().is_file());
}

/// Where the agent's own files are to be.
#[test]
fn something_else_in_the_place_of_a_file_of_the_agent_is_an_error_that_names_it() {
    for (name, is_fatal) in [("calls", false), ("calls.new", false), ("ends", false), ("agent.lock", true)] {
        let world = World::posix();
        fs::create_dir_all(&world.config.runtime_dir).unwrap();
        let path = world.config.runtime_dir.join(name);
        fs::create_dir(&path).unwrap();
        let (mut daemon, serves) = Daemon::try_start(&world);
        assert_eq!(serves, !is_fatal, "{name}:\n{}", daemon.log());
        assert_contains(&daemon.log(), &[&world.config.runtime_dir.display().to_string()]);
        if is_fatal {
            assert!(!daemon.wait_ended().success());
        }
        assert!(path.is_dir());
    }
}
