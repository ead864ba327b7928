use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use cofferdam_plugin_api::model::{Secret, Volume};
use cofferdam_plugin_api::testing::{PluginHarness, skip};

use super::*;

fn volume(secret: Secret, target: &str) -> Volume {
    Volume { container_path: target.into(), read_only: false, source: VolumeSource::Secret { secret } }
}

fn reference(name: &str) -> Secret {
    Secret::Reference { name: name.to_owned(), key: None }
}

fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        skip("only root can mount");
    }
    root
}

#[test]
fn a_secret_is_a_file_of_the_containers_user_that_is_in_no_reply() {
    if !is_root() {
        return;
    }
    let owner = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    let secrets = owner.directory().join("secrets");
    fs::create_dir(&secrets).unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(secrets.join("key"), [0xff, 0, b'h', b'u', b'n', b't', b'e', b'r']).unwrap();
    let harness = PluginHarness::<Secrets>::isolator(json!({ "secret_dir": secrets })).unwrap();
    let mut container = harness.container("web");
    container.rootfs = Some("/image".into());
    container.sandbox_path = Some("/mnt/sandbox".into());
    (container.uid, container.gid) = (12, 34);
    container.volumes =
        vec![volume(Secret::Value("hunter1".into()), "/run/secrets/token"), volume(reference("key"), "key")];
    let (reply, descriptors) = harness.prepare_with_descriptors(&container).unwrap();
    let contents = descriptors.iter().map(|file| {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode(), found.uid(), found.gid()), (0o100_400, 12, 34));
        fs::read(path).unwrap()
    });
    let contents: Vec<Vec<u8>> = contents.collect();
    assert_eq!(contents, [b"hunter1".to_vec(), b"\xff\0hunter".to_vec()]);
    let targets = reply.launch.operations.iter().map(|operation| match operation {
        Operation::BindDescriptor { target, flags, .. } => {
            assert!(flags.contains("ro"));
            target.display().to_string()
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(targets.collect::<Vec<_>>(), ["/run/secrets/token", "/mnt/sandbox/key"]);
    let shown = format!("{reply:?}");
    assert!(!shown.contains("hunter") && harness.state("web").is_null(), "{shown}");
    harness.cleanup("web").unwrap();
}

#[test]
fn errors_name_the_target_and_never_the_value() {
    let harness = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    for (class, volume, expected) in [
        (ContainerClass::Default, volume(reference("key"), "/key"), "`secret_dir` is not set"),
        (ContainerClass::Default, volume(Secret::Value("hunter1".into()), "/../key/.."), "contains `..`"),
        (ContainerClass::Debug, volume(Secret::Value("hunter1".into()), "/key"), "debug container"),
    ] {
        let mut container = harness.container("pod.web");
        container.class = class;
        container.rootfs = Some("/image".into());
        container.volumes.push(volume);
        let refused = harness.prepare_container(&container).unwrap_err();
        assert!(refused.message.contains(expected) && !refused.message.contains("hunter"), "{refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
