//! Memory mapped by the page: init has no allocator.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::slice;

use super::{Errno, Result, call, nr};

const PAGE: usize = 4096;

/// Releases the pages of the stack below the caller's frame, which earlier and deeper calls have used.
///
/// Setting up a container uses several pages for paths; waiting for its end uses one.
#[inline(never)]
pub(crate) fn release_unused_stack() {
    const DEEPEST: usize = 64 * PAGE;
    const MADV_DONTNEED: usize = 4;
    let here = 0_u8;
    // This frame may cross a page boundary, so the page below `here` may belong to it.
    let end = ((&raw const here) as usize & !(PAGE - 1)) - PAGE;
    // SAFETY: nothing below the stack pointer and its 128-byte red zone is in use, and nothing above `end` changes.
    // If a part of the range is not mapped, the call fails after it has processed the rest.
    let _ = unsafe { call(nr::MADVISE, [end - DEEPEST, DEEPEST, MADV_DONTNEED]) };
}

/// Zeroed memory, unmapped on drop.
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

    /// As [`Mapping::new`]; a child process finds zeros in it. Pages that are never touched cost nothing.
    pub(crate) fn kept_from_children(length: usize) -> Result<Self> {
        const MADV_WIPEONFORK: usize = 18;
        let mapping = Self::new(length)?;
        // SAFETY: the range is the mapping, whose content this process does not lose.
        unsafe { call(nr::MADVISE, [mapping.address, length, MADV_WIPEONFORK]) }?;
        Ok(mapping)
    }

    /// The machine word at an index; 0 beyond the end.
    pub(crate) fn word(&self, index: usize) -> usize {
        let bytes = self.get(index * size_of::<usize>()..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |word| usize::from_ne_bytes(*word))
    }

    /// The memory as machine words.
    pub(crate) fn words(&mut self) -> &mut [usize] {
        // SAFETY: the mapping is owned, initialised, aligned to a page, and any bit pattern is a valid `usize`.
        unsafe { slice::from_raw_parts_mut(self.address as *mut usize, self.length / size_of::<usize>()) }
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is owned and was zeroed by the kernel.
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
        // SAFETY: mapped by `new`, and no borrow outlives it.
        let _ = unsafe { call(nr::MUNMAP, [self.address, self.length]) };
    }
}

/// An array, unmapped on drop.
pub(crate) struct Table<T> {
    mapping: Mapping,
    length: usize,
    elements: PhantomData<T>,
}

impl<T: Copy> Table<T> {
    /// `length` must not be 0.
    pub(crate) fn new(length: usize, value: T) -> Result<Self> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= PAGE) };
        let mapping = Mapping::new(length.checked_mul(size_of::<T>()).ok_or(Errno::INVAL)?)?;
        for index in 0..length {
            // SAFETY: the mapping is owned, aligned to a page, and has `length` elements.
            unsafe { (mapping.address as *mut T).add(index).write(value) };
        }
        Ok(Self { mapping, length, elements: PhantomData })
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is owned, and `new` has written all elements.
        unsafe { slice::from_raw_parts(self.mapping.address as *const T, self.length) }
    }
}

impl<T> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.mapping.address as *mut T, self.length) }
    }
}

/// A number that a process shares with its direct children, but not with theirs once [`SharedNumber::hide`] was called.
pub(crate) struct SharedNumber {
    address: usize,
}

impl SharedNumber {
    const LENGTH: usize = 4096;

    pub(crate) fn new() -> Result<Self> {
        const PROT_READ_WRITE: usize = 3;
        const MAP_SHARED_ANONYMOUS: usize = 0x21;
        // SAFETY: a new shared mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe {
            call(nr::MMAP, [0, Self::LENGTH, PROT_READ_WRITE, MAP_SHARED_ANONYMOUS, usize::MAX, 0])
        }?;
        Ok(Self { address })
    }

    /// Processes that this one creates from now on do not have the mapping.
    pub(crate) fn hide(&self) -> Result<()> {
        const MADV_DONTFORK: usize = 10;
        // SAFETY: the range is the mapping; it stays mapped in this process.
        unsafe { call(nr::MADVISE, [self.address, Self::LENGTH, MADV_DONTFORK]) }.map(drop)
    }

    pub(crate) fn set(&self, number: i32) {
        // SAFETY: the mapping is aligned, never unmapped, and only accessed by volatile reads and writes.
        unsafe { (self.address as *mut i32).write_volatile(number) }
    }

    pub(crate) fn get(&self) -> i32 {
        // SAFETY: as above.
        unsafe { (self.address as *const i32).read_volatile() }
    }
}
