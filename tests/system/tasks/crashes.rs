//! Agents that are killed at each step of a launch, of updates and of a kill.

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::{Fault, Seen};
use cofferdam_tests::is_root;

use super::*;

/// More steps than any operation has.
const MAX_STEPS: usize = 300;

/// Runs a task while the agent is killed at each step in turn, and checks with the next agent that the task has exactly one
/// end, and that none of its updates is lost.
fn killed_at_each_step(name: &str, kills: bool, ends: &[&str]) {
    let world = world();
    let (mut daemon, mut injector) = Daemon::start_with_injector(&world);
    for step in 1..MAX_STEPS {
        let id = format!("{name}-{step}");
        injector.arm(Fault::Kill, &[step]);
        let accepted = daemon.call(&launch_call(&executor(&id, ""), &task(&id, name), true)).is_ok();
        let mut received = Received::default();
        if accepted {
            run(&daemon, &id, kills, &mut received);
        }
        let Seen { hit, .. } = injector.disarm();
        let survived = hit.is_empty();
        if survived {
            daemon.kill();
        } else {
            daemon.wait_ended();
        }
        (daemon, injector) = Daemon::start_with_injector(&world);
        let when = format!("step {step}: {hit:?}");
        finish(&daemon, &id, accepted, &mut received, &when);
        assert_end(&received, &id, accepted, ends, &when);
        assert_nothing_left(&world, &daemon);
        if survived {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("a task has more than {MAX_STEPS} steps");
}

/// Acknowledges updates, and kills the task, for as long as the agent lives.
pub(super) fn run(daemon: &Daemon, id: &str, kills: bool, received: &mut Received) {
    let Some(mut updates) = daemon.try_updates() else { return };
    while !received.has_ended(id) {
        let Some(message) = updates.next() else { return };
        if !received.try_add(daemon, &message) {
            return;
        }
        let is_running = received.states(id).last().is_some_and(|state| state == "TASK_RUNNING");
        if kills && is_running && kill(daemon, id).is_err() {
            return;
        }
    }
    drop(shut_down(daemon, id));
}

/// Lets the task end, if the agent knows it.
pub(super) fn finish(daemon: &Daemon, id: &str, accepted: bool, received: &mut Received, when: &str) {
    // One whose acknowledgement was lost is sent again.
    if known(daemon, id) {
        // It may have ended.
        drop(kill(daemon, id));
        let mut updates = daemon.updates();
        while known(daemon, id) {
            received.add(daemon, &updates.next().expect("a valid answer"));
        }
    }
    assert!(!accepted || received.has_ended(id), "{when}: the task is lost\n{}", daemon.log());
    // It may have exited.
    drop(shut_down(daemon, id));
}

/// Whether the agent has a task that has not ended, or of which not all updates are acknowledged.
fn known(daemon: &Daemon, id: &str) -> bool {
    let tasks = daemon.call(&json!({"type": "GET_TASKS"})).expect("a valid answer");
    let lists = ["queued_tasks", "launched_tasks", "terminated_tasks"];
    let mut open = lists.iter().flat_map(|list| tasks[*list].as_array().into_iter().flatten());
    open.any(|task| task["task_id"]["value"] == id)
}

pub(super) fn assert_end(received: &Received, id: &str, accepted: bool, ends: &[&str], when: &str) {
    let states = received.states(id);
    let terminal: Vec<&String> = states.iter().filter(|state| is_terminal(state)).collect();
    // A launch that was not confirmed may have been accepted.
    let expected = usize::from(accepted || !states.is_empty());
    assert_eq!(terminal.len(), expected, "{when}: {states:?}");
    if let Some(end) = terminal.first() {
        assert!(ends.contains(&end.as_str()), "{when}: {states:?}");
        assert!(is_terminal(states.last().expect("a valid answer")), "{when}: {states:?}");
        // The executor has sent this one after that.
        let is_of_executor = received.last(id)["source"] == "SOURCE_EXECUTOR";
        assert!(!is_of_executor || states.iter().any(|state| state == "TASK_RUNNING"), "{when}: {states:?}");
    }
    let order = |state: &String| match state.as_str() {
        "TASK_STARTING" => 0,
        "TASK_RUNNING" => 1,
        "TASK_KILLING" => 2,
        _ => 3,
    };
    assert!(states.is_sorted_by_key(order), "{when}: {states:?}");
    let mut once = states.clone();
    once.dedup();
    assert_eq!(once, states, "{when}");
}

#[test]
fn a_task_that_finishes_has_one_end_whenever_the_agent_is_killed() {
    if !is_root("a_task_that_finishes_has_one_end_whenever_the_agent_is_killed") {
        return;
    }
    // A launch that was interrupted is rolled back; a task that was not delivered is killed by this test.
    let ends = ["TASK_FINISHED", "TASK_LOST", "TASK_FAILED", "TASK_KILLED"];
    killed_at_each_step("finish", false, &ends);
}

#[test]
fn a_task_that_is_killed_has_one_end_whenever_the_agent_is_killed() {
    if !is_root("a_task_that_is_killed_has_one_end_whenever_the_agent_is_killed") {
        return;
    }
    killed_at_each_step("run", true, &["TASK_KILLED", "TASK_LOST", "TASK_FAILED"]);
}

#[test]
fn an_executor_that_is_killed_at_any_time_leaves_tasks_with_one_end() {
    let world = world();
    let daemon = Daemon::start(&world);
    for round in 0..20_u64 {
        let id = format!("task-{round}");
        launch(&daemon, &executor(&id, ""), &task(&id, "run"));
        let mut received = Received::default();
        // In each state of the task: before the executor runs, while it subscribes, when the task runs, while it is killed.
        if round % 4 > 1 {
            let is_running = |received: &Received| received.states(&id) == ["TASK_RUNNING"];
            received.until(&daemon, &mut daemon.updates(), is_running);
        }
        if round % 4 == 3 {
            kill(&daemon, &id).unwrap();
        }
        let container = container(&daemon);
        let kill =
            json!({"type": "KILL_CONTAINER", "kill_container": {"container_id": {"value": container}}});
        // It may not have been created yet, or have ended.
        while round % 4 < 3 && daemon.call(&kill).is_err() && !journals(&world).is_empty() {
            std::thread::yield_now();
        }
        if round % 4 == 3 {
            drop(daemon.call(&kill));
        }
        received.until(&daemon, &mut daemon.updates(), |received| received.has_ended(&id));
        let states = received.states(&id);
        assert_eq!(states.iter().filter(|state| is_terminal(state)).count(), 1, "{states:?}");
        assert!(["TASK_KILLED", "TASK_FAILED"].contains(&states.last().unwrap().as_str()), "{states:?}");
        assert_nothing_left(&world, &daemon);
    }
}
