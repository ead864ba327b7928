//! Limits and usage on the real kernel.

use std::collections::{BTreeMap, BTreeSet};
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

/// Requests and limits of one resource in an update: none, one of them, both, or no limit.
fn parts(name: &str, request: f64, limit: f64) -> [Resources; 6] {
    let none = Resources::default;
    [
        none(),
        none().with(name, request),
        none().with_limit(name, Limit::At(limit)),
        none().with(name, request).with_limit(name, Limit::At(limit)),
        none().with_limit(name, Limit::Unlimited),
        none().with(name, request).with_limit(name, Limit::Unlimited),
    ]
}

/// All that the kernel enforces of CPU and memory for a container.
fn in_force(world: &World, name: &str) -> BTreeMap<&'static str, String> {
    const KNOBS: [(&str, &[&str]); 2] = [
        ("cpu", &["cpu.shares", "cpu.cfs_quota_us", "cpu.weight", "cpu.max"]),
        (
            "memory",
            &[
                "memory.limit_in_bytes",
                "memory.soft_limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.max",
                "memory.high",
                "memory.low",
                "memory.min",
                "memory.swap.max",
            ],
        ),
    ];
    let mut values = BTreeMap::new();
    for (controller, knobs) in KNOBS {
        let cgroup = world.cgroup_of_any_version(controller, &id(name)).expect("a controller");
        let read = |knob: &&'static str| Some((*knob, fs::read_to_string(cgroup.join(knob)).ok()?));
        values.extend(knobs.iter().filter_map(read));
    }
    values
}

/// An update replaces request and limit of the resources that it names, and nothing of others: after it, the kernel enforces what
/// it does for a container that is launched with the result.
#[tokio::test(flavor = "multi_thread")]
async fn every_subset_of_an_update_leads_to_what_a_launch_with_its_result_has() {
    if !is_root("control groups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let request = |name: &str, resources: &Resources| {
        let mut request = Request::shell(id(name), "exec sleep 1000000");
        request.rootfs = Some(world.rootfs());
        request.resources = resources.clone();
        request
    };
    let before = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    let before = before.with_limit("cpus", Limit::At(1.5)).with_limit("mem", Limit::At(96.0));
    agent.launch(request("updated", &before)).await.unwrap();
    let initial = in_force(&world, "updated");
    let mut seen = BTreeSet::new();
    // Of the pairs, an emulated machine takes some.
    let is_taken = |at: usize| !crate::guest::inside() || at.is_multiple_of(3);
    for (at, cpus) in parts("cpus", 0.75, 2.5).into_iter().enumerate() {
        for (_, mem) in
            parts("mem", 128.0, 192.0).into_iter().enumerate().filter(|(other, _)| is_taken(at + other))
        {
            let update = cpus.clone().updated(&mem);
            // Of a resource that is named, both; of one that is not, neither.
            let mut expected = before.clone();
            for (name, named) in [("cpus", &cpus), ("mem", &mem)] {
                if named.has(name) {
                    expected.retain(|other| other != name);
                    expected.requests.extend(named.requests.clone());
                    expected.limits.extend(named.limits.clone());
                }
            }
            agent.update(&id("updated"), update.clone()).await.unwrap();
            assert_eq!(agent.inspect(&id("updated")).unwrap().summary.resources, expected, "{update:?}");
            agent.launch(request("launched", &expected)).await.unwrap();
            let found = in_force(&world, "updated");
            assert_eq!(found, in_force(&world, "launched"), "{update:?}");
            seen.insert(format!("{found:?}"));
            agent.destroy(&id("launched")).await.unwrap();
            agent.remove(&id("launched")).await.unwrap();
            // And back.
            agent.update(&id("updated"), before.clone()).await.unwrap();
            assert_eq!(in_force(&world, "updated"), initial, "after {update:?}");
        }
    }
    // None, request, limit, both, and no limit with and without a request differ, for each resource.
    assert_eq!(seen.len(), if crate::guest::inside() { 12 } else { 36 }, "{seen:#?}");
    // An update that names nothing is none.
    agent.update(&id("updated"), Resources::default()).await.unwrap();
    assert_eq!(in_force(&world, "updated"), initial);
    agent.destroy(&id("updated")).await.unwrap();
    remove(&world, &agent, &["updated"]).await;
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
