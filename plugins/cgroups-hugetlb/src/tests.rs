//! On the real hugetlb controller of this machine.

use cofferdam_plugin_api::model::{LaunchInfo, Limit};
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

fn harness(config: Json, resources: Resources) -> Option<CgroupHarness<Hugetlb>> {
    if !page::sizes().unwrap().iter().any(|size| size.to_string() == "2MB") {
        return None;
    }
    Some(CgroupHarness::new(CONTROLLERS, config)?.with_resources(resources))
}

/// Limits of use and of reservations.
fn limits(harness: &CgroupHarness<Hugetlb>) -> [String; 2] {
    [
        harness.read("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
        harness.read("hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max"),
    ]
}

fn pages(mebibytes: f64) -> Resources {
    Resources::default().with("hugepages-2MB", mebibytes)
}

#[test]
fn a_limit_of_the_request_or_of_the_configuration_is_set_and_updated() {
    let Some(harness) = harness(json!({ "limits": { "2MB": "16 MiB" } }), Resources::default()) else {
        return;
    };
    harness.prepare().unwrap();
    assert_eq!(limits(&harness), ["16777216", "16777216"]);
    let usage = harness.usage("web").unwrap();
    assert_eq!(usage.number("hugetlb_2MB_limit_bytes"), Some(f64::from(16 << 20)), "{usage:?}");
    assert_eq!(usage.number("hugetlb_2MB_usage_bytes"), Some(0.0), "{usage:?}");
    assert_eq!(usage.number("hugetlb_2MB_limit_events"), Some(0.0), "{usage:?}");
    harness.update("web", pages(4.0)).unwrap();
    assert_eq!(limits(&harness), ["4194304", "4194304"]);
    harness.update("web", Resources::default().with("mem", 64.0)).unwrap();
    assert_eq!(limits(&harness), ["4194304", "4194304"], "not changed");

    // Another agent with another configuration.
    let next = harness.restart(json!({ "limits": { "2MB": "0 MiB" } }), &["web"], &["orphan"]).unwrap();
    assert_eq!(limits(&harness), ["4194304", "4194304"]);
    next.update("web", pages(4.0).with_limit("hugepages-2MB", Limit::Unlimited)).unwrap();
    assert_eq!(next.usage("web").unwrap().number("hugetlb_2MB_limit_bytes"), None);
    next.cleanup("orphan").unwrap();
    next.cleanup("web").unwrap();
    next.cleanup("web").unwrap();
    assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
}

#[test]
fn an_update_that_is_rolled_back_restores_the_configured_limit_or_none() {
    for (config, expected) in
        [(json!({ "limits": { "2MB": "16 MiB" } }), Some(f64::from(16 << 20))), (json!({}), None)]
    {
        let Some(harness) = harness(config, Resources::default()) else { return };
        harness.prepare().unwrap();
        let limit = || harness.usage("web").unwrap().number("hugetlb_2MB_limit_bytes");
        harness.update("web", pages(4.0)).unwrap();
        assert_eq!(limit(), Some(f64::from(4 << 20)));
        harness.roll_back("web", Resources::default()).unwrap();
        assert_eq!(limit(), expected);
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn a_nested_container_has_a_limit_of_its_own_or_shares_that_of_its_parent() {
    let Some(harness) = harness(json!({}), pages(8.0)) else { return };
    harness.prepare().unwrap();
    let mut nested = harness.nested("web.probe");
    nested.resources = pages(2.0);
    harness.prepare_container(&nested).unwrap();
    assert_eq!(harness.usage("web.probe").unwrap().number("hugetlb_2MB_limit_bytes"), Some(2_097_152.0));
    let sharing = harness.sharing("web.shared");
    assert_eq!(harness.prepare_container(&sharing).unwrap().launch, LaunchInfo::default());
    assert_eq!(harness.usage("web.shared").unwrap(), Usage::default());
    let refused = harness.update("web.shared", pages(100.0)).unwrap_err();
    assert!(refused.message.contains("`web.shared`") && refused.message.contains("parent"), "{refused}");
    assert_eq!(limits(&harness)[0], "8388608");
    for id in ["web.shared", "web.probe", "web"] {
        harness.cleanup(id).unwrap();
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Hugetlb>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Hugetlb>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `hugetlb`"), "{refused}");
}

#[test]
fn bad_configurations_and_requests_are_refused() {
    for (config, complaint) in [
        (json!({ "limits": { "3MB": "3 MiB" } }), "no huge pages of `3MB`"),
        (json!({ "limits": { "2MB": "much" } }), "`much` is not a size"),
        (json!({ "limit": 1 }), "unknown field `limit`"),
    ] {
        let refused = PluginHarness::<Hugetlb>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
    let harness = PluginHarness::<Hugetlb>::isolator(json!({})).unwrap();
    let mut container = harness.container("web");
    container.resources = Resources::default().with("hugepages-3MB", 3.0);
    let refused = harness.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("cannot limit `hugepages-3MB`"), "{refused}");
}
