//! `posix/rlimits`.

use std::fs;

use cofferdam_core::model::{ContainerClass, Request, Rlimit};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, launch_error, remove, run};
use serde_json::{Value as Json, json};

use super::{Fixture, across_restart, isolator, world};

fn limit(soft: u64, hard: u64) -> Rlimit {
    Rlimit { soft: Some(soft), hard: Some(hard) }
}

fn config() -> Json {
    json!({ "defaults": { "CORE": { "soft": 0, "hard": 0 }, "NOFILE": { "soft": 64, "hard": 128 } } })
}

const SHOW: &str = "ulimit -c; ulimit -S -n; ulimit -H -n; ulimit -S -f";

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_the_requested_limits_or_the_defaults() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("posix/rlimits", config())]).await;
    for user in ["root", "web"] {
        let output = fixture.run(fixture.request("web", user, SHOW)).await;
        assert_eq!(output, "0\n64\n128\nunlimited\n", "{user}");
        // The shell shows file sizes in blocks of 512 bytes. A write beyond the limit fails.
        let write = "trap '' XFSZ; dd if=/dev/zero of=x bs=1k count=9 2>&1 | head -n 1";
        let mut request = fixture.request("web", user, &format!("{SHOW}; cd $MESOS_SANDBOX; {write}"));
        request.rlimits =
            [("NOFILE".to_owned(), limit(20, 30)), ("FSIZE".to_owned(), limit(4096, 4096))].into();
        let output = fixture.run(request).await;
        assert_eq!(output, "0\n20\n30\n8\ndd: error writing 'x': File too large\n", "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_cannot_be_set_is_refused_before_the_launch() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("posix/rlimits", json!({}))]).await;
    let max = fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    for (name, value, expected) in [
        ("NOFILE", Rlimit::default(), format!("the kernel allows {}", max.trim())),
        ("CORE", limit(2, 1), "`soft` is 2, above `hard`".to_owned()),
        ("CORE", Rlimit { soft: None, hard: Some(1) }, "is missing".to_owned()),
        ("PIDS", limit(1, 1), "there is no resource limit `PIDS`".to_owned()),
    ] {
        let mut request = fixture.request("web", "web", "true");
        request.rlimits = [(name.to_owned(), value)].into();
        let message = fixture.error(request).await;
        assert!(message.contains("`posix/rlimits`") && message.contains(&expected), "{expected}: {message}");
    }
}

#[test]
fn nested_and_debug_containers_have_limits_also_with_a_later_agent() {
    if !is_root("nested containers") {
        return;
    }
    across_restart(
        &world(vec![isolator("posix/rlimits", config())]),
        async |fixture| {
            let mut pod = fixture.request("pod", "web", "true");
            pod.rlimits = [("NOFILE".to_owned(), limit(40, 50))].into();
            fixture.launch(pod).await;
        },
        async |fixture| {
            let mut nested = fixture.request("pod.nested", "web", SHOW);
            nested.rlimits = [("NOFILE".to_owned(), limit(30, 30))].into();
            assert_eq!(run(&fixture.agent, nested).await, "0\n30\n30\nunlimited\n");
            let mut debug = Request::shell(id("pod.debug"), SHOW);
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug).await, "0\n40\n50\nunlimited\n", "those of the pod");
            fixture.destroy("pod").await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_has_limits_too() {
    let mut world = World::posix();
    world.config.isolators.push(isolator("posix/rlimits", config()));
    let agent = world.start().await.unwrap();
    assert_eq!(run(&agent, Request::shell(id("plain"), "ulimit -c; ulimit -n")).await, "0\n64\n");
    let mut request = Request::shell(id("high"), "true");
    request.rlimits = [("NOFILE".to_owned(), Rlimit::default())].into();
    let message = launch_error(&agent, request).await;
    assert!(message.contains("`NOFILE` cannot be set"), "{message}");
    remove(&world, &agent, &["plain"]).await;
}
