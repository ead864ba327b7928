//! `namespaces/cgroup`.

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{ContainerClass, Request, Resources};
use cofferdam_linux::mounts::mounts;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run, shipped};
use serde_json::{Value as Json, json};

use super::{Fixture, across_restart, describe, isolator, world};

fn isolators(table: Json) -> Vec<PluginConfig> {
    vec![shipped("cgroups/cpu"), shipped("cgroups/mem"), isolator("namespaces/cgroup", table)]
}

/// What a container knows of its cgroups, and whether it finds those of others.
const SHOW: &str = "cut -d : -f 3 /proc/self/cgroup | busybox sort -u; \
                    busybox find /sys/fs/cgroup -name '*.container' | wc -l; \
                    busybox find /sys/fs/cgroup -name '*cofferdam*' | wc -l";

impl Fixture {
    fn limited(&self, name: &str, line: &str) -> Request {
        let mut request = self.request(name, "root", line);
        request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
        request
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_its_own_cgroups_and_cannot_write_to_them() {
    if !is_root("cgroup namespaces") {
        return;
    }
    let fixture = Fixture::start(isolators(json!({}))).await;
    let write = "for file in $(busybox find /sys/fs/cgroup -name 'cgroup.procs' -o -name tasks); do \
                 (echo $$ > $file) 2>/dev/null && echo written; done; \
                 for hierarchy in $(busybox find /sys/fs/cgroup -name cgroup.procs); do \
                 busybox mkdir ${hierarchy%/*}/x 2>/dev/null && echo made; done; \
                 test $(busybox find /sys/fs/cgroup -name cgroup.procs | wc -l) -gt 0 && echo mounted";
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
    let output = fixture.run(fixture.limited("web", &format!("{SHOW}; {write}; {limit}"))).await;
    let lines: Vec<&str> = output.lines().collect();
    let [path, own, others, mounted, limit] = lines[..] else { panic!("{output}") };
    assert_eq!((path, own, others, mounted, limit), ("/", "0", "0", "mounted", "67108864"));

    let fixture = Fixture::start(isolators(json!({ "mount": false }))).await;
    let output = fixture.run(fixture.limited("web", "ls /sys/fs/cgroup | wc -l")).await;
    assert_eq!(output, "0\n");
}

#[test]
fn nested_and_debug_containers_see_no_more_than_is_theirs_also_with_a_later_agent() {
    if !is_root("cgroup namespaces") {
        return;
    }
    across_restart(
        &world(isolators(json!({}))),
        async |fixture| {
            fixture.launch(fixture.limited("other", "true")).await;
            fixture.launch(fixture.limited("pod", "true")).await;
        },
        async |fixture| {
            for shares in [true, false] {
                let mut nested = fixture.limited("pod.nested", SHOW);
                nested.linux.share_cgroups = shares;
                if shares {
                    nested.resources = Resources::default();
                }
                let output = run(&fixture.agent, nested).await;
                assert!(output.ends_with("\n0\n0\n"), "{shares}: {output}");
                fixture.agent.remove(&id("pod.nested")).await.unwrap();
            }
            let mut debug = Request::shell(id("pod.debug"), SHOW);
            debug.class = ContainerClass::Debug;
            // Its own cgroup is one of those of its parent.
            let output = run(&fixture.agent, debug).await;
            assert!(output.contains("/debug.container") && output.ends_with("\n0\n"), "{output}");
            fixture.agent.destroy(&id("other")).await.unwrap();
            fixture.agent.remove(&id("other")).await.unwrap();
            fixture.destroy("pod").await;
        },
    );
}

/// Creates a cgroup and moves itself into it, tries to change what limits the container, and to leave it.
const DELEGATED: &str = "cd /sys/fs/cgroup; if [ -d unified ]; then cd unified; fi; \
    busybox mkdir own own/deeper && echo 0 > own/deeper/cgroup.procs && cut -d : -f 3 /proc/self/cgroup | grep own; \
    for file in cgroup.max.descendants cgroup.subtree_control cgroup.freeze memory.max memory.low cpu.max pids.max; do \
    if [ -e $file ] && (echo 1 > $file) 2>/dev/null; then echo wrote $file; fi; done; \
    echo 0 > cgroup.procs && cut -d : -f 3 /proc/self/cgroup | grep '^/$' | head -n 1; \
    busybox rmdir own/deeper; busybox rmdir own && echo removed; \
    busybox mkdir left; i=0; while busybox mkdir left/$i 2>/dev/null; do i=$((i+1)); done; echo $i";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_creates_cgroups_in_its_own_and_changes_no_limit_if_configured() {
    if !is_root("cgroup namespaces") {
        return;
    }
    let unified = mounts().unwrap().into_iter().find(|mount| mount.kind == "cgroup2");
    let delegates = unified.map(|mount| mount.super_options.iter().any(|option| option == "nsdelegate"));
    let table = json!({ "writable": true });
    let mut world = std::sync::Arc::into_inner(world(isolators(table))).unwrap();
    world.config.cgroup_max_descendants = 20;
    if delegates != Some(true) {
        let message = describe(&world.start().await.err().unwrap());
        let expected = if delegates.is_some() { "`nsdelegate`" } else { "needs cgroup v2" };
        assert!(message.contains("`namespaces/cgroup`") && message.contains(expected), "{message}");
        return;
    }
    let agent = world.start().await.unwrap();
    let fixture = Fixture { world: std::sync::Arc::new(world), agent };
    let mut request = fixture.limited("web", DELEGATED);
    request.command.user = Some("web".into());
    let output = fixture.run(request).await;
    let lines: Vec<&str> = output.lines().collect();
    let [own, root, removed, created] = lines[..] else { panic!("{output}") };
    assert_eq!((own, root, removed), ("/own/deeper", "/", "removed"), "{output}");
    assert!((1..20).contains(&created.parse().unwrap()), "{output}");

    let line = "for directory in $(busybox find /sys/fs/cgroup -name cgroup.procs); do \
                busybox mkdir ${directory%/*}/own 2>/dev/null && echo created; done; echo done";
    assert_eq!(fixture.run(fixture.limited("root", line)).await, "done\n");
}
