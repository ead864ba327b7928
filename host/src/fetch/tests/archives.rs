//! Archives: their limits, and that what GNU tar and gzip accept is accepted.

use super::*;

#[tokio::test]
async fn contents_are_limited_by_the_size_of_their_archive() {
    let world = World::new();
    let limits = FetchLimits { ratio: 10, ..FetchLimits::default() };
    let zeros = vec![0; 65 << 20];
    // Those that are skipped take time as well.
    let mut skipped = header(&Member::of(EntryType::new(b'g'), "comment"));
    skipped.set_size(zeros.len() as u64);
    skipped.set_cksum();
    for (name, archive) in [
        ("bomb.tgz", tar(&[Member::file("zeros", &zeros)])),
        ("zeros.gz", zeros.clone()),
        ("skip.tgz", [skipped.as_bytes().as_slice(), &zeros].concat()),
    ] {
        let archive = [uri(world.file(name, gzip(&archive)))];
        let error = world.fetch_by(world.fetcher().limited(limits.clone()), &archive).await.unwrap_err();
        assert!(error_chain::describe(&error).contains("than an archive of"), "{name}: {error:?}");
        assert!(matches!(&error, FetchError::Failed(FetchFailure::File { .. })), "{error:?}");
    }
    // Small ones are not limited.
    let small = world.file("small.tgz", gzip(&tar(&[Member::file("small", &vec![0; 8 << 20])])));
    world.fetch_by(world.fetcher().limited(limits), &[uri(small)]).await.unwrap();
}

#[tokio::test]
async fn directories_count_as_files() {
    let world = World::new();
    let limited = || world.fetcher().limited(FetchLimits { files: 3, ..FetchLimits::default() });
    let nested = world.file("n.tar", tar(&[Member::file("x/y/z/a", b"")]));
    let plain = world.file("plain", "");
    let four = ["1", "2", "3", "4"].map(|name| named(&plain, name));
    for uris in [&[uri(nested)][..], &four] {
        let error = world.fetch_by(limited(), uris).await.unwrap_err();
        assert!(error_chain::describe(&error).contains("are more than 3; `max_files`"), "{error:?}");
    }
    world.fetch_by(limited(), &four[..3]).await.unwrap();
}

/// Everything in a directory: kind, permissions, size, time and content, or target.
fn listing(root: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                kind if kind.is_dir() => "directory".to_owned(),
                _ => HEXLOWER.encode(&Sha256::digest(fs::read(&path).unwrap())),
            };
            let (mode, time) = match metadata.is_symlink() {
                true => (0, 0),
                false => (metadata.mode() & 0o777, metadata.mtime()),
            };
            let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
            let name = path.strip_prefix(root).unwrap();
            entries.push(format!("{name:?} {mode:o} {time} {links} {content}"));
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    entries.sort();
    entries
}

/// A directory with what archives can contain. Long names are not possible in all formats.
fn sample_tree(root: &Path, long: bool) {
    fs::create_dir_all(root.join("d/empty")).unwrap();
    fs::write(root.join("d/file"), "content").unwrap();
    fs::set_permissions(root.join("d/file"), Permissions::from_mode(0o750)).unwrap();
    fs::write(root.join("d/nothing"), "").unwrap();
    fs::write(root.join("d/ä b"), [7; 513]).unwrap();
    symlink("../d/file", root.join("d/symbolic")).unwrap();
    fs::hard_link(root.join("d/file"), root.join("hard")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for (at, text) in [(70_000, "one"), (1 << 20, "two")] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, text.as_bytes(), at).unwrap();
    }
    sparse.set_len(3 << 20).unwrap();
    if long {
        let name = root.join("n".repeat(90)).join("m".repeat(120)).join("o".repeat(200));
        fs::create_dir_all(&name).unwrap();
        fs::write(name.join("p".repeat(255)), "deep").unwrap();
        symlink("t".repeat(300), root.join("long")).unwrap();
        fs::hard_link(name.join("p".repeat(255)), root.join("second")).unwrap();
    }
}

#[tokio::test]
async fn what_gnu_tar_unpacks_is_unpacked_in_the_same_way() {
    let version = Command::new("tar").arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("GNU tar")) {
        assert!(std::env::var_os("CI").is_none(), "requires GNU tar");
        eprintln!("skipped: requires GNU tar");
        return;
    }
    let options = [
        "--format=v7",
        "--format=ustar",
        "--format=oldgnu",
        "--format=oldgnu --sparse",
        "--format=gnu --sparse",
        "--format=gnu --label=name",
        "--format=gnu --incremental",
        "--format=gnu --blocking-factor=1",
        "--format=posix",
        "--format=posix --sparse",
        "--format=posix --sparse --sparse-version=0.0",
        "--format=posix --sparse --sparse-version=0.1",
        "--format=posix --label=name --pax-option=comment=text,SCHILY.xattr.user.a=b",
    ];
    for (number, options) in options.into_iter().enumerate() {
        let world = World::new();
        let (tree, expected) = (world.outside("tree"), world.outside("expected"));
        sample_tree(&tree, !["--format=v7", "--format=ustar"].contains(&options));
        let archive = world.outside("a.tar").to_str().unwrap().to_owned();
        let arguments: Vec<&str> = ["-cf", &archive].into_iter().chain(options.split(' ')).collect();
        execute("tar", &[&arguments[..], &["-C", tree.to_str().unwrap(), "."]].concat());
        fs::create_dir(&expected).unwrap();
        execute("tar", &["-xf", &archive, "-C", expected.to_str().unwrap()]);

        // Every second time compressed: in two members, padded with zeros.
        let tar = fs::read(&archive).unwrap();
        let (first, second) = tar.split_at(tar.len() / 3);
        let archive = match number % 2 {
            0 => uri(world.file("b.tar", &tar)),
            _ => uri(world.file("b.tar.gz", [gzip(first), gzip(second), vec![0; 5000]].concat())),
        };
        world.fetch(&[archive]).await.unwrap_or_else(|error| panic!("{options}: {error:?}"));
        assert_eq!(listing(&world.sandbox()), listing(&expected), "{options}");
    }
}

#[tokio::test]
async fn archives_that_end_in_other_ways_are_accepted_as_by_gnu_tar() {
    let whole = tar(&[Member::file("a", b"content")]);
    let (member, trailer) = whole.split_at(1024);
    for (name, archive) in [
        ("without the blocks at its end", member.to_vec()),
        ("with one of them", [member, &trailer[..512]].concat()),
        ("with other data after them", [member, trailer, &[b'x'; 700]].concat()),
        ("with many of them", [member, &[0; 20_480]].concat()),
    ] {
        let world = World::new();
        for archive in [uri(world.file("a.tar", &archive)), uri(world.file("a.tgz", gzip(&archive)))] {
            world.fetch(&[archive]).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(fs::read(world.inside("a")).unwrap(), b"content", "{name}");
            fs::remove_file(world.inside("a")).unwrap();
        }
    }
    let world = World::new();
    world.fetch(&[uri(world.file("empty.tar", [0; 10_240]))]).await.unwrap();
    let padded = [gzip(b"one "), gzip(b"two"), vec![0; 3]].concat();
    world.fetch(&[uri(world.file("two.gz", padded))]).await.unwrap();
    assert_eq!(fs::read(world.inside("two")).unwrap(), b"one two");
}
