//! What stays beside a command: process 1 of its pid namespace, or its parent.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_init::plan::{Operation, Plan, flag};
use cofferdam_linux::namespace::Namespaces;
use cofferdam_linux::process::{Process, Stat, children_of};

use crate::harness::{
    Answer, Container, Fixture, Keeper, Status, TIMEOUT, own, pipe, privileged, run, script_on_host,
};

/// Starts a plan with a pipe as its standard output.
fn start_with_pipe(clone: Namespaces, plan: &Plan) -> (Container, BufReader<File>) {
    start_on(&Arc::new(Keeper::start()), clone, plan)
}

fn start_on(keeper: &Arc<Keeper>, clone: Namespaces, plan: &Plan) -> (Container, BufReader<File>) {
    let (reader, writer) = pipe();
    let mut container = Container::spawn_with(Arc::clone(keeper), clone, File::from(writer));
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
fn orphans_become_children_of_a_process_that_stays() {
    let script = "( sleep 1000 >/dev/null 2>&1 & echo $! ); exec sleep 1000 >/dev/null 2>&1";
    let (container, mut output) = start_with_pipe(Namespaces::EMPTY, &script_on_host(script, 0));
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
    for (clone, flags) in [(own(), flag::REAPER | flag::MOUNT_NAMESPACE), (Namespaces::EMPTY, 0)] {
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
fn signals_reach_the_command() {
    if !privileged() {
        return;
    }
    for (clone, flags) in [(own(), flag::REAPER | flag::MOUNT_NAMESPACE), (Namespaces::EMPTY, 0)] {
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

/// Process 1 of the container's pid namespace.
fn reaper(container: &Container) -> i32 {
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mut children = children_of(container.keeper.process.pid()).unwrap();
    children.retain(|pid| Stat::read(*pid).is_ok_and(|stat| stat.name == "cofferdam-init"));
    children.retain(|pid| namespace(*pid) == namespace(container.process.pid()));
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

#[test]
fn what_stays_beside_a_command_has_no_descriptor() {
    if !privileged() {
        return;
    }
    for clone in [own(), Namespaces::EMPTY] {
        let flags = if clone.is_empty() { 0 } else { flag::REAPER | flag::MOUNT_NAMESPACE };
        let (container, mut output) =
            start_with_pipe(clone, &script_on_host("echo up; exec sleep 1000", flags));
        assert_eq!(line(&mut output), "up");
        let pid = if clone.is_empty() { container.process.pid() } else { reaper(&container) };
        // A process that stays closes them after the fork, possibly after the first output.
        while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 0 {
            assert!(clone.is_empty(), "the command could reach the descriptors of process 1");
            std::thread::yield_now();
        }
        assert_eq!(Stat::read(pid).unwrap().name, "cofferdam-init");
        container.process.signal(15).unwrap();
        assert_eq!(container.end(Answer::Runs).status, Status::Ended(15));
    }
}

#[test]
fn process_1_has_no_capability_and_ends_with_the_command() {
    if !privileged() {
        return;
    }
    let plan = script_on_host("echo up; exec sleep 1000", flag::REAPER | flag::MOUNT_NAMESPACE);
    let (container, mut output) = start_with_pipe(own(), &plan);
    assert_eq!(line(&mut output), "up");
    let reaper = Process::open_any(reaper(&container)).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", reaper.pid())).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
    }
    container.process.signal(15).unwrap();
    assert_eq!(container.end(Answer::Runs).status, Status::Ended(15));
    assert!(reaper.wait(Some(TIMEOUT)).unwrap());
}

#[test]
fn a_killed_process_1_ends_its_pid_namespace() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut plan = fixture.script("echo up; sleep 1000");
    plan.operations = vec![Operation::Mask { path: "/etc".into() }];
    let (container, mut output) = start_with_pipe(own(), &plan);
    assert_eq!(line(&mut output), "up");
    Process::open_any(reaper(&container)).unwrap().kill().unwrap();
    assert_eq!(line(&mut output), "", "a process still has the pipe open");
    assert_eq!(container.end(Answer::Runs).status, Status::Ended(9));
}

/// The command is process 1 if there is no other.
#[test]
fn a_command_can_be_process_1() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut plan = fixture.script("echo $$; exit 6");
    plan.flags &= !flag::REAPER;
    let end = run(own(), &plan);
    assert_eq!((end.output.as_str(), end.status), ("1\n", Status::Ended(6 << 8)));
}

#[test]
fn a_process_that_stays_kills_what_its_command_leaves_behind() {
    let script = "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & echo up";
    let (container, mut output) = start_with_pipe(Namespaces::EMPTY, &script_on_host(script, 0));
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
    const KIB_EACH: usize = 12;
    let fixture = Fixture::new();
    let keeper = Arc::new(Keeper::start());
    let inits: Vec<_> = (0..COUNT)
        .map(|_| {
            let (container, mut output) =
                start_on(&keeper, own(), &fixture.script("echo up; exec sleep 1000"));
            assert_eq!(line(&mut output), "up");
            container
        })
        .collect();
    let kib = |field: &str| -> usize {
        let of = |container: &Container| -> usize {
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", reaper(container))).unwrap();
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
