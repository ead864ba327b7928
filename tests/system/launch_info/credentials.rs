//! What the command is allowed to do: groups, capabilities, resource limits, seccomp filter, keyring.

use std::collections::BTreeSet;
use std::fs;

use cofferdam_plugin_model::{BpfInstruction, Seccomp};
use cofferdam_tests::is_root;
use serde_json::{Value as Json, json};

use super::{Fixture, value};

impl Fixture {
    /// `/proc/self/status` of the command of a user.
    async fn status(&self, user: &str, launch: Json) -> String {
        let mut request = self.request(&json!({ "launch": launch }), "cat /proc/self/status");
        request.command.user = Some(user.into());
        self.run(request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_has_the_supplementary_groups() {
    if !is_root("changing groups") {
        return;
    }
    let fixture = Fixture::start().await;
    let status = fixture.status("web", json!({ "supplementary_groups": [50, 27] })).await;
    assert_eq!((value(&status, "Gid"), value(&status, "Groups")), ("1234\t1234\t1234\t1234", "27 50"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_gets_the_five_capability_sets() {
    if !is_root("capabilities") {
        return;
    }
    let capabilities = json!({
        "effective": ["CHOWN"],
        "permitted": ["CHOWN", "KILL"],
        "inheritable": ["CHOWN", "KILL", "NET_RAW"],
        "bounding": ["CHOWN", "KILL", "NET_RAW", "SETUID"],
        "ambient": ["CHOWN"],
    });
    let fixture = Fixture::start().await;
    let status = fixture.status("web", json!({ "capabilities": capabilities })).await;
    // A program without file capabilities keeps the ambient ones.
    for (set, expected) in
        [("CapInh", 0x2021), ("CapPrm", 0x1), ("CapEff", 0x1), ("CapBnd", 0x20a1), ("CapAmb", 0x1)]
    {
        assert_eq!(value(&status, set), format!("{expected:016x}"), "{set}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn capability_sets_that_are_not_requested_follow_from_the_others() {
    if !is_root("capabilities") {
        return;
    }
    let fixture = Fixture::start().await;
    for (user, set, ambient) in
        [("root", "effective", 0), ("root", "permitted", 0), ("web", "effective", 0x21)]
    {
        let status = fixture.status(user, json!({ "capabilities": { set: ["CHOWN", "KILL"] } })).await;
        for (name, expected) in
            [("CapPrm", 0x21), ("CapEff", 0x21), ("CapBnd", 0x21), ("CapInh", ambient), ("CapAmb", ambient)]
        {
            assert_eq!(value(&status, name), format!("{expected:016x}"), "{user}, {set}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounding_set_gives_no_capabilities_to_a_user() {
    if !is_root("capabilities") {
        return;
    }
    let fixture = Fixture::start().await;
    for (user, effective) in [("root", 0x21), ("web", 0)] {
        let status = fixture.status(user, json!({ "capabilities": { "bounding": ["CHOWN", "KILL"] } })).await;
        for (name, expected) in
            [("CapPrm", effective), ("CapEff", effective), ("CapBnd", 0x21), ("CapInh", 0), ("CapAmb", 0)]
        {
            assert_eq!(value(&status, name), format!("{expected:016x}"), "{user}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_privileges_are_forbidden_if_requested() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    for (launch, expected) in [
        (json!({ "no_new_privileges": true }), "1"),
        (json!({ "no_new_privileges": false }), "0"),
        (json!({}), "0"),
    ] {
        assert_eq!(value(&fixture.status("root", launch).await, "NoNewPrivs"), expected);
    }
}

/// Every limit with values that do not affect `cat`: name, its line in `/proc/<pid>/limits`, soft and hard value.
const LIMITS: [(&str, &str, u64, u64); 16] = [
    ("CPU", "Max cpu time", 1001, 2001),
    ("FSIZE", "Max file size", 1 << 30, (1 << 30) + 1),
    ("DATA", "Max data size", 1 << 31, (1 << 31) + 1),
    ("STACK", "Max stack size", 8 << 20, 16 << 20),
    ("CORE", "Max core file size", 0, 1),
    ("RSS", "Max resident set", 1 << 32, (1 << 32) + 1),
    ("NPROC", "Max processes", 5001, 5002),
    ("NOFILE", "Max open files", 65, 129),
    ("MEMLOCK", "Max locked memory", 65_537, 65_538),
    ("AS", "Max address space", 1 << 33, (1 << 33) + 1),
    ("LOCKS", "Max file locks", 77, 78),
    ("SIGPENDING", "Max pending signals", 3001, 3002),
    ("MSGQUEUE", "Max msgqueue size", 4001, 4002),
    ("NICE", "Max nice priority", 11, 12),
    ("RTPRIO", "Max realtime priority", 13, 14),
    ("RTTIME", "Max realtime timeout", 6_000_001, 6_000_002),
];

/// Soft and hard value of a limit in a text like `/proc/<pid>/limits`; `None` is unlimited.
fn limit(limits: &str, line: &str) -> [Option<u64>; 2] {
    let mut values = value(limits, line).split_whitespace().map(|value| value.parse().ok());
    [(); 2].map(|()| values.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_has_the_resource_limits() {
    if !is_root("a root filesystem") {
        return;
    }
    // Root without CAP_SYS_RESOURCE cannot raise its own.
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let within = |line: &str, value: u64| limit(&own, line)[1].map_or(value, |own| value.min(own));
    let expected =
        LIMITS.map(|(name, line, soft, hard)| (name, line, within(line, soft), within(line, hard)));
    let mut requested = json!({});
    for (name, _, soft, hard) in expected {
        requested[name] = json!({ "soft": soft, "hard": hard });
    }
    let fixture = Fixture::start().await;
    let limits = fixture.output(json!({ "rlimits": requested }), "cat /proc/self/limits").await;
    for (name, line, soft, hard) in expected {
        assert_eq!(limit(&limits, line), [Some(soft), Some(hard)], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_limit_without_a_value_is_unlimited() {
    if !is_root("a root filesystem") {
        return;
    }
    let line = "Max file size";
    if limit(&fs::read_to_string("/proc/self/limits").unwrap(), line)[1].is_some() {
        eprintln!("SKIPPED the unlimited resource: this process has a limit of its own");
        return;
    }
    let fixture = Fixture::start().await;
    for (requested, expected) in
        [(json!({ "soft": 1 << 30 }), [Some(1 << 30), None]), (json!({}), [None, None])]
    {
        let limits =
            fixture.output(json!({ "rlimits": { "FSIZE": requested } }), "cat /proc/self/limits").await;
        assert_eq!(limit(&limits, line), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_has_the_badness_adjustment() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    // A lower value than that of this process needs CAP_SYS_RESOURCE.
    for adjustment in [999, 1000] {
        let launch = json!({ "oom_score_adj": adjustment });
        assert_eq!(fixture.output(launch, "cat /proc/self/oom_score_adj").await, format!("{adjustment}\n"));
    }
}

/// A filter under which creating directories fails with EPERM.
fn filter() -> Vec<BpfInstruction> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let errno = 0x0005_0000 | libc::EPERM.cast_unsigned();
    let [mkdir, mkdirat] = [libc::SYS_mkdir, libc::SYS_mkdirat].map(|call| u32::try_from(call).unwrap());
    vec![
        BpfInstruction(LOAD, 0, 0, 0),
        BpfInstruction(JUMP_IF_EQUAL, 1, 0, mkdir),
        BpfInstruction(JUMP_IF_EQUAL, 0, 1, mkdirat),
        BpfInstruction(RETURN, 0, 0, errno),
        BpfInstruction(RETURN, 0, 0, 0x7fff_0000),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_runs_under_the_seccomp_filter() {
    if !is_root("a root filesystem") {
        return;
    }
    let line = "cd /tmp; busybox mkdir refused 2>&1; touch written; ls; grep ^Seccomp: /proc/self/status";
    let create_tmp = json!([{ "type": "mkdir", "path": "/tmp", "mode": 0o1777 }]);
    let fixture = Fixture::start().await;
    // Without `no_new_privileges`, an ordinary user may not load a filter itself.
    for (user, no_new_privileges) in [("root", false), ("web", false), ("web", true)] {
        let launch = json!({
            "operations": create_tmp,
            "seccomp": Seccomp { program: filter(), flags: ["LOG", "SPEC_ALLOW", "TSYNC"].map(Into::into).into() },
            "no_new_privileges": no_new_privileges,
        });
        let mut request = fixture.request(&json!({ "launch": launch }), line);
        request.command.user = Some(user.into());
        let expected =
            "mkdir: can't create directory 'refused': Operation not permitted\nwritten\nSeccomp:\t2\n";
        assert_eq!(fixture.run(request).await, expected, "{user}, {no_new_privileges}");
    }
}

/// The session keyrings named `_ses` in a text like `/proc/keys`, by serial number.
fn session_keyrings(keys: &str) -> BTreeSet<String> {
    let is_session = |line: &&str| line.split_whitespace().any(|word| word == "_ses:");
    keys.lines().filter(is_session).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_has_a_session_keyring_of_its_own_if_requested() {
    if !is_root("a root filesystem") {
        return;
    }
    // Those that exist before, one of which may be the agent's own.
    let known = session_keyrings(&fs::read_to_string("/proc/keys").unwrap());
    let fixture = Fixture::start_with(Vec::new(), Vec::new()).await;
    for own in [true, false] {
        let launch = json!({ "session_keyring": own });
        let mut request = fixture.request_with_root(&launch, "cat /proc/keys");
        // Root also sees keyrings of other containers.
        request.command.user = Some("web".into());
        let keys = fixture.run(request).await;
        let new = session_keyrings(&keys).difference(&known).count();
        assert_eq!(new, usize::from(own), "{keys}");
    }
}
