//! An agent that is itself in a container of the engine.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use cofferdam_core::config::ContainerizerConfig;
use cofferdam_linux::process::Process;
use cofferdam_tests::world::{World, entry, id};
use cofferdam_tests::{assert_contains, wait_for_text};

use super::engine::{assert_engine_has_nothing, docker_task};
use super::programs::{command_task, run_task};
use super::*;
use cofferdam_tests::engine::{Engine, engine};

/// The image of the agent.
const IMAGE: &str = "cofferdam-test/agent:1";

/// Where the programs and the plugins are in it.
const DIRECTORY: &str = "/opt/cofferdam";

/// Of `docker run`, what the operator's guide asks for, with the privileges that are needed in place of all.
const OPTIONS: [&str; 12] = [
    "--network=host",
    "--pid=host",
    "--cgroupns=host",
    "--cap-add=SYS_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--security-opt=seccomp=unconfined",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
    "--env=NO_PROXY=*",
    "--rm",
    "--log-driver=none",
    "--attach=stderr",
    "--attach=stdout",
];

/// Makes the image, of the programs of this build, their libraries and a shell.
fn make_image(engine: &Engine) {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("cofferdam-test-image-").tempdir().unwrap();
        let programs = root.path().join(DIRECTORY.trim_start_matches('/'));
        for directory in [&programs, &root.path().join("bin"), &root.path().join("tmp")] {
            fs::create_dir_all(directory).unwrap();
        }
        for file in ["cofferdam", "cofferdam-executor", "test-executor", "libcofferdam_logger_sandbox.so"] {
            fs::copy(paths::build().join(file), programs.join(file)).unwrap();
        }
        fs::copy("/bin/busybox", root.path().join("bin/sh")).expect("/bin/busybox (package busybox-static)");
        for library in libraries(&paths::program()) {
            let copy = root.path().join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(&library, copy).unwrap();
        }
        let tar = root.path().with_extension("tar");
        let packed = Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(&tar).arg(".").status();
        assert!(packed.unwrap().success());
        let entry = format!("ENTRYPOINT [\"{DIRECTORY}/cofferdam\"]");
        engine.client(&["import", "--change", &entry, tar.to_str().unwrap(), IMAGE]);
        fs::remove_file(tar).unwrap();
    });
}

/// The libraries that a program is loaded with, and the loader.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd (package libc-bin)");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let found: Vec<PathBuf> =
        listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    assert!(found.len() > 2, "{listed}");
    found
}

/// A world of an agent that is in a container.
fn contained(engine: &Engine) -> World {
    make_image(engine);
    let mut world = World::new();
    let mut docker = engine.config();
    docker.mesos_image = Some(IMAGE.to_owned());
    world.config.containerizers = vec![ContainerizerConfig::Docker(docker), ContainerizerConfig::Mesos];
    world.config.logger = Some(entry("sandbox", json!({})));
    world.config.plugin_dir = DIRECTORY.into();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.max_completed_executors = 0;
    world
}

/// Runs the command of an agent in a container, with a client that ends with it.
fn in_container(
    engine: &Engine,
    world: &World,
    name: &str,
    options: &[&str],
    agent: &Command,
) -> io::Result<Child> {
    let variable = |(name, value): (&OsStr, Option<&OsStr>)| {
        format!("--env={}={}", name.to_string_lossy(), value.unwrap_or_default().to_string_lossy())
    };
    let log = fs::File::options().append(true).open(world.directory().join("agent.log"))?;
    Command::new("docker")
        .arg("--host")
        .arg(format!("unix://{}", engine.socket().display()))
        .args(["run", "--name", name])
        .args(options)
        .args(agent.get_envs().map(variable))
        .arg(format!("--volume={0}:{0}", engine.socket().display()))
        .arg(IMAGE)
        .args(agent.get_args())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Starts an agent in a container. Returns the agent and the name of the container.
fn start(engine: &Engine, world: &World, number: u32) -> (Daemon, String) {
    let name = format!("agent-{}-{number}", world.instance());
    let directory = format!("--volume={0}:{0}", world.directory().display());
    let options = [&OPTIONS[..], &[&directory]].concat();
    let (daemon, is_ready) =
        Daemon::try_start_by(world, |agent| in_container(engine, world, &name, &options, &agent));
    assert!(is_ready, "{}", daemon.log());
    (daemon, name)
}

fn first_process(daemon: &Daemon, container: &str) -> Process {
    Process::open_any(daemon.inspect(&id(container)).unwrap().pid.unwrap()).unwrap()
}

/// Starts tasks: in a container of its own; of the agent's image; of an executor in a container of that image; and a group, whose
/// containers are processes. Returns the containers of their executors.
fn run_tasks(daemon: &Daemon) -> [String; 4] {
    let line =
        "echo before; while [ ! -e $MESOS_SANDBOX/go ]; do busybox sleep 0.05; done; echo after; exit 3";
    run_task(daemon, &docker_task("own", line), true);
    // With the only programs that the agent's image has.
    let line = "pwd; [ -x /opt/cofferdam/cofferdam ] && while :; do sleep 1; done";
    run_task(daemon, &command_task("command", line), true);
    let mut executor = executor("custom", "");
    executor["command"]["value"] = format!("{DIRECTORY}/test-executor").into();
    launch(daemon, &executor, &task("of-custom", "run"));
    let tasks = ["grouped", "beside"].map(|id| command_task(id, line));
    let group = json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
        "framework_info": framework(true), "task_group": {"tasks": tasks},
        "executor_info": {"type": "DEFAULT", "executor_id": {"value": "group"}},
    }});
    daemon.call(&group).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
    let mut received = Received::default();
    received.until(daemon, &mut daemon.updates(), |received| {
        let is_running = |task: &&str| received.states(task).iter().any(|state| state == "TASK_RUNNING");
        ["own", "command", "of-custom", "grouped", "beside"].iter().all(is_running)
    });
    ["own", "command", "custom", "group"].map(|executor| container_of(daemon, executor))
}

#[test]
fn tasks_outlive_the_container_that_their_agent_is_in() {
    let Some(engine) = engine() else { return };
    let world = contained(engine);
    let (daemon, agent) = start(engine, &world, 1);
    let containers = run_tasks(&daemon);
    let [own, command, custom, _] = &containers;

    // Executors without a container of their own are in containers of the agent's image, in their sandboxes.
    let image = engine.client(&["image", "inspect", "--format", "{{.Id}}", IMAGE]);
    assert_eq!(engine.inspect(&format!("mesos-{command}"))["Image"], image.as_str());
    assert_eq!(engine.inspect(&format!("mesos-{custom}.executor"))["Image"], image.as_str());
    let sandbox = |container: &str| world.config.work_dir.join("docker").join(container);
    wait_for_text(&sandbox(command).join("stdout"), "/mnt/mesos/sandbox\n");
    wait_for_text(&sandbox(own).join("stdout"), "before\n");

    let processes = containers.each_ref().map(|container| first_process(&daemon, container));
    engine.client(&["kill", &agent]);
    let mut daemon = daemon;
    daemon.wait_ended();
    assert!(processes.iter().all(|process| !process.has_ended().unwrap()), "{}", daemon.log());
    // What they write is not lost, though nobody is there to take it over.
    fs::write(sandbox(own).join("go"), "").unwrap();
    wait_for_text(&sandbox(own).join("stdout"), "after\n");
    // By its executor. Its sandbox may be removed as soon as its end is acknowledged.
    wait_for_text(&sandbox(own).join("stderr"), "the connection to the agent was lost");
    drop(daemon);

    let (daemon, agent) = start(engine, &world, 2);
    let mut received = Received::default();
    received.until(&daemon, &mut daemon.updates(), |received| received.has_ended("own"));
    assert_eq!(received.states("own"), ["TASK_FAILED"], "{}", daemon.log());
    assert_eq!(received.last("own")["message"], "Container exited with status 3");
    assert!(processes[1..].iter().all(|process| !process.has_ended().unwrap()));
    // The other one of the group ends with it.
    for task in ["command", "of-custom", "grouped"] {
        kill(&daemon, task).unwrap();
    }
    let killed = ["command", "of-custom", "grouped", "beside"];
    received
        .until(&daemon, &mut daemon.updates(), |received| killed.iter().all(|task| received.has_ended(task)));
    for task in killed {
        assert_eq!(received.last(task)["state"], "TASK_KILLED", "{}", daemon.log());
    }
    shut_down(&daemon, "custom").unwrap();
    assert_engine_has_nothing(engine, &world, &daemon);
    engine.client(&["stop", "--time", "60", &agent]);
    let mut daemon = daemon;
    daemon.wait_ended();
}

#[test]
fn a_container_in_which_an_agent_cannot_work_is_refused_with_what_to_do() {
    let Some(engine) = engine() else { return };
    let world = contained(engine);
    let directory = format!("--volume={0}:{0}", world.directory().display());
    let other = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().unwrap();
    let elsewhere = format!("--volume={}:{}", other.path().display(), world.config.work_dir.display());
    let without = |option: &str| -> Vec<&str> {
        OPTIONS.into_iter().filter(|known| !known.starts_with(option)).chain([directory.as_str()]).collect()
    };
    let everything = without("--none");
    for (number, (options, expected)) in [
        (without("--pid"), "--pid host"),
        (without("--volume=/sys/fs/cgroup"), "--volume /sys/fs/cgroup:/sys/fs/cgroup"),
        ([&without("--cgroupns")[..], &["--cgroupns=private"]].concat(), "in a cgroup namespace of its own"),
        ([&everything[..], &[&elsewhere]].concat(), "is not the directory that the engine has there"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("refused-{}-{number}", world.instance());
        let (mut daemon, is_ready) =
            Daemon::try_start_by(&world, |agent| in_container(engine, &world, &name, &options, &agent));
        assert!(!is_ready, "{expected}: {}", daemon.log());
        assert!(!daemon.wait_ended().success());
        assert_contains(&daemon.log(), &["`docker.mesos_image`", expected]);
    }
}
