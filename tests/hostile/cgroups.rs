//! Containers that create cgroups below their own: very many, and deeper than the longest path.

use cofferdam_core::agent::Agent;
use cofferdam_core::model::Request;
use cofferdam_linux::cgroup::{Cgroups, Version};
use cofferdam_linux::process::children_of;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{is_root, text, wait_for_text};
use serde_json::json;

use super::{assert_nothing_left, attacker, shipped, world};

/// Starts a container that creates cgroups in a hierarchy and moves a process into the innermost. Returns its report.
async fn nest(agent: &Agent, world: &World, hierarchy: (&str, &str), breadth: u32, depth: u32) -> String {
    let (breadth, depth) = (breadth.to_string(), depth.to_string());
    let arguments = ["nest", hierarchy.0, hierarchy.1, &breadth, &depth];
    agent.launch(attacker(world, "web", 0, &arguments)).await.unwrap();
    let log = agent.inspect(&id("web")).unwrap().logs.stdout.unwrap();
    wait_for_text(&log, "ready");
    text(&log)
}

async fn kill(agent: &Agent, world: &World) {
    assert!(agent.kill(&id("web"), 9).await.unwrap());
    agent.wait(&id("web")).await.unwrap();
    assert!(agent.remove(&id("web")).await.unwrap());
    assert_nothing_left(world);
}

fn has_v2() -> bool {
    let found = Cgroups::detect().unwrap().unified.is_some();
    if !found {
        eprintln!("\n*** SKIPPED: cgroup v2 is not mounted, so its limits were NOT tested ***\n");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_creates_as_many_cgroups_as_it_may_and_no_more() {
    if !is_root("cgroups") || !has_v2() {
        return;
    }
    let mut world = world();
    (world.config.cgroup_max_descendants, world.config.cgroup_max_depth) = (50, 8);
    let agent = world.start().await.unwrap();
    let refused = "Resource temporarily unavailable";
    let report = nest(&agent, &world, ("cgroup2", ""), 1000, 0).await;
    assert!(report.contains(&format!("breadth 50: {refused}")), "{report}");
    // It can have no nested container then, and still ends.
    let error = agent.launch(Request::shell(id("web.nested"), "true")).await.unwrap_err();
    let mut causes: Vec<String> = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    assert!(causes.iter().any(|cause| cause.contains("`cgroup.max.descendants`")), "{causes:?}");
    kill(&agent, &world).await;

    let report = nest(&agent, &world, ("cgroup2", ""), 10, 1000).await;
    assert!(report.contains("breadth 10: Success"), "{report}");
    assert!(report.contains(&format!("depth 8: {refused}")), "{report}");
    kill(&agent, &world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_many_and_deep_cgroups_is_measured_and_killed() {
    if !is_root("cgroups") {
        return;
    }
    let machine = Cgroups::detect().unwrap();
    let mut world = world();
    (world.config.cgroup_max_descendants, world.config.cgroup_max_depth) = (5000, 200);
    let cpu = world.config.isolators.iter_mut().find(|plugin| plugin.name == "cgroups/cpu").unwrap();
    cpu.table = json!({ "count_processes": true });
    let agent = world.start().await.unwrap();
    let mut hierarchies: Vec<(&str, String)> = Vec::new();
    hierarchies.extend(machine.unified.is_some().then(|| ("cgroup2", String::new())));
    // The container has a cgroup of its own in these.
    for controller in ["cpu", "memory"] {
        if let Some((hierarchy, Version::V1)) = machine.hierarchy(controller) {
            hierarchies.push(("cgroup", hierarchy.controllers.join(",")));
        }
    }
    for (kind, options) in &hierarchies {
        let hierarchy = (*kind, options.as_str());
        let report = nest(&agent, &world, hierarchy, 2000, 100).await;
        assert!(report.contains("breadth 2000: Success"), "{hierarchy:?}: {report}");
        assert!(report.contains("depth 100: Success"), "{hierarchy:?}: {report}");
        assert!(!report.contains("not moved"), "{hierarchy:?}: {report}");
        let usage = agent.usage(&id("web")).await.unwrap();
        assert!(usage.failed.is_empty(), "{hierarchy:?}: {usage:?}");
        // In whichever cgroup they are.
        assert!(usage.number("processes") >= Some(3.0), "{hierarchy:?}: {usage:?}");
        kill(&agent, &world).await;
    }
}

/// In the host's pid namespace, processes that have left their cgroup are told by its path, which these do not have.
#[tokio::test(flavor = "multi_thread")]
async fn cgroups_without_a_path_keep_no_container_from_ending() {
    if !is_root("cgroups") {
        return;
    }
    let machine = Cgroups::detect().unwrap();
    let mut world = world();
    world.config.cgroup_max_depth = 200;
    let agent = world.start().await.unwrap();
    let mut hierarchies: Vec<(&str, String)> = Vec::new();
    hierarchies.extend(machine.unified.is_some().then(|| ("cgroup2", String::new())));
    for controller in ["cpu", "memory"] {
        if let Some((hierarchy, Version::V1)) = machine.hierarchy(controller) {
            hierarchies.push(("cgroup", hierarchy.controllers.join(",")));
        }
    }
    assert!(!hierarchies.is_empty());
    for (kind, options) in &hierarchies {
        let hierarchy = (*kind, options.as_str());
        let mut deep = attacker(&world, "web", 0, &["nest", kind, options, "0", "100"]);
        deep.linux.share_pid_namespace = true;
        agent.launch(deep).await.unwrap();
        let log = agent.inspect(&id("web")).unwrap().logs.stdout.unwrap();
        wait_for_text(&log, "ready");
        let report = text(&log);
        assert!(report.contains("depth 100: Success"), "{hierarchy:?}: {report}");
        assert!(!report.contains("not moved"), "{hierarchy:?}: {report}");

        let pid = agent.inspect(&id("web")).unwrap().summary.pid.unwrap();
        let deep = children_of(pid).unwrap();
        assert_eq!(deep.len(), 1, "{hierarchy:?}");
        let mut other = Request::shell(id("other"), "sleep 1000");
        other.linux.share_pid_namespace = true;
        agent.launch(other).await.unwrap();
        agent.destroy(&id("other")).await.unwrap();
        assert!(agent.remove(&id("other")).await.unwrap());
        // They are in their cgroup, and none of them was killed.
        assert_eq!(children_of(pid).unwrap(), deep, "{hierarchy:?}");
        kill(&agent, &world).await;
    }
}

/// On v1 the kernel has no limit for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_in_a_container_cannot_create_cgroups_of_v1() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let found: Vec<String> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter_map(|controller| Some(world.cgroup(controller, &id("web"))?.display().to_string()))
        .collect();
    if found.is_empty() {
        eprintln!("\n*** SKIPPED: this machine has no v1 hierarchies, so their owner was NOT tested ***\n");
        return;
    }
    let paths = found.join(" ");
    let line = format!("for path in {paths}; do test -d $path && mkdir $path/below; done; echo done");
    let mut request = Request::shell(id("web"), line);
    request.command.user = Some("1234".into());
    let output = super::run_and_remove(&agent, request).await;
    assert_eq!(output, "done\n");
    assert_nothing_left(&world);
}

/// What changes cgroups, once succeeded, for each of the hierarchies that a container sees or may mount. It prints what
/// has succeeded, and in the end how many attempts there were.
const CHANGE_CGROUPS: &str = r#"
count=0
attempt() { count=$((count+1)); if "$@" 2>> errors; then echo "succeeded: $*"; fi; }
put() { echo "$1" > "$2"; }
busybox mkdir /tmp /tmp/hierarchy 2>> errors
for kind in $KINDS; do
    kind=$(echo $kind | busybox tr , ' ')
    attempt busybox mount -t $kind none /tmp/hierarchy
    attempt busybox unshare -U -m -r busybox mount -t $kind none /tmp/hierarchy
    attempt busybox unshare -C busybox mount -t $kind none /tmp/hierarchy
done
attempt busybox nsenter -t 1 -C true
for top in /sys/fs/cgroup $(busybox find /sys/fs/cgroup -name cgroup.procs | busybox sed 's|/[^/]*$||'); do
    [ -e $top/cgroup.procs ] && attempt busybox mkdir $top/below
    for file in cgroup.procs tasks release_agent notify_on_release freezer.state cgroup.freeze memory.limit_in_bytes \
        memory.max pids.max cpu.cfs_quota_us cpu.max devices.allow; do
        [ -e $top/$file ] && attempt put 0 $top/$file
    done
    attempt busybox mount -o remount,rw,bind $top
    attempt busybox mount -o remount,rw $top
    attempt busybox mount --bind $top /tmp/hierarchy
    attempt busybox umount $top
done
echo "attempts: $count"
"#;

/// With the chain that agents have unless they are told another one.
#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_container_of_the_shipped_chain_can_neither_create_nor_change_nor_leave_cgroups() {
    if !is_root("cgroups") {
        return;
    }
    // With privileges, others could create a hierarchy of the host.
    let kinds = "cgroup2 cgroup,-o,freezer cgroup,-o,memory";
    for (world, is_refused, kinds, least) in [(shipped(), true, kinds, 20), (world(), false, "cgroup2", 8)] {
        let agent = world.start().await.unwrap();
        for share_pid in [false, true] {
            let mut request = Request::shell(id("web"), CHANGE_CGROUPS);
            request.command.environment = [("KINDS".into(), kinds.into())].into();
            request.rootfs = Some(world.rootfs());
            request.linux.share_pid_namespace = share_pid;
            let output = super::run_and_remove(&agent, request).await;
            let (succeeded, attempts): (Vec<_>, Vec<_>) =
                output.lines().partition(|line| line.starts_with("succeeded: "));
            let attempts = attempts.concat();
            let count: usize = attempts.strip_prefix("attempts: ").and_then(|it| it.parse().ok()).unwrap();
            assert!(count >= least, "{output}");
            // What the shipped chain refuses would be noticed.
            assert_eq!(succeeded.is_empty(), is_refused, "{output}");
        }
        assert_nothing_left(&world);
    }
}
