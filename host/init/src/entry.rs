//! What a program without libc has to define itself: the entry point, the memory functions that the compiler calls,
//! and the panic handler.

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

// The kernel enters with the stack pointer at the argument count, aligned to 16 bytes, as `call` requires.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {main}", "ud2", main = sym main);

extern "C" fn main() -> ! {
    exit(cofferdam_init::run())
}

/// Init never panics on purpose. If it does, the container fails to start, or ends.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(1)
}

fn exit(status: u8) -> ! {
    loop {
        // SAFETY: exit_group(2) touches no memory and does not return.
        unsafe {
            asm!("syscall", in("rax") 231_usize, in("rdi") usize::from(status), out("rcx") _, out("r11") _, options(nostack));
        }
    }
}

/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // The compiler would replace a loop by a call to memcpy, which is this function.
    // SAFETY: promised by the caller; the direction flag is clear as everywhere.
    unsafe {
        asm!("rep movsb", inout("rcx") length => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= length {
        // SAFETY: a forward copy is correct if the destination does not start inside the source.
        return unsafe { memcpy(to, from, length) };
    }
    // SAFETY: promised by the caller; backwards from the last byte, and the direction flag is cleared again.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") length => _,
            inout("rdi") to.wrapping_add(length).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(length).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    // SAFETY: promised by the caller; the direction flag is clear as everywhere.
    unsafe {
        asm!("rep stosb", inout("rcx") length => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    let mut index = 0;
    while index < length {
        // SAFETY: promised by the caller.
        let (left, right) = unsafe { (a.add(index).read_volatile(), b.add(index).read_volatile()) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
        index += 1;
    }
    0
}

/// # Safety
/// As bcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    // SAFETY: promised by the caller.
    unsafe { memcmp(a, b, length) }
}

/// # Safety
/// As strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: promised by the caller.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
