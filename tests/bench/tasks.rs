//! Tasks, by their agent as operators run it: in containers of an engine beside those of its client, and as commands.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_linux::process::Process;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT, Updates};
use cofferdam_tests::engine::{Engine, IMAGE, has_engine, shell};
use cofferdam_tests::world::{World, entry};
use serde_json::{Value as Json, json};

use crate::environment::Environment;
use crate::fleet::rollup;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::{Options, Outcome};

const NAMES: [&str; 4] = ["task-launch", "docker-recovery", "executor-memory", "command-tasks"];

/// The rows that are compared.
const TASK: &str = "a task in a container of the engine";
const CLIENT: &str = "docker run --rm";

/// Measures tasks.
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
    if NAMES[..3].iter().any(|name| options.wants(name)) && has_engine() {
        let engine = Engine::start();
        if options.wants(NAMES[0]) {
            report.add(launches(environment, &engine, options)?);
        }
        if NAMES[1..3].iter().any(|name| options.wants(name)) {
            containers(environment, &engine, options, report)?;
        }
    }
    if options.wants(NAMES[3]) {
        report.add(commands(environment, options)?);
    }
    Ok(())
}

fn world_of(engine: &Engine) -> World {
    let mut world = engine.world();
    world.config.executors.max_completed_executors = 0;
    world
}

fn task(id: &str, line: &str) -> Json {
    json!({
        "task_id": {"value": id}, "name": id, "agent_id": {"value": "any"}, "command": {"value": line},
        "resources": [
            {"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}},
            {"name": "mem", "type": "SCALAR", "scalar": {"value": 32}},
        ],
    })
}

fn docker_task(id: &str, line: &str) -> Json {
    let mut task = task(id, line);
    task["container"] = json!({"type": "DOCKER", "docker": {"image": IMAGE, "network": "NONE"}});
    task
}

fn launch(daemon: &Daemon, task: &Json) -> Outcome<()> {
    let framework = json!({"id": {"value": "bench"}, "name": "bench", "user": "", "checkpoint": true});
    let call =
        json!({"type": "LAUNCH_TASK", "launch_task": {"framework_info": framework, "task_info": task}});
    daemon.call(&call).map(drop).map_err(|error| format!("{error:?}").into())
}

/// Receives and acknowledges updates until so many tasks are in a state. Any other end is an error.
fn until(daemon: &Daemon, updates: &mut Updates, state: &str, count: usize) -> Outcome<()> {
    let mut seen = BTreeSet::new();
    while seen.len() < count {
        let message = updates.next().ok_or("the stream of updates ended")?;
        if message["type"] != "STATUS_UPDATE" {
            continue;
        }
        let status = &message["status_update"]["status"];
        let acknowledge = json!({"type": "ACKNOWLEDGE_STATUS_UPDATE", "acknowledge_status_update": {
            "framework_id": {"value": "bench"}, "task_id": status["task_id"], "uuid": status["uuid"],
        }});
        match daemon.call(&acknowledge) {
            // An update that was not acknowledged in time is sent again; the task is forgotten after the first of them.
            Ok(_) | Err(CallError::Status(404, _)) => {}
            Err(error) => return Err(format!("{error:?}").into()),
        }
        let found = status["state"].as_str().unwrap_or_default();
        if found == state {
            seen.insert(status["task_id"]["value"].as_str().unwrap_or_default().to_owned());
        } else if !matches!(found, "TASK_STARTING" | "TASK_RUNNING" | "TASK_KILLING") {
            return Err(format!("a task has ended: {status}").into());
        }
    }
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// From the launch of a task until its end is known, in turns with the engine's client.
fn launches(environment: &Environment, engine: &Engine, options: &Options) -> Outcome<Group> {
    let rounds = if options.quick { 3 } else { 30 };
    let world = world_of(engine);
    let daemon = Daemon::start(&world);
    let mut updates = daemon.updates();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first of each is not measured.
    for round in 0..=rounds {
        environment.check_interrupted()?;
        let started = Instant::now();
        launch(&daemon, &docker_task(&format!("task-{round}"), "true"))?;
        until(&daemon, &mut updates, "TASK_FINISHED", 1)?;
        ours.push(millis(started));
        settled(&world)?;
        let started = Instant::now();
        run(engine)?;
        theirs.push(millis(started));
    }
    daemon.terminate();
    let mut group =
        Group::new(NAMES[0], "A task that runs `true`, from its launch until its end is known", "ms");
    group.row(TASK, Samples(ours.split_off(1)));
    group.row(CLIENT, Samples(theirs.split_off(1)));
    group.compare(TASK, CLIENT);
    Ok(group)
}

/// The same by the engine's client, with the limits of the task.
fn run(engine: &Engine) -> Outcome<()> {
    let status = Command::new("docker")
        .arg("--host")
        .arg(format!("unix://{}", engine.socket().display()))
        .args(["run", "--rm", "--network", "none", "--cpu-shares", "204", "--memory", "64m", IMAGE])
        .args(["/bin/sh", "-c", "true"])
        .stdout(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("`docker run`: {status}").into()) }
}

/// Waits until nothing is left of tasks that have ended.
fn settled(world: &World) -> Outcome<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !world.leftovers().is_empty() {
        if Instant::now() > deadline {
            return Err(format!("something is left: {:?}", world.leftovers()).into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Recovery with many containers of an engine, and the memory of executors in them.
fn containers(
    environment: &Environment,
    engine: &Engine,
    options: &Options,
    report: &mut Report,
) -> Outcome<()> {
    let (count, tasks, rounds) = if options.quick { (10, 3, 2) } else { (200, 20, 5) };
    let mut world = world_of(engine);
    world.config.executors.reregistration_timeout = Duration::from_secs(60);
    let mut daemon = Daemon::start(&world);
    let mut updates = daemon.updates();
    for number in 0..tasks {
        launch(&daemon, &docker_task(&format!("memory-{number}"), "exec sleep 100000"))?;
    }
    until(&daemon, &mut updates, "TASK_RUNNING", tasks)?;
    if options.wants(NAMES[2]) {
        let mut group = Group::new(NAMES[2], "Executors of sleeping tasks in containers of an engine", "kB");
        let executors =
            daemon.list().into_iter().filter_map(|container| container.container_status?.executor_pid);
        let executors: Vec<i32> = executors.filter_map(|pid| i32::try_from(pid).ok()).collect();
        if executors.len() != tasks {
            return Err(format!("{} of {tasks} executors are running", executors.len()).into());
        }
        for field in ["Pss", "Rss", "Private_Dirty"] {
            let of_all = executors.iter().map(|&pid| rollup(pid, field)).collect::<Outcome<_>>()?;
            group.row(field, of_all);
        }
        report.add(group);
    }
    if options.wants(NAMES[1]) {
        for number in tasks..count {
            environment.check_interrupted()?;
            let request = shell(&format!("recovered-{number}"), "exec sleep 100000");
            daemon.launch(&request).map_err(|error| format!("{error:?}"))?;
        }
        let mut samples = Vec::new();
        for _ in 0..rounds {
            environment.check_interrupted()?;
            daemon.kill();
            let started = Instant::now();
            daemon = Daemon::start(&world);
            samples.push(millis(started));
            let running = daemon.list().len();
            if running != count {
                return Err(format!("{running} of {count} containers are running").into());
            }
        }
        let title = format!("From the start of an agent to ready, with {count} containers of an engine");
        let mut group = Group::new(NAMES[1], title, "ms");
        group.row("after `kill -9`", Samples(samples));
        report.add(group);
    }
    // The engine ends its containers, and those of the agent with them.
    daemon.kill();
    Ok(())
}

/// Many command tasks: how fast they are launched, and how long a list of their statistics takes.
fn commands(environment: &Environment, options: &Options) -> Outcome<Group> {
    let count = if options.quick { 20 } else { 1000 };
    let mut world = World::new();
    world.config.logger = Some(entry("sandbox", json!({})));
    world.add("cgroups/cpu", json!({}));
    world.add("cgroups/mem", json!({}));
    world.config.executors.max_completed_executors = 0;
    // As many as the machine can start at a time may be late.
    world.config.executors.registration_timeout = Duration::from_secs(600);
    let daemon = Daemon::start(&world);
    let mut updates = daemon.updates();
    let started = Instant::now();
    for number in 0..count {
        environment.check_interrupted()?;
        launch(&daemon, &task(&format!("task-{number}"), "exec sleep 100000"))?;
    }
    until(&daemon, &mut updates, "TASK_RUNNING", count)?;
    let took = millis(started);
    let mut group = Group::new(NAMES[3], format!("{count} command tasks"), "ms, except for memory in kB");
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let each = took / count as f64;
    group.row("until all are running, for each", Samples(vec![each]));
    let sweeps = (0..if options.quick { 3 } else { 7 }).map(|_| {
        let started = Instant::now();
        let statistics = daemon.get("/monitor/statistics");
        let found = statistics.as_array().map_or(0, Vec::len);
        if found == count {
            Ok(millis(started))
        } else {
            Err(format!("statistics of {found} of {count}").into())
        }
    });
    group.row("`/monitor/statistics`", sweeps.collect::<Outcome<_>>()?);
    group.row("Pss of the agent", Samples(vec![rollup(daemon.pid(), "Pss")?]));
    let executors: Vec<Process> =
        daemon.list().into_iter().filter_map(|it| executor(it.container_status?.executor_pid?)).collect();
    let memory = executors.iter().map(|executor| rollup(executor.pid(), "Pss")).collect::<Outcome<_>>()?;
    group.row("Pss of an executor", memory);
    let started = Instant::now();
    for number in 0..count {
        let id = json!({"value": format!("task-{number}")});
        let kill = json!({"type": "KILL_TASK", "kill_task": {"task_id": id}});
        daemon.call(&kill).map_err(|error| format!("{error:?}"))?;
    }
    until(&daemon, &mut updates, "TASK_KILLED", count)?;
    group.row("until all have been killed", Samples(vec![millis(started)]));
    settled(&world)?;
    daemon.terminate();
    Ok(group)
}

/// The executor of a container, by the pid of its first process: that, or a child of it.
fn executor(first: u32) -> Option<Process> {
    let is_executor = |process: &Process| {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid())).unwrap_or_default();
        name.starts_with("cofferdam-exec")
    };
    let first = Process::open_any(i32::try_from(first).ok()?).ok()?;
    if is_executor(&first) {
        return Some(first);
    }
    first.children().ok()?.into_iter().filter_map(|pid| Process::open_any(pid).ok()).find(is_executor)
}
