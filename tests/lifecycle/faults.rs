//! A launch or a destroy of which each effect in turn fails.

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::{Effect, Fault, Injector};
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;

use super::{COUNTING, MAX_STEPS, assert_nothing_left, id, request, state};

/// Children and descriptors of an agent without containers.
fn resources(daemon: &Daemon) -> (Vec<i32>, usize) {
    (daemon.children(), daemon.descriptors().len())
}

/// Launches a container repeatedly, each time with other steps failing, until a launch has none of these steps. After
/// each, nothing may be left, and the agent must have the same children and descriptors as before.
///
/// Returns the effects of the last launch.
fn launch_until_nothing_fails(
    world: &World,
    daemon: &Daemon,
    injector: &Injector,
    steps: impl Fn(usize) -> Vec<usize>,
) -> Vec<Effect> {
    let web = request(world, "web", COUNTING);
    let mut before = None;
    for turn in 1..MAX_STEPS {
        injector.arm(Fault::Fail, &steps(turn));
        let outcome = daemon.launch(&web);
        let seen = injector.disarm();
        let hit = seen.hit.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ");
        let whole = seen.hit.len() < steps(turn).len();
        if whole && steps(turn).len() == 1 {
            outcome.as_ref().expect("nothing failed");
        }
        if outcome.is_ok() {
            // The failed call was not needed, as in a search for a program in several directories.
            assert_eq!(state(daemon, &web.id).as_deref(), Some("RUNNING"), "in spite of {hit}");
            assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9), "in spite of {hit}");
            daemon.remove(&web.id).unwrap();
        } else {
            assert_eq!(state(daemon, &web.id), None, "after {hit}");
        }
        assert_nothing_left(world, &format_args!("turn {turn}: {hit}\n{}", daemon.log()));
        let resources = resources(daemon);
        let expected = before.get_or_insert_with(|| resources.clone());
        assert_eq!(*expected, resources, "turn {turn} leaks children or descriptors of the agent: {hit}");
        if whole {
            eprintln!("{turn} turns, {} effects", seen.effects.len());
            return seen.effects;
        }
    }
    panic!("a launch has more than {MAX_STEPS} steps");
}

#[test]
fn a_launch_that_fails_anywhere_leaves_nothing_behind() {
    if !is_root("a failing launch") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    launch_until_nothing_fails(&world, &daemon, &injector, |turn| vec![turn]);
}

#[test]
fn a_launch_of_plain_processes_that_fails_anywhere_leaves_nothing_behind() {
    let world = World::posix();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    launch_until_nothing_fails(&world, &daemon, &injector, |turn| vec![turn]);
}

/// The last effect of a launch writes the record; when that fails, everything has to be undone.
#[test]
fn undoing_a_launch_is_retried_until_it_succeeds() {
    if !is_root("a failing launch") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    let web = request(&world, "web", COUNTING);
    // The first launches create what later ones find.
    for _ in 0..2 {
        injector.arm(Fault::Fail, &[]);
        daemon.launch(&web).unwrap();
        daemon.destroy(&web.id).unwrap();
        daemon.remove(&web.id).unwrap();
    }
    injector.arm(Fault::Fail, &[]);
    daemon.launch(&web).unwrap();
    let last = injector.disarm().effects.len();
    daemon.destroy(&web.id).unwrap();
    daemon.remove(&web.id).unwrap();
    launch_until_nothing_fails(&world, &daemon, &injector, |turn| vec![last, last + turn]);
}

#[test]
fn a_destroy_that_fails_anywhere_is_retried_until_nothing_is_left() {
    if !is_root("a failing end") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    end_until_nothing_fails(&world, &daemon, &injector);
}

#[test]
fn a_destroy_of_plain_processes_that_fails_anywhere_is_retried_until_nothing_is_left() {
    let world = World::posix();
    let (daemon, injector) = Daemon::start_with_injector(&world);
    end_until_nothing_fails(&world, &daemon, &injector);
}

fn end_until_nothing_fails(world: &World, daemon: &Daemon, injector: &Injector) {
    let web = request(world, "web", COUNTING);
    for step in 1..MAX_STEPS {
        daemon.launch(&web).unwrap();
        injector.arm(Fault::Fail, &[step]);
        let termination = daemon.destroy(&web.id).unwrap();
        let removed = daemon.remove(&web.id);
        let seen = injector.disarm();
        let hit = seen.hit.first().map(ToString::to_string).unwrap_or_default();
        assert_eq!(termination.exit_status, Some(9), "step {step}: {hit}");
        if removed.is_err() {
            assert!(!hit.is_empty(), "{removed:?}");
            // A removal is not retried by the agent: the client gets the error and repeats the call.
            daemon.remove(&web.id).unwrap();
        }
        assert_eq!(state(daemon, &id("web")), None);
        assert_nothing_left(world, &format_args!("step {step}: {hit}\n{}", daemon.log()));
        assert_eq!(daemon.children(), Vec::<i32>::new(), "step {step}: {hit}");
        if seen.hit.is_empty() {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("a destroy has more than {MAX_STEPS} steps");
}
