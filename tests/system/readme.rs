//! The commands of the README, pasted in their order.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::{is_root, paths};

/// Commands that take longer than a test, and have tests of their own: `tests/check` runs them.
const ELSEWHERE: [&str; 3] = ["examples/demo", "tests/check", "cargo build"];

/// The commands in the blocks of a page that are marked as shell.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).map(str::to_owned);
    lines.filter(|line| !ELSEWHERE.iter().any(|start| line.starts_with(start))).collect()
}

#[test]
fn every_command_works_when_pasted_in_order() {
    if !is_root("containers and mounts") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let page = fs::read_to_string(root.join("README.md")).expect("the page");
    let commands = commands(&page);
    assert!(commands.len() > 15, "{commands:?}");
    // As in an interactive shell, with jobs and without an end at the first error. Every command is shown with its status.
    let mut script = String::from("set -m\n");
    for command in &commands {
        // The build of this test instead of the release.
        let build = paths::build().display().to_string();
        let plugins = format!("examples/agent.toml --plugin-dir {build}");
        let command = command.replace("$PWD/target/release", &build).replace("examples/agent.toml", &plugins);
        script.push_str(&command);
        script.push_str("\necho \"== $?\"\n");
    }
    script.push_str("wait\n");
    // The directories of the machine are hidden: those of its own agent, if there is one, are left alone.
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("commands");
    fs::write(&file, script).expect("a script");
    let hide = "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && exec bash \"$0\"";
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", hide])
        .arg(&file)
        .current_dir(root)
        .env_remove("COFFERDAM_SOCKET")
        .stdin(Stdio::null())
        .output()
        .expect("unshare (package util-linux) starts");
    fs::remove_dir_all("/tmp/cofferdam-rootfs").expect("the README has created it");
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let statuses: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("== ")).collect();
    assert_eq!(statuses.len(), commands.len(), "{shown}{errors}");
    for (command, status) in commands.iter().zip(&statuses) {
        // What `doctor` says depends on the machine.
        let may_fail = command.starts_with("cofferdam doctor") && *status == "1";
        assert!(*status == "0" || may_fail, "`{command}` failed with {status}:\n{shown}{errors}");
    }
    for expected in [
        "hello\n",
        "HELLO\n",
        "hello from an image\n",
        "web  RUNNING",
        "web killed by SIGKILL",
        "container web  ENDED",
    ] {
        assert!(shown.contains(expected), "`{expected}` is not in:\n{shown}{errors}");
    }
    assert!(!errors.contains("error:"), "{errors}");
}

#[test]
fn what_is_pasted_after_a_command_is_not_lost() {
    if !is_root("containers") {
        return;
    }
    let mut terminal = Terminal::run(Path::new("/bin/bash"), &["--norc", "--noediting"], &[]);
    let program = paths::program();
    let (program, plugins) = (program.display(), paths::build());
    let run = format!("{program} run --plugin-dir {} --", plugins.display());
    // In one piece, as a terminal passes on what is pasted.
    terminal.type_keys(&format!(
        "{run} cat; echo first=$?\n{run} sh -c 'read line; echo got=$line.'\necho second=$?\nexit\n"
    ));
    terminal.wait_for("first=0\r\n");
    terminal.wait_for("got=.\r\n");
    terminal.wait_for("second=0\r\n");
    terminal.wait().unwrap();
}
