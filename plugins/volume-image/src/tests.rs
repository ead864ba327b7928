use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;

use cofferdam_plugin_api::model::{PrepareReply, Volume};
use cofferdam_plugin_api::testing::{PluginHarness, Refused, skip};

use super::*;

fn volume(target: &str, read_only: bool, root: Option<ImageRoot>) -> Volume {
    let source = VolumeSource::Image { image: "web:1".into(), force_pull: false, root };
    Volume { container_path: target.into(), read_only, source }
}

fn prepare(
    harness: &PluginHarness<Images>,
    volumes: Vec<Volume>,
) -> Result<(PrepareReply, Vec<OwnedFd>), Refused> {
    let mut container = harness.container("web");
    container.rootfs = Some("/image".into());
    container.sandbox_path = Some("/mnt/sandbox".into());
    container.volumes = volumes;
    harness.prepare_with_descriptors(&container)
}

/// Two layers in the directory of a test, the topmost first.
fn layers(harness: &PluginHarness<Images>) -> Vec<PathBuf> {
    let layer = |name: &str, content: &str| {
        let path = harness.directory().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), content).unwrap();
        path
    };
    let layers = vec![layer("top", "top"), layer("lower", "lower")];
    fs::set_permissions(&layers[0], Permissions::from_mode(0o751)).unwrap();
    layers
}

/// What a descriptor refers to, as a path.
fn path(mount: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", mount.as_raw_fd()).into()
}

/// Whether this process may create mounts.
fn may_mount() -> bool {
    match mount::clone(Path::new("/"), false) {
        Ok(_) => true,
        Err(error) => {
            skip(format!("needs open_tree(2) and the capability SYS_ADMIN: {error}"));
            false
        }
    }
}

#[test]
fn each_volume_is_a_mount_of_its_own_without_devices() {
    if !may_mount() {
        return;
    }
    let harness = PluginHarness::<Images>::isolator(json!({})).unwrap();
    let layers = layers(&harness);
    let all = Some(ImageRoot::Layers { directories: layers.clone() });
    let one = Some(ImageRoot::ReadOnly { path: layers[1].clone() });
    let volumes = vec![volume("/a", false, all.clone()), volume("b/c", true, all), volume("/d", true, one)];
    let (reply, mounts) = prepare(&harness, volumes).unwrap();
    let [a, b, d] = &mounts[..] else { panic!("{} mounts", mounts.len()) };
    let read = |mount: &OwnedFd| fs::read_to_string(path(mount).join("file")).unwrap();
    assert_eq!([a, b, d].map(read), ["top", "top", "lower"]);

    let operations = reply.launch.operations;
    let expected = [("/a", &["nodev"][..]), ("/mnt/sandbox/b/c", &["nodev", "ro"]), ("/d", &["nodev", "ro"])];
    for (number, (target, expected)) in expected.into_iter().enumerate() {
        let flags: BTreeSet<String> = expected.iter().map(|&flag| flag.to_owned()).collect();
        let bind = Operation::BindDescriptor { index: number, target: target.into(), recursive: true, flags };
        let propagation = Propagation::Private;
        let private = Operation::Propagation { path: target.into(), propagation, recursive: true };
        assert_eq!(operations[2 * number..2 * number + 2], [bind, private]);
    }

    // Changes are in the scratch directory, and its owner and mode are those of the image.
    File::create(path(a).join("new")).unwrap();
    assert!(File::create(path(b).join("new")).is_err(), "read-only");
    assert_eq!(fs::metadata(path(a)).unwrap().mode() & 0o7777, 0o751);
    let scratch = harness.container("web").scratch;
    assert!(scratch.join(DIRECTORY).join("0-upper/new").exists());
    assert_eq!(layers.iter().filter(|layer| layer.join("new").exists()).count(), 0);
}

#[test]
fn a_copy_is_mounted_itself_and_a_layer_is_not_written_to() {
    if !may_mount() {
        return;
    }
    let harness = PluginHarness::<Images>::isolator(json!({})).unwrap();
    let layers = layers(&harness);
    let copy = Some(ImageRoot::Directory { path: layers[0].clone() });
    let (_, mounts) = prepare(&harness, vec![volume("/a", false, copy)]).unwrap();
    File::create(path(&mounts[0]).join("new")).unwrap();
    assert!(layers[0].join("new").exists());
    let bound = Some(ImageRoot::ReadOnly { path: layers[1].clone() });
    let refused = prepare(&harness, vec![volume("/a", false, bound)]).unwrap_err();
    for part in ["`web:1`", "`/a`", "`image_backend`", "`bind`", "read-only volume"] {
        assert!(refused.message.contains(part), "{refused}");
    }
}

#[test]
fn what_cannot_be_mounted_is_refused() {
    let harness = PluginHarness::<Images>::isolator(json!({})).unwrap();
    let missing = Some(ImageRoot::ReadOnly { path: harness.directory().join("missing") });
    let here = Some(ImageRoot::Directory { path: harness.directory().to_owned() });
    for (volume, expected) in [
        (volume("/a", true, None), "has not assembled it"),
        (volume("/a", true, missing), "missing"),
        (volume("/a", true, Some(ImageRoot::Layers { directories: Vec::new() })), "no layers"),
        (volume("/a", false, Some(ImageRoot::Layers { directories: Vec::new() })), "no layers"),
        (volume("/a", true, Some(ImageRoot::Unknown)), "does not know"),
    ] {
        let refused = prepare(&harness, vec![volume]).unwrap_err();
        assert!(refused.message.contains("`web:1`") && refused.message.contains(expected), "{refused}");
    }
    if may_mount() {
        let refused = prepare(&harness, vec![volume("/a/../b", true, here.clone())]).unwrap_err();
        assert!(refused.message.contains("`..`"), "{refused}");
    }
    let mut debug = harness.container("web.debug");
    debug.class = ContainerClass::Debug;
    debug.volumes.push(volume("/a", true, here));
    let refused = harness.prepare_with_descriptors(&debug).unwrap_err();
    assert!(refused.message.contains("debug container"), "{refused}");
    assert!(prepare(&harness, Vec::new()).unwrap().0.launch.operations.is_empty());
}
