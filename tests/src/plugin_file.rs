//! Plugin files of this build that are changed for a test.

use std::fs;
use std::path::PathBuf;

use crate::paths;
use crate::world::World;

/// A modified copy of a plugin file of this build, in a world's directory.
///
/// # Panics
/// If it cannot be read or written.
pub fn modified_copy(world: &World, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(paths::build().join(file)).expect("a file of `cargo build --workspace`");
    change(&mut bytes);
    let path = world.directory().join(file);
    fs::write(&path, bytes).expect("a file");
    path
}

/// Replaces every occurrence of a text by another of the same length.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn patch(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut found = 0;
    for start in 0..=bytes.len() - from.len() {
        if bytes[start..].starts_with(from.as_bytes()) {
            bytes[start..start + from.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "`{from}` is not in the file");
}
