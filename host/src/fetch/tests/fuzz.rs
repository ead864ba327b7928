//! Fuzz tests of archives: whatever they contain, the limits hold and nothing outside of the sandbox is changed.

use cofferdam_fuzz::fuzz_bytes;

use super::super::copy::Copier;
use super::super::item::Compression;
use super::super::sandbox::Sandbox;
use super::super::unpack::untar;
use super::*;
use crate::archive::Gunzip;
use crate::http::redirect;

const MAX_FILES: u64 = 50;
const MAX_SIZE: u64 = 1 << 20;

/// A header of a pax archive, before the one of its member.
fn pax(records: &str) -> Vec<u8> {
    let records: String = records
        .lines()
        .map(|record| {
            // The length counts its own digits.
            let length = (1..).find(|length: &usize| length.to_string().len() + record.len() + 2 == *length);
            format!("{} {record}\n", length.unwrap())
        })
        .collect();
    let mut bytes = tar(&[Member { kind: EntryType::XHeader, ..Member::file("x", records.as_bytes()) }]);
    bytes.truncate(bytes.len() - 1024);
    bytes
}

fn archives() -> Vec<Vec<u8>> {
    use EntryType as E;
    let members = [
        Member::of(E::Directory, "d/"),
        Member::file("d/file", b"content"),
        Member::link(E::Symlink, "d/link", "../../elsewhere"),
        Member::link(E::Link, "hard", "d/file"),
        Member::file("d/link/x", b"y"),
    ];
    let sparse = "GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.name=sparse\nGNU.sparse.realsize=600";
    let mut map = b"2\n0\n3\n600\n0\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abc");
    let listed = "GNU.sparse.size=600\nGNU.sparse.numblocks=1\nGNU.sparse.map=10,3";
    vec![
        tar(&members),
        [pax(sparse), tar(&[Member::file("s", &map)])].concat(),
        [pax(listed), tar(&[Member::file("s", b"abc")])].concat(),
        [pax("path=long/name\nsize=3\nlinkpath=x"), tar(&[Member::file("s", b"abc")])].concat(),
        tar(&[Member { kind: E::GNULongName, ..Member::file("l", b"a/long/name\0") }, members[1].clone()]),
    ]
}

#[test]
fn any_archive_is_unpacked_or_refused() {
    let words = ["../", "/", "\0", "d/link/", "99999999999", "GNU.sparse.map=", "stdout"];
    fuzz_bytes(&archives(), &words, |archive| {
        let directory = TempDir::new().unwrap();
        let (root, outside) = (directory.path().join("sandbox"), directory.path().join("elsewhere"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("stdout"), "output").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let limits = FetchLimits { bytes: MAX_SIZE, files: MAX_FILES, ..FetchLimits::default() };
        let mut sandbox = Sandbox::open(&root, vec!["stdout".into()], limits.files).unwrap();
        let unpacked = untar(&file, Compression::None, &mut sandbox, &mut Copier::new(limits.bytes), &limits);
        drop(unpacked);

        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert_eq!(fs::read(root.join("stdout")).unwrap(), b"output");
        let (mut directories, mut count, mut size) = (vec![root], 0, 0);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                count += 1;
                match metadata.is_dir() {
                    true => directories.push(path),
                    false => size += metadata.len() / metadata.nlink(),
                }
            }
        }
        assert!(count <= MAX_FILES + 1 && size <= MAX_SIZE + 4096, "{count} files, {size} bytes");
    });
}

#[test]
fn any_compressed_file_is_decompressed_or_refused() {
    let samples = [gzip(b"content"), [gzip(b"one"), gzip(&[0; 5000]), vec![0; 10]].concat()];
    fuzz_bytes(&samples, &["\u{1f}"], |compressed| {
        let mut read = Gunzip::new(BufReader::new(compressed)).take(MAX_SIZE);
        drop(io::copy(&mut read, &mut io::sink()));
    });
}

#[test]
fn any_redirect_is_resolved_or_refused() {
    let samples = ["http://host:1/a/b?c#d", "//user@[::1]:2/x", "../x?y", "/%20", "file:///x"];
    let samples = samples.map(|sample| sample.as_bytes().to_vec());
    fuzz_bytes(&samples, &["//", "/../", "[", "]", "@", ":", "%", "\u{e4}"], |location| {
        let location = String::from_utf8_lossy(location);
        if let Some(url) = redirect::resolve("http://host:1/a/b?c#d", &location) {
            assert!(url.contains(':') && !url.contains(['#', ' ', '\n']), "{url}");
        }
    });
}
