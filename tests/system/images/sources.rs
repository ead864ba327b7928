//! Imports from every kind of source.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use cofferdam_core::provisioner::Digest;
use cofferdam_tests::images::{Layer, Layout, busybox, gzip};
use cofferdam_tests::registry::Registry;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::{assert_contains, is_root, paths};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, makedev, mknodat, setxattr};
use serde_json::{Value as Json, json};

use super::Fixture;
use super::registry::compressed;

/// A capability set of a file whose bytes contain a line feed.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0x0a, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A root file system with everything that one can have.
fn tree(path: &Path) {
    fs::create_dir_all(path.join("deep/er")).unwrap();
    fs::write(path.join("deep/er/file"), "content\n").unwrap();
    fs::hard_link(path.join("deep/er/file"), path.join("again")).unwrap();
    symlink("/etc/passwd", path.join("absolute")).unwrap();
    fs::write(path.join("suid"), "").unwrap();
    chown(path.join("suid"), Some(1000), Some(70_000)).unwrap();
    fs::set_permissions(path.join("suid"), Permissions::from_mode(0o4751)).unwrap();
    setxattr(path.join("suid"), "user.note", b"a\nb\0c", XattrFlags::empty()).unwrap();
    setxattr(path.join("suid"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    mknodat(CWD, path.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
        .unwrap();
    fs::set_permissions(path.join("null"), Permissions::from_mode(0o666)).unwrap();
    mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::write(path.join(OsStr::from_bytes(b"\xff\xfe name\n")), "odd").unwrap();
    fs::write(path.join("x".repeat(200)), "long name").unwrap();
    let sparse = File::create(path.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    fs::set_permissions(path.join("deep"), Permissions::from_mode(0o2750)).unwrap();
    File::open(path.join("deep"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000))
        .unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o751)).unwrap();
}

/// Checks that a directory is as [`tree`] has made it.
#[track_caller]
fn assert_tree(path: &Path) {
    let stat = |name: &str| fs::symlink_metadata(path.join(name)).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_to_string(path.join("deep/er/file")).unwrap(), "content\n");
    assert_eq!((stat("again").ino(), stat("again").nlink()), (stat("deep/er/file").ino(), 2));
    assert_eq!(fs::read_link(path.join("absolute")).unwrap(), Path::new("/etc/passwd"));
    let suid = stat("suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid()), (0o4751, 1000, 70_000));
    let mut value = [0_u8; 64];
    let length = getxattr(path.join("suid"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\nb\0c");
    let length = getxattr(path.join("suid"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], CAPABILITY);
    assert_eq!((stat("null").rdev(), stat("null").mode()), (makedev(1, 3), libc::S_IFCHR | 0o666));
    assert_eq!(stat("fifo").mode(), libc::S_IFIFO | 0o600);
    assert_eq!(fs::read_to_string(path.join(OsStr::from_bytes(b"\xff\xfe name\n"))).unwrap(), "odd");
    assert_eq!(fs::read_to_string(path.join("x".repeat(200))).unwrap(), "long name");
    assert_sparse(&path.join("sparse"), 64 << 20);
    assert_eq!((stat("deep").mode() & 0o7777, stat("deep").mtime()), (0o2750, 1_000_000));
}

/// Checks that a file consists of a hole of this size, and its end.
#[track_caller]
fn assert_sparse(path: &Path, hole: u64) {
    let found = fs::metadata(path).unwrap();
    assert_eq!(found.len(), hole + 3, "{}", path.display());
    // A file system may allocate more than the end.
    assert!(found.blocks() < 32_768, "{}: {} blocks", path.display(), found.blocks());
    let mut end = [0; 4];
    let count = File::open(path).unwrap().read_at(&mut end, hole).unwrap();
    assert_eq!(&end[..count], b"end", "{}", path.display());
}

#[test]
fn a_directory_and_its_archives_are_imported_with_all_attributes() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let source = fixture.path("source");
    tree(&source);
    fixture.images.import("directory", &source);
    assert_tree(&fixture.images.layer("directory", 0));

    for (name, format) in [("gnu", "--format=gnu"), ("pax", "--format=posix"), ("old", "--format=oldgnu")] {
        let archive = fixture.path(&format!("{name}.tar"));
        let options = match name {
            // These formats have no extended attributes.
            "pax" => vec!["--xattrs", "--xattrs-include=*"],
            _ => vec![],
        };
        let tar = Command::new("tar")
            .args([format, "--sparse", "--numeric-owner"])
            .args(&options)
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&source)
            .arg(".")
            .output()
            .unwrap();
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        fixture.images.import(name, &archive);
        let layer = fixture.images.layer(name, 0);
        assert_sparse(&layer.join("sparse"), 64 << 20);
        if name == "pax" {
            assert_tree(&layer);
        } else {
            assert_eq!(fs::symlink_metadata(layer.join("suid")).unwrap().mode() & 0o7777, 0o4751, "{name}");
        }
    }

    let archive = fs::read(fixture.path("pax.tar")).unwrap();
    let output = fixture.images.run_with(&["import", "--name", "piped", "-"], &gzip(&archive));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let diff_id = |name: &str| fixture.images.inspect(name)["layers"][0]["diff_id"].clone();
    assert_eq!(diff_id("piped"), diff_id("pax"));
    assert_eq!(fixture.images.entries("staging"), Vec::<String>::new());
}

/// More than a header of an archive has digits for.
#[test]
fn a_file_of_nine_gigabytes_is_unpacked_with_its_holes() {
    const SIZE: u64 = 9 << 30;
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let source = fixture.path("source");
    fs::create_dir(&source).unwrap();
    let huge = File::create(source.join("huge")).unwrap();
    huge.write_all_at(b"end", SIZE).unwrap();
    for (name, format) in [("gnu", "--format=gnu"), ("pax", "--format=posix")] {
        let archive = fixture.path(&format!("{name}.tar"));
        let tar = Command::new("tar")
            .args([format, "--sparse", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(&source)
            .arg("huge")
            .status()
            .unwrap();
        assert!(tar.success());
        fixture.images.import(name, &archive);
        assert_sparse(&fixture.images.layer(name, 0).join("huge"), SIZE);
    }
    fixture.images.import("directory", &source);
    assert_sparse(&fixture.images.layer("directory", 0).join("huge"), SIZE);
}

/// Data that gzip cannot make smaller.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[test]
fn an_import_has_bars_on_a_terminal_while_its_source_is_read() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let import = |name: &str, source: &Path| {
        let command = fixture.images.command(&["import", "--name", name, source.to_str().unwrap()]);
        Terminal::of_command(&command)
    };
    let imported = |mut terminal: Terminal| {
        terminal.wait_for(" files, ");
        assert!(terminal.wait().unwrap().success());
    };

    let layer = Layer::new().file("noise", &noise(2 << 20, 1));
    let layout = fixture.path("layout");
    Layout::create(&layout, "layers:1", std::slice::from_ref(&layer), json!({}));
    let mut terminal = import("layers:1", &layout);
    terminal.wait_for(&format!("layer {}: ", Digest::of(&layer.bytes()).short()));
    terminal.wait_for(" of 2.00 MiB");
    imported(terminal);

    let archive = fixture.path("noise.tar");
    fs::write(&archive, layer.bytes()).unwrap();
    let mut terminal = import("archive:1", &archive);
    terminal.wait_for("reading: ");
    terminal.wait_for(" of 2.00 MiB");
    imported(terminal);

    let source = fixture.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let mut terminal = import("directory:1", &source);
    terminal.wait_for("reading: ");
    imported(terminal);

    // Its size is not known, and it is not at its end before this closes it.
    let pipe = fixture.path("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut writer = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    writer.write_all(&Layer::new().file("file", b"content").bytes()).unwrap();
    let mut terminal = import("pipe:1", &pipe);
    terminal.wait_for("reading: ");
    drop(writer);
    imported(terminal);
}

#[test]
fn memory_does_not_grow_with_the_size_of_an_image() {
    if !is_root("an import") {
        return;
    }
    // Of each layer, and the memory that a program may have beside its files, in KiB.
    const LAYER: usize = 96 << 20;
    const LIMIT: usize = 64 << 10;
    let fixture = Fixture::new();
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -d {LIMIT}; exec \"$0\" \"$@\"")]);
        command.arg(paths::program()).args(["image", "--image-store"]).arg(&fixture.images.store);
        let output = command.args(arguments).env("NO_PROXY", "*").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let registry = Registry::start(false);
    let layers: Vec<_> = [1, 2]
        .map(|seed| Layer::new().file(&format!("noise-{seed}"), &noise(LAYER, seed)))
        .iter()
        .map(compressed)
        .collect();
    registry.image("large", "1", &layers, "amd64");
    let (plain, zipped) = (fixture.path("plain.tar"), fixture.path("zipped.tar.gz"));
    fs::write(&plain, &layers[0].0).unwrap();
    fs::write(&zipped, &layers[1].1).unwrap();
    drop(layers);
    for source in [&plain, &zipped] {
        limited(&["import", "--name", "large:1", source.to_str().unwrap()]);
        fixture.images.run(&["prune", "--all"]);
    }
    let name = registry.name("large:1");
    limited(&["pull", "--insecure", &name]);
    for (number, seed) in [(0, 1), (1, 2)] {
        let file = fixture.images.layer(&name, number).join(format!("noise-{seed}"));
        assert_eq!(fs::metadata(file).unwrap().len(), LAYER as u64);
    }
}

#[test]
fn an_oci_layout_is_imported_from_a_directory_and_from_archives() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let layout = Layout { path: fixture.path("layout") };
    let layers = [busybox().bytes(), Layer::new().file("etc/motd", b"hello\n").bytes()];
    let zstd = ruzstd::encoding::compress_to_vec(&layers[1][..], ruzstd::encoding::CompressionLevel::Fastest);
    let blobs = [(layers[0].clone(), gzip(&layers[0])), (layers[1].clone(), zstd)];
    let manifest = layout.image(&blobs, json!({ "Cmd": ["cat", "/etc/motd"], "Env": ["A=b"] }));
    let named = json!({ "annotations": { "io.containerd.image.name": "docker.io/team/web:1" } });
    layout.index(&[(manifest, named)]);
    let output = fixture.images.run(&["import", layout.path.to_str().unwrap()]);
    assert!(output.contains(" team/web:1") || output.contains("docker.io/team/web:1"), "{output}");
    let first = fixture.images.inspect("team/web:1");
    assert_eq!(first["config"]["cmd"], json!(["cat", "/etc/motd"]));
    assert_eq!(first["names"], json!(["docker.io/team/web:1"]));
    let motd = fs::read_to_string(fixture.images.layer("team/web:1", 1).join("etc/motd")).unwrap();
    assert_eq!(motd, "hello\n");

    let archive = fixture.path("layout.tar");
    let tar =
        Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout.path).arg(".").status().unwrap();
    assert!(tar.success());
    let compressed = fixture.path("layout.tgz");
    fs::write(&compressed, gzip(&fs::read(&archive).unwrap())).unwrap();
    for source in [&archive, &compressed] {
        let other = Fixture::new();
        other.images.run(&["import", source.to_str().unwrap()]);
        let imported = other.images.inspect("team/web:1");
        assert_eq!((&imported["id"], &imported["manifest"]), (&first["id"], &first["manifest"]));
        // Layers that are there are not unpacked again.
        let output = other.images.command(&["import", source.to_str().unwrap()]).output().unwrap();
        let progress = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(progress.matches(": present").count(), 2, "{progress}");
    }
}

/// An archive as `docker save` writes it, in its older form: with a layer that is a link to that of another image.
fn saved(images: &[(&str, Json, &[Vec<u8>])]) -> Vec<u8> {
    let mut archive = Layer::new();
    let mut manifest = Vec::new();
    for (index, (name, config, layers)) in images.iter().enumerate() {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({ "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let files: Vec<String> =
            (0..layers.len()).map(|number| format!("{index}-{number}/layer.tar")).collect();
        for (number, (file, layer)) in files.iter().zip(*layers).enumerate() {
            archive = match index > 0 && number == 0 {
                true => archive.symlink(file, "../0-0/layer.tar"),
                false => archive.file(file, layer),
            };
        }
        let file = format!("config-{index}.json");
        archive = archive.file(&file, config.to_string().as_bytes());
        manifest.push(json!({ "Config": file, "RepoTags": [name], "Layers": files }));
    }
    archive.file("manifest.json", Json::from(manifest).to_string().as_bytes()).bytes()
}

#[test]
fn archives_of_docker_save_are_imported_with_all_their_images() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let (base, other) = (busybox().bytes(), Layer::new().file("other", b"").bytes());
    let archive = saved(&[
        ("busybox:1.35", json!({ "Cmd": ["sh"] }), std::slice::from_ref(&base)),
        ("team/web:1", json!({ "Cmd": null, "Entrypoint": ["true"] }), &[base.clone(), other]),
    ]);
    let output = fixture.images.run_with(&["import", "-"], &archive);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = fixture.images.run(&["ls"]);
    assert_contains(&listed, &["busybox:1.35", "team/web:1", "linux/amd64"]);
    assert!(fixture.images.layer("team/web:1", 1).join("other").exists());
    assert_eq!(fixture.images.layer("team/web:1", 0), fixture.images.layer("busybox:1.35", 0));
    // The id is that of Docker: the digest of the configuration.
    let id = fixture.images.inspect("busybox:1.35")["id"].as_str().unwrap().to_owned();
    assert_eq!(fixture.images.inspect(&id[..19])["id"].as_str(), Some(&*id));
    assert_contains(&fixture.images.error(&["inspect", "busybox:1.36"]), &["`busybox:1.36`", "import"]);
    let output = fixture.images.run_with(&["import", "--name", "x", "-"], &archive);
    assert_contains(&String::from_utf8_lossy(&output.stderr), &["2 images", "`--name`"]);
}

#[test]
fn an_image_is_chosen_by_platform() {
    if !is_root("an import") {
        return;
    }
    let fixture = Fixture::new();
    let layout = Layout { path: fixture.path("layout") };
    let image = |text: &str| {
        let layer = Layer::new().file("platform", text.as_bytes()).bytes();
        layout.image(&[(layer.clone(), layer)], json!({}))
    };
    let with = |mut descriptor: Json, platform: Json| {
        descriptor["platform"] = platform;
        descriptor
    };
    let manifests = json!([
        with(image("arm"), json!({ "os": "linux", "architecture": "arm64", "variant": "v8" })),
        with(image("pc"), json!({ "os": "linux", "architecture": "amd64" })),
    ]);
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    let index = layout.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    layout.index(&[(index, json!({}))]);
    let source = layout.path.to_str().unwrap();
    let content = |name: &str| fs::read_to_string(fixture.images.layer(name, 0).join("platform")).unwrap();
    for (platform, expected) in [("linux/amd64", "pc"), ("linux/arm64", "arm"), ("linux/arm64/v8", "arm")] {
        fixture.images.run(&["import", "--platform", platform, "--name", "web", source]);
        assert_eq!(content("web"), expected, "{platform}");
    }
    let error = fixture.images.error(&["import", "--platform", "linux/s390x", "--name", "web", source]);
    assert_contains(&error, &["linux/s390x", "linux/arm64/v8, linux/amd64", "--platform"]);
    assert_contains(&fixture.images.error(&["import", source]), &["no name", "--name"]);
}

#[test]
fn what_is_not_what_it_says_is_refused_and_nothing_of_it_stays() {
    if !is_root("an import") {
        return;
    }
    let archive = Layer::new().file("file", b"content").bytes();
    let other = Layer::new().file("file", b"changed").bytes();
    let blob = |layout: &Layout, bytes: &[u8]| layout.path.join("blobs/sha256").join(Digest::of(bytes).hex());
    type Change = fn(&Layout, &[u8], &[u8], &dyn Fn(&Layout, &[u8]) -> std::path::PathBuf);
    let changes: [(Change, &[&str]); 5] = [
        (
            |layout, archive, other, blob| fs::write(blob(layout, archive), other).unwrap(),
            &["bytes and the digest"],
        ),
        (
            |layout, archive, _, blob| fs::write(blob(layout, archive), &archive[..700]).unwrap(),
            &["cannot unpack layer 1"],
        ),
        (
            |layout, archive, _, blob| {
                fs::write(blob(layout, archive), [archive, &[0; 512]].concat()).unwrap()
            },
            &["bytes and the digest"],
        ),
        (
            |layout, archive, _, blob| fs::remove_file(blob(layout, archive)).unwrap(),
            &["cannot read `blobs/sha256/"],
        ),
        (
            |layout, _, _, _| fs::write(layout.path.join("index.json"), "{").unwrap(),
            &["`index.json`", "malformed"],
        ),
    ];
    for (change, expected) in changes {
        let fixture = Fixture::new();
        let layout = Layout::create(&fixture.path("layout"), "web:1", &[], json!({}));
        let manifest = layout.image(&[(archive.clone(), archive.clone())], json!({}));
        layout
            .index(&[(manifest, json!({ "annotations": { "org.opencontainers.image.ref.name": "web:1" } }))]);
        change(&layout, &archive, &other, &blob);
        let error = fixture.images.error(&["import", layout.path.to_str().unwrap()]);
        assert_contains(&error, expected);
        assert_eq!(fixture.images.leftovers(), Vec::<String>::new(), "{error}");
    }

    // The archive is not that of the configuration.
    let fixture = Fixture::new();
    let layout = Layout { path: fixture.path("layout") };
    let manifest = layout.image(&[(other, archive)], json!({}));
    layout.index(&[(manifest, json!({}))]);
    let error = fixture.images.error(&["import", "--name", "web", layout.path.to_str().unwrap()]);
    assert_contains(&error, &["layer 1 has the digest", "expected"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}
