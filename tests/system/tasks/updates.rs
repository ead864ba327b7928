//! Status updates are kept until they are acknowledged, in order, whoever restarts.

use cofferdam_tests::daemon::Daemon;
use serde_json::json;

use super::*;

/// The first update that is not acknowledged, for a new client.
fn first(daemon: &Daemon) -> Json {
    let message = daemon.updates().next().expect("a valid answer");
    assert_eq!(message["type"], "STATUS_UPDATE", "{message}");
    message["status_update"].clone()
}

#[test]
fn an_update_is_sent_until_it_is_acknowledged_and_the_next_one_only_then() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "exit"));
    let running = first(&daemon);
    assert_eq!(running["status"]["state"], "TASK_RUNNING");
    assert_eq!(first(&daemon)["status"]["uuid"], running["status"]["uuid"], "it is sent to each client");
    daemon.terminate();

    // Also by the next agent.
    let daemon = Daemon::start(&world);
    let again = first(&daemon);
    assert_eq!(again["status"], running["status"]);
    acknowledge(&daemon, "a", &json!("AAAAAAAAAAAAAAAAAAAAAA==")).unwrap();
    assert_eq!(first(&daemon)["status"]["uuid"], running["status"]["uuid"], "another one was acknowledged");
    acknowledge(&daemon, "a", &running["status"]["uuid"]).unwrap();
    acknowledge(&daemon, "a", &running["status"]["uuid"]).unwrap();
    daemon.kill();
    let daemon = Daemon::start(&world);
    let failed = first(&daemon);
    assert_eq!(failed["status"]["state"], "TASK_FAILED");
    acknowledge(&daemon, "a", &failed["status"]["uuid"]).unwrap();
    assert_nothing_left(&world, &daemon);
    let unknown = acknowledge(&daemon, "a", &failed["status"]["uuid"]).unwrap_err();
    assert!(unknown.is_unknown(), "{unknown:?}");
}

#[test]
fn a_task_has_one_terminal_state() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "twice"));
    let received = until_ended(&daemon, "a");
    assert_eq!(received.states("a"), ["TASK_FINISHED"]);
    kill(&daemon, "a").unwrap();
    let tasks = daemon.call(&json!({"type": "GET_TASKS"})).unwrap();
    assert_eq!(tasks["completed_tasks"][0]["state"], "TASK_FINISHED", "{tasks}");
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn executors_and_their_tasks_survive_agents() {
    let world = world();
    let mut daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let id = container(&daemon);
    for _ in 0..3 {
        daemon.kill();
        daemon = Daemon::start(&world);
        assert_eq!(container(&daemon), id);
        // It gets tasks again once it has subscribed.
        let next = format!("t{}", daemon.pid());
        launch(&daemon, &executor("one", ""), &task(&next, "finish"));
        assert_eq!(until_ended(&daemon, &next).states(&next).last().unwrap(), "TASK_FINISHED");
    }
    kill(&daemon, "a").unwrap();
    assert_eq!(until_ended(&daemon, "a").last("a")["state"], "TASK_KILLED");
    shut_down(&daemon, "one").unwrap();
    assert_nothing_left(&world, &daemon);
}

#[test]
fn an_executor_that_does_not_subscribe_again_is_ended() {
    let mut world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let pid = rustix::process::Pid::from_raw(process(&daemon, &container(&daemon))).unwrap();
    daemon.kill();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    world.config.executors.reregistration_timeout = std::time::Duration::from_millis(300);
    let daemon = Daemon::start(&world);
    let received = until_ended(&daemon, "a");
    assert_eq!(received.last("a")["reason"], "REASON_EXECUTOR_REREGISTRATION_TIMEOUT");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn without_checkpoint_an_executor_ends_with_the_agent() {
    let world = world();
    let daemon = Daemon::start(&world);
    daemon.call(&launch_call(&executor("one", ""), &task("a", "run"), false)).unwrap();
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    daemon.kill();
    let daemon = Daemon::start(&world);
    let received = until_ended(&daemon, "a");
    assert_eq!(received.last("a")["state"], "TASK_LOST");
    assert_eq!(received.last("a")["reason"], "REASON_AGENT_RESTARTED");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn what_an_agent_has_not_finished_writing_is_cut_off_and_what_is_damaged_is_left_alone() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    daemon.kill();
    let journal = journals(&world).pop().unwrap();
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, [&whole[..], b"0badc0de [{\"upd"].concat()).unwrap();
    let daemon = Daemon::start(&world);
    kill(&daemon, "a").unwrap();
    assert_eq!(until_ended(&daemon, "a").last("a")["state"], "TASK_KILLED");
    let container = container(&daemon);
    daemon.kill();

    let whole = fs::read(&journal).unwrap();
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    fs::write(&journal, &damaged).unwrap();
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.call(&json!({"type": "GET_TASKS"})).unwrap(), json!({}));
    let said =
        ["left alone: line 2 of", "is damaged", "executor destroyed: it has no journal that can be read"];
    cofferdam_tests::assert_contains(&daemon.log(), &said);
    let wait = json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": container}}});
    daemon.call(&wait).unwrap();
    assert_eq!(fs::read(&journal).unwrap(), damaged);
    daemon.kill();
    fs::write(&journal, &whole).unwrap();
    let daemon = Daemon::start(&world);
    assert_nothing_left(&world, &daemon);
}
