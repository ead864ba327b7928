//! A file of fixed size in memory, shared with the kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The first `SIZE` bytes of a file.
pub(super) struct Map<const SIZE: usize>(NonNull<u8>);

// SAFETY: the memory is not bound to a thread, and is only accessed as below.
unsafe impl<const SIZE: usize> Send for Map<SIZE> {}
// SAFETY: see `Map::write`, whose callers own what they write to; everything else is atomic.
unsafe impl<const SIZE: usize> Sync for Map<SIZE> {}

impl<const SIZE: usize> Map<SIZE> {
    /// Maps a file that has `SIZE` bytes of reserved space.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Stores a number at a multiple of eight; all earlier writes of this thread come before it.
    pub(super) fn store(&self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8) && at + 8 <= SIZE, "{at} is not in the map");
        // SAFETY: the number is inside the mapping, aligned as that starts at a page, and only accessed atomically.
        let number = unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(at).cast()) };
        number.store(value.to_le(), Ordering::Release);
    }

    /// Writes bytes. The caller owns this part of the map: no other thread writes to it meanwhile.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIZE, "{at} is not in the map");
        // SAFETY: the range is inside the mapping, cannot overlap `bytes`, is read by no thread of this process, and
        // is written by this one alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr().add(at), bytes.len()) };
    }
}

impl<const SIZE: usize> Drop for Map<SIZE> {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}
