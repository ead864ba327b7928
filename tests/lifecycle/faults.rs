//! A launch, or an end, of which each outside effect in turn fails.

use cofferdam_linux::process::children_of;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::injector::{Effect, Fault, Injector};
use cofferdam_tests::is_root;
use cofferdam_tests::world::World;

use super::{COUNTING, ENDLESS, assert_nothing_left, id, request, state};

/// What an agent holds that has no containers.
fn holdings(daemon: &Daemon) -> (Vec<i32>, usize) {
    (children_of(daemon.pid()).unwrap(), daemon.descriptors().len())
}

/// Launches a container again and again, each time with other steps failing, until a launch succeeds in which
/// none of them came about. After each, nothing may be left, and the agent must be as it was before.
///
/// Gives the effects of the launch that succeeded.
fn launch_until_nothing_fails(
    world: &World,
    daemon: &Daemon,
    injector: &Injector,
    steps: impl Fn(usize) -> Vec<usize>,
) -> Vec<Effect> {
    let web = request(world, "web", COUNTING);
    let mut before = None;
    for turn in 1..ENDLESS {
        injector.arm(Fault::Fail, &steps(turn));
        let outcome = daemon.launch(&web);
        let seen = injector.disarm();
        let struck = seen.struck.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ");
        let whole = seen.struck.len() < steps(turn).len();
        if whole && steps(turn).len() == 1 {
            outcome.as_ref().expect("nothing failed");
        }
        if outcome.is_ok() {
            // What failed was not needed: a program that is looked for in several folders, say.
            assert_eq!(state(daemon, &web.id).as_deref(), Some("RUNNING"), "in spite of {struck}");
            assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9), "in spite of {struck}");
            daemon.remove(&web.id).unwrap();
        } else {
            assert_eq!(state(daemon, &web.id), None, "after {struck}");
        }
        assert_nothing_left(world, &format_args!("turn {turn}: {struck}\n{}", daemon.log()));
        let holdings = holdings(daemon);
        let expected = before.get_or_insert_with(|| holdings.clone());
        assert_eq!(*expected, holdings, "turn {turn} costs the agent children or descriptors: {struck}");
        if whole {
            eprintln!("{turn} turns, {} effects", seen.effects.len());
            return seen.effects;
        }
    }
    panic!("no launch is without faults");
}

#[test]
fn a_launch_that_fails_anywhere_leaves_nothing_behind() {
    if !is_root("a failing launch") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_watched(&world);
    launch_until_nothing_fails(&world, &daemon, &injector, |turn| vec![turn]);
}

#[test]
fn a_launch_of_plain_processes_that_fails_anywhere_leaves_nothing_behind() {
    let world = World::posix();
    let (daemon, injector) = Daemon::start_watched(&world);
    launch_until_nothing_fails(&world, &daemon, &injector, |turn| vec![turn]);
}

/// The last effect of a launch puts it on record; when that fails, everything has to be undone.
#[test]
fn undoing_a_launch_goes_on_until_it_has_succeeded() {
    if !is_root("a failing launch") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_watched(&world);
    let web = request(&world, "web", COUNTING);
    // The first launch makes what the later ones find.
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
fn an_end_that_fails_anywhere_is_tried_again_until_nothing_is_left() {
    if !is_root("a failing end") {
        return;
    }
    let world = World::shipped();
    let (daemon, injector) = Daemon::start_watched(&world);
    end_until_nothing_fails(&world, &daemon, &injector);
}

#[test]
fn an_end_of_plain_processes_that_fails_anywhere_is_tried_again_until_nothing_is_left() {
    let world = World::posix();
    let (daemon, injector) = Daemon::start_watched(&world);
    end_until_nothing_fails(&world, &daemon, &injector);
}

fn end_until_nothing_fails(world: &World, daemon: &Daemon, injector: &Injector) {
    let web = request(world, "web", COUNTING);
    for step in 1..ENDLESS {
        daemon.launch(&web).unwrap();
        injector.arm(Fault::Fail, &[step]);
        let termination = daemon.destroy(&web.id).unwrap();
        let removed = daemon.remove(&web.id);
        let seen = injector.disarm();
        let struck = seen.struck.first().map(ToString::to_string).unwrap_or_default();
        assert_eq!(termination.exit_status, Some(9), "step {step}: {struck}");
        if removed.is_err() {
            assert!(!struck.is_empty(), "{removed:?}");
            // A removal is not tried again by itself: whoever asked knows that it failed, and asks again.
            daemon.remove(&web.id).unwrap();
        }
        assert_eq!(state(daemon, &id("web")), None);
        assert_nothing_left(world, &format_args!("step {step}: {struck}\n{}", daemon.log()));
        assert_eq!(children_of(daemon.pid()).unwrap(), Vec::<i32>::new(), "step {step}: {struck}");
        if seen.struck.is_empty() {
            eprintln!("{step} steps");
            return;
        }
    }
    panic!("no end is without faults");
}
