//! Nested containers: joined namespaces, with or without new ones.

use std::fs;
use std::time::Instant;

use cofferdam_init::client::RequestError;
use cofferdam_init::plan::flag;
use cofferdam_init::report::Step;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;

use crate::harness::{Answer, Container, Enter, Status, TIMEOUT, own, privileged, script_on_host};

fn parent() -> Container {
    let clone = own().with(Namespace::Uts).with(Namespace::Ipc);
    let mut parent = Container::spawn(clone, None);
    let mut plan = script_on_host("sleep 1000", flag::REAPER | flag::MOUNT_NAMESPACE);
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
    assert!(nested.control.wait_until_ready(Instant::now() + TIMEOUT));
    let of = |container: &Container, kind| namespace(container.process.pid(), kind);
    for kind in entered.without(Namespace::Pid).iter() {
        assert_eq!(of(&nested, kind), of(&parent, kind), "{kind}");
    }
    assert_ne!(
        of(&nested, Namespace::Pid),
        of(&parent, Namespace::Pid),
        "the parent can see the setup process"
    );
    assert_eq!(nested.release(&script_on_host("hostname; read line; echo $$", 0)), Answer::Runs);
    for kind in entered.iter() {
        if let Ok(own) = fs::read_link(format!("/proc/{}/ns/{}", nested.process.pid(), kind.file())) {
            assert_eq!(own.display().to_string(), of(&parent, kind), "{kind}");
        }
    }
    let end = nested.end(Answer::Runs);
    assert_eq!((end.output.as_str(), end.status), ("parent\n3\n", Status::Ended(0)));
    parent.process.kill().unwrap();
    assert_eq!(parent.end(Answer::Runs).status, Status::Ended(9));
}

/// So the parent cannot see its processes, not even while it is set up.
#[test]
fn a_pid_namespace_of_its_own_is_not_below_that_of_the_parent() {
    if !privileged() {
        return;
    }
    let parent = parent();
    let enter = Enter { process: &parent.process, namespaces: Namespaces::EMPTY.with(Namespace::Uts) };
    let mut nested = Container::spawn(own(), Some(enter));
    let plan = script_on_host("echo $$; sleep 1000", flag::REAPER | flag::MOUNT_NAMESPACE);
    assert_eq!(nested.release(&plan), Answer::Runs);
    let status = fs::read_to_string(format!("/proc/{}/status", nested.process.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let init = Process::open_any(field("PPid:").trim().parse().unwrap()).unwrap();
    let pids = field("NSpid:");
    let pids: Vec<_> = pids.split_whitespace().collect();
    assert_eq!((pids.len(), pids[1]), (2, "2"), "host, own: {pids:?}");
    nested.process.kill().unwrap();
    assert_eq!(nested.end(Answer::Runs).status, Status::Ended(9));
    // Process 1 stays until the agent ends its namespace.
    init.kill().unwrap();

    let both = Enter { process: &parent.process, namespaces: own() };
    let refused = Container::try_spawn(own(), Some(both), &[]).err().unwrap();
    assert!(
        matches!(&refused, RequestError::Refused(error) if error.raw_os_error() == Some(22)),
        "{refused:?}"
    );
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
    let mut nested = Container::spawn(Namespaces::EMPTY, Some(enter));
    assert!(!nested.control.wait_until_ready(Instant::now() + TIMEOUT));
    let answer = nested.release(&script_on_host("echo oops", 0));
    assert!(matches!(answer, Answer::Failed { step: Step::EnterNamespace, errno: 3, .. }), "{answer:?}");
    let end = nested.end(answer);
    assert_eq!((end.output.as_str(), end.status), ("", Status::NotStarted));
}
