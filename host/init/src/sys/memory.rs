//! Memory from the kernel, by the page: init has no allocator.
#![allow(unsafe_code)]

use core::ops::{Deref, DerefMut};
use core::slice;

use super::{Result, call, nr};

/// Gives back the pages of the stack that lie below the caller's frame, in which earlier and deeper calls have been.
///
/// Building a container takes some pages of paths; waiting for its end takes one.
#[inline(never)]
pub(crate) fn give_back_dead_stack() {
    const PAGE: usize = 4096;
    const DEEPEST: usize = 64 * PAGE;
    const MADV_DONTNEED: usize = 4;
    let here = 0_u8;
    // This frame may lie across a page's border, and the page below may hold the part of it that we do not see.
    let end = ((&raw const here) as usize & !(PAGE - 1)) - PAGE;
    // SAFETY: below the stack pointer, and the 128 bytes that a leaf may use there, nothing is alive; and what is above
    // `end` is not touched. That a part of the range is not mapped makes the call fail after it has done the rest.
    let _ = unsafe { call(nr::MADVISE, [end - DEEPEST, DEEPEST, MADV_DONTNEED]) };
}

/// Zeroed memory of the size asked for, given back when dropped.
pub(crate) struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    /// `length` must not be 0.
    pub(crate) fn new(length: usize) -> Result<Self> {
        const PROT_READ_WRITE: usize = 3;
        const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
        // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
        let address =
            unsafe { call(nr::MMAP, [0, length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, usize::MAX, 0]) }?;
        Ok(Self { address, length })
    }

    /// The memory as machine words.
    pub(crate) fn words(&mut self) -> &mut [usize] {
        // SAFETY: the mapping is ours alone, zeroed, aligned to a page, and any bits make a word.
        unsafe { slice::from_raw_parts_mut(self.address as *mut usize, self.length / size_of::<usize>()) }
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is ours alone, and was zeroed when made.
        unsafe { slice::from_raw_parts(self.address as *const u8, self.length) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.address as *mut u8, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing borrows it any more.
        let _ = unsafe { call(nr::MUNMAP, [self.address, self.length]) };
    }
}
