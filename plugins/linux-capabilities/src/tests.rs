use cofferdam_plugin_api::capability::{self, OwnSets};
use cofferdam_plugin_api::model;
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

/// The names of a set, separated by spaces; `None` if it is not set.
type Text = Option<&'static str>;

/// What a task and the operator set: `t.e`, `t.b`, `f.e`, `f.b`; the sets that result, or `None` if it is refused.
type Row = (Text, Text, Text, Text, Option<(Text, Text)>);

fn set(text: Text) -> Option<Set> {
    text.map(|names| names.split_whitespace().map(str::to_owned).collect())
}

fn config(effective: Text, bounding: Text) -> Json {
    let mut config = json!({});
    if let Some(effective) = set(effective) {
        config["effective_capabilities"] = json!(effective);
    }
    if let Some(bounding) = set(bounding) {
        config["bounding_capabilities"] = json!(bounding);
    }
    config
}

fn harness(config: &Json) -> PluginHarness<Capabilities> {
    PluginHarness::isolator(config.clone()).unwrap()
}

fn prepare(
    harness: &PluginHarness<Capabilities>,
    id: &str,
    class: ContainerClass,
    effective: Text,
    bounding: Text,
) -> Result<model::Capabilities, Refused> {
    let mut container = harness.container(id);
    container.class = class;
    container.linux.effective_capabilities = set(effective);
    container.linux.bounding_capabilities = set(bounding);
    Ok(harness.prepare_container(&container)?.launch.capabilities)
}

/// Whether the test's process has capabilities that the tests request.
fn is_privileged() -> bool {
    let own = OwnSets::read().unwrap().permitted;
    let has = |name| capability::contains(own, capability::number(name).unwrap());
    let all = ["CHOWN", "KILL", "NET_RAW"].into_iter().all(has);
    if !all {
        cofferdam_plugin_api::testing::skip("the test needs capabilities of its own");
    }
    all
}

/// All combinations of what a task (`t`) and the operator (`f`) set, of the effective (`e`) and the bounding (`b`) set.
#[test]
fn requests_are_completed_and_limited_by_the_configuration() {
    if !is_privileged() {
        return;
    }
    // Narrow, middle, wide.
    let (n, m, w) = (Some("CHOWN"), Some("CHOWN KILL"), Some("CHOWN KILL NET_RAW"));
    let none: Text = None;
    let table: &[Row] = &[
        (none, none, none, none, Some((none, none))),
        (m, none, none, none, Some((m, m))),
        // The operator's effective set is a default only.
        (m, none, n, none, Some((m, m))),
        (m, none, none, w, Some((m, w))),
        (m, none, none, n, None),
        (m, none, n, w, Some((m, w))),
        (m, none, n, n, None),
        (none, m, none, none, Some((none, m))),
        (none, m, none, w, Some((none, m))),
        (none, w, none, m, None),
        (none, m, n, none, Some((n, m))),
        (none, n, m, none, None),
        (none, m, n, w, Some((n, m))),
        (none, n, m, w, None),
        (none, w, n, m, None),
        (none, none, m, none, Some((m, m))),
        (none, none, none, m, Some((none, m))),
        (none, none, n, m, Some((n, m))),
        (n, m, none, none, Some((n, m))),
        (n, m, w, none, Some((n, m))),
        (m, n, none, none, None),
        (n, m, none, w, Some((n, m))),
        (n, m, n, w, Some((n, m))),
        (m, n, none, w, None),
        (n, w, none, m, None),
        // Empty is not absent.
        (Some(""), none, m, w, Some((Some(""), w))),
        (none, Some(""), none, none, Some((none, Some("")))),
        (none, none, Some(""), none, Some((Some(""), Some("")))),
        (none, Some(""), m, none, None),
    ];
    for &(te, tb, fe, fb, expected) in table {
        let case = format!("task {te:?} {tb:?}, operator {fe:?} {fb:?}");
        let harness = harness(&config(fe, fb));
        let outcome = prepare(&harness, "web", ContainerClass::Default, te, tb);
        match (outcome, expected) {
            (Ok(capabilities), Some((effective, bounding))) => {
                assert_eq!(capabilities.effective, set(effective), "{case}");
                assert_eq!(capabilities.bounding, set(bounding), "{case}");
                assert_eq!(
                    capabilities,
                    model::Capabilities {
                        effective: set(effective),
                        bounding: set(bounding),
                        ..model::Capabilities::default()
                    },
                    "{case}"
                );
            }
            (Err(refused), None) => assert!(refused.message.contains("the container"), "{case}: {refused}"),
            (outcome, expected) => panic!("{case}: {outcome:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn an_error_names_what_is_too_much() {
    if !is_privileged() {
        return;
    }
    let harness = harness(&config(None, Some("CHOWN")));
    let of = |effective, bounding| {
        prepare(&harness, "web", ContainerClass::Default, effective, bounding).unwrap_err().message
    };
    let message = of(None, Some("CHOWN KILL NET_RAW"));
    assert!(message.contains("`KILL`, `NET_RAW` in its bounding set"), "{message}");
    let message = of(Some("CHOWN KILL"), None);
    assert!(message.contains("effective capabilities have `KILL`"), "{message}");
    let message = of(Some("CHOWN FLY"), None);
    assert!(message.contains("there is no capability `FLY`"), "{message}");
}

#[test]
fn the_older_name_and_the_prefix_are_accepted() {
    if !is_privileged() {
        return;
    }
    let harness = harness(&json!({ "allowed_capabilities": ["CHOWN"] }));
    let capabilities = prepare(&harness, "web", ContainerClass::Default, None, None).unwrap();
    assert_eq!(capabilities.effective, set(Some("CHOWN")));
    let capabilities = prepare(&harness, "web", ContainerClass::Default, Some("CAP_KILL"), None).unwrap();
    assert_eq!(capabilities.effective, set(Some("KILL")));
}

#[test]
fn a_debug_container_has_the_capabilities_of_its_parent_unless_it_requests_others() {
    if !is_privileged() {
        return;
    }
    let harness = harness(&config(Some("CHOWN KILL"), Some("CHOWN KILL NET_RAW")));
    prepare(&harness, "pod", ContainerClass::Default, Some("CHOWN"), Some("CHOWN")).unwrap();
    let of = |id, class, effective| prepare(&harness, id, class, effective, None).unwrap();
    let debug = of("pod.shell", ContainerClass::Debug, None);
    assert_eq!((debug.effective, debug.bounding), (set(Some("CHOWN")), set(Some("CHOWN"))));
    let asked = of("pod.trace", ContainerClass::Debug, Some("NET_RAW"));
    assert_eq!((asked.effective, asked.bounding), (set(Some("NET_RAW")), set(Some("CHOWN KILL NET_RAW"))));
    let nested = of("pod.web", ContainerClass::Default, None);
    assert_eq!(nested.effective, set(Some("CHOWN KILL")), "a nested container follows the configuration");
}

/// The agent of a test machine often lacks one or more.
#[test]
fn what_the_agent_does_not_have_cannot_be_given() {
    let own = OwnSets::read().unwrap().permitted;
    let lacks = |number: &usize| !capability::contains(own, *number);
    let Some(missing) = (0..NAMES.len()).find(lacks).map(|number| NAMES[number]) else {
        eprintln!("SKIPPED: this process has all capabilities");
        return;
    };
    let refused = PluginHarness::<Capabilities>::isolator(json!({ "effective_capabilities": [missing] }))
        .err()
        .unwrap();
    assert!(refused.message.contains(&format!("`{missing}`, which the agent itself has not")), "{refused}");
    let harness = harness(&json!({}));
    let outcome = prepare(&harness, "web", ContainerClass::Default, Some(missing), None);
    assert!(outcome.unwrap_err().message.contains(missing));
    // A limit that has no effect is no error.
    let capabilities = prepare(&harness, "web", ContainerClass::Default, None, Some(missing)).unwrap();
    assert_eq!(capabilities.bounding, set(Some("")));
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "effective_capabilities": ["FLY"] }), "there is no capability `FLY`"),
        (json!({ "bounding_capabilities": ["net_raw"] }), "there is no capability `net_raw`"),
        (
            json!({ "effective_capabilities": ["KILL"], "bounding_capabilities": ["CHOWN"] }),
            "`effective_capabilities` has `KILL`, which `bounding_capabilities` has not",
        ),
        (
            json!({ "effective_capabilities": [], "allowed_capabilities": [] }),
            "`allowed_capabilities` is the older name",
        ),
        (json!({ "capabilities": [] }), "unknown field `capabilities`"),
    ] {
        let refused = PluginHarness::<Capabilities>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = harness(&json!({}));
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
