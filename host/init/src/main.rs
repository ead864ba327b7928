//! The program: nothing but an entry, for `build.rs` to compile without std, libc or a start-up file.

#![no_std]
#![no_main]

mod entry;
