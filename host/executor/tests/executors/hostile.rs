//! A task that attacks its executor.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use rustix::process::geteuid;

use crate::peer::TIMEOUT;
use crate::program::{Fifo, Program, shell};

const STARTED: [&str; 2] = ["TASK_STARTING", "TASK_RUNNING"];

/// The user of a container without privileges.
const NOBODY: u32 = 65534;

#[test]
fn a_task_of_the_same_user_cannot_read_what_its_executor_has() {
    if !geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "this test needs root");
        eprintln!("skipped: this test needs root, to be another user");
        return;
    }
    let program = Program::start_with("command", &[], |command| {
        let directory = command.get_current_dir().unwrap().to_owned();
        for (path, mode) in [(directory.clone(), 0o777), (directory.join("agent.sock"), 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    });
    let mut agent = program.peer.accept();
    agent.launch(&shell(
        "for file in environ mem maps fd/1 cwd/x; do cat /proc/$PPID/$file > /dev/null 2>> errors || echo $file >> refused; done",
    ));
    program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_FINISHED"]);
    let refused: Vec<String> = program.text("refused").lines().map(str::to_owned).collect();
    assert_eq!(refused, ["environ", "mem", "maps", "fd/1", "cwd/x"], "{}", program.text("errors"));
    assert_eq!(program.text("errors").matches("Permission denied").count(), 5, "{}", program.text("errors"));
}

/// The targets of the descriptors from 3 on of a process, by number.
fn descriptors(pid: &str) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let named = entries.map(|entry| entry.file_name().into_string().unwrap());
    named
        .filter(|name| name.parse::<u32>().unwrap() > 2)
        .filter_map(|name| Some((name.clone(), fs::read_link(format!("/proc/{pid}/fd/{name}")).ok()?)))
        .collect()
}

#[test]
fn a_task_inherits_no_descriptor() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("echo $$ > fifo; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    // What this program was started with itself is inherited by everything.
    let inherited = descriptors("self");
    let found = descriptors(&fifo.line());
    let own: Vec<_> = found.iter().filter(|(name, target)| inherited.get(*name) != Some(target)).collect();
    assert!(own.is_empty(), "{own:?}");
}

#[test]
fn a_task_has_no_blocked_or_ignored_signals() {
    let program = Program::start("command", &[]);
    let mut agent = program.peer.accept();
    agent.launch(&shell("exec grep -E '^Sig(Blk|Ign)' /proc/self/status"));
    program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_FINISHED"]);
    let masks = |text: &str| -> Vec<u64> {
        let lines = text.lines().filter(|line| line.starts_with("SigBlk") || line.starts_with("SigIgn"));
        lines.map(|line| u64::from_str_radix(line[7..].trim(), 16).unwrap()).collect()
    };
    // What this program was started with is inherited by everything, except for SIGPIPE, which its runtime ignores. Signals from
    // 32 on are the C library's.
    let own = masks(&std::fs::read_to_string("/proc/self/status").unwrap())[1] & !(1 << (libc::SIGPIPE - 1));
    let own = own | !0x7fff_ffff;
    let text = program.text("stdout");
    let [blocked, ignored] = masks(&text)[..] else { panic!("{text}") };
    assert_eq!((blocked, ignored & !own), (0, 0), "{text}");
}

#[test]
fn orphans_are_reaped() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    agent.launch(&shell("(sh -c 'echo $$ > fifo; exec true' &) ; exec sleep 1000"));
    program.peer.states(&mut agent, &STARTED);
    let pid: i32 = fifo.line().parse().unwrap();
    // The entry of a process is gone once it has been reaped.
    let process = program.process();
    let mut children = process.children().unwrap();
    while children.contains(&pid) {
        assert!(!process.wait(Some(std::time::Duration::from_millis(1))).unwrap());
        children = process.children().unwrap();
    }
    agent.kill("t", TIMEOUT);
    program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
}

#[test]
fn a_task_that_floods_its_executor_with_orphans_and_signals_can_be_killed() {
    let program = Program::start("command", &[]);
    let mut fifo = Fifo::new(&program.path("fifo"));
    let mut agent = program.peer.accept();
    let flood = "trap '' TERM; (while kill -CHLD $PPID; do :; done) & \
                 echo ready > fifo; while :; do (true & true & true &) ; done";
    agent.launch(&shell(flood));
    program.peer.states(&mut agent, &STARTED);
    fifo.line();
    agent.kill("t", std::time::Duration::from_millis(1));
    let end = program.peer.states(&mut agent, &["TASK_KILLING", "TASK_KILLED"]);
    assert_eq!(end["message"], "Command terminated with signal Killed");
    assert!(program.wait().0.success());
}

#[test]
fn an_executor_survives_the_end_of_its_standard_error() {
    let program = Program::start_with("command", &[], |command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stderr(writer);
    });
    let mut agent = program.peer.accept();
    agent.send(&serde_json::json!({"type": "ERROR", "error": {"message": "to nobody"}}));
    agent.launch(&shell("true"));
    program.peer.states(&mut agent, &[STARTED[0], STARTED[1], "TASK_FINISHED"]);
}
