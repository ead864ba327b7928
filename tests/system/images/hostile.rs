//! Archives whose authors want to reach what is outside of a layer, or to use up the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cofferdam_tests::images::{Layer, Member, gzip};
use cofferdam_tests::{assert_contains, is_root};
use tar::EntryType;

use super::Fixture;

/// Imports an archive. Returns the error, or what was unpacked.
fn import(fixture: &Fixture, archive: &[u8], options: &[&str]) -> Result<(), String> {
    let arguments = [&["import", "--format", "rootfs", "--name", "hostile"], options, &["-"]].concat();
    let output = fixture.images.run_with(&arguments, archive);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[track_caller]
fn assert_refused(layer: &Layer, options: &[&str], expected: &[&str]) {
    let fixture = Fixture::new();
    fs::write(fixture.path("victim"), "untouched").unwrap();
    let error = import(&fixture, &layer.bytes(), options).expect_err("it must be refused");
    assert_contains(&error, expected);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new(), "{error}");
    assert_eq!(fs::read_to_string(fixture.path("victim")).unwrap(), "untouched");
    let outside = fs::read_dir(fixture.directory.path()).unwrap().count();
    assert_eq!(outside, 2, "something was created outside of the store");
}

#[test]
fn no_member_leaves_the_layer() {
    if !is_root("an import") {
        return;
    }
    let outside = &["leads out of the layer"][..];
    // Three directories above a layer in `staging` is that of the test.
    let up = "../../../..";
    assert_refused(&Layer::new().file(&format!("{up}/victim"), b"x"), &[], &["has `..` in its path"]);
    assert_refused(&Layer::new().file("a/../../x", b"x"), &[], &["`a/../../x` has `..` in its path"]);
    assert_refused(&Layer::new().symlink("a", up).file("a/victim", b"x"), &[], outside);
    assert_refused(&Layer::new().symlink("a", "/").file("a/tmp/x", b"x"), &[], outside);
    assert_refused(&Layer::new().symlink("a", "/proc/self/root").file("a/tmp/x", b"x"), &[], outside);
    assert_refused(&Layer::new().symlink("a", "b").symlink("b", up).directory("a/x"), &[], outside);
    assert_refused(&Layer::new().symlink("a", up).symlink("a/x", "y"), &[], outside);
    assert_refused(&Layer::new().symlink("a", up).file("a/.wh.victim", b""), &[], outside);
    assert_refused(&Layer::new().symlink("a", up).file("a/.wh..wh..opq", b""), &[], outside);
    assert_refused(&Layer::new().link("a", &format!("{up}/victim")), &[], &["has `..` in its path"]);
    assert_refused(&Layer::new().symlink("a", up).link("b", "a/victim"), &[], &["leads out of the layer"]);
    assert_refused(&Layer::new().link("a", "/etc/passwd"), &[], &["that the layer does not have"]);
    assert_refused(&Layer::new().directory("d").link("a", "d"), &[], &["hard link to a directory"]);
    assert_refused(&Layer::new().file("f", b"").file("f/x", b""), &[], &["not a directory"]);
    assert_refused(&Layer::new().symlink("a", "a").file("a/x", b""), &[], outside);
    for name in [".wh.", ".wh..", ".wh..."] {
        let refused = assert_whiteout(name);
        assert!(refused, "{name}");
    }
}

/// Whether a whiteout of no file is refused.
fn assert_whiteout(name: &str) -> bool {
    let fixture = Fixture::new();
    let refused = import(&fixture, &Layer::new().file(name, b"").bytes(), &[]).is_err();
    refused && fixture.images.leftovers().is_empty()
}

#[test]
fn links_are_replaced_and_not_followed_and_those_within_the_layer_are_used() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let victim = fixture.path("victim");
    fs::write(&victim, "untouched").unwrap();
    let layer = Layer::new()
        .symlink("file", victim.to_str().unwrap())
        .file("file", b"replaced")
        .symlink("directory", fixture.directory.path().to_str().unwrap())
        .directory("directory")
        .file("directory/victim", b"inside")
        .directory("usr/bin")
        .symlink("bin", "usr/bin")
        .file("bin/tool", b"tool")
        .file("/absolute", b"relative to the root")
        .link("hard", "/file")
        .file("hard", b"another")
        .directory("full")
        .file("full/x", b"")
        .file("full", b"now a file");
    import(&fixture, &layer.bytes(), &[]).unwrap();
    let root = fixture.images.layer("hostile", 0);
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!((read("file"), read("hard")), ("replaced".into(), "another".into()));
    assert_eq!(read("directory/victim"), "inside");
    assert_eq!((read("usr/bin/tool"), read("absolute")), ("tool".into(), "relative to the root".into()));
    assert_eq!(read("full"), "now a file");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
}

#[test]
fn what_only_the_kernel_may_set_is_refused() {
    if !is_root("an import") {
        return;
    }
    let device = Member { kind: EntryType::Char, path: b"x", ..Member::default() };
    assert_refused(&Layer::new().with(&device), &[], &["the device 0:0"]);
    // The kernel takes some bits of each number, and makes 0:0 of these.
    for (kind, device) in [
        (EntryType::Char, (0x1000, 0)),
        (EntryType::Char, (0, 0x10_0000)),
        (EntryType::Block, (0x1000, 0x10_0000)),
    ] {
        let device = Member { kind, path: b"x", device, ..Member::default() };
        assert_refused(&Layer::new().with(&device), &[], &["larger numbers than the kernel has"]);
    }
    let device = Member { kind: EntryType::Char, path: b"x", device: (0xfff, 0xf_ffff), ..Member::default() };
    import(&Fixture::new(), &Layer::new().with(&device).bytes(), &[]).unwrap();
    for name in ["opaque", "redirect", "metacopy"] {
        let record = format!("SCHILY.xattr.trusted.overlay.{name}");
        let layer = Layer::new().records(&[(&record, b"/etc")]).directory("x");
        assert_refused(&layer, &[], &["up to the kernel"]);
    }
    let owner = Member { path: b"x", owner: (u64::from(u32::MAX), 0), ..Member::default() };
    assert_refused(&Layer::new().with(&owner), &[], &["not a user and a group"]);
    let odd = Member { kind: EntryType::new(b'Z'), path: b"x", ..Member::default() };
    assert_refused(&Layer::new().with(&odd), &[], &["neither a file"]);
}

#[test]
fn sizes_are_bounded() {
    if !is_root("an import") {
        return;
    }
    let large = Layer::new().file("a", &[0; 600_000]).file("b", &[0; 600_000]);
    assert_refused(&large, &["--max-size", "1 MB"], &["more than 1000000 bytes", "--max-size"]);
    let many = (0..20).fold(Layer::new(), |layer, number| layer.file(&number.to_string(), b""));
    assert_refused(&many, &["--max-files", "10"], &["more than 10 files", "--max-files"]);
    let implied = Layer::new().file(&format!("{}x", "d/".repeat(20)), b"");
    assert_refused(&implied, &["--max-files", "10"], &["more than 10 files", "--max-files"]);
    let pax = Layer::new().records(&[("comment", &vec![b'x'; 2 << 20])]).file("x", b"");
    assert_refused(&pax, &[], &["larger than 1 MiB"]);
    let record: &[(&str, &[u8])] = &[("comment", &[b'x'; 1000])];
    let many = (0..2000).fold(Layer::new(), |layer, _| layer.records(record)).file("x", b"");
    assert_refused(&many, &[], &["larger than 1 MiB"]);
    let few = (0..100).fold(Layer::new(), |layer, _| layer.records(record)).file("x", b"");
    import(&Fixture::new(), &few.bytes(), &[]).unwrap();
    for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
        let size = size.to_string();
        let record: &[(&str, &[u8])] = &[("size", size.as_bytes())];
        assert_refused(&Layer::new().records(record).file("x", b""), &[], &["larger than any file"]);
        assert_refused(&Layer::new().records(record).directory("x"), &[], &["larger than any file"]);
    }
    let long = "x/".repeat(2100);
    assert_refused(&Layer::new().records(&[("path", long.as_bytes())]).file("x", b""), &[], &["4095 bytes"]);
    let name = "x".repeat(256);
    assert_refused(&Layer::new().records(&[("path", name.as_bytes())]).file("x", b""), &[], &["255 bytes"]);
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"9000000000000000000"),
        ("GNU.sparse.map", b"0,0"),
    ];
    assert_refused(&Layer::new().records(records).file("x", b""), &[], &["`x` cannot be unpacked"]);

    // A bomb: it is much larger than what it is compressed to.
    let fixture = Fixture::new();
    let bomb = gzip(&Layer::new().file("zeros", &vec![0; 64 << 20]).bytes());
    assert!(bomb.len() < 1 << 20);
    let error = import(&fixture, &bomb, &["--max-size", "1 MiB"]).unwrap_err();
    assert_contains(&error, &["--max-size"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}

#[test]
fn deep_trees_are_unpacked_and_removed() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let deep = format!("{}file", "d/".repeat(1900));
    let layer = Layer::new().records(&[("path", deep.as_bytes())]).file("x", b"bottom");
    import(&fixture, &layer.bytes(), &[]).unwrap();
    let root = fixture.images.layer("hostile", 0);
    assert!(fs::metadata(root.join("d/d/d")).unwrap().is_dir());
    assert_eq!(fs::metadata(&fixture.images.store).unwrap().mode() & 0o777, 0o700);
    fixture.images.run(&["rm", "hostile"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}

#[test]
fn damaged_archives_are_refused() {
    if !is_root("an import") {
        return;
    }
    let archive = Layer::new().file("a", &[b'x'; 5000]).file("b", b"").bytes();
    let compressed = gzip(&archive);
    for (bytes, what) in [
        (&archive[..700], "within a file"),
        (&archive[..100], "within a header"),
        (&compressed[..compressed.len() - 1], "without its checksum"),
        (&[&compressed[..], b"rest"].concat()[..], "with something after it"),
        (b"no archive at all", "without a header"),
    ] {
        let fixture = Fixture::new();
        assert!(import(&fixture, bytes, &[]).is_err(), "{what}");
        assert_eq!(fixture.images.leftovers(), Vec::<String>::new(), "{what}");
    }
    let mut wrong = archive;
    wrong[10] ^= 1;
    let fixture = Fixture::new();
    assert_contains(&import(&fixture, &wrong, &[]).unwrap_err(), &["checksum of a header"]);
}
