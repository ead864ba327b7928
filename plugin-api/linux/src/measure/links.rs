//! Files with several links, which count once.

use std::collections::HashMap;

/// How many such files are known at once.
const MAX_FILES: usize = 1 << 16;

/// The files of which some links have been found and others have not.
///
/// A file is forgotten with its last link, so this is small unless links are outside of the tree. If there are too many
/// files, each link of a further one counts as its share of the file: the sum is the same if all links are in the tree.
#[derive(Debug, Default)]
pub(super) struct Links {
    found: HashMap<(u64, u64), u32>,
    is_full: bool,
}

impl Links {
    /// The bytes to add for a link to `file`, of which there are `links`.
    pub(super) fn add(&mut self, file: (u64, u64), links: u32, bytes: u64) -> u64 {
        if let Some(found) = self.found.get_mut(&file) {
            *found += 1;
            if *found >= links {
                self.found.remove(&file);
            }
            return 0;
        }
        self.is_full |= self.found.len() >= MAX_FILES;
        if self.is_full {
            return bytes / u64::from(links.max(1));
        }
        self.found.insert(file, 1);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_once_whether_few_or_many_have_several_links() {
        for files in [10, MAX_FILES as u64 * 2] {
            let mut links = Links::default();
            let total: u64 = (0..2).flat_map(|_| 0..files).map(|inode| links.add((1, inode), 2, 4096)).sum();
            assert_eq!(total, files * 4096);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut links = Links::default();
        for inode in 0..MAX_FILES as u64 * 3 {
            links.add((1, inode), 2, 4096);
        }
        assert_eq!(links.found.len(), MAX_FILES);
    }
}
