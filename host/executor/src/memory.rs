//! Gives back the memory of the program's code while it waits.
//!
//! Code and constants are clean pages of the file, which all executors of a host share. But each fault maps sixteen of
//! them, and the pages of the start are never used again.

#![allow(unsafe_code)]

use std::{ptr, slice};

use libc::{ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PF_W, PT_LOAD};
use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

unsafe extern "C" {
    /// The program's own ELF header, which the linker names.
    static __ehdr_start: Elf64_Ehdr;
}

/// Unmaps the pages of segments that are never written. They are mapped again when they are used.
pub(crate) fn release_code() {
    for segment in segments() {
        if segment.p_type != PT_LOAD || segment.p_flags & PF_W != 0 {
            continue;
        }
        // Whole pages of the segment: the others may have a part of another one.
        let start = (segment.p_vaddr as usize).next_multiple_of(page_size());
        let end = (segment.p_vaddr + segment.p_memsz) as usize / page_size() * page_size();
        // SAFETY: the range is a part of a segment of this program, which is linked to its final address. The segment cannot
        // be written, so that its pages come back from the file as they were. Should the call fail, nothing has changed.
        let _ = unsafe { madvise(start as *mut _, end.saturating_sub(start), Advice::LinuxDontNeed) };
    }
}

/// The segments of the program, none if it is not linked to a final address, as in unit tests.
fn segments() -> &'static [Elf64_Phdr] {
    // SAFETY: the linker defines the symbol, and the header is part of the first segment.
    let header = unsafe { &__ehdr_start };
    if header.e_type != ET_EXEC {
        return &[];
    }
    let table = ptr::from_ref(header).cast::<u8>().wrapping_add(header.e_phoff as usize);
    // SAFETY: the linker puts the table of segments behind the header, into the first segment, which is never unmapped or
    // written.
    unsafe { slice::from_raw_parts(table.cast(), header.e_phnum.into()) }
}
