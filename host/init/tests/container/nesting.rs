//! Nested containers: joined namespaces, with or without new ones.

use std::fs;

use cofferdam_init::plan::flag;
use cofferdam_init::report::Status;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::spawn::{Enter, SpawnError, Step};

use crate::harness::{Answer, Container, own, privileged, script_on_host};

fn parent() -> Container {
    let clone = own().with(Namespace::Uts).with(Namespace::Ipc);
    let mut parent = Container::spawn(clone, None);
    let mut plan = script_on_host("sleep 1000", flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE);
    plan.hostname = Some("parent".into());
    assert_eq!(parent.release(&plan), Answer::Runs);
    parent
}

fn namespace(pid: i32, kind: Namespace) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{}", kind.file())).unwrap().display().to_string()
}

#[test]
fn a_nested_container_shares_what_it_enters() {
    if !privileged() {
        return;
    }
    let parent = parent();
    let entered = Namespaces::from_iter([Namespace::Pid, Namespace::Uts, Namespace::Ipc, Namespace::Mount]);
    let enter = Enter { process: &parent.process, namespaces: entered };
    let mut nested = Container::spawn(Namespaces::EMPTY, Some(enter));
    for kind in entered.iter() {
        let of = |container: &Container| namespace(container.process.pid(), kind);
        assert_eq!(of(&nested), of(&parent), "{kind}");
    }
    let answer = nested.release(&script_on_host("hostname", 0));
    let end = nested.end(answer);
    assert_eq!((end.output.as_str(), end.status), ("parent\n", Status::Ended(0)));
    parent.process.kill().unwrap();
    parent.end(Answer::Runs);
}

#[test]
fn a_nested_container_can_have_a_pid_namespace_below_its_parents() {
    if !privileged() {
        return;
    }
    let parent = parent();
    let entered = Namespaces::from_iter([Namespace::Pid, Namespace::Uts]);
    let enter = Enter { process: &parent.process, namespaces: entered };
    let mut nested = Container::spawn(own(), Some(enter));
    let status = fs::read_to_string(format!("/proc/{}/status", nested.process.pid())).unwrap();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    let pids: Vec<_> = pids.split_whitespace().collect();
    assert_eq!((pids.len(), pids[2]), (3, "1"), "host, parent, own: {pids:?}");
    let answer = nested.release(&script_on_host("echo $$", flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE));
    let end = nested.end(answer);
    assert_eq!((end.output.as_str(), end.status), ("2\n", Status::Ended(0)));
    parent.process.kill().unwrap();
    parent.end(Answer::Runs);
}

#[test]
fn containers_can_be_nested_several_levels_deep() {
    if !privileged() {
        return;
    }
    let mut line = vec![parent()];
    for _ in 0..5 {
        let enter = Enter { process: &line[line.len() - 1].process, namespaces: own() };
        let mut nested = Container::spawn(own(), Some(enter));
        let plan = script_on_host("sleep 1000", flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE);
        assert_eq!(nested.release(&plan), Answer::Runs);
        line.push(nested);
    }
    // The outermost process 1 ends only when all processes below it are reaped, and the test is their parent.
    line[0].process.kill().unwrap();
    for container in line.into_iter().rev() {
        assert_eq!(container.end(Answer::Runs).status, Status::Empty);
    }
}

#[test]
fn an_ended_parent_cannot_be_entered() {
    if !privileged() {
        return;
    }
    let parent = parent();
    parent.process.kill().unwrap();
    parent.process.wait(None).unwrap();
    let enter = Enter { process: &parent.process, namespaces: own() };
    let error = Container::try_spawn(Namespaces::EMPTY, Some(enter), &[]).err().unwrap();
    assert!(matches!(error, SpawnError::Step { step: Step::Enter, .. }), "{error:?}");
    parent.process.reap().unwrap();
}
