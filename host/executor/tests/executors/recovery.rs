//! What executors do when their agent restarts or is gone.

use std::io::{BufRead, BufReader};

use serde_json::json;

use crate::peer::TIMEOUT;
use crate::program::{Fifo, Program, shell};

const STARTED: [&str; 2] = ["TASK_STARTING", "TASK_RUNNING"];

#[test]
fn the_next_agent_gets_what_was_not_acknowledged() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    let task = shell("echo ready > fifo; read line < go; exit 4");
    let mut go = Fifo::new(&program.path("go"));
    agent.launch(&task);
    let starting = program.peer.unacknowledged_update();
    // Stored, but not acknowledged, and the agent ends. The task ends while there is none.
    program.peer.stop_listening();
    drop(agent);
    fifo.line();
    go.write("go\n");
    program.peer.listen_again();
    let mut agent = program.peer.accept_after_lost_updates();
    let known = json!([{"name": "n", "task_id": {"value": "t"}, "agent_id": {"value": "a"}}]);
    assert_eq!(agent.call["unacknowledged_tasks"], known);
    let updates: Vec<_> = agent.call["unacknowledged_updates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|update| update["status"].clone())
        .collect();
    assert_eq!(updates[0], starting, "the same update, with the same uuid");
    for update in &updates {
        agent.acknowledge(update);
    }
    // What was not part of the subscription comes after it.
    let mut states: Vec<_> =
        updates.iter().map(|update| update["state"].as_str().unwrap().to_owned()).collect();
    while states.len() < 3 {
        states.push(program.peer.update(&mut agent)["state"].as_str().unwrap().to_owned());
    }
    assert_eq!(states, ["TASK_STARTING", "TASK_RUNNING", "TASK_FAILED"]);
    assert!(program.wait().0.success());
}

#[test]
fn an_update_that_the_agent_could_not_store_is_sent_again_on_the_same_subscription() {
    // Without checkpoints, the loss of the agent would end the task.
    let program = Program::start("command", &[("MESOS_CHECKPOINT", "0")]);
    let mut agent = program.peer.accept();
    agent.launch(&shell("exec sleep 1000"));
    let request = program.peer.request();
    let refused = request.call()["status"].clone();
    request.answer(503, "no space");
    // The agent closes the connection without an answer, as when it has too many.
    let request = program.peer.request();
    assert_eq!((request.kind(), &request.call()["status"]), ("UPDATE", &refused));
    drop(request);
    assert_eq!(program.peer.update(&mut agent), refused);
    program.peer.states(&mut agent, &["TASK_RUNNING"]);
    agent.send(&json!({"type": "SHUTDOWN"}));
    // TASK_KILLING comes first.
    while program.peer.update(&mut agent)["state"] != "TASK_KILLED" {}
    let (status, log) = program.wait();
    assert!(status.success());
    assert!(log.contains("sent again: the agent has answered with status 503: no space"), "{log}");
    assert!(!log.contains("there is no agent"), "{log}");
}

#[test]
fn an_update_that_cannot_be_sent_is_no_loss_of_the_agent() {
    let (stderr, writer) = std::io::pipe().unwrap();
    let program = Program::start_with("command", &[("MESOS_CHECKPOINT", "0")], |command| {
        command.stderr(writer);
    });
    let mut agent = program.peer.accept();
    program.peer.stop_listening();
    agent.launch(&shell("exec sleep 1000"));
    let is_postponed = |line: &String| line.contains("sent again: cannot connect to the agent");
    assert!(BufReader::new(stderr).lines().map_while(Result::ok).any(|line| is_postponed(&line)));
    program.peer.listen_again();
    program.peer.states(&mut agent, &STARTED);
}

#[test]
fn an_update_that_is_refused_for_good_is_logged_and_dropped() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.launch(&shell("true"));
    program.peer.request().answer(400, "bad update");
    program.peer.states(&mut agent, &["TASK_RUNNING", "TASK_FINISHED"]);
    let (status, log) = program.wait();
    assert!(status.success());
    assert!(log.contains("the agent has refused an update"), "{log}");
    assert!(log.contains("400: bad update"), "{log}");
}

#[test]
fn without_checkpoints_the_task_ends_with_the_agent() {
    let program = Program::start("command", &[("MESOS_CHECKPOINT", "0")]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("echo $$ > fifo; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    let task = fifo.process();
    drop(agent);
    assert!(task.wait(Some(TIMEOUT)).unwrap());
    let (status, log) = program.wait();
    assert!(status.success());
    assert!(log.contains("there is no agent for this executor any more"), "{log}");
}

#[test]
fn an_agent_that_does_not_come_back_is_waited_for_until_the_recovery_timeout() {
    let program = Program::start("command", &[("MESOS_RECOVERY_TIMEOUT", "200ms")]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("echo $$ > fifo; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    let task = fifo.process();
    program.peer.stop_listening();
    drop(agent);
    assert!(task.wait(Some(TIMEOUT)).unwrap());
    let (status, log) = program.wait();
    assert!(status.success());
    assert!(log.contains("cannot connect to the agent: No such file"), "{log}");
}

#[test]
fn an_executor_that_the_agent_does_not_know_ends_with_its_task() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("echo $$ > fifo; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    let task = fifo.process();
    drop(agent);
    program.peer.request().answer(401, "no such executor");
    assert!(task.wait(Some(TIMEOUT)).unwrap());
    let (status, log) = program.wait();
    assert!(status.success());
    assert!(log.contains("the agent has answered with status 401: no such executor"), "{log}");
}

#[test]
fn an_executor_waits_for_an_agent_that_is_not_there_yet() {
    let program = Program::start("command", &[]);
    // The agent ends before it has answered.
    drop(program.peer.request());
    let mut agent = program.peer.accept();
    agent.send(&json!({"type": "SHUTDOWN"}));
    assert!(program.wait().0.success());
}

#[test]
fn a_stream_that_is_not_valid_is_subscribed_again() {
    let program = Program::start("command", &[]);
    for bytes in [b"x\n".as_slice(), b"2\n{x", b"99999999\n", b"15\n{\"type\":\"KILL\"}"] {
        let mut agent = program.peer.accept();
        agent.send_bytes(bytes);
    }
    let mut agent = program.peer.accept();
    // Events that are not known, and errors, are no reason to end.
    agent.send(&json!({"type": "LATER", "later": {}}));
    agent.send(&json!({"type": "HEARTBEAT"}));
    agent.send(&json!({"type": "MESSAGE", "message": {"data": "eA=="}}));
    agent.send(&json!({"type": "ERROR", "error": {"message": "a fault"}}));
    agent.launch(&shell("true"));
    program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_FINISHED"]);
    let (_, log) = program.wait();
    assert!(log.contains("the agent reports an error: a fault"), "{log}");
    assert!(log.contains("the event LATER is not known"), "{log}");
}
