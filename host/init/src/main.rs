//! The program: only the entry point, which `build.rs` compiles without std, libc or start-up files.

#![no_std]
#![no_main]

mod entry;
