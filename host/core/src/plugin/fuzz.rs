//! Fuzz tests of what is read of a plugin's file before it is loaded.

use std::path::Path;

use cofferdam_fuzz::{fuzz_bytes, fuzz_json};
use cofferdam_plugin_abi::{NOTE_OWNER, NOTE_TYPE};

use super::elf;
use super::preflight::Facts;

const MANIFEST: &str = include_str!("../../../src/config/samples/plugins/libcgroups_mem.so");

const SYMBOL: &[u8] = b"root_symbol";

/// A shared object of one segment, with a note, dynamic strings, and needed versions.
fn shared_object(note: &[u8]) -> Vec<u8> {
    const SEGMENTS: u64 = 64;
    let (notes, mut file) = (SEGMENTS + 3 * 56, Vec::new());
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let halves = |halves: &[u32]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
    let owner = [NOTE_OWNER.as_bytes(), &[0]].concat();
    let mut body = halves(&[owner.len() as u32, note.len() as u32, NOTE_TYPE]);
    for part in [&owner[..], note] {
        body.extend(part);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let notes_length = body.len() as u64;
    body.resize(body.len().next_multiple_of(8), 0);
    let strings = notes + body.len() as u64;
    let names = [&b"\0"[..], SYMBOL, b"\0libc.so.6\0GLIBC_2.2.5\0GLIBC_2.17\0"].concat();
    body.extend(&names);
    body.resize(body.len().next_multiple_of(8), 0);
    let needs = notes + body.len() as u64;
    // One library with two versions, whose names are behind those above.
    let name = |text: &[u8]| names.windows(text.len()).position(|part| part == text).unwrap() as u32;
    body.extend(halves(&[1 | (2 << 16), name(b"libc"), 16, 0]));
    for (text, next) in [(&b"GLIBC_2.2.5"[..], 16), (b"GLIBC_2.17", 0)] {
        body.extend(halves(&[0, 0, name(text), next]));
    }
    let dynamic = notes + body.len() as u64;
    // DT_STRTAB, DT_STRSZ, DT_VERNEED, DT_NULL.
    let entries = words(&[5, strings, 10, names.len() as u64, 0x6fff_fffe, needs, 0, 0]);
    let dynamic_length = entries.len() as u64;
    body.extend(entries);

    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_DYN for x86-64, version 1.
    file.extend(halves(&[3 | (62 << 16), 1]));
    file.extend(words(&[0, SEGMENTS, 0]));
    // Flags; sizes of the headers, and three segments.
    file.extend(halves(&[0, 64 | (56 << 16), 3 | (64 << 16), 0]));
    let whole = notes + body.len() as u64;
    for (kind, offset, length) in [(1, 0, whole), (4, notes, notes_length), (2, dynamic, dynamic_length)] {
        file.extend(halves(&[kind, 4]));
        file.extend(words(&[offset, offset, offset, length, length, 4]));
    }
    file.extend(body);
    file
}

fn read(file: &[u8]) -> Result<elf::Facts<'_>, elf::ElfError> {
    elf::read(file, (NOTE_OWNER, NOTE_TYPE), SYMBOL)
}

#[test]
fn the_sample_is_a_plugin() {
    let file = shared_object(MANIFEST.as_bytes());
    let facts = read(&file).unwrap();
    assert_eq!(facts.note, Some(MANIFEST.as_bytes()));
    assert!(facts.names_symbol && facts.glibc_minor == 17, "{facts:?}");
}

#[test]
fn any_shared_object_is_read_or_refused() {
    let samples = [shared_object(MANIFEST.as_bytes()), shared_object(b"")];
    fuzz_bytes(&samples, &["GLIBC_2.99", "\u{7f}ELF"], |file| {
        if let Ok(elf::Facts { note: Some(note), .. }) = read(file) {
            assert!(file.windows(note.len().max(1)).any(|part| part == note) || note.is_empty());
        }
        if let Ok(facts) = Facts::of(Path::new("plugin.so"), file) {
            drop(facts.usable_manifest(Path::new("plugin.so")));
        }
    });
}

#[test]
fn any_note_is_read_or_refused() {
    let manifest = serde_json::from_str(MANIFEST).unwrap();
    fuzz_json(&[manifest], |manifest| {
        let file = shared_object(manifest.to_string().as_bytes());
        let facts = Facts::of(Path::new("plugin.so"), &*file).unwrap();
        if let Err(error) = facts.usable_manifest(Path::new("plugin.so")) {
            assert!(error.to_string().contains("plugin.so"), "{error}");
        }
    });
    fuzz_bytes(&[MANIFEST.as_bytes().to_vec()], &["{", "\"", "null", "\\u0000"], |note| {
        let file = shared_object(note);
        drop(Facts::of(Path::new("plugin.so"), &*file).unwrap().usable_manifest(Path::new("plugin.so")));
    });
}

/// With the numbers of the file, this would take minutes.
#[test]
fn needed_versions_that_form_a_cycle_are_refused() {
    let mut file = shared_object(b"");
    let at = file.windows(4).rposition(|part| part == [1, 0, 2, 0]).unwrap();
    // As many entries as possible, all at one place, and the same again.
    file[at + 2..at + 4].copy_from_slice(&[0xff; 2]);
    file[at + 16 + 12..at + 16 + 16].copy_from_slice(&[0; 4]);
    file[at + 12..at + 16].copy_from_slice(&[0; 4]);
    assert_eq!(read(&file).unwrap_err(), elf::ElfError::Malformed("version needs"));
}

#[test]
fn headers_at_the_end_of_the_address_space_are_refused() {
    let mut file = shared_object(b"");
    file[32..40].copy_from_slice(&[0xff; 8]);
    assert!(matches!(read(&file), Err(elf::ElfError::Truncated { needed: u64::MAX, .. })));
}
