use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cofferdam_plugin_api::model::{Command, ImageConfig, LaunchInfo, Owner, Volume, VolumeSource};
use cofferdam_plugin_api::testing::PluginHarness;

use super::*;

fn image(change: impl FnOnce(&mut ImageConfig)) -> ImageConfig {
    let mut image = ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() };
    change(&mut image);
    image
}

/// A request for the image's own command.
fn own() -> Command {
    Command { shell: false, ..Command::default() }
}

fn prepare(config: Json, image: Option<ImageConfig>, command: Command) -> Result<LaunchInfo, String> {
    let harness: PluginHarness<Runtime> = PluginHarness::isolator(config).unwrap();
    let mut container = harness.container("web");
    (container.image, container.command) = (image, command);
    container.rootfs = Some(harness.directory().to_owned());
    harness.prepare_container(&container).map(|reply| reply.launch).map_err(|error| error.to_string())
}

#[test]
fn a_container_without_an_image_is_left_alone() {
    let launch = prepare(json!({}), None, own()).unwrap();
    assert_eq!(launch, LaunchInfo::default());
}

#[test]
fn the_configuration_of_the_image_is_requested() {
    let image = image(|image| {
        image.environment = BTreeMap::from([("A".into(), "1".into())]);
        image.working_directory = Some("/srv".into());
        image.user = Some("web:www".into());
        image.stop_signal = Some("SIGQUIT".into());
    });
    let launch = prepare(json!({}), Some(image.clone()), own()).unwrap();
    assert_eq!(launch.environment, BTreeMap::from([("A".into(), "1".into())]));
    assert_eq!(launch.working_directory.as_deref(), Some("/srv"));
    assert_eq!((launch.user.as_deref(), launch.stop_signal), (Some("web:www"), Some(3)));
    assert_eq!(launch.command.unwrap().value.as_deref(), Some("sh"));

    let as_mesos = json!({ "user": false, "stop_signal": false });
    let launch = prepare(as_mesos, Some(image), own()).unwrap();
    assert_eq!((launch.user, launch.stop_signal), (None, None));
}

#[test]
fn labels_and_volumes_are_those_of_the_image_unless_the_request_has_them() {
    let image = image(|image| {
        image.labels = BTreeMap::from([("tier".into(), "front".into()), ("team".into(), "web".into())]);
        image.volumes = ["/data".to_owned(), "/var/lib/log/".to_owned()].into();
    });
    let prepare = |config, change: &dyn Fn(&mut Container)| {
        let harness: PluginHarness<Runtime> = PluginHarness::isolator(config).unwrap();
        let mut container = harness.container("web");
        (container.image, container.command) = (Some(image.clone()), own());
        container.rootfs = Some(harness.directory().join("rootfs"));
        fs::create_dir_all(harness.directory().join("rootfs/data")).unwrap();
        change(&mut container);
        let reply = harness.prepare_container(&container);
        // With the harness, as its directory is removed with it.
        (reply.map(|reply| reply.launch).map_err(|error| error.message), container, harness)
    };
    let (launch, ..) = prepare(json!({}), &|container| {
        container.labels.insert("tier".into(), "back".into());
        let source = VolumeSource::HostPath { path: "/srv".into(), propagation: None };
        container.volumes.push(Volume { container_path: "/data/".into(), read_only: false, source });
    });
    let launch = launch.unwrap();
    assert_eq!(launch.labels, BTreeMap::from([("team".into(), "web".into())]));
    let made = Operation::Mkdir { path: "/var/lib/log".into(), mode: 0o755, owner: Owner::default() };
    assert_eq!(launch.operations, [made]);

    let (launch, container, _harness) =
        prepare(json!({}), &|container| container.linux.read_only_root = true);
    let operations = launch.unwrap().operations;
    let [Operation::Bind { source, target, .. }, Operation::Bind { target: other, .. }] = &operations[..]
    else {
        panic!("{operations:?}")
    };
    assert_eq!((target.as_path(), other.as_path()), (Path::new("/data"), Path::new("/var/lib/log")));
    assert!(source.is_dir() && source.starts_with(&container.scratch), "{source:?}");
    let (refused, ..) = prepare(json!({}), &|container| {
        container.linux.read_only_root = true;
        fs::write(container.rootfs.as_ref().unwrap().join("data/file"), "").unwrap();
    });
    assert!(refused.unwrap_err().contains("`/data`"));

    let (launch, ..) = prepare(json!({ "labels": false, "volumes": false }), &|_| {});
    let launch = launch.unwrap();
    assert!(launch.labels.is_empty() && launch.operations.is_empty());
}

#[test]
fn a_volume_of_an_image_is_an_absolute_path_below_the_root() {
    for wrong in ["data", "/", "/a/../b", "/a\0", ""] {
        let image = image(|image| image.volumes = [wrong.to_owned()].into());
        let error = prepare(json!({}), Some(image), own()).unwrap_err();
        assert!(error.contains("the image has a volume at"), "{wrong}: {error}");
    }
    let many = image(|image| image.volumes = (0..100).map(|number| format!("/v{number}")).collect());
    assert!(prepare(json!({}), Some(many), own()).unwrap_err().contains("100 volumes"));
}

#[test]
fn what_the_image_says_wrongly_is_an_error() {
    let with = |change: fn(&mut ImageConfig)| prepare(json!({}), Some(image(change)), own()).unwrap_err();
    assert!(with(|image| image.working_directory = Some("srv".into())).contains("not an absolute path"));
    assert!(with(|image| image.stop_signal = Some("SIGX".into())).contains("`SIGX`"));
    assert!(with(|image| drop(image.environment.insert("A".into(), "\0".into()))).contains("`A`"));
    let request = Command { working_directory: Some("/tmp".into()), ..own() };
    let launch =
        prepare(json!({}), Some(image(|image| image.working_directory = Some("srv".into()))), request);
    assert_eq!(launch.unwrap().working_directory, None);
}

#[test]
fn arguments_replace_the_command_of_the_image_as_with_docker() {
    let arguments = |entrypoint: &[&str], cmd: &[&str]| {
        let config = ImageConfig {
            entrypoint: entrypoint.iter().map(|word| (*word).into()).collect(),
            cmd: cmd.iter().map(|word| (*word).into()).collect(),
            ..ImageConfig::default()
        };
        let request = Command { arguments: vec!["ls".into(), "-l".into()], replaces_cmd: true, ..own() };
        prepare(json!({}), Some(config), request).unwrap().command.unwrap().arguments.unwrap()
    };
    assert_eq!(arguments(&[], &["sh"]), ["ls", "-l"]);
    assert_eq!(arguments(&[], &[]), ["ls", "-l"]);
    assert_eq!(arguments(&["/run", "-x"], &["sh"]), ["/run", "-x", "ls", "-l"]);
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Runtime>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
