//! Programs for the kernel that decide about devices: loaded, and attached to cgroups, by bpf(2).
//!
//! An attached program needs no descriptor: it stays until it is detached or its cgroup is removed.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Cgroups below can have programs too; all of them must permit an access.
const ALLOW_MULTI: u32 = 1 << 1;
/// Replaces another program atomically.
const REPLACE: u32 = 1 << 2;

/// The kernel permits 64 programs on one cgroup.
const MAX_ATTACHED: usize = 64;

const LICENSE: &CStr = c"Apache-2.0";

/// One instruction, `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the lower four bits, source register in the upper ones.
    pub registers: u8,
    /// Offset of a jump or of a memory access.
    pub offset: i16,
    /// Constant.
    pub constant: i32,
}

/// What the kernel tells of a loaded program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its number, which no other loaded program has.
    pub id: u32,
    /// Checksum of its instructions.
    pub tag: [u8; 8],
    /// Its name, padded with NUL.
    pub name: [u8; 16],
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[derive(Default)]
#[repr(C)]
struct Attach {
    target_fd: i32,
    attach_bpf_fd: i32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: i32,
}

#[derive(Default)]
#[repr(C)]
struct Query {
    target_fd: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[derive(Default)]
#[repr(C)]
struct GetById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct GetInfo {
    bpf_fd: i32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[derive(Default)]
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Loads a program of the type for devices.
///
/// # Errors
/// Those of bpf(2): EPERM without CAP_BPF and CAP_NET_ADMIN, EINVAL or EACCES for a program that the kernel rejects.
pub fn load_device_program(name: [u8; 16], instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut load = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        prog_name: name,
        ..Load::default()
    };
    // SAFETY: `Load` is the part of the attributes for this command; its pointers are to `insn_cnt` instructions and to
    // a string with NUL, which outlive the call.
    let descriptor = unsafe { bpf(PROG_LOAD, &mut load) }?;
    // SAFETY: the kernel has returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Attaches a program to the v2 cgroup whose directory `cgroup` is, beside those of others or in the place of one.
///
/// # Errors
/// Those of bpf(2): EPERM also if a cgroup above has a program that permits no others.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attach = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |replaced| replaced.as_raw_fd()),
    };
    // SAFETY: `Attach` is the part of the attributes for this command, and has no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attach) }.map(drop)
}

/// The programs for devices that are attached to a v2 cgroup itself.
///
/// # Errors
/// Those of bpf(2).
pub fn attached_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_ATTACHED as u32,
        ..Query::default()
    };
    // SAFETY: `Query` is the part of the attributes for this command; its pointer is to `prog_cnt` numbers, which
    // outlive the call.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    let found = &ids[..ids.len().min(query.prog_cnt as usize)];
    // One that was detached meanwhile may not exist any more.
    let programs = found.iter().map(|id| program(*id)).filter(|program| !is_missing(program));
    programs.collect()
}

fn is_missing(program: &io::Result<OwnedFd>) -> bool {
    program.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The program of this number.
///
/// # Errors
/// Those of bpf(2); `NotFound` if there is none.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    let mut get = GetById { prog_id: id, ..GetById::default() };
    // SAFETY: `GetById` is the part of the attributes for this command, and has no pointers.
    let descriptor = unsafe { bpf(PROG_GET_FD_BY_ID, &mut get) }?;
    // SAFETY: the kernel has returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// What the kernel tells of a program.
///
/// # Errors
/// Those of bpf(2).
pub fn info(program: impl AsFd) -> io::Result<ProgramInfo> {
    let mut info = Info::default();
    let mut get = GetInfo {
        bpf_fd: program.as_fd().as_raw_fd(),
        info_len: mem::size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: `GetInfo` is the part of the attributes for this command; its pointer is to `info_len` bytes, all zero as
    // the kernel requires where it reads, which outlive the call. Any bytes are a valid `Info`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut get) }?;
    Ok(ProgramInfo { id: info.id, tag: info.tag, name: info.name })
}

/// # Safety
/// `attributes` must be what `command` expects, with valid pointers.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the caller's; the kernel accepts attributes that are shorter than its own, and reads and writes
    // `size_of::<T>()` bytes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, mem::size_of::<T>() as u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
