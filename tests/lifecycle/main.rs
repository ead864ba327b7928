//! Faults at every step: failed launches and killed agents, and the invariants that must still hold.
//!
//! The agent is the real program, called over its socket. Faults come from `cofferdam_tests::injector`, without any
//! test hook in the agent.

#![expect(clippy::unwrap_used, reason = "a panic shows where a test failed")]

mod crashes;
mod descriptors;
mod embedded;
mod exhaustion;
mod faults;
mod force;
mod foreign;
mod held;
mod hosts;
mod keeper;
mod nested;
mod phases;
mod restarts;
mod soak;

use std::path::Path;

use cofferdam_core::model::{ContainerId, Request, Resources};
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::watch;
use cofferdam_tests::world::World;

/// Limit for the number of steps; no operation has that many.
const MAX_STEPS: usize = 1000;

/// Prints a number per line until it is killed, faster than any step of a test.
const COUNTING: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

/// A container that uses all plugins in the chain of this world.
fn request(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    if world.config.isolators.iter().any(|plugin| plugin.name == "filesystem/linux") {
        request.rootfs = Some(world.rootfs());
    }
    request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    request
}

fn state(daemon: &Daemon, id: &ContainerId) -> Option<String> {
    daemon.inspect(id).map(|container| container.state)
}

/// Waits until a counting container has printed further numbers, and checks that none is missing.
fn assert_keeps_counting(stdout: &Path) {
    let count = |content: &str| content.lines().count();
    let before = count(&std::fs::read_to_string(stdout).unwrap_or_default());
    // One line may be in flight; the following ones must be written after this call.
    let content = watch::content(stdout, TIMEOUT, |content| count(content) >= before + 3);
    let numbers = content.lines().map(|line| line.parse::<usize>().unwrap());
    // The last line may be incomplete.
    for (expected, number) in (1..).zip(numbers).take(count(&content) - 1) {
        assert_eq!(number, expected, "a line is missing");
    }
}

#[track_caller]
fn assert_nothing_left(world: &World, when: &dyn std::fmt::Display) {
    assert_eq!(world.leftovers(), Vec::<String>::new(), "{when}");
}
