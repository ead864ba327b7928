//! Zip archives, and tar archives with bzip2 and xz.

use data_encoding::BASE64;
use flate2::write::DeflateEncoder;
use rawzip::path::EntryPath;
use rawzip::{CompressionMethod, ZipArchiveWriter};

use super::*;

/// A tar archive with the file `member`, mode 0640, compressed by xz and by bzip2.
const TAR_XZ: &str = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Af/AEpdADaZSf224lkVxw4fg/6LCLGEHwIpXryJVJQGOCZtmtzaqHmcodeqrQBFih/SZnoYa+WaaUwhO6CZNyR7sjK2H1XfrK2FRmFiTvQAAAAAn92OBUtFPxYAAWaAEAAAAJffB/yxxGf7AgAAAAAEWVo=";
const TAR_BZ2: &str = "QlpoOTFBWSZTWXt6rcsAADDbgMkAQAB/gAAQegOeAAgYIABUViT0TTRhGGptBKaiekaGmgAHDnzHdgwTd5CyTsCZThimIpiiCsQgpNU5vaZSfMeGSvoSthR/QkXSivgBsXckU4UJB7eq3LA=";

/// The first one, which claims that 3 GiB of memory are needed to unpack it.
const LARGE_XZ: &str = "/Td6WFoAAATm1rRGAgAhAScAAACwsHLr4Af/AEpdADaZSf224lkVxw4fg/6LCLGEHwIpXryJVJQGOCZtmtzaqHmcodeqrQBFih/SZnoYa+WaaUwhO6CZNyR7sjK2H1XfrK2FRmFiTvQAAAAAn92OBUtFPxYAAWaAEAAAAJffB/yxxGf7AgAAAAAEWVo=";

/// A tar archive with 3 MiB of zeros, compressed by bzip2 and by xz.
const ZEROS_BZ2: &str = "QlpoOTFBWSZTWSutN6QAYMNfgNiAQAB3gBAAAAhiAJ4QAAggAHUMU1NBo09QbU9QKlQGgjJjRN/rS1JCAllxCICa1+ZZWZ0ohEAAFAK1AaIEdaMAyTotd3zqjE84j6YmbEyEBPRdyRThQkCutN6Q";
const ZEROS_XZ: &str = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj//9sAZVdAD0ZSqu3TG/ywsRZ6zXSPSCchzFNIQg1voYrUBxkEYbM0NqaUbN2l/C6qLAfqhVIBJcd85goZgJJyOVxkI408CoRi+d2Xf40n0qt6ZEKygRv/s5UYgcutmXoXdDYwo3ttLrdpHmseBYu8X7Qmvuh+OwqYR2wt0CNeCjpNG7oyhrU3Z391iV4WfgLzf+VKEYPqfx83vuaMC5WwI+F84OBwGXEJVP49ZE2MQWlsO5vwXBNRwzRkRGqrWAdus6xJxhcWYbpZlJYvul2rFnk5VsFCPnH2q38+1IrdM0eWyBC+d1TPfgpZAk7gMsqbN+1O/DEvS5fqg8+S2ZCkBMO/xCT+HF4WfgLzf+VKEYPqfx83vuaMC5WwI+F84OBwGXEJVP49ZE2MQWlsO5vwXBNRwzRkRGqrWAdus6xJxhcWYbpZlJYvul2rFnk5VsFCPnH2q38+1IrdM0eWyBC+d1TPfgpZAk7gMsqbN+1O/DEvS5fqg8+S2ZCkBMO/xCT+HF4WfgLzf+VKEYPqfx83vuaMC5WwI+FgClGMJAgkgCaAOxzU6f9vq58MRqft40xbnCepyNf7CjLhdGVmIp+KpHyJ3X3GcAGmE2Y/div1ZAPxCVT+PWRNjEFpbDub8FwTUcM0ZERqq1gHbrOsScYXFmG6WZSWL7pdqxZ5OVbBQj5x9qt/PtSK3TNHlsgQvndUz34KWQJO4DLKmzftTvwxL0uX6oPPktmQpATDv8Qk/hxeFn4C83/BEnPxAAAAAAAAkRXgiQH+DAAAdEEgMDAATR6vC+xxGf7AgAAAAAEWVo=";

/// A zip archive of another program: `d/run` with 160 bytes and mode 0750, the link `d/link`, and `bz` in bzip2.
const OTHERS_ZIP: &str = "UEsDBBQAAAAIANQNKSvWy4c5DQAAAKAAAAAFAAAAZC9ydW5Lzs8rSc0rUUgepDQAUEsDBBQAAAAAANQNKSvApHZQAwAAAAMAAAAGAAAAZC9saW5rcnVuUEsDBC4AAAAMANQNKSsRS7yBLAAAAAUAAAACAAAAYnpCWmg5MUFZJlNZSGMsRAAAAImAEAAQIEAQIAAwzQDBpoBxdyRThQkEhjLEQFBLAQIUAxQAAAAIANQNKSvWy4c5DQAAAKAAAAAFAAAAAAAAAAAAAADogQAAAABkL3J1blBLAQIUAxQAAAAAANQNKSvApHZQAwAAAAMAAAAGAAAAAAAAAAAAAAD/oTAAAABkL2xpbmtQSwECLgMuAAAADADUDSkrEUu8gSwAAAAFAAAAAgAAAAAAAAAAAAAApIFXAAAAYnpQSwUGAAAAAAMAAwCXAAAAowAAAAAA";

/// Signatures of the records at the end of a zip archive.
const DIRECTORY_RECORD: [u8; 4] = [0x50, 0x4b, 1, 2];
const END_RECORD: [u8; 4] = [0x50, 0x4b, 5, 6];

fn decoded(base64: &str) -> Vec<u8> {
    BASE64.decode(base64.as_bytes()).unwrap()
}

/// A member of a zip archive, with the mode of a Unix system. Names are not validated.
#[derive(Clone, Copy)]
struct Zipped<'a> {
    name: &'a str,
    mode: u32,
    content: &'a [u8],
    method: CompressionMethod,
    is_encrypted: bool,
}

impl<'a> Zipped<'a> {
    fn new(name: &'a str, mode: u32, content: &'a [u8]) -> Self {
        Self { name, mode, content, method: CompressionMethod::STORE, is_encrypted: false }
    }

    fn file(name: &'a str, content: &'a [u8]) -> Self {
        Self::new(name, 0o100_644, content)
    }

    fn by(self, method: CompressionMethod) -> Self {
        Self { method, ..self }
    }
}

fn zip(members: &[Zipped<'_>]) -> Vec<u8> {
    let mut archive = ZipArchiveWriter::new(Vec::new());
    for member in members {
        if member.name.ends_with('/') {
            let directory = archive.new_dir(EntryPath::verbatim(member.name.as_bytes()));
            directory.unix_permissions(member.mode).create().unwrap();
            continue;
        }
        let file = archive.new_file(EntryPath::verbatim(member.name.as_bytes()));
        let file = file.compression_method(member.method).unix_permissions(member.mode);
        let (mut entry, config) = file.encrypted(member.is_encrypted).start().unwrap();
        if member.method == CompressionMethod::DEFLATE {
            let encoder = DeflateEncoder::new(&mut entry, Compression::best());
            let mut writer = config.wrap(encoder);
            writer.write_all(member.content).unwrap();
            let (encoder, descriptor) = writer.finish().unwrap();
            encoder.finish().unwrap();
            entry.finish(descriptor).unwrap();
        } else {
            let mut writer = config.wrap(&mut entry);
            writer.write_all(member.content).unwrap();
            let (_, descriptor) = writer.finish().unwrap();
            entry.finish(descriptor).unwrap();
        }
    }
    archive.finish().unwrap()
}

/// Where the records with a signature begin.
fn records(archive: &[u8], signature: [u8; 4]) -> Vec<usize> {
    archive.windows(4).enumerate().filter(|(_, found)| *found == signature).map(|(at, _)| at).collect()
}

/// Unpacks an archive in a sandbox of its own.
async fn unpack(name: &str, archive: &[u8]) -> World {
    let world = World::new();
    world.fetch(&[uri(world.file(name, archive))]).await.unwrap();
    world
}

/// Why an archive is refused. There is nothing outside of the sandbox then.
async fn refusal(name: &str, archive: &[u8]) -> String {
    let world = World::new();
    let path = world.file(name, archive);
    let before = fs::read_dir(world.directory.path()).unwrap().count();
    let error = world.fetch_error(&[uri(path)]).await;
    // And the file with the pid of the process.
    assert_eq!(fs::read_dir(world.directory.path()).unwrap().count(), before + 1);
    error
}

#[tokio::test]
async fn archives_with_bzip2_and_xz_are_unpacked() {
    for (name, archive) in
        [("a.tar.xz", TAR_XZ), ("a.txz", TAR_XZ), ("a.tar.bz2", TAR_BZ2), ("a.tbz2", TAR_BZ2)]
    {
        let world = unpack(name, &decoded(archive)).await;
        assert_eq!(world.contents(), ["member"], "{name}");
        assert_eq!(
            (fs::read(world.inside("member")).unwrap(), world.mode("member")),
            (b"content".into(), 0o640)
        );
        let damaged = &decoded(archive)[..80];
        let error = refusal(name, damaged).await;
        assert!(error.contains("cannot unpack it"), "{error}");
    }
    let error = refusal("large.tar.xz", &decoded(LARGE_XZ)).await;
    assert!(error.contains("memory"), "{error}");
}

#[tokio::test]
async fn a_zip_archive_is_unpacked_with_its_modes_and_links() {
    let world = unpack("others.zip", &decoded(OTHERS_ZIP)).await;
    assert_eq!(world.contents(), ["bz", "d", "d/link", "d/run"]);
    assert_eq!(fs::read(world.inside("d/run")).unwrap(), b"content ".repeat(20));
    assert_eq!(fs::read_link(world.inside("d/link")).unwrap(), Path::new("run"));
    assert_eq!(fs::read(world.inside("bz")).unwrap(), b"bzip2");
    assert_eq!((world.mode("d/run"), world.mode("bz")), (0o750, 0o644));
    assert_eq!(fs::metadata(world.inside("d/run")).unwrap().mtime(), 1_000_000_000);

    let deflated = Zipped::file("deflated", &[b'x'; 10_000]).by(CompressionMethod::DEFLATE);
    let archive = zip(&[
        Zipped::new("./", 0o040_777, b""),
        Zipped::new("d/", 0o040_550, b""),
        Zipped::new("d/setuid", 0o104_755, b"program"),
        deflated,
        Zipped::file("twice", b"first"),
        Zipped::file("twice", b"second"),
    ]);
    let world = unpack("a.zip", &archive).await;
    assert_eq!(world.contents(), ["d", "d/setuid", "deflated", "twice"]);
    assert_eq!((world.mode("d"), world.mode("d/setuid")), (0o750, 0o755));
    assert_eq!(fs::read(world.inside("deflated")).unwrap(), [b'x'; 10_000]);
    assert_eq!(fs::read(world.inside("twice")).unwrap(), b"second");
    assert_eq!(fs::metadata(world.sandbox()).unwrap().mode() & 0o777, 0o755, "that of the sandbox stays");
    // Without `extract`, it is an ordinary file.
    let world = World::new();
    let path = world.file("a.zip", &archive);
    world.fetch(&[Uri { extract: false, ..uri(path) }]).await.unwrap();
    assert_eq!(world.contents(), ["a.zip"]);
}

#[tokio::test]
async fn hostile_zip_archives_are_refused() {
    let file = Zipped::file;
    let encrypted = Zipped { is_encrypted: true, ..file("secret", b"x") };
    for (members, expected) in [
        (vec![file("../x", b"x")], "`../x` is not a valid path in the sandbox: it contains `..`"),
        (vec![file("/x", b"x")], "`/x` is not a valid path in the sandbox: it is absolute"),
        (vec![file("a/../../x", b"x")], "contains `..`"),
        (vec![Zipped::new("dev", 0o020_666, b"")], "member `dev` is a device; only files"),
        (vec![Zipped::new("pipe", 0o010_666, b"")], "member `pipe` is a named pipe; only files"),
        (
            vec![Zipped::new("link", 0o120_777, b"")],
            "member `link` is a symbolic link with a target that is empty",
        ),
        (vec![Zipped::new("link", 0o120_777, &[b'x'; 5000])], "empty or too long"),
        (vec![encrypted], "member `secret` is encrypted"),
        (
            vec![file("x", b"x").by(CompressionMethod::LZMA)],
            "only stored members and deflate, bzip2, xz and zstd",
        ),
        // Through a link.
        (
            vec![Zipped::new("out", 0o120_777, b".."), file("out/x", b"x")],
            "cannot create the directory `out`",
        ),
        (vec![file("stdout", b"x")], "`stdout` is reserved for the output of the container"),
    ] {
        let error = refusal("a.zip", &zip(&members)).await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn damaged_zip_archives_are_refused() {
    let members = [Zipped::file("one", b"first content"), Zipped::file("two", b"other content")];
    let good = zip(&members);
    unpack("a.zip", &good).await;

    // The second member has the data of the first one.
    let mut overlapping = good.clone();
    let [first, second] = records(&good, DIRECTORY_RECORD)[..] else { panic!() };
    overlapping.copy_within(first + 42..first + 46, second + 42);
    let error = refusal("a.zip", &overlapping).await;
    assert!(error.contains("the data of member `two` overlaps with that of another member"), "{error}");

    let mut changed = good.clone();
    let content = good.windows(5).position(|window| window == b"other").unwrap();
    changed[content] = b'O';
    let error = refusal("a.zip", &changed).await;
    assert!(error.contains("member `two` cannot be unpacked") && error.contains("checksum"), "{error}");

    let [end] = records(&good, END_RECORD)[..] else { panic!() };
    let mut fewer = good.clone();
    (fewer[end + 8], fewer[end + 10]) = (1, 1);
    let error = refusal("a.zip", &fewer).await;
    assert!(error.contains("it has 2 members, but says that it has 1"), "{error}");

    for length in [0, 10, end, good.len() - 1] {
        let error = refusal("a.zip", &good[..length]).await;
        assert!(error.contains("it is not a complete zip archive"), "{length}: {error}");
    }
}

#[tokio::test]
async fn the_contents_of_a_zip_archive_are_limited() {
    let zeros = vec![0; 3 << 20];
    let archive = zip(&[Zipped::file("zeros", &zeros).by(CompressionMethod::DEFLATE)]);
    let world = World::new();
    let list = [uri(world.file("a.zip", &archive))];
    let limits = FetchLimits { bytes: 2 << 20, ..FetchLimits::default() };
    let error = world.fetch_by(world.fetcher().limited(limits), &list).await.unwrap_err();
    let error = error_chain::describe(&error);
    assert!(error.contains("the container's files exceed 2097152 bytes"), "{error}");
    assert_eq!(world.contents(), [""; 0]);
    // Members whose sizes are acceptable one by one.
    let zeros = vec![0; 33 << 20];
    let members = ["one", "two"].map(|name| Zipped::file(name, &zeros).by(CompressionMethod::DEFLATE));
    let list = [uri(world.file("two.zip", zip(&members)))];
    let error = world.fetch_error(&list).await;
    assert!(
        error.contains("its contents exceed 67108864 bytes, which is more than an archive of"),
        "{error}"
    );
    let many: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let members: Vec<Zipped<'_>> = many.iter().map(|name| Zipped::file(name, b"")).collect();
    let list = [uri(world.file("many.zip", zip(&members)))];
    let limits = FetchLimits { files: 19, ..FetchLimits::default() };
    let error = world.fetch_by(world.fetcher().limited(limits), &list).await.unwrap_err();
    let error = error_chain::describe(&error);
    assert!(error.contains("it has more than 19 members; `max_files` of `[fetch]` is the limit"), "{error}");
}

#[tokio::test]
async fn the_contents_of_other_compressed_archives_are_limited() {
    for (name, archive) in [("a.tar.bz2", ZEROS_BZ2), ("a.tar.xz", ZEROS_XZ)] {
        let world = unpack(name, &decoded(archive)).await;
        assert_eq!(fs::metadata(world.inside("zeros")).unwrap().len(), 3 << 20);
        let list = [uri(world.file(name, decoded(archive)))];
        let limits = FetchLimits { bytes: 2 << 20, ..FetchLimits::default() };
        let error = world.fetch_by(world.fetcher().limited(limits), &list).await.unwrap_err();
        let error = error_chain::describe(&error);
        assert!(error.contains("exceed 2097152 bytes"), "{error}");
    }
}
