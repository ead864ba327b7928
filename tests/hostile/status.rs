//! How the end of a command is recorded, whatever processes in its container do.

use cofferdam_core::model::{Ended, Request};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{is_root, text, wait_for_text};

use super::{Attack, Kind, assert_nothing_left, attacker, is_privileged, lines, of_kind, worlds};

/// A container that runs a shell line.
fn shell(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_process_1_cannot_change_the_status_of_the_command() {
    if !is_root("a pid namespace") {
        return;
    }
    for world in worlds() {
        // Process 1 has more capabilities than root of the shipped chain, which therefore cannot trace it.
        let of_root = if is_privileged(&world) { Ended::Signaled(9) } else { Ended::Exited(7) };
        let agent = world.start().await.unwrap();
        for (uid, expected) in [(0, of_root), (1000, Ended::Exited(7))] {
            agent.launch(attacker(&world, "web", uid, &["forge", "1"])).await.unwrap();
            let ended = agent.wait(&id("web")).await.unwrap();
            let report = lines(&text(&agent.inspect(&id("web")).unwrap().logs.stdout.unwrap()));
            assert_eq!(ended.ended(), Some(expected), "{report:#?}");
            assert!(!report.iter().any(|line| line.what.starts_with("fd/")), "{report:#?}");
            eprintln!("{uid}: {report:#?}");
            assert!(agent.remove(&id("web")).await.unwrap());
        }
        assert_nothing_left(&world);
    }
}

/// A process of the same pid is another process.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_takes_over_the_pid_of_a_command_does_not_report_for_it() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        // The shipped chain does not let a container choose pids.
        let outcome =
            if is_privileged(&world) { " taken over" } else { "not taken over: Function not implemented" };
        let agent = world.start().await.unwrap();
        let attack = Attack::start(&agent, &world, 0, &["reuse"]).await;
        for round in 1..=3 {
            agent.launch(of_kind(shell(&world, "pod.web", "exec sleep 1000"), Kind::Shared)).await.unwrap();
            let ended = agent.wait(&id("pod.web")).await.unwrap();
            assert_eq!(ended.ended(), Some(Ended::Signaled(9)));
            attack.await_lines(outcome, round);
            assert!(agent.remove(&id("pod.web")).await.unwrap());
        }
        attack.end().await;
    }
}

/// Only the tracer can reap it, which does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_tracer_cannot_hide_how_a_command_ended() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        let agent = world.start().await.unwrap();
        let attack = Attack::start(&agent, &world, 0, &["hold"]).await;
        let line = "while [ ! -e end ]; do :; done; exit 5";
        agent.launch(of_kind(shell(&world, "pod.web", line), Kind::Shared)).await.unwrap();
        // Both have the same user and capabilities.
        attack.await_lines("held", 1);
        std::fs::write(agent.inspect(&id("pod.web")).unwrap().sandbox.join("end"), "").unwrap();
        let ended = agent.wait(&id("pod.web")).await.unwrap();
        assert_eq!(ended.ended(), Some(Ended::Exited(5)), "{ended:?}");
        assert!(agent.remove(&id("pod.web")).await.unwrap());
        attack.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_end_a_command_that_does_not_handle_them() {
    if !is_root("a pid namespace") {
        return;
    }
    for world in worlds() {
        end_by_signals(&world).await;
    }
}

async fn end_by_signals(world: &World) {
    let agent = world.start().await.unwrap();
    let without_init = |mut request: Request| {
        request.linux.without_init = true;
        request
    };
    agent.launch(shell(world, "web", "exec sleep 1000")).await.unwrap();
    assert!(agent.kill(&id("web"), nix::libc::SIGTERM).await.unwrap());
    assert_eq!(agent.wait(&id("web")).await.unwrap().ended(), Some(Ended::Signaled(nix::libc::SIGTERM)));
    assert!(agent.remove(&id("web")).await.unwrap());

    // The command is process 1 if that is requested, for which the kernel ignores signals without handlers.
    let line = "trap 'exit 5' TERM; echo pid $$; while :; do sleep 0.01; done";
    agent.launch(without_init(shell(world, "web", line))).await.unwrap();
    let log = agent.inspect(&id("web")).unwrap().logs.stdout.unwrap();
    wait_for_text(&log, "pid 1\n");
    assert!(agent.kill(&id("web"), nix::libc::SIGTERM).await.unwrap());
    let ended = agent.wait(&id("web")).await.unwrap();
    assert!(matches!(ended.ended(), Some(Ended::Exited(5))), "{ended:?}");
    assert!(agent.remove(&id("web")).await.unwrap());
    assert_nothing_left(world);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_reaped() {
    if !is_root("a pid namespace") {
        return;
    }
    for world in worlds() {
        let agent = world.start().await.unwrap();
        // The parents of the processes that write their pids end first.
        let line = "mkfifo done; for i in 1 2 3; do (sh -c 'echo $PPID $$ > done; exit 0' &) ; read parent pid < done; \
                    while [ -e /proc/$pid ]; do sleep 0.01; done; done; echo /proc/[0-9]* $$";
        let output = cofferdam_tests::world::run(&agent, shell(&world, "web", line)).await;
        // Process 1 and the shell.
        assert_eq!(output, "/proc/1 /proc/2 2\n");
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_nothing_left(&world);
    }
}
