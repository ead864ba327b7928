//! Checks and health checks of tasks of the command executor.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use serde_json::{Value, json};

use crate::peer::TIMEOUT;
use crate::program::{Fifo, Program, shell};

const STARTED: [&str; 2] = ["TASK_STARTING", "TASK_RUNNING"];

/// A check with short times.
fn timed(mut check: Value) -> Value {
    for (field, seconds) in
        [("delay_seconds", 0.0), ("interval_seconds", 0.01), ("grace_period_seconds", 0.0)]
    {
        if check[field].is_null() {
            check[field] = json!(seconds);
        }
    }
    check
}

#[test]
fn an_unhealthy_task_is_killed_after_failures_in_a_row() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["command"]["environment"] = json!({"variables": [{"name": "OF_TASK", "value": "5"}]});
    task["health_check"] =
        timed(json!({"type": "COMMAND", "command": {"value": "exit $OF_TASK"}, "consecutive_failures": 3}));
    agent.launch(&task);
    let running = program.peer.states(&mut agent, &STARTED);
    assert_eq!(running.get("healthy"), None);
    for _ in 0..3 {
        let status = program.peer.states(&mut agent, &["TASK_RUNNING"]);
        assert_eq!(status["healthy"], false);
        assert_eq!(status["reason"], "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED");
        assert_eq!(status["message"], "Health check failed: the command exited with status 5");
    }
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["healthy"], false);
    assert!(program.wait().0.success());
}

#[test]
fn health_is_reported_when_it_changes() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["health_check"] = timed(
        json!({"type": "COMMAND", "command": {"value": "test ! -e sick"}, "consecutive_failures": 1_000_000}),
    );
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    assert_eq!(program.peer.update(&mut agent)["healthy"], true);
    std::fs::write(program.path("sick"), "").unwrap();
    assert_eq!(program.peer.update(&mut agent)["healthy"], false);
    std::fs::remove_file(program.path("sick")).unwrap();
    while program.peer.update(&mut agent)["healthy"] == false {}
    agent.send(&json!({"type": "SHUTDOWN"}));
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
}

#[test]
fn results_of_commands_are_reported() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["check"] =
        timed(json!({"type": "COMMAND", "command": {"command": {"value": "exit $(cat result)"}}}));
    std::fs::write(program.path("result"), "7").unwrap();
    agent.launch(&task);
    let running = program.peer.states(&mut agent, &STARTED);
    assert_eq!(running["check_status"], json!({"type": "COMMAND", "command": {}}));
    let status = program.peer.states(&mut agent, &["TASK_RUNNING"]);
    assert_eq!(status["check_status"], json!({"type": "COMMAND", "command": {"exit_code": 7}}));
    assert_eq!(status["reason"], "REASON_TASK_CHECK_STATUS_UPDATED");
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_group() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    let command = "sh -c 'echo $$ > fifo; exec sleep 1000'; true";
    task["health_check"] = timed(json!({
        "type": "COMMAND", "command": {"value": command}, "timeout_seconds": 0.2, "consecutive_failures": 1,
    }));
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    let check = fifo.process();
    let status = program.peer.states(&mut agent, &["TASK_RUNNING"]);
    assert_eq!(status["message"], "Health check failed: timed out after 0.2 s");
    assert!(check.wait(Some(TIMEOUT)).unwrap());
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
}

#[test]
fn checks_stop_when_the_task_is_killed() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["check"] = timed(
        json!({"type": "COMMAND", "command": {"command": {"value": "echo $$ > fifo; exec sleep 1000"}}}),
    );
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    let check = fifo.process();
    agent.kill("t", TIMEOUT);
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert!(check.wait(Some(TIMEOUT)).unwrap());
}

/// Serves HTTP until the test ends.
fn serve(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 1024];
            if stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                drop(stream.write_all(answer.as_bytes()));
            }
        }
    });
    port
}

#[test]
fn http_and_tcp_are_checked_from_the_container() {
    let port = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\nx");
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["check"] =
        timed(json!({"type": "HTTP", "http": {"port": port, "path": "/x"}, "interval_seconds": 1000}));
    task["health_check"] = timed(json!({"type": "TCP", "tcp": {"port": port}, "interval_seconds": 1000}));
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    // They are done at the same time.
    program.peer.states(&mut agent, &["TASK_RUNNING"]);
    let status = program.peer.states(&mut agent, &["TASK_RUNNING"]);
    assert_eq!(status["check_status"], json!({"type": "HTTP", "http": {"status_code": 404}}));
    assert_eq!(status["healthy"], true);
}

#[test]
fn a_server_without_end_fails_the_check_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n"));
        while stream.write_all(b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").is_ok() {}
    });
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["health_check"] = timed(
        json!({"type": "HTTP", "http": {"port": port}, "interval_seconds": 1000, "timeout_seconds": 0}),
    );
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    let status = program.peer.states(&mut agent, &["TASK_RUNNING"]);
    assert_eq!(status["healthy"], false);
    let message = status["message"].as_str().unwrap();
    assert_eq!(message, "Health check failed: the head of the response is longer than 16384 bytes");
}
