//! Tasks with a real executor, which knows the published API alone (`tests/executor`).

mod agent_container;
mod calls;
mod checks;
mod clock;
mod commands;
mod crashes;
mod engine;
mod engine_faults;
mod executors;
mod hooks;
mod hostile;
mod networks;
mod programs;
mod updates;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cofferdam_tests::daemon::{CallError, Daemon, Updates};
use cofferdam_tests::paths;
use cofferdam_tests::world::World;
use serde_json::{Value as Json, json};

/// A world whose executors write their output to their sandboxes.
fn world() -> World {
    let mut world = World::posix();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.shutdown_grace_period = Duration::from_secs(20);
    world.config.executors.max_completed_executors = 0;
    world
}

fn framework(checkpoint: bool) -> Json {
    json!({"id": {"value": "tests"}, "name": "tests", "user": "", "checkpoint": checkpoint})
}

/// `ExecutorInfo` of the executor for tests.
fn executor(id: &str, mode: &str) -> Json {
    json!({
        "executor_id": {"value": id}, "name": "for tests", "type": "CUSTOM",
        "command": {
            "shell": false, "value": paths::build().join("test-executor"), "arguments": ["test-executor"],
            "environment": {"variables": [{"name": "TEST_EXECUTOR", "value": mode}]},
        },
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}}],
    })
}

/// `TaskInfo` of a task that the executor for tests treats by its name.
fn task(id: &str, name: &str) -> Json {
    json!({
        "task_id": {"value": id}, "name": name, "agent_id": {"value": "any"},
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}}],
    })
}

fn launch_call(executor: &Json, task: &Json, checkpoint: bool) -> Json {
    json!({
        "type": "LAUNCH_TASK",
        "launch_task": {"framework_info": framework(checkpoint), "task_info": task, "executor_info": executor},
    })
}

fn launch(daemon: &Daemon, executor: &Json, task: &Json) {
    daemon
        .call(&launch_call(executor, task, true))
        .unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
}

fn kill(daemon: &Daemon, task: &str) -> Result<Json, CallError> {
    daemon.call(&json!({"type": "KILL_TASK", "kill_task": {"task_id": {"value": task}}}))
}

fn shut_down(daemon: &Daemon, executor: &str) -> Result<Json, CallError> {
    daemon.call(&json!({
        "type": "SHUTDOWN_EXECUTOR",
        "shutdown_executor": {"framework_id": {"value": "tests"}, "executor_id": {"value": executor}},
    }))
}

fn acknowledge(daemon: &Daemon, task: &str, uuid: &Json) -> Result<Json, CallError> {
    daemon.call(&json!({
        "type": "ACKNOWLEDGE_STATUS_UPDATE",
        "acknowledge_status_update": {
            "framework_id": {"value": "tests"}, "task_id": {"value": task}, "uuid": uuid,
        },
    }))
}

fn is_terminal(state: &str) -> bool {
    !matches!(state, "TASK_STAGING" | "TASK_STARTING" | "TASK_RUNNING" | "TASK_KILLING")
}

/// What a client has received, in order, by task.
#[derive(Debug, Default)]
struct Received {
    statuses: BTreeMap<String, Vec<Json>>,
}

impl Received {
    /// Receives and acknowledges updates until `enough`.
    fn until(&mut self, daemon: &Daemon, updates: &mut Updates, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            let Some(message) = updates.next() else { panic!("the stream ended\n{}", daemon.log()) };
            self.add(daemon, &message);
        }
    }

    fn add(&mut self, daemon: &Daemon, message: &Json) {
        assert!(self.try_add(daemon, message), "an acknowledgement failed\n{}", daemon.log());
    }

    /// Adds an update. Returns its task and its id.
    fn note(&mut self, message: &Json) -> Option<(String, Json)> {
        if message["type"] != "STATUS_UPDATE" {
            return None;
        }
        let status = &message["status_update"]["status"];
        let task = status["task_id"]["value"].as_str().expect("a valid answer").to_owned();
        let known = self.statuses.entry(task.clone()).or_default();
        // One that was sent again, as its acknowledgement was lost.
        if known.iter().all(|known| known["uuid"] != status["uuid"]) {
            known.push(status.clone());
        }
        Some((task, status["uuid"].clone()))
    }

    /// Adds and acknowledges an update. Returns false if the agent has ended.
    fn try_add(&mut self, daemon: &Daemon, message: &Json) -> bool {
        let Some((task, uuid)) = self.note(message) else { return true };
        match acknowledge(daemon, &task, &uuid) {
            Ok(_) => true,
            // Forgotten, as another client has acknowledged it.
            Err(error) if error.is_unknown() => true,
            Err(error) => {
                assert!(error.is_disconnected(), "{error:?}");
                false
            }
        }
    }

    fn states(&self, task: &str) -> Vec<String> {
        let statuses = self.statuses.get(task).into_iter().flatten();
        statuses.map(|status| status["state"].as_str().expect("a valid answer").to_owned()).collect()
    }

    fn last(&self, task: &str) -> &Json {
        self.statuses[task].last().expect("a valid answer")
    }

    fn has_ended(&self, task: &str) -> bool {
        self.states(task).last().is_some_and(|state| is_terminal(state))
    }
}

/// Receives the updates of a task until it has ended.
fn until_ended(daemon: &Daemon, task: &str) -> Received {
    let mut received = Received::default();
    received.until(daemon, &mut daemon.updates(), |received| received.has_ended(task));
    received
}

/// Receives the updates of a task until it is in a state.
fn until_state(daemon: &Daemon, task: &str, state: &str) -> Received {
    let mut received = Received::default();
    let is_there = |received: &Received| received.states(task).last().is_some_and(|last| last == state);
    received.until(daemon, &mut daemon.updates(), is_there);
    received
}

/// The container of the only executor.
fn container(daemon: &Daemon) -> String {
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).expect("a valid answer");
    let all = executors["executors"].as_array().into_iter().flatten();
    let mut all = all.chain(executors["completed_executors"].as_array().into_iter().flatten());
    let container = all.next().unwrap_or_else(|| panic!("no executor: {executors}"));
    container["container_id"]["value"].as_str().expect("a valid answer").to_owned()
}

/// The container of an executor.
fn container_of(daemon: &Daemon, executor: &str) -> String {
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).expect("a valid answer");
    let mut all = executors["executors"].as_array().into_iter().flatten();
    let found = all.find(|it| it["executor_info"]["executor_id"]["value"] == executor);
    found.unwrap_or_else(|| panic!("no `{executor}`: {executors}"))["container_id"]["value"]
        .as_str()
        .expect("a valid answer")
        .to_owned()
}

/// The process of the executor in a container, below the init of that.
fn process(daemon: &Daemon, container: &str) -> i32 {
    let id = cofferdam_core::model::ContainerId::parse(container).expect("a valid answer");
    let init = daemon.inspect(&id).expect("a valid answer").pid.expect("a valid answer");
    let children = cofferdam_linux::process::children_of(init).expect("a valid answer");
    children.first().copied().unwrap_or(init)
}

/// The file with the output of an executor.
fn output(world: &World, container: &str) -> std::path::PathBuf {
    world.config.work_dir.join("containers").join(container).join("stdout")
}

/// Waits until nothing is left of executors and containers.
fn assert_nothing_left(world: &World, daemon: &Daemon) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let left = world.leftovers();
        if left.is_empty() {
            return;
        }
        // Removal goes on in the background, and the kernel has no event for all of it.
        assert!(std::time::Instant::now() < deadline, "{left:#?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn journals(world: &World) -> Vec<std::path::PathBuf> {
    let listing = fs::read_dir(world.config.work_dir.join("executors"));
    listing.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
