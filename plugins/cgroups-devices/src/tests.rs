//! With the real controller of cgroup v1, and with real programs on cgroup v2.

use std::fs;
use std::process::Command;

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

/// A harness for each version of cgroups that this machine has.
fn harnesses(config: &Json) -> Vec<CgroupHarness<Devices>> {
    let v1 = CgroupHarness::new(CONTROLLERS, config.clone());
    let v2 = match &v1 {
        Some(harness) if !harness.is_v1() => None,
        _ => CgroupHarness::on_v2(CONTROLLERS, config.clone()),
    };
    v1.into_iter().chain(v2).collect()
}

/// Whether each command succeeds in the container, as a string of `y` and `n`.
fn attempt(harness: &CgroupHarness<Devices>, container: Option<&Container>, commands: &[&str]) -> String {
    let tests: String = commands
        .iter()
        .map(|command| format!("if said=$( ({command}) 2>&1 ); then printf y; else printf n; fi; "))
        .collect();
    let script = format!("echo ready; {tests} echo; read end");
    let mut shell = match container {
        Some(container) => harness.spawn_in(container, &script),
        None => harness.spawn(&script),
    };
    let answers = shell.line();
    shell.end();
    answers
}

fn state(rules: &[&str]) -> Json {
    json!({ "permitted": rules })
}

#[test]
fn only_what_the_operator_permits_can_be_used() {
    let config = json!({
        "standard": false,
        "allowed": [{ "path": "/dev/zero", "access": "r" }],
        "rules": ["c 1:3 rw"],
    });
    for harness in harnesses(&config) {
        let node = harness.directory().join("node").display().to_string();
        let prepared = harness.prepare().unwrap();
        assert_eq!(harness.state("web"), state(&["c 1:3 rw", "c 1:5 r"]));
        let directory = harness.cgroup().directory().to_owned();
        assert_eq!(prepared.launch.cgroups, if harness.is_v1() { vec![directory] } else { Vec::new() });
        let answers = attempt(
            &harness,
            None,
            &[
                ": < /dev/null",
                ": > /dev/null",
                ": < /dev/zero",
                ": > /dev/zero",
                ": < /dev/full",
                &format!("mknod {node} c 1 3"),
                "echo text > $(mktemp)",
            ],
        );
        assert_eq!(answers, "yyynnny", "v1: {}", harness.is_v1());
        harness.cleanup("web").unwrap();
        assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn the_standard_devices_can_be_used_and_others_only_created() {
    for harness in harnesses(&json!({})) {
        let node = harness.directory().join("kmsg").display().to_string();
        harness.prepare().unwrap();
        let read = format!(": < {node}");
        let commands: Vec<String> = ["null", "zero", "full", "random", "urandom"]
            .iter()
            .flat_map(|name| [format!(": < /dev/{name}"), format!(": >> /dev/{name}")])
            .chain([": < /dev/ptmx".to_owned(), format!("mknod {node} c 1 11"), read.clone()])
            .collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        assert_eq!(attempt(&harness, None, &commands), "yyyyyyyyyyyyn", "v1: {}", harness.is_v1());
        let outside = Command::new("sh").args(["-c", &read]).status().unwrap();
        assert!(outside.success(), "the device can be opened by others");
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn a_nested_container_never_gets_more_than_its_parent() {
    for harness in harnesses(&json!({ "standard": false, "rules": ["c 1:3 rw", "c 1:7 r"] })) {
        harness.prepare().unwrap();
        // A later agent permits more.
        let config = json!({ "standard": false, "rules": ["c 1:* rm", "b *:* m"] });
        let next = harness.restart(config, &["web"], &[]).unwrap();
        let nested = harness.nested("web.probe");
        let prepared = next.prepare_container(&nested).unwrap();
        assert_eq!(prepared.state, Some(state(&["c 1:3 r", "c 1:7 r"])));
        let commands = [": < /dev/null", ": > /dev/null", ": < /dev/full", ": < /dev/zero"];
        assert_eq!(attempt(&harness, Some(&nested), &commands), "ynyn", "v1: {}", harness.is_v1());
        assert_eq!(attempt(&harness, None, &commands), "yyyn", "the parent is as before");

        // Through one that shares the cgroups of its parent.
        let sharing = harness.sharing("web.shared");
        let prepared = next.prepare_container(&sharing).unwrap();
        assert_eq!(prepared.launch, LaunchInfo::default());
        assert_eq!(prepared.state, Some(state(&["c 1:3 rw", "c 1:7 r"])));
        let below = harness.nested("web.shared.below");
        let prepared = next.prepare_container(&below).unwrap();
        assert_eq!(prepared.state, Some(state(&["c 1:3 r", "c 1:7 r"])));
        for id in ["web.shared.below", "web.shared", "web.probe", "web"] {
            next.cleanup(id).unwrap();
        }
    }
}

#[test]
fn a_running_container_stays_restricted_when_the_agent_restarts() {
    let config = json!({ "standard": false, "rules": ["c 1:3 rw"] });
    for harness in harnesses(&config) {
        harness.prepare().unwrap();
        let shell = harness.spawn("echo ready; read end");
        let next = harness.restart(json!({}), &["web"], &["orphan"]).unwrap();
        let commands = [": < /dev/null", ": < /dev/zero"];
        assert_eq!(attempt(&harness, None, &commands), "yn", "with another configuration");
        if harness.is_v1() {
            // As somebody with privileges could do.
            harness.cgroup().write("devices.allow", "a").unwrap();
            assert_eq!(attempt(&harness, None, &commands), "yy");
            harness.restart(config.clone(), &["web"], &[]).unwrap();
            assert_eq!(attempt(&harness, None, &commands), "yn", "it is restricted again");
            let refused = next.cleanup("web").unwrap_err();
            assert!(refused.retryable, "{refused}");
        }
        shell.end();
        next.cleanup("orphan").unwrap();
        next.cleanup("web").unwrap();
    }
}

#[test]
fn a_container_of_another_agent_or_without_the_plugin_is_left_alone() {
    for harness in harnesses(&json!({})) {
        let v1 = harness.is_v1();
        let details = harness.container("web");
        assert!(details.parent.is_none());
        // It has no state, and no cgroup on v1.
        harness.restart(json!({}), &["web"], &["web.orphan"]).unwrap();
        assert_eq!(harness.cgroup().directory().exists(), !v1);
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn a_state_that_cannot_be_read_is_refused() {
    let harness = PluginHarness::<Devices>::isolator(json!({})).unwrap();
    let details = cofferdam_plugin_api::model::ContainerDetails {
        state: json!({ "permitted": ["c x"] }),
        ..Default::default()
    };
    let container = Recovered { id: "web".parse().unwrap(), details, written_by: None };
    let verdicts = harness.recover(vec![container], Vec::new()).unwrap().verdicts;
    assert!(format!("{verdicts:?}").contains("`c x` is not a rule for devices"), "{verdicts:?}");
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Devices>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Devices>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `devices`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    let directory = std::env::temp_dir();
    let file = directory.join(format!("cofferdam-no-device-{}", std::process::id()));
    fs::write(&file, "").unwrap();
    let rules: Vec<String> = (0..401).map(|minor| format!("b 7:{minor} r")).collect();
    for (config, complaint) in [
        (json!({ "standard": 1 }), "invalid type"),
        (json!({ "allow": [] }), "unknown field `allow`"),
        (json!({ "rules": ["a *:* rwm"] }), "`a *:* rwm` is not a rule for devices"),
        (json!({ "allowed": [{ "access": "r" }] }), "missing field `path`"),
        (json!({ "allowed": [{ "path": "dev/null" }] }), "is not an absolute path"),
        (json!({ "allowed": [{ "path": "/dev/no such" }] }), "cannot find the device `/dev/no such`"),
        (json!({ "allowed": [{ "path": file }] }), "is not a device"),
        (json!({ "allowed": [{ "path": "/dev/null", "access": "rx" }] }), "`rx` is no access to `/dev/null`"),
        (json!({ "allowed": [{ "path": "/dev/null", "access": "" }] }), "`` is no access"),
        (json!({ "standard": false, "rules": rules }), "there are 401 rules for devices"),
    ] {
        let refused = PluginHarness::<Devices>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
    fs::remove_file(file).unwrap();
}
