//! Layers that zstd(1) has compressed, in a real registry.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use cofferdam_tests::images::{Layer, busybox};
use cofferdam_tests::registry::{Registry, exchange, write_login};
use cofferdam_tests::world::{id, run};
use cofferdam_tests::{assert_contains, is_root};

use super::registry::compressed;
use super::{Fixture, request};

/// A frame that is not data, as pzstd and tools for lazy pulls write them.
const SKIPPED: &[u8] = b"\x51\x2a\x4d\x18\x04\0\0\0toc.";

/// What zstd(1) makes of a stream. It does not know its length, so the window is that of the level.
fn zstd(bytes: &[u8], options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("zstd");
    command.args(["-q", "-c"]).args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("zstd (package zstd)");
    let mut input = child.stdin.take().expect("a pipe");
    let output = thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).expect("zstd reads"));
        child.wait_with_output().expect("a child")
    });
    assert!(output.status.success(), "{options:?}");
    output.stdout
}

/// Text that compresses, of several blocks, and different for each name.
fn long(name: &str) -> Vec<u8> {
    (0..20_000_u32)
        .flat_map(|line| format!("{name} {}\n", line.wrapping_mul(2_654_435_761)).into_bytes())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_level_of_zstd_are_pulled_and_run() {
    if !is_root("containers of images") {
        return;
    }
    let (fixture, registry) = (Fixture::new(), Registry::start(true));
    let levels: [(&str, &[&str]); 5] = [
        ("fast", &["--fast=5"]),
        ("usual", &["-3"]),
        ("best", &["-19", "-T2"]),
        // A window of 128 MiB, which zstd(1) decompresses without an option.
        ("window", &["--ultra", "-20", "--long=27"]),
        ("unchecked", &["-1", "--no-check"]),
    ];
    let mut layers = vec![compressed(&busybox())];
    for (name, options) in levels {
        let archive = Layer::new().file(name, &long(name)).bytes();
        let blob = zstd(&archive, options);
        layers.push((archive, blob));
    }
    // Several frames, between others that are not data, and a member that replaces one of a layer below.
    let archive = Layer::new().file("frames", &long("frames")).file("etc/.wh.group", b"").bytes();
    let (first, second) = archive.split_at(archive.len() / 3);
    let frames = [SKIPPED, &zstd(first, &[]), SKIPPED, &zstd(second, &[]), SKIPPED].concat();
    layers.push((archive, frames));
    registry.zstd_image("web", "zstd", &layers);

    fs::create_dir(fixture.path("docker")).unwrap();
    let login = fixture.path("docker/config.json");
    write_login(&login, &registry.address.to_string());
    let name = registry.name("web:zstd");
    fixture.pulled(&["--insecure", &name]);
    for (number, name_of_file) in levels.iter().map(|(name, _)| *name).chain(["frames"]).enumerate() {
        let content = fs::read(fixture.images.layer(&name, number + 1).join(name_of_file)).unwrap();
        assert!(content == long(name_of_file), "{name_of_file}");
    }
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let output = run(&agent, request("web", &name, "ls /etc; wc -l < /best; wc -l < /frames")).await;
    assert_eq!(output, "passwd\n20000\n20000\n");
    agent.remove(&id("web")).await.unwrap();
}

/// What the tools of containers have that are written in Go: another encoder than that of zstd(1).
#[test]
fn an_image_that_podman_pushes_with_zstd_is_pulled() {
    if !is_root("a pull") {
        return;
    }
    let (fixture, registry) = (Fixture::new(), Registry::start(false));
    let archive = fixture.path("root.tar");
    fs::write(&archive, Layer::new().file("motd", &long("motd")).bytes()).unwrap();
    let name = registry.name("web:1");
    // In a mount namespace of its own, so that nothing that it mounts stays.
    let script = r#"set -e
podman="podman --root $0/root --runroot $0/run --tmpdir $0/tmp --storage-driver vfs"
$podman import -q "$0/root.tar" "$1" >/dev/null
$podman push -q --tls-verify=false --compression-format zstd --format oci "$1""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let pushed = command.arg(fixture.directory.path()).arg(&name).output().unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    fixture.pulled(&["--insecure", &name]);
    let content = fs::read(fixture.images.layer(&name, 0).join("motd")).unwrap();
    assert!(content == long("motd"));
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json\r\n";
    let manifest = exchange(registry.address, "GET", "/v2/web/manifests/1", accept, b"").unwrap();
    assert_contains(&String::from_utf8_lossy(&manifest), &["layer.v1.tar+zstd"]);
}

#[test]
fn what_is_wrong_with_a_layer_in_zstd_is_said_and_nothing_of_it_stays() {
    if !is_root("a pull") {
        return;
    }
    let (fixture, registry) = (Fixture::new(), Registry::start(false));
    let archive = Layer::new().file("long", &long("long")).bytes();
    let blob = zstd(&archive, &["-3", "--check"]);
    let changed = |index: usize| {
        let mut bytes = blob.clone();
        bytes[index] ^= 0x40;
        bytes
    };
    let end = blob.len();
    let wide = zstd(&archive, &["--ultra", "-20", "--long=28"]);
    let blobs: [(&str, Vec<u8>, &str); 6] = [
        ("checksum", changed(end - 1), "the checksum of a zstd frame is wrong: the data is damaged"),
        ("short", blob[..end - 2].to_vec(), "the zstd data ends within a frame"),
        ("half", blob[..end / 2].to_vec(), "the zstd data ends within a frame"),
        ("rest", [&blob[..], b"rest"].concat(), "there is something other than zstd frames after"),
        ("window", wide, "needs a window of 268435456 bytes; expected at most 134217728"),
        ("plain", zstd(&archive[..archive.len() - 2048], &[]), "it is not a complete tar archive"),
    ];
    for (tag, blob, expected) in blobs {
        registry.zstd_image("web", tag, &[(archive.clone(), blob)]);
        let error = fixture.refused(&["--insecure", &registry.name(&format!("web:{tag}"))]);
        assert_contains(&error, &["cannot unpack layer 1", expected]);
        assert_eq!(fixture.images.leftovers(), Vec::<String>::new(), "{error}");
    }
    // One that is whole, and another archive than the configuration says.
    let other = Layer::new().file("long", b"other").bytes();
    registry.zstd_image("web", "other", &[(archive, zstd(&other, &[]))]);
    let error = fixture.refused(&["--insecure", &registry.name("web:other")]);
    assert_contains(&error, &["layer 1 has the digest", "expected"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}
