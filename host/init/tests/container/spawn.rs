//! Failed spawns, and reused pids.

use std::fs::File;
use std::os::fd::AsFd;

use cofferdam_init::report;
use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, ProcessError};
use cofferdam_linux::spawn::{Spawn, SpawnError, Step};

use crate::harness::{Answer, Container, image, script_on_host};

#[test]
fn an_image_that_is_not_a_program_is_an_error_and_leaves_no_child() {
    let image = Image::seal("nonsense", b"nonsense").unwrap();
    let null = File::open("/dev/null").unwrap();
    let request =
        Spawn { image: &image, arguments: &[c"x"], descriptors: &[null.as_fd()], cgroup: None, tasks: &[] };
    let error = request.spawn().unwrap_err();
    let SpawnError::Step { step: Step::Exec, source } = error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(8));
}

#[test]
fn a_tasks_file_that_cannot_be_written_is_reported() {
    let good = File::create("/dev/null").unwrap();
    let bad = File::open("/dev/null").unwrap();
    let mut container = Container::try_spawn(Namespaces::EMPTY, None, &[good, bad]).unwrap();
    let answer = container.release(&script_on_host("echo oops", 0));
    assert!(matches!(answer, Answer::Failed { step: report::Step::JoinCgroup, errno: 9, .. }), "{answer:?}");
    assert_eq!(container.end(answer).output, "");
}

#[test]
fn too_many_descriptors_are_refused() {
    let null = File::open("/dev/null").unwrap();
    let descriptors = [null.as_fd(); Spawn::MAX_DESCRIPTORS + 1];
    let request =
        Spawn { image: image(), arguments: &[c"x"], descriptors: &descriptors, cgroup: None, tasks: &[] };
    let Err(SpawnError::TooMany { max, given, .. }) = request.spawn() else { panic!("it was spawned") };
    assert_eq!((max, given), (Spawn::MAX_DESCRIPTORS, descriptors.len()));
}

/// The numbers of the agent's descriptors may overlap with those that the child gets.
#[test]
fn descriptors_get_their_numbers_whatever_they_were() {
    let outputs: Vec<_> = (0..20)
        .map(|_| {
            let mut container = Container::spawn(Namespaces::EMPTY, None);
            let answer = container.release(&script_on_host("echo out; echo err >&2; read x || echo eof", 0));
            container.end(answer).output
        })
        .collect();
    assert!(outputs.iter().all(|output| output == "out\nerr\neof\n"), "{outputs:?}");
}

#[test]
fn a_recycled_pid_is_refused() {
    let mut container = Container::spawn(Namespaces::EMPTY, None);
    let (pid, start_time) = (container.process.pid(), container.process.start_time());
    let again = Process::open(pid, start_time).unwrap();
    assert_eq!((again.pid(), again.start_time()), (pid, start_time));
    let Err(ProcessError::Recycled { expected, found, .. }) = Process::open(pid, start_time - 1) else {
        panic!("another process was accepted")
    };
    assert_eq!((expected, found), (start_time - 1, start_time));

    assert_eq!(container.release(&script_on_host("true", 0)), Answer::Runs);
    container.process.wait(None).unwrap();
    container.status();
    assert!(matches!(Process::open(pid, start_time), Err(ProcessError::Gone { .. })));
    assert!(matches!(again.signal(15), Err(ProcessError::Gone { .. })));
    again.kill().unwrap();
}

#[test]
fn threads_can_spawn_at_the_same_time() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut container = Container::spawn(Namespaces::EMPTY, None);
                    let answer = container.release(&script_on_host("echo $PATH", 0));
                    assert_eq!(container.end(answer).output, "/bin:/usr/bin\n");
                }
            });
        }
    });
}
