use std::collections::BTreeMap;

use cofferdam_plugin_api::model::{Command, ImageConfig, LaunchInfo};
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
