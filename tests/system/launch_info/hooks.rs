//! Commands that run during a launch.

use cofferdam_plugin_model::{BpfInstruction, Seccomp};
use cofferdam_tests::is_root;
use serde_json::{Value as Json, json};

use super::Fixture;

/// A hook that runs a shell line. Busybox has the same path on the host and in the container.
fn hook(stage: &str, line: &str) -> Json {
    json!({
        "stage": stage, "program": "/bin/busybox", "arguments": ["sh", "-c", line],
        "environment": { "OF_HOOK": stage }, "timeout_millis": 120_000,
    })
}

/// A request for hooks, and for a UTS namespace with a host name.
fn launch(hooks: Json) -> Json {
    json!({ "clone_namespaces": ["uts"], "hostname": "inside", "hooks": hooks })
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_at_their_stages_in_order() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    // Only the host has this directory.
    let outside = fixture.world.directory().display().to_string();
    let line = |name: &str| {
        format!(
            "test -e {outside} && place=host || place=container; \
             echo {name} $OF_HOOK $place $(busybox id -u) $(busybox hostname) $(busybox grep -c '' /own)"
        )
    };
    let hooks = json!([
        hook("before_exec", &line("5")),
        hook("after_root", &format!("echo created > /own; {}", line("3"))),
        hook("before_root", &line("1")),
        hook("before_exec", &line("6")),
        hook("after_root", &line("4")),
        hook("before_root", &line("2")),
    ]);
    let line = "echo command ${OF_HOOK-none} $(id -u) $(cat /own)";
    let mut request = fixture.request(&json!({ "launch": launch(hooks) }), line);
    request.command.user = Some("web".into());
    let output = fixture.run(request).await;
    let expected = [
        "1 before_root host 0 inside",
        "2 before_root host 0 inside",
        "3 after_root container 0 inside 1",
        "4 after_root container 0 inside 1",
        "5 before_exec container 1234 inside 1",
        "6 before_exec container 1234 inside 1",
        "command none 1234 created",
    ];
    assert_eq!(output.lines().map(str::trim_end).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_before_exec_has_the_privileges_of_the_command_but_no_seccomp_filter() {
    if !is_root("a root filesystem") {
        return;
    }
    let show = "busybox grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n";
    let allow_all = Seccomp { program: vec![BpfInstruction(6, 0, 0, 0x7fff_0000)], ..Seccomp::default() };
    let launch = json!({
        "capabilities": { "effective": ["CHOWN"] },
        "no_new_privileges": true,
        "rlimits": { "NOFILE": { "soft": 77, "hard": 77 } },
        "seccomp": allow_all,
        "hooks": [hook("before_exec", show)],
    });
    let fixture = Fixture::start().await;
    let mut request = fixture.request(&json!({ "launch": launch }), show);
    request.command.user = Some("web".into());
    let output = fixture.run(request).await;
    let expected = |seccomp: &str| {
        let chown = "0000000000000001";
        format!("CapEff:\t{chown}\nCapBnd:\t{chown}\nNoNewPrivs:\t1\nSeccomp:\t{seccomp}\n77\n")
    };
    assert_eq!(output, [expected("0"), expected("2")].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_fails_the_launch_and_is_named() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    for stage in ["before_root", "after_root", "before_exec"] {
        let missing = json!({ "stage": stage, "program": "/no/such/hook" });
        let endless = json!({
            "stage": stage, "program": "/bin/busybox", "arguments": ["sleep", "1000"], "timeout_millis": 50,
        });
        for (hook, parts) in [
            (hook(stage, "exit 3"), ["/bin/busybox", "hook"]),
            (missing, ["/no/such/hook", "No such file"]),
            (endless, ["/bin/busybox", "timed out"]),
        ] {
            let message = fixture.error(launch(json!([hook]))).await;
            cofferdam_tests::assert_contains(&message, &parts);
        }
    }
}
