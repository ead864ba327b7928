//! Which slot a process belongs to, found by its pid: a hash table of chains, in memory of a fixed size.

use crate::sys::{Errno, Mapping};

/// Number of chains. The kernel hands out pids in order, so those of containers that are launched one after the other are in
/// different chains, and the chains near each other in memory.
const CHAINS: usize = 1 << 13;

/// Numbers that are found by a pid. Each is in one chain at most. Children of the keeper find zeros in the memory.
pub(super) struct Index {
    /// The first number of each chain, plus 1; 0 if there is none.
    first: Mapping,
    /// The number that follows each in its chain, likewise.
    next: Mapping,
}

impl Index {
    /// For numbers below `length`.
    pub(super) fn new(length: usize) -> Result<Self, Errno> {
        let words = |count: usize| Mapping::kept_from_children(count * size_of::<usize>());
        Ok(Self { first: words(CHAINS)?, next: words(length)? })
    }

    /// The numbers in the chain of a pid, its own among them.
    pub(super) fn chain(&self, pid: i32) -> impl Iterator<Item = usize> {
        let mut link = self.first.word(chain(pid));
        core::iter::from_fn(move || {
            let number = link.checked_sub(1)?;
            link = self.next.word(number);
            Some(number)
        })
    }

    /// Adds a number that is in no chain.
    pub(super) fn insert(&mut self, pid: i32, number: usize) {
        let first = self.first.word(chain(pid));
        set(&mut self.next, number, first);
        set(&mut self.first, chain(pid), number + 1);
    }

    /// Removes a number, if it is in the chain of the pid.
    pub(super) fn remove(&mut self, pid: i32, number: usize) {
        let after = self.next.word(number);
        if self.first.word(chain(pid)) == number + 1 {
            return set(&mut self.first, chain(pid), after);
        }
        let before = self.chain(pid).find(|other| self.next.word(*other) == number + 1);
        if let Some(before) = before {
            set(&mut self.next, before, after);
        }
    }
}

const fn chain(pid: i32) -> usize {
    pid.cast_unsigned() as usize % CHAINS
}

fn set(links: &mut Mapping, index: usize, value: usize) {
    if let Some(word) = links.words().get_mut(index) {
        *word = value;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{CHAINS, Index};

    fn sorted(index: &Index, pid: i32) -> Vec<usize> {
        let mut numbers: Vec<usize> = index.chain(pid).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn numbers_of_pids_in_one_chain_are_told_apart_by_who_asks() {
        let mut index = Index::new(8).unwrap();
        let same = |times: usize| i32::try_from(7 + times * CHAINS).unwrap();
        for number in 0..4 {
            index.insert(same(number), number);
        }
        index.insert(8, 4);
        assert_eq!(sorted(&index, 7), [0, 1, 2, 3]);
        assert_eq!(sorted(&index, 8), [4]);
        // In the middle, at both ends, and one that is not there.
        for (number, left) in [(1, vec![0, 2, 3]), (3, vec![0, 2]), (0, vec![2]), (0, vec![2]), (2, vec![])] {
            index.remove(same(number), number);
            assert_eq!(sorted(&index, 7), left, "without {number}");
        }
        assert_eq!(sorted(&index, 8), [4]);
    }

    proptest! {
        #[test]
        fn each_number_is_in_the_chain_of_its_pid_until_it_is_removed(
            changes in proptest::collection::vec((0_usize..40, 1_i32..5, 0_usize..4), 0..200),
        ) {
            let mut index = Index::new(40).unwrap();
            let mut known = BTreeMap::new();
            for (number, pid, chain) in changes {
                let pid = pid + i32::try_from(chain * CHAINS).unwrap();
                match known.remove(&number) {
                    Some(before) => index.remove(before, number),
                    None => {
                        index.insert(pid, number);
                        known.insert(number, pid);
                    }
                }
                for residue in 1..5 {
                    let expected: Vec<usize> = known
                        .iter()
                        .filter(|(_, pid)| **pid as usize % CHAINS == residue)
                        .map(|(number, _)| *number)
                        .collect();
                    prop_assert_eq!(sorted(&index, i32::try_from(residue).unwrap()), expected);
                }
            }
        }
    }
}
