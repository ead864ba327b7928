//! Files whose content is replaced without more space, for what has to be recorded while something is freed: a full disk
//! must not prevent that.
//!
//! A file never becomes shorter. What is not used of it is newlines at its end, which JSON and most other formats ignore. A file
//! system that never writes to the same place (btrfs, ZFS) needs space nevertheless.
//!
//! To replace a content at once, write it to a second file of at least that size, and [`exchange`] the two.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Opens a file for reading and writing, or creates an empty one that only its owner can read.
///
/// # Errors
/// Of open(2).
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes sure that a file has at least a size.
///
/// # Errors
/// Of fstat(2) and pwrite(2). The file may have become longer nevertheless.
pub fn reserve(file: &File, size: usize) -> io::Result<()> {
    let length = length(file)?;
    match size.checked_sub(length) {
        None | Some(0) => Ok(()),
        Some(missing) => file.write_all_at(&vec![b'\n'; missing], length as u64),
    }
}

/// Replaces the content of a file, not at once. Does not change the position at which it is read.
///
/// # Errors
/// Of fstat(2) and pwrite(2). Only a content that is longer than the file needs space.
pub fn write(file: &File, mut content: Vec<u8>) -> io::Result<()> {
    content.resize(content.len().max(length(file)?), b'\n');
    file.write_all_at(&content, 0)
}

/// Renames a file, and the one that had its new name to its old name. If there was none, or the file system cannot exchange
/// names, there is no file of the old name afterwards.
///
/// # Errors
/// Of renameat2(2).
pub fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        other => Ok(other?),
    }
}

fn length(file: &File) -> io::Result<usize> {
    usize::try_from(file.metadata()?.len()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_size_and_has_the_last_content() {
        let directory = tempfile::tempdir().unwrap();
        let (next, path) = (directory.path().join("next"), directory.path().join("file"));
        let content = || serde_json::from_slice::<Vec<u8>>(&fs::read(&path).unwrap()).unwrap();
        for (number, numbers) in [vec![1, 2, 3], vec![4, 5], vec![6; 100], vec![7]].into_iter().enumerate() {
            let file = open(&next).unwrap();
            reserve(&file, 50).unwrap();
            write(&file, serde_json::to_vec(&numbers).unwrap()).unwrap();
            exchange(&next, &path).unwrap();
            assert_eq!(content(), numbers);
            assert_eq!(next.exists(), number > 0);
            assert!(length(&file).unwrap() >= 50);
        }
    }
}
