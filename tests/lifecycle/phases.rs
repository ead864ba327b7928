//! Containers that are to end while they are being launched.

use std::thread;

use cofferdam_linux::process::children_of;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::Fault;
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;
use nix::sys::signal::Signal;

use super::{COUNTING, ENDLESS, assert_nothing_left, request, state};

/// Ends a container at each step of its launch, which is held there until the wish has come.
fn end_at_each_step(world: &World) {
    let (daemon, injector) = Daemon::start_watched(world);
    let web = request(world, "web", COUNTING);
    let mut phases = Vec::new();
    for step in 1..ENDLESS {
        injector.arm(Fault::Hold, &[step]);
        let (outcome, waited, held) = thread::scope(|scope| {
            let launch = scope.spawn(|| {
                let outcome = daemon.launch(&web);
                (outcome, injector.disarm())
            });
            let held = injector.wait_held();
            let mut waited = None;
            if held {
                phases.extend(state(&daemon, &web.id));
                // Somebody waits for it as well.
                let wait = scope.spawn(|| daemon.wait(&web.id));
                daemon.signal(&web.id, Signal::SIGKILL).unwrap();
                injector.release();
                waited = Some(wait.join().unwrap());
            }
            (launch.join().unwrap(), waited, held)
        });
        let (outcome, seen) = outcome;
        let struck = seen.struck.first().map(ToString::to_string).unwrap_or_default();
        if !held {
            outcome.expect("nobody ended it");
            daemon.destroy(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
            phases.dedup();
            eprintln!("{step} steps, in {}", phases.join(", "));
            return;
        }
        // Who waits is answered, unless the launch was over before the question came.
        match waited.expect("it was held") {
            Ok(ended) => {
                assert!(matches!(ended.exit_status, None | Some(9)), "step {step}: {struck}: {ended:?}")
            }
            Err(refusal) => assert!(refusal.is_unknown(), "step {step}: {struck}: {refusal:?}"),
        }
        match outcome {
            // It ran before the wish was seen, and ended by it.
            Ok(()) => daemon.remove(&web.id).unwrap(),
            Err(refusal) => assert!(!refusal.is_broken(), "step {step}: {struck}: {refusal:?}"),
        }
        assert_eq!(state(&daemon, &web.id), None, "step {step}: {struck}");
        assert_nothing_left(world, &format_args!("step {step}: {struck}\n{}", daemon.log()));
        assert_eq!(children_of(daemon.pid()).unwrap(), Vec::<i32>::new(), "step {step}: {struck}");
    }
    panic!("no launch is let through");
}

#[test]
fn a_container_can_be_ended_at_every_step_of_its_launch() {
    if is_root("a launch that is ended") {
        end_at_each_step(&World::shipped());
    }
}

#[test]
fn a_container_of_plain_processes_can_be_ended_at_every_step_of_its_launch() {
    end_at_each_step(&World::posix());
}
