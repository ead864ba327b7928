//! Limits and usage on the real kernel.

use std::fs;

use cofferdam_core::model::{Limit, Reason, Request, Resources, Value};
use cofferdam_linux::process::Process;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, remove, with_agent};

/// Fills memory with a shell variable that doubles.
const GREEDY: &str = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";

#[tokio::test(flavor = "multi_thread")]
async fn going_over_the_memory_limit_ends_a_container_with_the_reason() {
    if !is_root("memory limits") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("greedy"), GREEDY);
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("mem", 32.0);
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("greedy")).await.unwrap();
    assert_eq!(
        termination.reason,
        Some(Reason::Limitation("REASON_CONTAINER_LIMITATION_MEMORY".into())),
        "{termination:?}"
    );
    assert!(termination.message.unwrap().contains("emory"));
    let Value::Scalar(used) = termination.limited["mem"] else { panic!("{:?}", termination.limited) };
    assert!(used > 16.0, "{used}");
    agent.remove(&id("greedy")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The agent sees the end first: it was not there when the limit was exceeded.
#[test]
fn a_container_that_went_over_its_memory_limit_without_an_agent_has_the_reason_too() {
    if !is_root("memory limits") {
        return;
    }
    let world = World::shipped();
    let (sandbox, first) = with_agent(&world, async |agent| {
        let line = format!("echo up; while ! [ -e $MESOS_SANDBOX/go ]; do sleep 0.1; done; {GREEDY}");
        let mut request = Request::shell(id("greedy"), line);
        request.rootfs = Some(world.rootfs());
        request.resources = Resources::default().with("mem", 32.0);
        agent.launch(request).await.unwrap();
        let inspection = agent.inspect(&id("greedy")).unwrap();
        cofferdam_tests::wait_for_text(&inspection.logs.stdout.unwrap(), "up");
        (inspection.sandbox, Process::open_any(inspection.summary.pid.unwrap()).unwrap())
    });
    fs::write(sandbox.join("go"), "").unwrap();
    assert!(first.wait(Some(cofferdam_tests::daemon::TIMEOUT)).unwrap());
    with_agent(&world, async |agent| {
        let termination = agent.wait(&id("greedy")).await.unwrap();
        let reason = Reason::Limitation("REASON_CONTAINER_LIMITATION_MEMORY".into());
        assert_eq!(termination.reason, Some(reason), "{termination:?}");
        let Value::Scalar(used) = termination.limited["mem"] else { panic!("{:?}", termination.limited) };
        assert!(used > 16.0, "{used}");
        assert!(agent.remove(&id("greedy")).await.unwrap());
    });
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_measured_and_names_its_owner() {
    if !is_root("control groups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(
        id("busy"),
        "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000",
    );
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("cpus", 1.0).with("mem", 64.0);
    agent.launch(request).await.unwrap();
    let out = agent.inspect(&id("busy")).unwrap().logs.stdout.unwrap();
    cofferdam_tests::wait_for_text(&out, "done");
    let usage = agent.usage(&id("busy")).await.unwrap();
    assert_eq!(usage.failed, [].into());
    let seconds = |name| usage.number(name).unwrap();
    let cpu = seconds("cpus_user_time_secs") + seconds("cpus_system_time_secs");
    assert!(cpu > 0.0, "{usage:?}");
    assert!(usage.number("mem_rss_bytes") > Some(0.0), "{usage:?}");
    assert!(usage.owners["mem_rss_bytes"].ends_with("/mem"), "{usage:?}");
    assert!(agent.status(&id("busy")).await.unwrap().status.contains_key("executor_pid"));
    agent.destroy(&id("busy")).await.unwrap();
    assert!(agent.usage(&id("busy")).await.is_none(), "it is not running any more");
    remove(&world, &agent, &["busy"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_applied_completely_or_not_at_all() {
    if !is_root("control groups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = Request::shell(id("grow"), "sleep 1000");
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    agent.launch(request).await.unwrap();

    let more = Resources::default().with("cpus", 1.0).with("mem", 128.0);
    agent.update(&id("grow"), more.clone()).await.unwrap();
    assert_eq!(memory_limit(&world), 128 << 20);
    assert_eq!(agent.inspect(&id("grow")).unwrap().summary.resources, more);

    let negative = Resources::default().with("mem", -1.0);
    agent.update(&id("grow"), negative).await.unwrap_err();
    let contradictory = Resources::default().with("mem", 64.0).with_limit("mem", Limit::At(32.0));
    agent.update(&id("grow"), contradictory).await.unwrap_err();
    assert_eq!(memory_limit(&world), 128 << 20);
    assert_eq!(agent.inspect(&id("grow")).unwrap().summary.resources, more);
    assert!(agent.update(&id("unknown"), more).await.unwrap_err().is_unknown());
    agent.destroy(&id("grow")).await.unwrap();
    remove(&world, &agent, &["grow"]).await;
}

/// The memory limit of the only container, in bytes.
fn memory_limit(world: &World) -> u64 {
    let knobs = ["memory.limit_in_bytes", "memory.max"];
    let directories = world.cgroups();
    let value = directories
        .iter()
        .flat_map(|directory| knobs.map(|knob| directory.join(knob)))
        .find_map(|path| std::fs::read_to_string(path).ok());
    let value = value.unwrap_or_else(|| panic!("no memory limit in {directories:?}"));
    value.trim().parse().unwrap_or_else(|_| panic!("the limit is `{value}`"))
}
