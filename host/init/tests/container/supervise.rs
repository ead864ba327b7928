//! Init while the task runs: reaping, forwarding of signals, and open descriptors.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use cofferdam_init::plan::{Operation, Plan, flag};
use cofferdam_init::report::Status;
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::Stat;

use crate::harness::{Answer, Container, Fixture, own, pipe, privileged, run, script_on_host};

/// Starts a plan with a pipe as its standard output.
fn start_with_pipe(clone: Namespaces, plan: &Plan) -> (Container, BufReader<File>) {
    let (reader, writer) = pipe();
    let mut container = Container::spawn_with_output(clone, File::from(writer));
    assert_eq!(container.release(plan), Answer::Runs);
    container.close_output();
    (container, BufReader::new(File::from(reader)))
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn orphans_become_inits_children() {
    let script = "( sleep 1000 >/dev/null 2>&1 & echo $! ); exec sleep 1000 >/dev/null 2>&1";
    let (container, mut output) =
        start_with_pipe(Namespaces::EMPTY, &script_on_host(script, flag::KILL_DESCENDANTS));
    let orphan: i32 = line(&mut output).parse().unwrap();
    assert_eq!(line(&mut output), "", "the shell between them has ended");
    assert_eq!(Stat::read(orphan).unwrap().parent, container.process.pid());
    container.process.signal(15).unwrap();
    assert_eq!(container.end(Answer::Runs).status, Status::Ended(15));
    assert!(Stat::read(orphan).is_err());
}

#[test]
fn zombies_do_not_accumulate() {
    if !privileged() {
        return;
    }
    // With and without a pid namespace: as its process 1, and as a subreaper.
    for (clone, flags) in [(own(), flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE), (Namespaces::EMPTY, 0)] {
        // Each inner shell leaves an orphan behind, which ends at once.
        let script = "for i in 1 2 3 4 5 6 7 8 9 10; do ( true & ); done; echo up; exec sleep 1000";
        let (container, mut output) = start_with_pipe(clone, &script_on_host(script, flags));
        assert_eq!(line(&mut output), "up");
        let deadline = Instant::now() + Duration::from_secs(10);
        while container.process.children().unwrap().len() > 1 {
            assert!(Instant::now() < deadline, "{:?}", container.process.children());
            std::thread::yield_now();
        }
        container.process.signal(15).unwrap();
        assert_eq!(container.end(Answer::Runs).status, Status::Ended(15));
    }
}

#[test]
fn signals_are_forwarded_to_the_task() {
    if !privileged() {
        return;
    }
    for (clone, flags) in
        [(own(), flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE), (Namespaces::EMPTY, flag::KILL_DESCENDANTS)]
    {
        let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 1000 & wait; kill $!; done";
        let (container, mut output) = start_with_pipe(clone, &script_on_host(script, flags));
        assert_eq!(line(&mut output), "ready");
        container.process.signal(10).unwrap();
        assert_eq!(line(&mut output), "usr1");
        container.process.signal(15).unwrap();
        assert_eq!(line(&mut output), "term");
        assert_eq!(container.end(Answer::Runs).status, Status::Ended(5 << 8));
    }
}

#[test]
fn a_task_starts_with_default_signal_dispositions() {
    // The test process ignores SIGPIPE, as every Rust program. Without a shell, which changes dispositions.
    let arguments = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"].map(Into::into).to_vec();
    let end = run(Namespaces::EMPTY, &Plan { arguments, ..script_on_host("", 0) });
    let zero = "0000000000000000";
    assert_eq!(end.output, format!("SigBlk:\t{zero}\nSigIgn:\t{zero}\nSigCgt:\t{zero}\n"));
}

#[test]
fn a_task_has_exactly_three_descriptors() {
    let end = run(Namespaces::EMPTY, &script_on_host("exec ls /proc/self/fd", 0));
    // The fourth is the directory that `ls` lists.
    assert_eq!(end.output, "0\n1\n2\n3\n");
}

#[test]
fn init_keeps_only_the_status_file_open() {
    if !privileged() {
        return;
    }
    let (container, mut output) =
        start_with_pipe(Namespaces::EMPTY, &script_on_host("echo up; exec sleep 1000", 0));
    assert_eq!(line(&mut output), "up");
    let pid = container.process.pid();
    // Init closes its descriptors after the fork, possibly after the task's first output.
    let names = loop {
        let mut names: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        if names.len() == 1 {
            break names;
        }
        std::thread::yield_now();
    };
    assert_eq!(names, ["4"]);
    assert_eq!(Stat::read(pid).unwrap().name, "cofferdam-init");
    container.process.signal(15).unwrap();
    assert_eq!(container.end(Answer::Runs).status, Status::Ended(15));
}

#[test]
fn init_exits_with_the_status_of_its_task() {
    use cofferdam_linux::process::Ending;
    for (script, status) in [("exit 7", 7), ("kill -KILL $$", 137)] {
        let mut container = Container::spawn(Namespaces::EMPTY, None);
        assert_eq!(container.release(&script_on_host(script, 0)), Answer::Runs);
        container.process.wait(None).unwrap();
        assert_eq!(container.process.reap().unwrap(), Some(Ending::Exited(status)));
    }
}

#[test]
fn a_killed_init_ends_its_pid_namespace_and_leaves_the_status_empty() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut plan = fixture.script("echo up; sleep 1000");
    plan.operations = vec![Operation::Mask { path: "/etc".into() }];
    let (container, mut output) = start_with_pipe(own(), &plan);
    assert_eq!(line(&mut output), "up");
    container.process.kill().unwrap();
    assert_eq!(line(&mut output), "", "a process still has the pipe open");
    assert_eq!(container.end(Answer::Runs).status, Status::Empty);
}

#[test]
fn init_kills_its_remaining_descendants_if_requested() {
    let script = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & echo up";
    let (container, mut output) =
        start_with_pipe(Namespaces::EMPTY, &script_on_host(script, flag::KILL_DESCENDANTS));
    assert_eq!(line(&mut output), "up");
    // Each of them has the pipe open, so its end of file shows that all have ended.
    assert_eq!(line(&mut output), "");
    assert_eq!(container.end(Answer::Runs).status, Status::Ended(0));
}

/// Every running container has an init, so every page counts once per container.
#[test]
fn inits_are_small_and_share_memory() {
    if !privileged() {
        return;
    }
    const COUNT: usize = 20;
    const KIB_EACH: usize = 32;
    let fixture = Fixture::new();
    let inits: Vec<_> = (0..COUNT)
        .map(|_| {
            let (container, mut output) = start_with_pipe(own(), &fixture.script("echo up; exec sleep 1000"));
            assert_eq!(line(&mut output), "up");
            container
        })
        .collect();
    let kib = |field: &str| -> usize {
        let of = |container: &Container| -> usize {
            let rollup =
                fs::read_to_string(format!("/proc/{}/smaps_rollup", container.process.pid())).unwrap();
            let line = rollup.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim_end_matches("kB").trim().parse().unwrap()
        };
        inits.iter().map(of).sum()
    };
    let (pss, private, resident) = (kib("Pss:"), kib("Private_Dirty:") + kib("Private_Clean:"), kib("Rss:"));
    println!(
        "of {COUNT} inits each: pss {} kB, private {} kB, rss {} kB",
        pss / COUNT,
        private / COUNT,
        resident / COUNT
    );
    for container in inits {
        container.process.kill().unwrap();
        container.end(Answer::Runs);
    }
    assert!(pss <= COUNT * KIB_EACH, "{pss} kB for {COUNT} inits");
}
