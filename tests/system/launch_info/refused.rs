//! Requests that fail the launch: each error names the plugin and what it requests, and nothing is left.

use cofferdam_tests::world::{object, shipped};
use cofferdam_tests::{assert_contains, is_root};
use serde_json::{Value as Json, json};

use super::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_names_the_plugin_and_the_key() {
    if !is_root("a root filesystem") {
        return;
    }
    for (launch, key) in [
        (json!({ "landlock": {} }), "landlock"),
        (json!({ "capabilities": { "securebits": [] } }), "securebits"),
        (json!({ "operations": [{ "type": "mask", "path": "/x", "mode": 0 }] }), "mode"),
    ] {
        // It uses no SDK, which would not let an unknown key through.
        let reply = json!({ "launch": launch }).to_string();
        let raw = object("test/raw", "libtest_raw.so", json!({ "payload": { "prepare": reply } }));
        let fixture = Fixture::start_with(vec![shipped("filesystem/linux")], vec![raw]).await;
        let unknown = format!("unknown field `{key}`");
        assert_contains(&fixture.error(json!({})).await, &["`test/raw`", "`prepare`", &unknown]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_plugins_that_set_a_value_differently_are_both_named() {
    if !is_root("a root filesystem") {
        return;
    }
    let fault = object("test/fault", "libtest_fault.so", json!({ "environment": { "A": "one" } }));
    let fixture = Fixture::start_with(vec![shipped("filesystem/linux")], vec![fault]).await;
    for (launch, expected) in [
        (
            json!({ "sandbox_path": "/srv" }),
            "`sandbox_path` is set by both `filesystem/linux` (/mnt/mesos/sandbox) and `test/request` (/srv)",
        ),
        (
            json!({ "environment": { "A": "two" } }),
            "`environment.A` is set by both `test/request` (two) and `test/fault` (one)",
        ),
        (
            json!({ "secret_environment": { "A": "two" } }),
            "`environment.A` is set by both `test/request` (<secret>) and `test/fault` (one)",
        ),
    ] {
        assert_contains(&fixture.error(launch).await, &[expected]);
    }
    let equal = json!({ "sandbox_path": "/mnt/mesos/sandbox", "environment": { "A": "one" } });
    assert_eq!(fixture.output(equal, "pwd; echo $A").await, "/mnt/mesos/sandbox\none\n");
}

/// What `test/request` requests, and what the error says of it.
fn refused() -> Vec<(Json, &'static str)> {
    let ids = json!({ "uids": [{ "container": 0, "host": 1000, "size": 1 }] });
    vec![
        (json!({ "id_mappings": ids }), "id mappings, which this agent does not support"),
        (json!({ "clone_namespaces": ["user"] }), "a user namespace, which this agent does not support"),
        (json!({ "clone_namespaces": ["vm"] }), "a `namespace` that this agent does not know"),
        (json!({ "operations": [{ "type": "chroot" }] }), "a `operation` that this agent does not know"),
        (json!({ "root": { "type": "erofs" } }), "a `root` that this agent does not know"),
        (
            json!({ "hooks": [{ "stage": "at_noon", "program": "/bin/true" }] }),
            "a `hook stage` that this agent does not know",
        ),
        (json!({ "hostname": "h" }), "a host name without a UTS namespace"),
        (json!({ "time_offsets": { "monotonic_nanos": 1 } }), "clock offsets without a time namespace"),
        (
            json!({ "sysctls": { "net.ipv4.ip_forward": "1" } }),
            "`net.ipv4.ip_forward` without a net namespace",
        ),
        (json!({ "sysctls": { "vm.swappiness": "1" } }), "`vm.swappiness`, which is that of the host"),
        (json!({ "rlimits": { "FILES": { "soft": 1 } } }), "the unknown resource limit `FILES`"),
        (
            json!({ "rlimits": { "CORE": { "soft": 2, "hard": 1 } } }),
            "the soft limit 2 above the hard limit 1",
        ),
        (json!({ "capabilities": { "effective": ["FLY"] } }), "the unknown capability `FLY`"),
        (json!({ "seccomp": { "program": "" } }), "a seccomp filter of 0 instructions"),
        (json!({ "enter_descriptors": { "network": 0 } }), "descriptor 0 of its reply, which contains 0"),
        (
            json!({ "operations": [{ "type": "bind_descriptor", "index": 2, "target": "/x" }] }),
            "descriptor 2 of its reply, which contains 0",
        ),
        (
            json!({ "operations": [{ "type": "mask", "path": "x" }] }),
            "`mask` with `x`, which is not absolute",
        ),
        (
            json!({ "operations": [{ "type": "bind", "source": "/", "target": "/x", "flags": ["sync"] }] }),
            "the unknown mount flag `sync`",
        ),
        (
            json!({ "hooks": [{ "stage": "after_root", "program": "x" }] }),
            "the hook `x`, which is not absolute",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_out_names_the_plugin_and_the_request() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    for (launch, expected) in refused() {
        assert_contains(&fixture.error(launch).await, &["`test/request`", expected]);
    }
}
