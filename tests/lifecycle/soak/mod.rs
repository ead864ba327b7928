//! Random operations and faults for a while, from a seed.
//!
//! A model has what each container should be, and all answers of the agent must agree with it. In the end, nothing of the
//! containers may be left in the kernel and on disk. See docs/testing.md.

mod model;
mod operation;
mod round;
mod tables;

use std::env;
use std::time::{Duration, Instant};

use cofferdam_core::config::LauncherKind;
use cofferdam_tests::is_root;
use cofferdam_tests::mounts::in_own_namespace;

use round::Round;

/// How long each of the two launchers is tested in the ordinary run.
const ORDINARY: Duration = Duration::from_secs(15);

/// After this, all containers are removed, and what is left of them is looked for.
const ROUND: Duration = Duration::from_secs(30);

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, and must be a number")))
}

/// Runs rounds with consecutive seeds.
fn soak(launcher: LauncherKind) {
    let minutes = number("COFFERDAM_SOAK_MINUTES");
    // Both launchers share the time.
    let duration = minutes.map_or(ORDINARY, |minutes| Duration::from_secs(minutes * 30));
    let seed = number("COFFERDAM_SOAK_SEED");
    let mut seed = seed.unwrap_or_else(|| if minutes.is_some() { fastrand::u64(..1 << 32) } else { 1 });
    let end = Instant::now() + duration;
    while Instant::now() < end {
        let length = ROUND.min(end.saturating_duration_since(Instant::now()));
        Round::new(launcher, seed).run(length);
        seed += 1;
    }
}

#[test]
fn random_operations_and_faults_leave_containers_as_requested_and_nothing_behind() {
    if is_root("containers with the `linux` launcher") {
        in_own_namespace(|| soak(LauncherKind::Linux));
    }
}

#[test]
fn random_operations_and_faults_leave_plain_processes_as_requested_and_nothing_behind() {
    if is_root("a full disk, and what is left of processes") {
        in_own_namespace(|| soak(LauncherKind::Posix));
    }
}
