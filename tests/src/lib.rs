//! Shared by the integration tests: paths, directories and agents for each test, fault injection.

pub mod clock;
pub mod daemon;
pub mod debian;
pub mod disk;
pub mod engine;
pub mod held_directories;
pub mod images;
pub mod injector;
pub mod journal;
pub mod mounts;
pub mod paths;
pub mod pipe;
pub mod plugin_file;
pub mod program;
pub mod registry;
pub mod sockets;
pub mod terminal;
pub mod tls;
pub mod tunnel;
pub mod virtual_machine;
pub mod watch;
pub mod world;

/// Compiles and runs the code samples of the pages.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/plugin-author.md")]
    struct PluginAuthor;
}

/// Whether this process is root. Otherwise reports that a test is skipped, or fails it if `CI` is set.
pub fn is_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs root; with CI set it must not be skipped");
    eprintln!("SKIPPED {test}: it needs root");
    false
}

use std::path::Path;
use std::time::Duration;

/// Content of a file.
///
/// # Panics
/// If it cannot be read.
pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Waits with inotify until a file contains a text.
///
/// # Panics
/// If it does not after a minute.
pub fn wait_for_text(path: &Path, wanted: &str) {
    watch::content(path, Duration::from_secs(60), |found| found.contains(wanted));
}

/// `text` must contain all of `parts`.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}
