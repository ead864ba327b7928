//! A program runs and ends, or fails to start.

use std::time::Instant;

use cofferdam_init::client::Control;
use cofferdam_init::plan::{Plan, flag};
use cofferdam_init::report::Step;
use cofferdam_linux::namespace::Namespaces;

use crate::harness::{
    Answer, Container, Fixture, Status, TIMEOUT, own, prints, privileged, run, script_on_host,
};

#[test]
fn hello_on_the_host_without_any_namespace() {
    let end = run(Namespaces::EMPTY, &script_on_host("echo hello", 0));
    assert_eq!(end.answer, Answer::Runs, "{end:?}");
    assert_eq!(end.output, "hello\n");
    assert_eq!(end.status, Status::Ended(0));
}

#[test]
fn hello_in_a_rootfs() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    assert_eq!(prints(&fixture.script("echo hello; echo $$; ls /")), "hello\n2\nbin\ndev\netc\nproc\ntmp\n");
}

#[test]
fn an_exit_status_is_recorded() {
    let end = run(Namespaces::EMPTY, &script_on_host("exit 7", 0));
    assert_eq!(end.status, Status::Ended(7 << 8));
}

#[test]
fn a_fatal_signal_is_recorded() {
    let end = run(Namespaces::EMPTY, &script_on_host("kill -TERM $$", 0));
    assert_eq!(end.status, Status::Ended(15));
}

#[test]
fn a_missing_program_is_reported_with_step_errno_and_name() {
    let plan = Plan { program: "/nowhere/at/all".into(), ..script_on_host("", 0) };
    let end = run(Namespaces::EMPTY, &plan);
    let detail = "/nowhere/at/all".to_owned();
    assert_eq!(end.answer, Answer::Failed { step: Step::Exec, errno: 2, detail });
    assert_eq!(end.status, Status::NotStarted);
}

#[test]
fn the_container_ends_if_the_agent_ends_before_the_plan() {
    let mut container = Container::spawn(Namespaces::EMPTY, None);
    container.control = Control::pair().unwrap().0;
    container.process.wait(None).unwrap();
    assert_eq!(container.status(), Status::NotStarted);
    assert_eq!(container.output(), "");
}

#[test]
fn a_truncated_plan_is_not_started() {
    let message = script_on_host("echo oops", 0).encode().unwrap();
    for length in [1, 15, 16, 17, message.len() - 1] {
        let mut container = Container::spawn(Namespaces::EMPTY, None);
        container.control.send_plan(&message[..length], Instant::now() + TIMEOUT).unwrap();
        container.control = Control::pair().unwrap().0;
        let end = container.end(Answer::None);
        assert_eq!(end.status, Status::NotStarted, "{length}");
        assert_eq!(end.output, "");
    }
}

#[test]
fn a_plan_of_another_version_is_refused_by_name() {
    let mut message = script_on_host("echo oops", 0).encode().unwrap();
    message[8] = 99;
    let mut container = Container::spawn(Namespaces::EMPTY, None);
    let answer = container.send(&message);
    let detail = "a plan of another version".to_owned();
    assert_eq!(answer, Answer::Failed { step: Step::Plan, errno: 74, detail });
    assert_eq!(container.end(answer).output, "");
}

#[test]
fn mounting_without_a_mount_namespace_is_refused() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut plan = fixture.script("echo oops");
    plan.flags = flag::REAPER;
    let end = run(own(), &plan);
    assert!(matches!(end.answer, Answer::Failed { step: Step::Root, .. }), "{end:?}");
    assert_eq!(end.output, "");
}
