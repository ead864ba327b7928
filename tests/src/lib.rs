//! What the tests of the whole house share: where things are, and a world of their own for each test.

pub mod paths;
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
