use cofferdam_plugin_api::testing::PluginHarness;

use super::*;

fn limit(soft: u64, hard: u64) -> Rlimit {
    Rlimit { soft: Some(soft), hard: Some(hard) }
}

#[test]
fn a_request_replaces_the_default_of_the_same_name() {
    let config =
        json!({ "defaults": { "CORE": { "soft": 0, "hard": 0 }, "NOFILE": { "soft": 64, "hard": 128 } } });
    let harness = PluginHarness::<Limits>::isolator(config).unwrap();
    let mut container = harness.container("web");
    container.rlimits = [("NOFILE".to_owned(), limit(10, 20)), ("NPROC".to_owned(), limit(5, 5))].into();
    let rlimits = harness.prepare_container(&container).unwrap().launch.rlimits;
    let expected = [("CORE", limit(0, 0)), ("NOFILE", limit(10, 20)), ("NPROC", limit(5, 5))];
    assert_eq!(rlimits, expected.map(|(name, limit)| (name.to_owned(), limit)).into());
}

#[test]
fn a_debug_container_has_the_limits_of_its_parent_unless_it_requests_others() {
    let harness =
        PluginHarness::<Limits>::isolator(json!({ "defaults": { "NOFILE": { "soft": 64, "hard": 128 } } }))
            .unwrap();
    let prepare = |id: &str, class, requested: &[(&str, Rlimit)]| {
        let mut container = harness.container(id);
        container.class = class;
        container.rlimits = requested.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
        harness.prepare_container(&container).unwrap().launch.rlimits
    };
    let set = |limits: &[(&str, Rlimit)]| -> BTreeMap<String, Rlimit> {
        limits.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect()
    };
    let of_pod = [("NOFILE", limit(10, 20)), ("NPROC", limit(5, 5))];
    assert_eq!(prepare("pod", ContainerClass::Default, &of_pod), set(&of_pod));
    assert_eq!(prepare("pod.shell", ContainerClass::Debug, &[]), set(&of_pod));
    // What enters a debug container as well.
    assert_eq!(prepare("pod.shell.other", ContainerClass::Debug, &[]), set(&of_pod));
    let requested = prepare("pod.trace", ContainerClass::Debug, &[("NOFILE", limit(30, 30))]);
    assert_eq!(requested, set(&[("NOFILE", limit(30, 30)), ("NPROC", limit(5, 5))]));
    let nested = prepare("pod.web", ContainerClass::Default, &[]);
    assert_eq!(nested, set(&[("NOFILE", limit(64, 128))]), "a nested container follows the configuration");
    // The parent is one of an earlier version, which kept no state.
    let unknown = prepare("old.shell", ContainerClass::Debug, &[]);
    assert_eq!(unknown, set(&[("NOFILE", limit(64, 128))]));
}

#[test]
fn nothing_is_set_without_a_request_and_a_default() {
    let harness = PluginHarness::<Limits>::isolator(json!({})).unwrap();
    assert!(harness.prepare("web").unwrap().launch.rlimits.is_empty());
}

#[test]
fn invalid_requests_are_refused_by_name() {
    let harness = PluginHarness::<Limits>::isolator(json!({})).unwrap();
    for (name, value, expected) in [
        ("NOFILE", limit(2, 1), "`NOFILE` cannot be set"),
        ("NOFILE", Rlimit { soft: Some(1), hard: None }, "is missing"),
        ("NOFILE", Rlimit::default(), "`fs.nr_open`"),
        ("RLIMIT_NOFILE", limit(1, 1), "no resource limit `RLIMIT_NOFILE`"),
    ] {
        let mut container = harness.container("web");
        container.rlimits = [(name.to_owned(), value)].into();
        let refused = harness.prepare_container(&container).unwrap_err();
        assert!(refused.invalid && !refused.retryable, "{refused:?}");
        assert!(refused.message.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "defaults": { "FILES": {} } }), "`defaults.FILES` is invalid"),
        (json!({ "defaults": { "CORE": { "soft": 1 } } }), "one of `soft` and `hard` is missing"),
        (json!({ "defaults": { "CORE": { "soft": 1, "hard": 0 } } }), "above `hard`"),
        (json!({ "defaults": { "CORE": { "max": 0 } } }), "unknown field `max`"),
    ] {
        let refused = PluginHarness::<Limits>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Limits>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
