//! Tasks of the command executor from their launch to their end.

use std::time::Duration;

use serde_json::json;

use crate::peer::TIMEOUT;
use crate::program::{Fifo, Program, shell};

const STARTED: [&str; 2] = ["TASK_STARTING", "TASK_RUNNING"];

/// Long enough that a test which waits for it fails.
const LONG: Duration = Duration::from_secs(1000);

#[test]
fn a_task_runs_and_the_executor_ends_when_the_agent_knows() {
    let program = Program::start("command", &[("FROM", "agent"), ("BOTH", "agent"), ("MESOS_SANDBOX", "/s")]);
    let mut agent = program.peer.accept();
    assert_eq!(agent.call, json!({"unacknowledged_tasks": [], "unacknowledged_updates": []}));
    let mut task = shell(
        "env > env; pwd > pwd; ps -o sid=,pgid= -p $$ > session; echo $$ > pid; echo out; echo err >&2",
    );
    task["command"]["environment"] = json!({"variables": [
        {"name": "BOTH", "value": "task"}, {"name": "OWN", "value": "a b"}, {"name": "SECRET", "type": "SECRET"},
    ]});
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    let end = program.peer.unacknowledged_update();
    assert_eq!(end["state"], "TASK_FINISHED");
    assert_eq!(end["message"], "Command exited with status 0");
    assert!(!program.process().has_ended().unwrap(), "the agent does not know yet");
    let environment = program.text("env");
    for expected in ["FROM=agent", "BOTH=task", "OWN=a b", "MESOS_SANDBOX=/s", "MESOS_FRAMEWORK_ID=f"] {
        assert!(environment.lines().any(|line| line == expected), "{expected}: {environment}");
    }
    for private in ["TOKEN", "SOCKET", "SECRET"] {
        assert!(!environment.contains(private), "{private}: {environment}");
    }
    assert_eq!(program.text("pwd").trim(), program.path("").canonicalize().unwrap().to_str().unwrap());
    let pid = program.text("pid");
    let session: Vec<String> = program.text("session").split_whitespace().map(str::to_owned).collect();
    assert_eq!(session, [pid.trim(), pid.trim()], "a session and a process group of its own");
    assert_eq!(program.text("stdout"), "out\n");
    assert_eq!(program.text("stderr"), "err\n");
    agent.acknowledge(&end);
    let (status, log) = program.wait();
    assert!(status.success(), "{log}");
}

#[test]
fn a_task_ends_as_its_command() {
    for (line, message) in [
        ("exit 3", "Command exited with status 3"),
        ("kill -9 $$", "Command terminated with signal Killed"),
        ("kill -34 $$", "Command terminated with signal Real-time signal 0"),
    ] {
        let program = Program::start("command", &[]);
        let mut agent = program.peer.accept();
        agent.launch(&shell(line));
        program.peer.states(&mut agent, &STARTED);
        let end = program.peer.update(&mut agent);
        assert_eq!(end["state"], "TASK_FAILED");
        assert_eq!(end["message"], message);
        assert_eq!(end["reason"], "REASON_COMMAND_EXECUTOR_FAILED");
        assert!(program.wait().0.success());
    }
}

#[test]
fn a_program_has_its_own_arguments_and_directory() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("");
    let script = r#"printf '%s|' "$0" "$@" "$PWD" > "$OUT""#;
    task["command"] = json!({
        "shell": false, "value": "sh", "arguments": ["x", "-c", script, "zero", "a b", "*"], "working_directory": "/",
        "environment": {"variables": [{"name": "OUT", "value": program.path("arguments")}]},
    });
    agent.launch(&task);
    program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_FINISHED"]);
    assert_eq!(program.text("arguments"), "zero|a b|*|/|");
}

#[test]
fn the_docker_executor_runs_the_program_of_an_image() {
    let own = [("FROM", "image"), ("MESOS_SLAVE_ID", "a"), ("LIBPROCESS_PORT", "0"), ("MESOS_SANDBOX", "/s")];
    let program = Program::start_with("docker", &own, |command| {
        let script = r#"printf '%s|' "$@" "$FROM" "$BOTH"; env >&2; exec sleep 1000"#;
        command
            // Not SIGINT, which is ignored if the tests run in the background of a shell.
            .args(["--stop-signal", "SIGUSR1", "--", "sh", "-c", script, "zero", "a b"])
            .env("BOTH", "image");
    });
    let mut agent = program.peer.accept();
    let mut task = shell("exit 9");
    task["command"]["environment"] = json!({"variables": [{"name": "BOTH", "value": "task"}]});
    agent.launch(&task);
    program.peer.states(&mut agent, &STARTED);
    let child = program.process().children().unwrap()[0];
    while !std::fs::read(format!("/proc/{child}/cmdline")).unwrap().starts_with(b"sleep") {
        std::thread::yield_now();
    }
    agent.kill("t", LONG);
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["message"], "Container terminated with signal User defined signal 1");
    assert_eq!(program.text("stdout"), "a b|image|image|");
    let environment = program.text("stderr");
    assert!(environment.contains("MESOS_SANDBOX=/s\n"), "{environment}");
    for private in ["TOKEN", "SOCKET", "SLAVE", "FRAMEWORK", "EXECUTOR", "CHECKPOINT", "LIBPROCESS"] {
        assert!(!environment.contains(private), "{private}: {environment}");
    }
    assert!(program.wait().0.success());
}

#[test]
fn the_docker_executor_asks_the_program_alone_to_end() {
    let script = "sh -c 'trap \"echo asked > asked\" TERM; echo > ready; while [ ! -e end ]; do sleep 0.01; done' & \
                  trap 'touch end; wait; exit 4' TERM; wait; wait";
    let program = Program::start_with("docker", &[], |command| {
        command.args(["--", "sh", "-c", script]);
    });
    let mut agent = program.peer.accept();
    agent.launch(&json!({"name": "n", "task_id": {"value": "t"}, "agent_id": {"value": "a"}}));
    program.peer.states(&mut agent, &STARTED);
    while !program.path("ready").exists() {
        std::thread::yield_now();
    }
    agent.kill("t", LONG);
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["message"], "Container exited with status 4");
    assert!(!program.path("asked").exists());
}

#[test]
fn what_cannot_be_executed_has_failed() {
    for (command, message) in [
        (
            json!({"shell": false, "value": "/does/not/exist"}),
            "Cannot execute `/does/not/exist` in `.`: No such file",
        ),
        (
            json!({"value": "x", "working_directory": "/none"}),
            "Cannot execute `/bin/sh` in `/none`: No such file",
        ),
        (json!({"shell": true}), "The command of task `t` has no value"),
        (json!(7), "The task is not valid: invalid type: integer `7`"),
    ] {
        let program = Program::start("command", &[]);
        let mut agent = program.peer.accept();
        let mut task = shell("");
        task["command"] = command;
        agent.launch(&task);
        let end = program.peer.states(&mut agent, &["TASK_STARTING", "TASK_FAILED"]);
        assert!(end["message"].as_str().is_some_and(|text| text.starts_with(message)), "{end}");
        assert!(program.wait().0.success());
    }
}

#[test]
fn a_second_task_has_failed() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("echo $$ > fifo; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    let first = fifo.process();
    let mut second = shell("true");
    second["task_id"] = json!({"value": "second"});
    agent.launch(&second);
    let end = program.peer.states(&mut agent, &["TASK_FAILED"]);
    assert_eq!(end["task_id"]["value"], "second");
    assert_eq!(end["message"], "Attempted to run multiple tasks using a \"command\" executor");
    assert!(!first.has_ended().unwrap());
}

#[test]
fn a_task_is_asked_to_end_before_it_is_killed() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell(
        "trap 'echo asked > fifo; exit 0' TERM; echo ready > fifo; while :; do sleep 1000 & wait; done",
    ));
    program.peer.states(&mut agent, &STARTED);
    assert_eq!(fifo.line(), "ready");
    agent.kill("t", LONG);
    let killing = program.peer.update(&mut agent);
    assert_eq!(killing["state"], "TASK_KILLING");
    assert_eq!(fifo.line(), "asked");
    let end = program.peer.states(&mut agent, &["TASK_KILLED"]);
    assert_eq!(end["message"], "Command exited with status 0");
    assert!(program.wait().0.success());
}

#[test]
fn a_task_that_ignores_the_request_is_killed() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("trap '' TERM; (trap '' TERM; echo $(exec sh -c 'echo $PPID') > fifo; sleep 1000) & echo $$ > fifo; wait"));
    program.peer.states(&mut agent, &STARTED);
    let processes = [fifo.process(), fifo.process()];
    agent.kill("t", LONG);
    program.peer.states(&mut agent, &["TASK_KILLING"]);
    assert!(processes.iter().all(|process| !process.has_ended().unwrap()));
    // A later kill with a shorter grace period replaces the first one.
    agent.kill("t", Duration::from_millis(1));
    let end = program.peer.states(&mut agent, &["TASK_KILLED"]);
    assert_eq!(end["message"], "Command terminated with signal Killed");
    for process in processes {
        assert!(process.wait(Some(TIMEOUT)).unwrap());
    }
}

#[test]
fn processes_that_have_left_the_group_end_with_the_executor() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    let daemon = "trap \"\" TERM HUP; echo $$ > fifo; while :; do sleep 1000; done";
    agent.launch(&shell(&format!("setsid setsid sh -c '{daemon}' & exec sleep 1000")));
    program.peer.states(&mut agent, &STARTED);
    let daemon = fifo.process();
    agent.kill("t", LONG);
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["message"], "Command terminated with signal Terminated");
    assert!(daemon.wait(Some(TIMEOUT)).unwrap());
    assert!(program.wait().0.success());
}

#[test]
fn a_task_that_runs_too_long_has_failed() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    let mut task = shell("exec sleep 1000");
    task["max_completion_time"] = json!({"nanoseconds": 1_000_000});
    agent.launch(&task);
    let end = program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_KILLING", "TASK_FAILED"]);
    assert_eq!(end["reason"], "REASON_MAX_COMPLETION_TIME_REACHED");
}

#[test]
fn a_shutdown_kills_the_task_within_the_grace_period() {
    let program = Program::start("command", &[("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", "1.01secs")]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("trap '' TERM; echo ready > fifo; while :; do sleep 1000; done"));
    program.peer.states(&mut agent, &STARTED);
    fifo.line();
    agent.send(&json!({"type": "SHUTDOWN"}));
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["message"], "Command terminated with signal Killed");
    assert!(program.wait().0.success());
}

#[test]
fn an_executor_without_task_shuts_down() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.send(&json!({"type": "SHUTDOWN"}));
    assert!(program.wait().0.success());
}

#[test]
fn sigterm_is_a_shutdown() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.launch(&shell("exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    program.process().signal(15).unwrap();
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert!(program.wait().0.success());
}

#[test]
fn a_task_group_is_refused() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.send(&json!({"type": "LAUNCH_GROUP", "launch_group": {"task_group": {"tasks": [shell("true")]}}}));
    let end = program.peer.states(&mut agent, &["TASK_FAILED"]);
    assert_eq!(end["reason"], "REASON_TASK_INVALID");
    assert!(program.wait().0.success());
}

/// The proportional set size of a process in kB.
fn pss(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_executor_that_waits_has_less_than_a_megabyte() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.launch(&shell("exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    // The kernel does not tell when it begins to wait.
    let process = program.process();
    while pss(process.pid()) > 1024 {
        assert!(!process.wait(Some(Duration::from_millis(1))).unwrap());
    }
    agent.kill("t", LONG);
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
}
