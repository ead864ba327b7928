//! Parses a shared object without loading it.
//!
//! Everything is located through the program headers, as the dynamic loader does, so that files without section headers
//! are supported. The input is not trusted: each offset is checked before it is used.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{Bytes, ReadRef};

/// Properties of a shared object.
#[derive(Debug, Default)]
pub struct Facts<'data> {
    /// The descriptor of the requested note, if there is one.
    pub note: Option<&'data [u8]>,
    /// The newest version of glibc that any of its symbols requires: the `x` of `GLIBC_2.x`.
    pub glibc_minor: u32,
    /// Whether it requires static thread-local storage, which dlopen(3) may not be able to allocate.
    pub static_tls: bool,
    /// Whether its dynamic string table contains the requested symbol name.
    pub names_symbol: bool,
}

/// Why a file is not a shared object that can be loaded on this machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// It has no ELF magic number.
    #[error("it is not an ELF file")]
    NotElf,
    /// It is for another architecture.
    #[error("it was built for {0}, this agent runs on x86-64 (64-bit, little-endian)")]
    Foreign(String),
    /// It is an ELF file of another type: an object file, a program, a core dump.
    #[error("it is {0}, not a shared library")]
    NotShared(&'static str),
    /// Its headers describe more bytes than it has.
    #[error("it is truncated: its headers describe {needed} bytes, the file has {len}")]
    Truncated {
        /// Length in bytes according to the headers.
        needed: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// One of its tables is invalid.
    #[error("its {0} cannot be read")]
    Malformed(&'static str),
}

/// Parses a shared object. `note` is the owner and type of the requested note, `symbol` the requested symbol name.
///
/// # Errors
/// [`ElfError`] if it cannot be loaded on this machine.
pub fn read<'data>(
    data: impl ReadRef<'data>,
    note: (&str, u32),
    symbol: &[u8],
) -> Result<Facts<'data>, ElfError> {
    let len = data.len().map_err(|()| ElfError::Malformed("length"))?;
    check_identity(data, len)?;
    let header = elf::FileHeader64::<LE>::parse(data).map_err(|_| ElfError::Malformed("header"))?;
    match header.e_type(LE) {
        elf::ET_DYN => {}
        elf::ET_REL => return Err(ElfError::NotShared("an object file")),
        elf::ET_EXEC => return Err(ElfError::NotShared("a program")),
        elf::ET_CORE => return Err(ElfError::NotShared("a core dump")),
        _ => return Err(ElfError::NotShared("of an unknown type")),
    }
    let segments = header.program_headers(LE, data).map_err(|_| ElfError::Truncated {
        needed: header
            .e_phoff(LE)
            .saturating_add(u64::from(header.e_phnum(LE)) * u64::from(header.e_phentsize(LE))),
        len,
    })?;
    check_length(len, header, segments)?;
    if segments.iter().any(|segment| segment.p_type(LE) == elf::PT_INTERP) {
        return Err(ElfError::NotShared("a program"));
    }
    let mut facts = Facts { note: find_note(data, segments, note)?, ..Facts::default() };
    read_dynamic(data, segments, symbol, &mut facts)?;
    Ok(facts)
}

fn check_identity<'data>(data: impl ReadRef<'data>, len: u64) -> Result<(), ElfError> {
    const HEADER: u64 = size_of::<elf::FileHeader64<LE>>() as u64;
    if data.read_bytes_at(0, elf::ELFMAG.len() as u64) != Ok(&elf::ELFMAG[..]) {
        return Err(ElfError::NotElf);
    }
    let ident = data.read_bytes_at(0, HEADER).map_err(|()| ElfError::Truncated { needed: HEADER, len })?;
    let little = ident[5] == elf::ELFDATA2LSB.0;
    let machine = [ident[18], ident[19]];
    let machine =
        elf::Machine(if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) });
    if ident[4] == elf::ELFCLASS64.0 && little && machine == elf::EM_X86_64 {
        return Ok(());
    }
    let name = match machine {
        elf::EM_X86_64 => "x86-64".to_owned(),
        elf::EM_386 => "x86".to_owned(),
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_ARM => "arm".to_owned(),
        elf::EM_RISCV => "riscv".to_owned(),
        elf::EM_PPC64 => "ppc64".to_owned(),
        elf::EM_S390 => "s390x".to_owned(),
        other => format!("machine {}", other.0),
    };
    let bits = if ident[4] == elf::ELFCLASS32.0 { "32-bit" } else { "64-bit" };
    let order = if little { "little-endian" } else { "big-endian" };
    Err(ElfError::Foreign(format!("{name} ({bits}, {order})")))
}

/// Checks that all segments are within the file. Otherwise the loader would map pages beyond its end, and accessing
/// them raises SIGBUS.
fn check_length(
    len: u64,
    header: &elf::FileHeader64<LE>,
    segments: &[elf::ProgramHeader64<LE>],
) -> Result<(), ElfError> {
    let mut needed = 0;
    for segment in segments {
        let end = segment.p_offset(LE).checked_add(segment.p_filesz(LE));
        needed = needed.max(end.ok_or(ElfError::Malformed("program headers"))?);
    }
    // Section headers are at the end of the file, so they reveal a truncation behind the last segment.
    let sections = u64::from(header.e_shnum(LE)) * u64::from(header.e_shentsize(LE));
    needed = needed.max(header.e_shoff(LE).saturating_add(sections));
    if needed > len { Err(ElfError::Truncated { needed, len }) } else { Ok(()) }
}

fn find_note<'data>(
    data: impl ReadRef<'data>,
    segments: &'data [elf::ProgramHeader64<LE>],
    (owner, kind): (&str, u32),
) -> Result<Option<&'data [u8]>, ElfError> {
    let malformed = |_| ElfError::Malformed("notes");
    for segment in segments {
        let Some(mut notes) = segment.notes(LE, data).map_err(malformed)? else { continue };
        while let Some(note) = notes.next().map_err(malformed)? {
            if note.name() == owner.as_bytes() && note.n_type(LE).0 == kind {
                return Ok(Some(note.desc()));
            }
        }
    }
    Ok(None)
}

fn read_dynamic<'data>(
    data: impl ReadRef<'data>,
    segments: &'data [elf::ProgramHeader64<LE>],
    symbol: &[u8],
    facts: &mut Facts<'_>,
) -> Result<(), ElfError> {
    let malformed = |_| ElfError::Malformed("dynamic section");
    let (mut strings, mut strings_len, mut verneed) = (None, 0, None);
    for segment in segments {
        let Some(entries) = segment.dynamic(LE, data).map_err(malformed)? else { continue };
        for entry in entries {
            let value = entry.d_val.get(LE);
            match entry.d_tag.get(LE) {
                elf::DT_NULL => break,
                elf::DT_STRTAB => strings = Some(value),
                elf::DT_STRSZ => strings_len = value,
                elf::DT_VERNEED => verneed = Some(value),
                elf::DT_FLAGS => facts.static_tls = value & elf::DF_STATIC_TLS.0 != 0,
                _ => {}
            }
        }
    }
    let Some(strings) = strings.and_then(|address| offset_of(segments, address)) else {
        return Err(ElfError::Malformed("dynamic section"));
    };
    let strings =
        data.read_bytes_at(strings, strings_len).map_err(|()| ElfError::Malformed("dynamic strings"))?;
    facts.names_symbol = strings.split(|&byte| byte == 0).any(|name| name == symbol);
    if let Some(at) = verneed.and_then(|address| offset_of(segments, address)) {
        facts.glibc_minor = newest_glibc(data, at, strings)?;
    }
    Ok(())
}

/// The file offset of the byte that is mapped at `address`.
fn offset_of(segments: &[elf::ProgramHeader64<LE>], address: u64) -> Option<u64> {
    segments.iter().filter(|segment| segment.p_type(LE) == elf::PT_LOAD).find_map(|segment| {
        let within = address.checked_sub(segment.p_vaddr(LE))?;
        (within < segment.p_filesz(LE)).then(|| segment.p_offset(LE) + within)
    })
}

fn newest_glibc<'data>(data: impl ReadRef<'data>, at: u64, strings: &[u8]) -> Result<u32, ElfError> {
    const MALFORMED: ElfError = ElfError::Malformed("version needs");
    /// Longer than the name of any version.
    const MAX_NAME: usize = 1024;
    /// Real files need a few versions of a few libraries.
    const MAX_VERSIONS: usize = 4096;
    let read_need = |at: u64| data.read_at::<elf::Verneed<LE>>(at).map_err(|()| MALFORMED);
    let read_aux = |at: u64| data.read_at::<elf::Vernaux<LE>>(at).map_err(|()| MALFORMED);
    let (mut newest, mut at, mut versions) = (0, at, 0);
    // Bounded, as the entries of a malicious file may form a cycle.
    for _ in 0..1024 {
        let need = read_need(at)?;
        let mut aux_at = at + u64::from(need.vn_aux.get(LE));
        for _ in 0..need.vn_cnt.get(LE) {
            versions += 1;
            if versions > MAX_VERSIONS {
                return Err(MALFORMED);
            }
            let aux = read_aux(aux_at)?;
            let name = usize::try_from(aux.vna_name.get(LE)).map_err(|_| MALFORMED)?;
            let name = strings.get(name..).ok_or(MALFORMED)?;
            let name = Bytes(&name[..name.len().min(MAX_NAME)]).read_string().map_err(|()| MALFORMED)?;
            let minor = name
                .strip_prefix(b"GLIBC_2.")
                .and_then(|rest| std::str::from_utf8(rest).ok()?.split('.').next()?.parse::<u32>().ok());
            newest = newest.max(minor.unwrap_or(0));
            aux_at += u64::from(aux.vna_next.get(LE));
        }
        match need.vn_next.get(LE) {
            0 => return Ok(newest),
            next => at += u64::from(next),
        }
    }
    Err(MALFORMED)
}
