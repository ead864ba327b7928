//! The shortest lives: a program runs and ends, or does not run at all.

use cofferdam_init::plan::{Plan, flag};
use cofferdam_init::report::{Status, Step};
use cofferdam_linux::namespace::Namespaces;

use crate::bench::{Answer, Container, World, own, prints, privileged, run, script_on_host};

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
    let world = World::new();
    assert_eq!(prints(&world.script("echo hello; echo $$; ls /")), "hello\n2\nbin\ndev\netc\nproc\ntmp\n");
}

#[test]
fn an_exit_status_is_written_down() {
    let end = run(Namespaces::EMPTY, &script_on_host("exit 7", 0));
    assert_eq!(end.status, Status::Ended(7 << 8));
}

#[test]
fn a_killing_signal_is_written_down() {
    let end = run(Namespaces::EMPTY, &script_on_host("kill -TERM $$", 0));
    assert_eq!(end.status, Status::Ended(15));
}

#[test]
fn a_program_that_is_not_there_is_reported_with_step_errno_and_name() {
    let plan = Plan { program: "/nowhere/at/all".into(), ..script_on_host("", 0) };
    let end = run(Namespaces::EMPTY, &plan);
    let detail = "/nowhere/at/all".to_owned();
    assert_eq!(end.answer, Answer::Failed { step: Step::Exec, errno: 2, detail });
    assert_eq!(end.status, Status::NotStarted { step: Some(Step::Exec), errno: 2 });
}

#[test]
fn an_agent_that_goes_before_the_plan_takes_the_container_with_it() {
    let mut container = Container::born(Namespaces::EMPTY, None);
    container.control.shutdown(std::net::Shutdown::Both).unwrap();
    container.process.wait(None).unwrap();
    assert_eq!(container.status(), Status::NotStarted { step: Some(Step::Plan), errno: 0 });
    assert_eq!(container.output(), "");
}

#[test]
fn half_a_plan_is_no_plan() {
    let message = script_on_host("echo oops", 0).encode().unwrap();
    for length in [1, 15, 16, 17, message.len() - 1] {
        let mut container = Container::born(Namespaces::EMPTY, None);
        use std::io::Write;
        container.control.write_all(&message[..length]).unwrap();
        container.control.shutdown(std::net::Shutdown::Write).unwrap();
        let end = container.end(Answer::Nothing);
        assert_eq!(end.status, Status::NotStarted { step: Some(Step::Plan), errno: 0 }, "{length}");
        assert_eq!(end.output, "");
    }
}

#[test]
fn a_plan_of_another_version_is_refused_by_name() {
    let mut message = script_on_host("echo oops", 0).encode().unwrap();
    message[8] = 99;
    let mut container = Container::born(Namespaces::EMPTY, None);
    let answer = container.send(&message);
    let detail = "a plan of another version".to_owned();
    assert_eq!(answer, Answer::Failed { step: Step::Plan, errno: 74, detail });
    assert_eq!(container.end(answer).output, "");
}

#[test]
fn mounting_without_an_own_mount_namespace_is_refused() {
    if !privileged() {
        return;
    }
    let world = World::new();
    let mut plan = world.script("echo oops");
    plan.flags = flag::PID_NAMESPACE;
    let end = run(own(), &plan);
    assert!(matches!(end.answer, Answer::Failed { step: Step::Root, .. }), "{end:?}");
    assert_eq!(end.output, "");
}
