//! What the tests of the whole house share: where things are, and a world of their own for each test.

pub mod daemon;
pub mod injector;
pub mod paths;
pub mod sockets;
pub mod watch;
pub mod world;

/// Whether this process is root. Tests that need it say so: they fail in CI, and are skipped loudly elsewhere.
pub fn is_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs root, and CI promises it");
    eprintln!("SKIPPED {test}: it needs root");
    false
}

use std::path::Path;
use std::time::Duration;

/// A file's text.
///
/// # Panics
/// When it cannot be read.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits, by the file's own events, until a text is in it.
///
/// # Panics
/// When it is not there after a minute.
pub fn wait_for_text(path: &Path, wanted: &str) {
    watch::content(path, Duration::from_secs(60), |found| found.contains(wanted));
}
