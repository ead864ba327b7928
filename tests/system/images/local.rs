//! Containers that are launched from images in files and directories.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cofferdam_core::model::{Volume, VolumeSource};
use cofferdam_core::provisioner::Digest;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::images::{Layer, Layout, busybox, gzip};
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{assert_contains, is_root, paths};
use serde_json::json;

use super::agent::{exit_code, printed, refused};
use super::{Fixture, own, request};

impl Fixture {
    /// A world whose agents launch images in the directory `permitted`, which is created.
    fn permitting(&self) -> (World, PathBuf) {
        let directory = self.path("permitted");
        fs::create_dir(&directory).unwrap();
        let mut world = self.world();
        world.config.local_images = vec![self.path("none"), directory.clone()];
        (world, directory)
    }

    /// The reference of an image whose name is its path: another one when it was imported again.
    fn reference(&self, path: &Path) -> u64 {
        let name = Digest::of(path.to_str().unwrap().as_bytes());
        fs::metadata(self.images.store.join("references").join(name.hex())).unwrap().ino()
    }
}

/// The layers of an image with a file.
fn layers(motd: &str) -> [Layer; 2] {
    [busybox(), Layer::new().file("motd", motd.as_bytes())]
}

/// A layout whose command shows the file.
fn layout(path: &Path, motd: &str) {
    Layout::create(path, "ignored:1", &layers(motd), json!({ "Cmd": ["cat", "/motd"] }));
}

fn tar(directory: &Path, archive: &Path) {
    let status =
        Command::new("tar").arg("-cf").arg(archive).arg("-C").arg(directory).arg(".").status().unwrap();
    assert!(status.success());
}

/// An archive as `docker save` writes it.
fn docker_archive(directory: &Path, motd: &str) {
    fs::create_dir(directory).unwrap();
    let diff_ids = layers(motd).map(|layer| Digest::of(&layer.bytes()));
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Cmd": ["cat", "/motd"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    for (number, layer) in layers(motd).iter().enumerate() {
        fs::write(directory.join(format!("{number}.tar")), layer.bytes()).unwrap();
    }
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": ["ignored:1"], "Layers": ["0.tar", "1.tar"] }]);
    fs::write(directory.join("manifest.json"), manifest.to_string()).unwrap();
}

/// A root file system.
fn rootfs(path: &Path, motd: &str) {
    fs::create_dir_all(path.join("bin")).unwrap();
    fs::copy("/bin/busybox", path.join("bin/cat")).unwrap();
    fs::write(path.join("motd"), motd).unwrap();
}

#[test]
fn a_container_is_launched_from_every_kind_of_source() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let (world, directory) = fixture.permitting();
    let at = |name: &str| directory.join(name);
    layout(&at("layout"), "one\n");
    tar(&at("layout"), &at("oci.tar"));
    fs::write(at("oci.tar.gz"), gzip(&fs::read(at("oci.tar")).unwrap())).unwrap();
    docker_archive(&fixture.path("saved"), "one\n");
    tar(&fixture.path("saved"), &at("docker.tar"));
    rootfs(&at("root"), "one\n");
    tar(&at("root"), &at("root.tar"));
    let daemon = Daemon::start(&world);
    for name in ["layout", "oci.tar", "oci.tar.gz", "docker.tar", "root", "root.tar"] {
        let image = at(name).to_str().unwrap().to_owned();
        let mut web = own("web", &image);
        if name.starts_with("root") {
            web.command.value = Some("/bin/cat".into());
            web.command.arguments = vec!["cat".into(), "/motd".into()];
        }
        daemon.launch(&web).unwrap();
        assert_eq!(exit_code(&daemon, "web"), 0, "{name}");
        assert_eq!(printed(&world, &["logs", "web"]), "one\n", "{name}");
        daemon.remove(&id("web")).unwrap();
        // Its name is its path.
        assert_contains(&fixture.images.run(&["ls"]), &[&image]);
    }
    // Those with the same layers share them: two layers, and one of each root file system.
    assert_eq!(fixture.images.entries("layers/sha256").len(), 4);
    assert_eq!(fixture.images.entries("staging"), Vec::<String>::new());
    let image = at("layout").to_str().unwrap().to_owned();
    assert_contains(&fixture.images.run(&["rm", &image]), &[&image]);
    assert!(!fixture.images.run(&["ls"]).contains(&image));
    assert_eq!(world.leftovers(), Vec::<String>::new());

    // Also a volume.
    let mut web = request("web", at("oci.tar").to_str().unwrap(), "cat /data/motd");
    let source =
        VolumeSource::Image { image: at("root").to_str().unwrap().into(), force_pull: false, root: None };
    web.volumes = vec![Volume { container_path: "/data".into(), read_only: true, source }];
    daemon.launch(&web).unwrap();
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(printed(&world, &["logs", "web"]), "one\n");
    daemon.remove(&id("web")).unwrap();
    assert!(daemon.terminate().success());
}

#[test]
fn what_has_changed_is_imported_again_and_what_has_not_is_not_read() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let (world, directory) = fixture.permitting();
    let daemon = Daemon::start(&world);
    let (archive, source) = (directory.join("web.tar"), directory.join("layout"));
    let shown = |path: &Path, force: bool| {
        let mut web = own("web", path.to_str().unwrap());
        web.force_pull_image = force;
        daemon.launch(&web).unwrap();
        assert_eq!(exit_code(&daemon, "web"), 0);
        let output = printed(&world, &["logs", "web"]);
        daemon.remove(&id("web")).unwrap();
        (output, fixture.reference(path))
    };
    let write = |motd: &str| {
        let made = fixture.path(&format!("made-{}", motd.trim()));
        layout(&made, motd);
        tar(&made, &fixture.path("new.tar"));
        fs::rename(fixture.path("new.tar"), &archive).unwrap();
    };
    write("one\n");
    let first = shown(&archive, false);
    assert_eq!(first.0, "one\n");
    assert_eq!(shown(&archive, false), first, "it was not imported again");
    let forced = shown(&archive, true);
    assert!(forced.0 == "one\n" && forced.1 != first.1, "{forced:?}");
    write("two\n");
    assert_eq!(shown(&archive, false).0, "two\n");
    // Nothing of it is in the store any more, and it is there again.
    let name = archive.to_str().unwrap();
    fixture.images.run(&["rm", name]);
    assert_eq!(shown(&archive, false).0, "two\n");
    // A directory is always read, and only layers that the store does not have are unpacked.
    layout(&source, "one\n");
    assert_eq!(shown(&source, false).0, "one\n");
    fs::remove_dir_all(&source).unwrap();
    layout(&source, "two\n");
    assert_eq!(shown(&source, false).0, "two\n");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert!(daemon.terminate().success());
}

#[test]
fn only_what_the_operator_permits_is_read_and_a_failure_leaves_nothing() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let (mut world, directory) = fixture.permitting();
    let outside = fixture.path("outside");
    layout(&outside, "secret\n");
    symlink(&outside, directory.join("out")).unwrap();
    fs::write(directory.join("text"), "no archive, but a text that is long enough\n".repeat(100)).unwrap();
    let [one, other] = ["one", "other"].map(|motd| fixture.path(motd));
    docker_archive(&one, "one\n");
    docker_archive(&other, "other\n");
    fs::rename(other.join("config.json"), one.join("config-2.json")).unwrap();
    fs::rename(other.join("1.tar"), one.join("2.tar")).unwrap();
    let manifest = json!([
        { "Config": "config.json", "RepoTags": ["a:1"], "Layers": ["0.tar", "1.tar"] },
        { "Config": "config-2.json", "RepoTags": ["b:1"], "Layers": ["0.tar", "2.tar"] },
    ]);
    fs::write(one.join("manifest.json"), manifest.to_string()).unwrap();
    tar(&one, &directory.join("two.tar"));
    let foreign = fixture.path("foreign");
    docker_archive(&foreign, "foreign\n");
    let config = fs::read_to_string(foreign.join("config.json")).unwrap();
    fs::write(foreign.join("config.json"), config.replace("amd64", "s390x")).unwrap();
    tar(&foreign, &directory.join("foreign.tar"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let daemon = Daemon::start(&world);
    let is_refused = |daemon: &Daemon, path: PathBuf, expected: &[&str]| {
        let path = path.to_str().unwrap();
        let error = refused(daemon.launch(&request("web", path, "true")));
        assert_contains(&error, &[&[path], expected].concat());
        assert_eq!(fixture.images.leftovers(), Vec::<String>::new(), "{path}");
    };
    for path in
        [outside.clone(), directory.join("out"), "/etc/passwd".into(), "/no-such-file".into(), "/".into()]
    {
        is_refused(&daemon, path, &["in no directory that images may be read from", "`local_images`"]);
    }
    is_refused(&daemon, directory.join("../outside"), &["without `..`"]);
    is_refused(&daemon, directory.join("missing"), &["there is no file or directory"]);
    is_refused(&daemon, directory.join("text"), &["cannot use the image"]);
    is_refused(&daemon, directory.join("two.tar"), &["2 images", "cofferdam image import"]);
    is_refused(&daemon, directory.join("foreign.tar"), &["linux/amd64", "linux/s390x"]);
    is_refused(&daemon, directory.join("fifo"), &["cannot use the image"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert!(daemon.terminate().success());

    // Nothing is permitted by default.
    world.config.local_images.clear();
    let daemon = Daemon::start(&world);
    is_refused(&daemon, directory, &["`local_images`"]);
    assert!(daemon.terminate().success());
}

#[test]
fn the_command_line_launches_any_image_of_its_user_without_a_daemon() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    layout(&fixture.path("layout"), "one\n");
    let run = |arguments: &[&str]| -> Output {
        let mut command = Command::new(paths::program());
        command.arg("run").arg("--image-store").arg(&fixture.images.store).args(arguments);
        command.current_dir(fixture.directory.path()).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let missing = run(&["--pull", "never", "--image", "./layout"]);
    assert_eq!(missing.status.code(), Some(125));
    assert_contains(&text(&missing.stderr), &["layout` in the store"]);
    for _ in 0..2 {
        let output = run(&["--image", "./layout"]);
        assert_eq!(text(&output.stdout), "one\n", "{}", text(&output.stderr));
    }
    let here = run(&["--image", "layout/../layout", "--", "true"]);
    assert_eq!(here.status.code(), Some(125), "a name is no path");
    let output = run(&[
        "--mount",
        "type=image,src=./layout,dst=/data",
        "--image",
        "./layout",
        "--",
        "cat",
        "/data/motd",
    ]);
    assert_eq!(text(&output.stdout), "one\n", "{}", text(&output.stderr));
    let error = run(&["--image", "./none"]);
    assert_eq!(error.status.code(), Some(125));
    assert_contains(&text(&error.stderr), &["there is no file or directory", "/none`"]);
}
