//! Containers that are destroyed while they are being launched.

use std::thread;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::Fault;
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;
use nix::sys::signal::Signal;

use super::{COUNTING, MAX_STEPS, assert_nothing_left, request, state};

/// Destroys a container at each step of its launch, which is held there until the stop request has arrived.
fn end_at_each_step(world: &World) {
    let (daemon, injector) = Daemon::start_with_injector(world);
    let web = request(world, "web", COUNTING);
    let mut phases = Vec::new();
    for step in 1..MAX_STEPS {
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
                // A second client waits for the container.
                let wait = scope.spawn(|| daemon.wait(&web.id));
                daemon.signal(&web.id, Signal::SIGKILL).unwrap();
                injector.release();
                waited = Some(wait.join().unwrap());
            }
            (launch.join().unwrap(), waited, held)
        });
        let (outcome, seen) = outcome;
        let hit = seen.hit.first().map(ToString::to_string).unwrap_or_default();
        if !held {
            outcome.expect("it was not destroyed");
            daemon.destroy(&web.id).unwrap();
            daemon.remove(&web.id).unwrap();
            phases.dedup();
            eprintln!("{step} steps, in {}", phases.join(", "));
            return;
        }
        // The waiting client gets the termination, unless the launch had ended before its call.
        match waited.expect("it was held") {
            Ok(ended) => {
                assert!(matches!(ended.exit_status, None | Some(9)), "step {step}: {hit}: {ended:?}")
            }
            Err(error) => assert!(error.is_unknown(), "step {step}: {hit}: {error:?}"),
        }
        match outcome {
            // It ran before the stop request was seen, and was ended by it.
            Ok(()) => daemon.remove(&web.id).unwrap(),
            Err(error) => assert!(!error.is_disconnected(), "step {step}: {hit}: {error:?}"),
        }
        assert_eq!(state(&daemon, &web.id), None, "step {step}: {hit}");
        assert_nothing_left(world, &format_args!("step {step}: {hit}\n{}", daemon.log()));
        assert_eq!(daemon.children(), Vec::<i32>::new(), "step {step}: {hit}");
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

#[test]
fn a_container_can_be_destroyed_at_every_step_of_its_launch() {
    if is_root("a launch that is ended") {
        end_at_each_step(&World::shipped());
    }
}

#[test]
fn a_container_of_plain_processes_can_be_destroyed_at_every_step_of_its_launch() {
    end_at_each_step(&World::posix());
}
