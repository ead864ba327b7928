//! On the real net_cls controller of this machine.

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

fn harness(config: Json) -> Option<CgroupHarness<NetCls>> {
    CgroupHarness::new(CONTROLLERS, config)
}

/// Secondary handles 1 to `last` of the primary handle 0x10.
fn handles(last: u16) -> Json {
    json!({ "primary_handle": 0x10, "last_secondary_handle": last })
}

fn status(class: u32) -> Status {
    Status::default().with("cgroup_info", json!({ "net_cls": { "classid": class } }))
}

fn class(harness: &CgroupHarness<NetCls>) -> u32 {
    harness.cgroup().read_as(CLASS).unwrap()
}

#[test]
fn a_container_gets_a_class_before_it_has_a_process() {
    let Some(harness) = harness(handles(9)) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(prepared.launch.cgroups, [harness.cgroup().directory()]);
    assert_eq!((class(&harness), harness.state("web")), (0x10_0001, json!({ "class": 0x10_0001 })));
    assert_eq!(harness.status("web").unwrap(), status(0x10_0001));
    harness.cleanup("web").unwrap();
    assert!(!harness.cgroup().directory().exists());
    harness.cleanup("web").unwrap();
}

#[test]
fn classes_are_unique_exhaustible_and_reused() {
    let Some(harness) = harness(handles(2)) else { return };
    harness.prepare().unwrap();
    let nested = harness.nested("web.a");
    harness.prepare_container(&nested).unwrap();
    assert_eq!(harness.status("web.a").unwrap(), status(0x10_0002));
    let third = harness.nested("web.b");
    let refused = harness.prepare_container(&third).unwrap_err();
    assert!(refused.message.contains("no class is free for container `web.b`"), "{refused}");
    harness.cleanup("web.b").unwrap();
    harness.cleanup("web.a").unwrap();
    harness.prepare_container(&third).unwrap();
    assert_eq!(harness.status("web.b").unwrap(), status(0x10_0002));
    harness.cleanup("web.b").unwrap();
    harness.cleanup("web").unwrap();
}

#[test]
fn a_changed_configuration_affects_no_running_container_and_no_class_is_given_twice() {
    let Some(harness) = harness(handles(3)) else { return };
    harness.prepare().unwrap();
    harness.prepare_container(&harness.nested("web.a")).unwrap();
    let shell = harness.spawn("echo ready; read end");
    for (config, next_class) in [
        // Now out of the range.
        (json!({ "primary_handle": 0x10, "first_secondary_handle": 3 }), 0x10_0003),
        (json!({ "primary_handle": 0x20 }), 0x20_0001),
        (handles(3), 0x10_0003),
        // The kernel gives a new cgroup the class of its parent.
        (json!({}), 0x10_0001),
    ] {
        let next = harness.restart(config.clone(), &["web", "web.a"], &["web.orphan"]).unwrap();
        assert_eq!(next.status("web").unwrap(), status(0x10_0001), "{config}");
        assert_eq!(next.status("web.a").unwrap(), status(0x10_0002), "{config}");
        assert_eq!(class(&harness), 0x10_0001);
        next.prepare_container(&harness.nested("web.b")).unwrap();
        assert_eq!(next.status("web.b").unwrap(), status(next_class), "{config}");
        next.cleanup("web.b").unwrap();
        next.removed("web.b").unwrap();
        next.cleanup("web.orphan").unwrap();
    }
    shell.end();
    harness.cleanup("web.a").unwrap();
    while harness.cleanup("web").is_err() {
        std::thread::yield_now();
    }
}

#[test]
fn a_lost_lease_is_taken_again() {
    let Some(harness) = harness(handles(3)) else { return };
    harness.prepare().unwrap();
    // As after a cleanup that was not completed.
    let state = harness.state("web");
    harness.cleanup("web").unwrap();
    assert_eq!(harness.state("web"), state);
    let next = harness.restart(handles(3), &["web"], &[]).unwrap();
    next.prepare_container(&harness.nested("web.a")).unwrap();
    assert_eq!(next.status("web.a").unwrap(), status(0x10_0002));
    next.cleanup("web.a").unwrap();
    next.cleanup("web").unwrap();
}

/// The class is that of two containers then, which the log says.
#[test]
fn a_lost_lease_that_another_container_has_does_not_end_with_the_one_that_has_lost_it() {
    let Some(harness) = harness(handles(2)) else { return };
    harness.prepare().unwrap();
    harness.prepare_container(&harness.nested("web.lost")).unwrap();
    let state = harness.state("web.lost");
    // As after a cleanup that was not completed.
    harness.cleanup("web.lost").unwrap();
    harness.prepare_container(&harness.nested("web.other")).unwrap();
    assert_eq!((harness.state("web.other"), harness.state("web.lost")), (state.clone(), state));

    let next = harness.restart(handles(2), &["web", "web.lost", "web.other"], &[]).unwrap();
    next.cleanup("web.lost").unwrap();
    let refused = next.prepare_container(&harness.nested("web.third")).unwrap_err();
    assert!(refused.message.contains("no class is free for container `web.third`"), "{refused}");
    for id in ["web.third", "web.other"] {
        next.cleanup(id).unwrap();
    }
    next.prepare_container(&harness.nested("web.third")).unwrap();
    assert_eq!(next.status("web.third").unwrap(), status(0x10_0002));
    next.cleanup("web.third").unwrap();
    next.cleanup("web").unwrap();
}

#[test]
fn a_container_without_a_class_of_its_own_shows_that_of_its_cgroup() {
    let Some(harness) = harness(json!({})) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(prepared.state, None);
    assert_eq!(harness.status("web").unwrap(), Status::default());
    harness.cgroup().write(CLASS, 0x30_0001).unwrap();
    assert_eq!(harness.status("web").unwrap(), status(0x30_0001));
    harness.cleanup("web").unwrap();
}

#[test]
fn shared_cgroups_are_not_changed() {
    let Some(harness) = harness(handles(9)) else { return };
    harness.prepare().unwrap();
    let prepared = harness.prepare_container(&harness.sharing("web.probe")).unwrap();
    assert_eq!((prepared.launch, prepared.state), (LaunchInfo::default(), None));
    assert_eq!(harness.status("web.probe").unwrap(), status(0x10_0001), "that of its parent");
    harness.cleanup("web.probe").unwrap();
    assert_eq!(class(&harness), 0x10_0001);
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<NetCls>::isolator(handles(9)).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named_and_no_class_is_leased() {
    let harness = PluginHarness::<NetCls>::isolator(handles(9)).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `net_cls`"), "{refused}");
}

#[test]
fn handles_may_be_given_as_to_mesos() {
    let (first, last) = handles::range(" 0x0010, 32").unwrap();
    assert_eq!((first, last), (16, 32));
    let classes = Handles::of(Some(0x12), Some(first), Some(last)).unwrap().unwrap().classes();
    assert_eq!(classes, 0x12_0010..=0x12_0020);
    let table =
        json!({ "cgroups_net_cls_primary_handle": 0x12, "cgroups_net_cls_secondary_handles": "0x10,0x20" });
    assert!(PluginHarness::<NetCls>::isolator(table).is_ok());
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "primary_handle": 65_536 }), "invalid value"),
        (json!({ "primary_handle": 0 }), "`primary_handle` is 0"),
        (json!({ "primary_handle": 1, "first_secondary_handle": 0 }), "`first_secondary_handle` is 0"),
        (
            json!({ "primary_handle": 1, "first_secondary_handle": 5, "last_secondary_handle": 4 }),
            "no secondary handles from 5 to 4",
        ),
        (json!({ "last_secondary_handle": 4 }), "secondary handles need a `primary_handle`"),
        (json!({ "primary": 1 }), "unknown field `primary`"),
        (
            json!({ "primary_handle": 1, "cgroups_net_cls_secondary_handles": "1" }),
            "`cgroups_net_cls_secondary_handles` is `1`; expected two numbers",
        ),
        (
            json!({ "primary_handle": 1, "cgroups_net_cls_secondary_handles": "0x10,0x10000" }),
            "expected two numbers",
        ),
        (
            json!({
                "primary_handle": 1, "last_secondary_handle": 2, "cgroups_net_cls_secondary_handles": "1,2",
            }),
            "set either",
        ),
    ] {
        let refused = PluginHarness::<NetCls>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
