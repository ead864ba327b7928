//! The API over TCP and in protocol buffers, as clients and executors that are not of this project use it.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod clients;
mod golden;
mod pages;
mod tcp;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::world::World;

pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// A world whose agent serves TCP, on a port that the kernel chooses.
fn world() -> World {
    let mut world = World::posix();
    world.config.executors.endpoint = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    world
}

/// Where the agent listens.
pub(crate) fn address(daemon: &Daemon) -> String {
    let flags = daemon.get("/flags");
    flags["flags"]["api.listen"].as_str().expect("an address").to_owned()
}

/// A script that uses the implementation of protocol buffers by Google.
pub(crate) fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("system/transports").join(name)
}

/// Whether Python has an implementation of protocol buffers. Otherwise reports that a test is skipped, or fails it if `CI` is
/// set.
pub(crate) fn has_protobuf() -> bool {
    let found = Command::new(PYTHON).args(["-c", "import google.protobuf"]).output();
    if found.is_ok_and(|found| found.status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "python3-protobuf is missing; with CI set it must not be skipped"
    );
    eprintln!("skipped: it needs the package python3-protobuf");
    false
}
