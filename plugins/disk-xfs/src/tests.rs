//! What needs no file system with quotas. The rest is in `tests/system`, which also runs in virtual machines that have one.

use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::testing::PluginHarness;

use super::*;

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "xfs_project_range": "[0-5]" }), "project 0"),
        (json!({ "xfs_project_range": 5 }), "invalid type"),
        (
            json!({ "xfs_kill_containers": true }),
            "`xfs_kill_containers` needs `enforce_container_disk_quota`",
        ),
        (json!({ "container_disk_watch_interval": "0s" }), "`container_disk_watch_interval` is 0"),
        (json!({ "range": "[5-6]" }), "unknown field `range`"),
    ] {
        let refused = PluginHarness::<Xfs>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}

#[test]
fn a_file_system_without_quotas_is_refused_with_what_to_do() {
    let refused = PluginHarness::<Xfs>::isolator(json!({})).err().unwrap();
    let message = refused.message;
    assert!(
        message.contains("has no quotas for projects") || message.contains("neither XFS nor ext4"),
        "{message}"
    );
    assert!(message.contains("disk/du"), "{message}");
}

#[test]
fn limits_are_those_of_the_request() {
    let resources = Resources::default();
    assert_eq!(limit(&resources), None);
    assert_eq!(limit(&resources.clone().with("disk", 2.0)), Some(Some(2 << 20)));
    assert_eq!(limit(&resources.clone().with_limit("disk", Limit::Unlimited)), Some(None));
    assert_eq!(limit(&resources.with("disk", 0.000_000_1)), Some(Some(1)));
}
