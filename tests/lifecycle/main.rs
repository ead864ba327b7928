//! Faults at every step: launches that fail, agents that die, and what must hold all the same.
//!
//! The agent is the real program, asked over its socket. What fails it is `cofferdam_tests::injector`, of
//! which the agent knows nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod crashes;
mod faults;
mod nested;
mod phases;
mod restarts;

use std::path::Path;

use cofferdam_core::model::{ContainerId, Request, Resources};
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::watch;
use cofferdam_tests::world::World;

/// More steps than anything has.
const ENDLESS: usize = 1000;

/// Counts for as long as it lives, a line for each number, faster than anything else here happens.
const COUNTING: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

/// A container with all that the chain of this world can give it.
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

/// Waits until a container that counts has counted on from where it is, without leaving out a number.
fn counts_on(stdout: &Path) {
    let count = |content: &str| content.lines().count();
    let before = count(&std::fs::read_to_string(stdout).unwrap_or_default());
    // A container may be about to write; from then on it must write.
    let content = watch::content(stdout, TIMEOUT, |content| count(content) >= before + 3);
    let numbers = content.lines().map(|line| line.parse::<usize>().unwrap());
    // The last line may be there in part only.
    for (expected, number) in (1..).zip(numbers).take(count(&content) - 1) {
        assert_eq!(number, expected, "a line is missing");
    }
}

#[track_caller]
fn assert_nothing_left(world: &World, when: &dyn std::fmt::Display) {
    assert_eq!(world.leftovers(), Vec::<String>::new(), "{when}");
}
