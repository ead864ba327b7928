//! The default executor: what it asks of the agent, and what it makes of the answers.

use serde_json::{Value, json};

use crate::peer::{Request, Subscription};
use crate::program::Program;

fn task(id: &str) -> Value {
    json!({
        "name": id, "task_id": {"value": id}, "agent_id": {"value": "a"},
        "command": {"value": id}, "container": {"type": "MESOS"},
        "resources": [{"name": "cpus", "type": "SCALAR", "scalar": {"value": 0.1}}],
    })
}

/// A group whose containers run.
struct Group {
    program: Program,
    agent: Subscription,
    /// The ids of the containers, in the order of the tasks.
    containers: Vec<Value>,
    /// Their waits.
    waits: Vec<Request>,
    /// Other requests that came before all of these.
    others: Vec<Request>,
}

impl Group {
    fn launch(tasks: &[Value]) -> Self {
        let program = Program::start("default", &[]);
        let mut agent = program.peer.accept();
        agent.send(&json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": tasks}}}));
        let mut launches = Vec::new();
        let (mut starting, mut running) = (0, 0);
        // Updates and calls have connections of their own.
        while launches.len() < tasks.len() {
            let request = program.peer.request();
            match request.kind() {
                "UPDATE" => {
                    let status = request.call()["status"].clone();
                    assert_eq!(status["state"], "TASK_STARTING");
                    starting += 1;
                    request.answer(202, "");
                    agent.acknowledge(&status);
                }
                _ => launches.push(request),
            }
        }
        launches.sort_by_key(|launch| launch.call()["command"]["value"].to_string());
        let mut containers = Vec::new();
        for (launch, task) in launches.into_iter().zip(tasks) {
            assert_eq!((launch.path.as_str(), launch.kind()), ("/api/v1", "LAUNCH_CONTAINER"));
            let call = launch.call();
            assert_eq!(call["container_id"]["parent"]["value"], "own");
            for part in ["command", "container", "resources"] {
                assert_eq!(call[part], task[part]);
            }
            containers.push(call["container_id"].clone());
            launch.answer(200, "");
        }
        let (mut waits, mut others) = (Vec::new(), Vec::new());
        while waits.len() < tasks.len() || starting + running < 2 * tasks.len() {
            let request = program.peer.request();
            match request.kind() {
                "UPDATE" => {
                    let status = request.call()["status"].clone();
                    match status["state"].as_str().unwrap() {
                        "TASK_STARTING" => starting += 1,
                        "TASK_RUNNING" => running += 1,
                        state => panic!("{state}"),
                    }
                    request.answer(202, "");
                    agent.acknowledge(&status);
                }
                "WAIT_CONTAINER" => waits.push(request),
                _ => others.push(request),
            }
        }
        waits.sort_by_key(|wait| containers.iter().position(|id| *id == wait.call()["container_id"]));
        Self { program, agent, containers, waits, others }
    }

    /// Ends the container of the first task that still has one.
    fn end(&mut self, termination: &Value) {
        let body = json!({"type": "WAIT_CONTAINER", "wait_container": termination}).to_string();
        self.waits.remove(0).answer(200, &body);
    }

    /// Waits for the session of a check.
    fn session(&mut self) -> Request {
        let session = self.others.pop().unwrap_or_else(|| self.program.peer.request());
        assert_eq!(session.kind(), "LAUNCH_NESTED_CONTAINER_SESSION");
        session
    }

    /// Waits for updates and for signals, which come in any order, and answers them.
    fn collect(&mut self, updates: usize, signals: usize) -> (Vec<Value>, Vec<(Value, i64)>) {
        let (mut statuses, mut sent) = (Vec::new(), Vec::new());
        while statuses.len() < updates || sent.len() < signals {
            let request = self.program.peer.request();
            let call = request.call().clone();
            match request.kind() {
                "UPDATE" => {
                    request.answer(202, "");
                    self.agent.acknowledge(&call["status"]);
                    statuses.push(call["status"].clone());
                }
                "KILL_CONTAINER" => {
                    request.answer(200, "");
                    sent.push((call["container_id"].clone(), call["signal"].as_i64().unwrap()));
                }
                kind => panic!("{kind}"),
            }
        }
        (statuses, sent)
    }
}

#[test]
fn a_group_runs_in_nested_containers() {
    let mut group = Group::launch(&[task("a"), task("b")]);
    group.end(&json!({"exit_status": 0}));
    let end = group.program.peer.states(&mut group.agent, &["TASK_FINISHED"]);
    assert_eq!(
        (&end["task_id"]["value"], &end["message"]),
        (&json!("a"), &json!("Command exited with status 0"))
    );
    assert!(!group.program.process().has_ended().unwrap());
    group.end(&json!({"exit_status": 0}));
    group.program.peer.states(&mut group.agent, &["TASK_FINISHED"]);
    assert!(group.program.wait().0.success());
}

#[test]
fn a_task_that_fails_ends_its_group() {
    let mut group = Group::launch(&[task("a"), task("b")]);
    group.end(&json!({
        "exit_status": 9, "state": "TASK_FAILED", "reason": "REASON_CONTAINER_LIMITATION_MEMORY", "message": "too much",
    }));
    let (states, signals) = group.collect(2, 1);
    assert_eq!(states[0]["reason"], "REASON_CONTAINER_LIMITATION_MEMORY");
    assert_eq!(states[0]["message"], "too much");
    assert_eq!((&states[1]["state"], &states[1]["task_id"]["value"]), (&json!("TASK_KILLING"), &json!("b")));
    assert_eq!(signals, [(group.containers[1].clone(), 15)]);
    group.end(&json!({"exit_status": 15}));
    group.program.peer.states(&mut group.agent, &["TASK_KILLED"]);
    assert!(group.program.wait().0.success());
}

#[test]
fn a_task_that_ignores_the_request_has_its_container_destroyed() {
    let mut group = Group::launch(&[task("a")]);
    group.agent.kill("a", std::time::Duration::from_millis(1));
    let (states, mut signals) = group.collect(1, 2);
    // Each has a connection of its own.
    signals.sort_by_key(|(_, signal)| std::cmp::Reverse(*signal));
    assert_eq!(states[0]["state"], "TASK_KILLING");
    assert_eq!(signals, [15, 9].map(|signal| (group.containers[0].clone(), signal)));
    group.end(&json!({"exit_status": 9, "state": "TASK_KILLED"}));
    group.program.peer.states(&mut group.agent, &["TASK_KILLED"]);
    assert!(group.program.wait().0.success());
}

#[test]
fn a_container_that_cannot_be_launched_is_reported_in_the_words_of_the_agent() {
    let program = Program::start("default", &[]);
    let mut agent = program.peer.accept();
    agent.send(&json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": [task("a")]}}}));
    let mut launch = None;
    for _ in 0..2 {
        let request = program.peer.request();
        if request.kind() == "UPDATE" {
            let status = request.call()["status"].clone();
            request.answer(202, "");
            agent.acknowledge(&status);
        } else {
            launch = Some(request);
        }
    }
    launch.unwrap().answer(503, "not yet");
    let again = program.peer.request();
    assert_eq!(again.kind(), "LAUNCH_CONTAINER", "what may succeed later is tried again");
    again.answer(400, "the image is unknown");
    let end = program.peer.states(&mut agent, &["TASK_FAILED"]);
    assert_eq!(end["reason"], "REASON_CONTAINER_LAUNCH_FAILED");
    assert_eq!(end["message"], "the image is unknown");
    assert!(program.wait().0.success());
}

#[test]
fn the_next_agent_is_asked_for_containers_again() {
    let mut group = Group::launch(&[task("a")]);
    group.program.peer.stop_listening();
    group.waits.clear();
    drop(group.agent);
    group.program.peer.listen_again();
    let mut agent = group.program.peer.accept();
    assert_eq!(agent.call, json!({"unacknowledged_tasks": [], "unacknowledged_updates": []}));
    let wait = group.program.peer.request();
    assert_eq!(wait.kind(), "WAIT_CONTAINER");
    assert_eq!(wait.call()["container_id"], group.containers[0]);
    let body = json!({"type": "WAIT_CONTAINER", "wait_container": {"exit_status": 256}}).to_string();
    wait.answer(200, &body);
    let end = group.program.peer.states(&mut agent, &["TASK_FAILED"]);
    assert_eq!(end["message"], "Command exited with status 1");
}

#[test]
fn a_check_runs_in_a_session_below_the_task() {
    let mut checked = task("a");
    checked["check"] = json!({
        "type": "COMMAND", "command": {"command": {"value": "check"}}, "delay_seconds": 0, "interval_seconds": 1000,
    });
    let mut group = Group::launch(&[checked]);
    let session = group.session();
    let id = session.call()["container_id"].clone();
    assert_eq!(id["parent"], group.containers[0]);
    assert_eq!(session.call()["command"], json!({"value": "check"}));
    let output = session.begin();
    let wait = group.program.peer.request();
    assert_eq!((wait.kind(), &wait.call()["container_id"]), ("WAIT_CONTAINER", &id));
    wait.answer(200, &json!({"type": "WAIT_CONTAINER", "wait_container": {"exit_status": 768}}).to_string());
    let status = group.program.peer.states(&mut group.agent, &["TASK_RUNNING"]);
    assert_eq!(status["check_status"], json!({"type": "COMMAND", "command": {"exit_code": 3}}));
    drop(output);
}

#[test]
fn a_check_that_the_agent_cannot_start_for_now_says_nothing_of_the_task() {
    let mut checked = task("a");
    checked["health_check"] = json!({
        "type": "COMMAND", "command": {"value": "check"}, "delay_seconds": 0, "interval_seconds": 0.01,
        "grace_period_seconds": 0, "consecutive_failures": 1,
    });
    let mut group = Group::launch(&[checked]);
    group.session().answer(503, "too many requests");
    drop(group.session());
    // The command cannot be run: that is a result.
    group.session().answer(400, "no such program");
    let (states, _) = group.collect(2, 1);
    assert_eq!(states[0]["message"], "Health check failed: no such program");
    group.end(&json!({"exit_status": 15}));
    group.program.peer.states(&mut group.agent, &["TASK_KILLED"]);
}

#[test]
fn a_large_group_is_launched_a_part_at_a_time() {
    const TASKS: usize = 70;
    const MAX: usize = 64;
    let program = Program::start("default", &[]);
    let mut agent = program.peer.accept();
    let tasks: Vec<Value> = (0..TASKS).map(|number| task(&number.to_string())).collect();
    agent.send(&json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": tasks}}}));
    let (mut launches, mut updates) = (Vec::new(), 0);
    while launches.len() < MAX || updates < TASKS {
        let request = program.peer.request();
        match request.kind() {
            "UPDATE" => {
                updates += 1;
                agent.acknowledge(&request.call()["status"]);
                request.answer(202, "");
            }
            kind => {
                assert_eq!(kind, "LAUNCH_CONTAINER");
                launches.push(request);
                assert!(launches.len() <= MAX, "more than the agent allows");
            }
        }
    }
    // After each answer there may be another one.
    for launch in launches {
        launch.answer(503, "not yet");
    }
    let mut launched = std::collections::BTreeSet::new();
    while launched.len() < TASKS {
        let request = program.peer.request();
        match request.kind() {
            "LAUNCH_CONTAINER" => {
                launched.insert(request.call()["command"]["value"].as_str().unwrap().to_owned());
            }
            "UPDATE" => agent.acknowledge(&request.call()["status"]),
            _ => {}
        }
        if request.kind() != "WAIT_CONTAINER" {
            request.answer(202, "");
        }
    }
}

#[test]
fn a_check_that_takes_too_long_has_its_session_closed() {
    let mut checked = task("a");
    checked["health_check"] = json!({
        "type": "COMMAND", "command": {"value": "check"}, "delay_seconds": 0, "grace_period_seconds": 0,
        "timeout_seconds": 0.2, "consecutive_failures": 1,
    });
    let mut group = Group::launch(&[checked]);
    let session = group.session();
    session.wait_until_closed();
    let (states, signals) = group.collect(2, 1);
    assert_eq!(
        states.iter().map(|status| &status["state"]).collect::<Vec<_>>(),
        ["TASK_RUNNING", "TASK_KILLING"]
    );
    assert!(states.iter().all(|status| status["healthy"] == false));
    assert_eq!(signals, [(group.containers[0].clone(), 15)]);
    group.end(&json!({"exit_status": 15}));
    let end = group.program.peer.states(&mut group.agent, &["TASK_KILLED"]);
    assert_eq!(end["healthy"], false);
}
