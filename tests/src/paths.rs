//! Where the programs and plugins under test are.

use std::path::PathBuf;

/// The directory with the binaries of this build, such as `target/debug`.
///
/// # Panics
/// If they are missing: `cargo test` does not build plugin files, so `cargo build --workspace` has to run first.
pub fn build() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    let build = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps").to_owned();
    for wanted in [
        "cofferdam",
        "cofferdam-executor",
        "test-executor",
        "libcofferdam_filesystem_linux.so",
        "libgreeting.so",
    ] {
        assert!(
            build.join(wanted).exists(),
            "`{wanted}` is not in {}: run `cargo build --workspace` (with the same profile) first",
            build.display()
        );
    }
    build
}

/// The program `cofferdam` of this build.
///
/// # Panics
/// Like [`build`].
pub fn program() -> PathBuf {
    build().join("cofferdam")
}
