//! Agents that are killed at each step of a launch, of updates and of a kill.

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::{Fault, Injector, Seen};
use cofferdam_tests::is_root;

use super::programs::{command_task, task_call};
use super::*;

/// More steps than any operation has.
pub(super) const MAX_STEPS: usize = 1000;

/// Into how many tests the steps of a loop that takes long are divided.
const PARTS: usize = 2;

/// How often a client connects again.
const MAX_CONNECTIONS: usize = 1000;

/// How a task may end whose agent, engine or executor has failed, or that was killed.
pub(super) const ENDS: [&str; 3] = ["TASK_FAILED", "TASK_KILLED", "TASK_LOST"];

/// What is launched again and again: tasks, and their executor.
pub(super) struct Subject {
    pub(super) call: Json,
    pub(super) tasks: Vec<String>,
    pub(super) executor: String,
}

impl Subject {
    /// A task whose executor has its id.
    pub(super) fn task(id: &str, call: Json) -> Self {
        Self { call, tasks: vec![id.to_owned()], executor: id.to_owned() }
    }
}

/// Launches tasks, while the agent is killed at each of these steps in turn, and checks with the next agent that each task has
/// exactly one end, that none of its updates is lost, and that nothing is left. `subject` is given the number of the step.
pub(super) fn killed_at_each_step(
    world: &World,
    steps: impl Iterator<Item = usize>,
    subject: impl Fn(usize) -> Subject,
    kills: bool,
    ends: &[&str],
    assert_nothing_left: impl Fn(&Daemon),
) {
    let (mut daemon, mut injector) = Daemon::start_with_injector(world);
    for step in steps {
        let subject = subject(step);
        injector.arm(Fault::Kill, &[step]);
        let accepted = daemon.call(&subject.call).is_ok();
        let mut received = Received::default();
        if accepted {
            run(&daemon, &subject, kills, &mut received);
        }
        let Seen { hit, .. } = injector.disarm();
        let survived = hit.is_empty();
        if survived {
            daemon.kill();
        } else {
            daemon.wait_ended();
        }
        (daemon, injector) = Daemon::start_with_injector(world);
        let when = format!("step {step}: {hit:?}");
        finish(&daemon, &subject, accepted, &mut received, &when);
        for task in &subject.tasks {
            assert_end(&received, task, accepted, ends, &when);
        }
        assert_nothing_left(&daemon);
        if survived {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("there are more than {MAX_STEPS} steps");
}

/// Launches tasks, of which each step fails in turn, and checks the same. The tasks end by themselves, unless something fails.
pub(super) fn failed_at_each_step(
    daemon: &Daemon,
    injector: &Injector,
    subject: impl Fn(usize) -> Subject,
    ends: &[&str],
    assert_nothing_left: impl Fn(),
) {
    for step in 1..MAX_STEPS {
        let subject = subject(step);
        injector.arm(Fault::Fail, &[step]);
        let accepted = daemon.call(&subject.call).is_ok();
        let mut received = Received::default();
        if accepted {
            receive(daemon, &subject.tasks, &mut received);
        }
        let Seen { hit, .. } = injector.disarm();
        let when = format!("step {step}: {hit:?}");
        finish(daemon, &subject, accepted, &mut received, &when);
        for task in &subject.tasks {
            assert_end(&received, task, accepted, ends, &when);
        }
        assert_nothing_left();
        if hit.is_empty() {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("there are more than {MAX_STEPS} steps");
}

/// Receives the updates of tasks until they have ended, whatever fails meanwhile.
pub(super) fn receive(daemon: &Daemon, tasks: &[String], received: &mut Received) {
    let have_ended = |received: &Received| tasks.iter().all(|task| received.has_ended(task));
    // It may be the connection of this client that fails.
    for _ in 0..MAX_CONNECTIONS {
        if have_ended(received) {
            return;
        }
        let Some(mut updates) = daemon.try_updates() else { continue };
        for message in updates.by_ref() {
            let acknowledged =
                received.note(&message).is_none_or(|(task, uuid)| acknowledge(daemon, &task, &uuid).is_ok());
            // A new client gets the update that was not acknowledged at once.
            if have_ended(received) || !acknowledged {
                break;
            }
        }
    }
    panic!("no end after {MAX_CONNECTIONS} connections\n{}", daemon.log());
}

/// Acknowledges updates, and kills the tasks, for as long as the agent lives.
fn run(daemon: &Daemon, subject: &Subject, kills: bool, received: &mut Received) {
    let Some(mut updates) = daemon.try_updates() else { return };
    while !subject.tasks.iter().all(|task| received.has_ended(task)) {
        let Some(message) = updates.next() else { return };
        if !received.try_add(daemon, &message) {
            return;
        }
        let is_running = |task: &&String| received.states(task).last().is_some_and(|it| it == "TASK_RUNNING");
        for task in subject.tasks.iter().filter(is_running) {
            // It may have ended with another one of its group.
            if kills && kill(daemon, task).is_err_and(|error| !error.is_unknown()) {
                return;
            }
        }
    }
    drop(shut_down(daemon, &subject.executor));
}

/// Lets the tasks end that the agent knows.
fn finish(daemon: &Daemon, subject: &Subject, accepted: bool, received: &mut Received, when: &str) {
    for task in &subject.tasks {
        // One whose acknowledgement was lost is sent again.
        if known(daemon, task) {
            // It may have ended.
            drop(kill(daemon, task));
            let mut updates = daemon.updates();
            while known(daemon, task) {
                received.add(daemon, &updates.next().expect("a valid answer"));
            }
        }
        assert!(!accepted || received.has_ended(task), "{when}: the task is lost\n{}", daemon.log());
    }
    // It may have exited.
    drop(shut_down(daemon, &subject.executor));
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
        // Before this one, the executor has said that it has the task.
        let is_of_executor = received.last(id)["source"] == "SOURCE_EXECUTOR";
        assert!(!is_of_executor || states.len() > 1, "{when}: {states:?}");
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

fn killed_with_a_custom_executor(name: &str, kills: bool, ends: &[&str]) {
    let world = world();
    let subject = |step: usize| {
        let id = format!("{name}-{step}");
        let call = launch_call(&executor(&id, ""), &task(&id, name), true);
        Subject::task(&id, call)
    };
    let nothing_left = |daemon: &Daemon| assert_nothing_left(&world, daemon);
    killed_at_each_step(&world, 1..MAX_STEPS, subject, kills, ends, nothing_left);
}

#[test]
fn a_task_that_finishes_has_one_end_whenever_the_agent_is_killed() {
    if !is_root("a_task_that_finishes_has_one_end_whenever_the_agent_is_killed") {
        return;
    }
    // A launch that was interrupted is rolled back; a task that was not delivered is killed by this test.
    killed_with_a_custom_executor("finish", false, &[&ENDS[..], &["TASK_FINISHED"]].concat());
}

#[test]
fn a_task_that_is_killed_has_one_end_whenever_the_agent_is_killed() {
    if !is_root("a_task_that_is_killed_has_one_end_whenever_the_agent_is_killed") {
        return;
    }
    killed_with_a_custom_executor("run", true, &ENDS);
}

/// A command, without an executor of its own.
fn command(step: usize, line: &str) -> Subject {
    let id = format!("command-{step}");
    Subject::task(&id, task_call(&command_task(&id, line), true))
}

#[test]
fn a_command_has_one_end_whenever_the_agent_is_killed() {
    if !is_root("a_command_has_one_end_whenever_the_agent_is_killed") {
        return;
    }
    let world = world();
    let subject = |step| command(step, "exec sleep 1000");
    let nothing_left = |daemon: &Daemon| assert_nothing_left(&world, daemon);
    killed_at_each_step(&world, 1..MAX_STEPS, subject, true, &ENDS, nothing_left);
}

#[test]
fn a_command_whose_launch_fails_at_any_step_leaves_nothing() {
    if !is_root("a_command_whose_launch_fails_at_any_step_leaves_nothing") {
        return;
    }
    let world = world();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    let ends = [&ENDS[..], &["TASK_FINISHED"]].concat();
    let nothing_left = || assert_nothing_left(&world, &daemon);
    failed_at_each_step(&daemon, &injector, |step| command(step, "exit 0"), &ends, nothing_left);
}

/// A world for groups, whose tasks are in nested containers.
fn world_of_groups() -> World {
    let mut world = World::shipped();
    world.config.executors.reregistration_timeout = Duration::from_secs(30);
    world.config.executors.shutdown_grace_period = Duration::from_secs(20);
    world.config.executors.max_completed_executors = 0;
    world
}

/// A group of two commands.
fn group(step: usize, line: &str) -> Subject {
    let tasks = ["a", "b"].map(|task| format!("group-{step}-{task}"));
    let executor = format!("group-{step}");
    let infos = tasks.each_ref().map(|task| command_task(task, line));
    let call = json!({"type": "LAUNCH_TASK_GROUP", "launch_task_group": {
        "framework_info": framework(true), "task_group": {"tasks": infos},
        "executor_info": {"type": "DEFAULT", "executor_id": {"value": executor}},
    }});
    Subject { call, tasks: tasks.into(), executor }
}

/// All parts together are all steps.
fn group_is_killed(part: usize) {
    if !is_root("nested containers") {
        return;
    }
    let world = world_of_groups();
    let subject = |step| group(step, "exec sleep 1000");
    let nothing_left = |daemon: &Daemon| assert_nothing_left(&world, daemon);
    let steps = (1 + part..MAX_STEPS).step_by(PARTS);
    killed_at_each_step(&world, steps, subject, true, &ENDS, nothing_left);
}

#[test]
fn the_tasks_of_a_group_have_one_end_whenever_the_agent_is_killed_at_odd_steps() {
    group_is_killed(0);
}

#[test]
fn the_tasks_of_a_group_have_one_end_whenever_the_agent_is_killed_at_even_steps() {
    group_is_killed(1);
}

#[test]
fn a_group_whose_launch_fails_at_any_step_leaves_nothing() {
    if !is_root("nested containers") {
        return;
    }
    let world = world_of_groups();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    let ends = [&ENDS[..], &["TASK_FINISHED"]].concat();
    let nothing_left = || assert_nothing_left(&world, &daemon);
    failed_at_each_step(&daemon, &injector, |step| group(step, "exit 0"), &ends, nothing_left);
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
