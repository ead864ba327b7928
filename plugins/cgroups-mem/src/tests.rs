//! On the real memory controller of this machine, on whichever hierarchy it is.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::testing::{Hierarchies, PluginHarness};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

const MIB: u64 = 1 << 20;

/// A container on real control groups.
struct World {
    bench: PluginHarness<Mem>,
    container: Container,
    cgroup: Cgroup,
    // Last, so that the directories go when nothing needs them any more.
    _hierarchies: Hierarchies,
}

impl World {
    fn new(config: Json, resources: Resources) -> Option<Self> {
        let hierarchies = Hierarchies::of_this_machine(&[CONTROLLER])?;
        let bench = PluginHarness::<Mem>::isolator(config).unwrap();
        let mut container = bench.container("web");
        container.cgroups = hierarchies.cgroups().clone();
        container.resources = resources;
        let cgroup = Cgroup::of(&container.cgroups, CONTROLLER).unwrap();
        Some(Self { bench, container, cgroup, _hierarchies: hierarchies })
    }

    fn is_v1(&self) -> bool {
        self.cgroup.version() == CgroupVersion::V1
    }

    /// What the knob of this hierarchy holds; `None` is unlimited.
    fn limit(&self, v1: &str, v2: &str) -> Option<u64> {
        let text = self.cgroup.read(if self.is_v1() { v1 } else { v2 }).unwrap();
        // v1 shows no limit as the largest number of whole pages.
        text.parse().ok().filter(|&limit: &u64| limit < 1 << 60)
    }

    fn hard(&self) -> Option<u64> {
        self.limit("memory.limit_in_bytes", "memory.max")
    }

    /// Starts a shell that is in the container's control group before it does anything.
    fn spawn(&self, script: &str) -> Child {
        self.spawn_in(self.cgroup.directory(), script)
    }

    /// The same, in that of a nested container.
    fn spawn_in(&self, directory: &Path, script: &str) -> Child {
        let procs = directory.join(if self.is_v1() { "" } else { "leaf" }).join("cgroup.procs");
        Command::new("sh")
            .args(["-c", &format!("echo $$ > '{}'; {script}", procs.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Waits for an event, for as long as a slow machine may need.
    fn await_event(watching: &OwnedFd) {
        let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
        let mut descriptors = [PollFd::new(watching, PollFlags::IN)];
        assert_eq!(poll(&mut descriptors, Some(&timeout)).unwrap(), 1, "no event for a minute");
    }
}

fn mem(mib: f64) -> Resources {
    Resources::default().with("mem", mib)
}

#[test]
fn limits_are_written_to_the_cgroup_that_the_container_is_created_in() {
    let resources = mem(64.0).with_limit("mem", Limit::At(128.0));
    let Some(world) = World::new(json!({}), resources) else { return };
    let prepared = world.bench.prepare_container(&world.container).unwrap();
    assert_eq!(world.hard(), Some(128 * MIB));
    assert_eq!(world.limit("memory.soft_limit_in_bytes", "memory.low"), Some(64 * MIB));
    let cgroups = if world.is_v1() { vec![world.cgroup.directory().to_owned()] } else { Vec::new() };
    assert_eq!(prepared.launch.cgroups, cgroups);
    assert!(prepared.launch.oom_score_adj.is_some(), "it may use more than its share");
    assert_eq!(prepared.state, None);
    world.bench.cleanup("web").unwrap();
    assert_eq!(world.cgroup.directory().exists(), !world.is_v1(), "v1 directories are ours to remove");
    world.bench.cleanup("web").unwrap();
}

#[test]
fn nobody_gets_less_than_the_minimum_and_nobody_is_limited_unasked() {
    let Some(world) = World::new(json!({ "minimum": "48 MiB" }), mem(1.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    assert_eq!(world.hard(), Some(48 * MIB));

    let Some(world) = World::new(json!({}), Resources::default()) else { return };
    let prepared = world.bench.prepare_container(&world.container).unwrap();
    assert_eq!(world.hard(), None);
    assert_eq!(prepared.launch.oom_score_adj, None);
    world.bench.cleanup("web").unwrap();
}

#[test]
fn an_update_goes_up_and_down() {
    let Some(world) = World::new(json!({}), mem(64.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    for (resources, expected) in [
        (mem(256.0), Some(256 * MIB)),
        (mem(40.0), Some(40 * MIB)),
        (mem(40.0).with_limit("mem", Limit::Unlimited), None),
        (Resources::default().with("cpus", 2.0), None),
        (mem(96.0), Some(96 * MIB)),
    ] {
        world.bench.update("web", resources.clone()).unwrap();
        assert_eq!(world.hard(), expected, "after {resources:?}");
    }
    world.bench.cleanup("web").unwrap();
}

#[test]
fn swap_follows_memory_up_and_down() {
    let Some(world) = World::new(json!({ "limit_swap": true }), mem(64.0)) else { return };
    if let Err(refused) = world.bench.prepare_container(&world.container) {
        assert!(refused.message.contains("swapaccount=1"), "{refused}");
        return;
    }
    for mib in [64.0, 256.0, 40.0] {
        world.bench.update("web", mem(mib)).unwrap();
        if world.is_v1() {
            let swap: u64 = world.cgroup.read_as("memory.memsw.limit_in_bytes").unwrap();
            assert_eq!(Some(swap), world.hard());
        } else if world.cgroup.has("memory.swap.max") {
            assert_eq!(world.cgroup.read("memory.swap.max").unwrap(), "0");
        }
    }
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_limit_left_from_when_swap_counted_does_not_stand_in_the_way() {
    let Some(world) = World::new(json!({}), mem(64.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    if world.cgroup.write("memory.memsw.limit_in_bytes", 64 * MIB).is_ok() {
        world.bench.update("web", mem(128.0)).unwrap();
        assert_eq!(world.hard(), Some(128 * MIB));
    }
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_limit_is_not_lowered_below_what_cannot_be_taken_and_nothing_dies() {
    let Some(world) = World::new(json!({}), mem(256.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    // The shell holds 100 MB in a variable; it says so, and stays until its input is closed.
    let mut child = world.spawn("x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo full; read end; exit 7");
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(&said, b"full\n");

    let usage = world.bench.usage("web").unwrap();
    for figure in ["mem_rss_bytes", "mem_anon_bytes", "mem_total_bytes"] {
        assert!(
            usage.number(figure).unwrap() > 1e8 && usage.number(figure).unwrap() < 256.0 * 1048576.0,
            "{figure} in {usage:?}"
        );
    }
    assert!(usage.0.contains_key("mem_cache_bytes") && usage.0.contains_key("mem_mapped_file_bytes"));

    let refused = world.bench.update("web", mem(40.0)).unwrap_err();
    assert!(refused.message.contains("cannot lower the memory limit to 40.0 MiB"), "{refused}");
    assert!(refused.retryable);
    assert_eq!(world.hard(), Some(256 * MIB), "the old limit still holds");
    assert_eq!(world.limit("memory.soft_limit_in_bytes", "memory.low"), Some(256 * MIB));
    world.bench.update("web", mem(192.0)).unwrap();
    assert_eq!(world.hard(), Some(192 * MIB));
    assert_eq!(world.bench.limitation("web", None).unwrap(), None);

    // While somebody lives there, it cannot go, and may later.
    if world.is_v1() {
        let refused = world.bench.cleanup("web").unwrap_err();
        assert!(refused.retryable, "{refused}");
        assert!(refused.message.contains(&world.cgroup.directory().display().to_string()), "{refused}");
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7), "it was not harmed");
    world.bench.cleanup("web").unwrap();
}

#[test]
fn exceeding_the_limit_is_reported_while_the_container_is_running() {
    let Some(world) = World::new(json!({ "limit_swap": has_swap() }), mem(40.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let watching = world.bench.watch("web").unwrap().unwrap();
    assert_eq!(world.bench.limitation("web", Some(watching.as_fd())).unwrap(), None);

    // Its first process survives the one that takes too much.
    let mut child = world.spawn("tail /dev/zero; read end");
    let limitation = loop {
        World::await_event(&watching);
        if let Some(limitation) = world.bench.limitation("web", Some(watching.as_fd())).unwrap() {
            break limitation;
        }
    };
    assert!(child.try_wait().unwrap().is_none(), "the container still runs");
    assert_eq!(limitation.reason, "REASON_CONTAINER_LIMITATION_MEMORY");
    assert!(limitation.message.starts_with("memory limit of 40.0 MiB exceeded: up to "), "{limitation:?}");
    let Value::Scalar(peak) = limitation.resources["mem"] else { panic!("{limitation:?}") };
    assert!((20.0..=41.0).contains(&peak), "{limitation:?}");
    drop(child.stdin.take());
    child.wait().unwrap();
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_container_that_died_of_its_limit_is_known_to_have_without_having_been_watched() {
    let Some(world) = World::new(json!({ "limit_swap": has_swap() }), mem(40.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let mut child = world.spawn("exec tail /dev/zero");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let limitation = world.bench.limitation("web", None).unwrap().unwrap();
    assert_eq!(limitation.reason, "REASON_CONTAINER_LIMITATION_MEMORY");
    world.bench.cleanup("web").unwrap();
}

#[test]
fn only_the_container_whose_limit_it_was_is_said_to_have_reached_it() {
    for (outer, inner) in [(200.0, 40.0), (40.0, 200.0)] {
        let Some(world) = World::new(json!({ "limit_swap": has_swap() }), mem(outer)) else { return };
        world.bench.prepare_container(&world.container).unwrap();
        let mut nested = world.bench.container("web.probe");
        nested.cgroups = world.container.cgroups.clone();
        nested.cgroups.path.push("probe");
        nested.resources = mem(inner);
        let place = world.cgroup.directory().join("probe");
        if !world.is_v1() {
            fs::create_dir_all(place.join("leaf")).unwrap();
        }
        world.bench.prepare_container(&nested).unwrap();

        let mut child = world.spawn_in(&place, "exec tail /dev/zero");
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let of_outer = world.bench.limitation("web", None).unwrap().is_some();
        let of_inner = world.bench.limitation("web.probe", None).unwrap().is_some();
        assert_eq!((of_outer, of_inner), (outer < inner, inner < outer), "limits: {outer} and {inner} MiB");

        world.bench.cleanup("web.probe").unwrap();
        if !world.is_v1() {
            fs::remove_dir(place.join("leaf")).unwrap();
            fs::remove_dir(&place).unwrap();
        }
        world.bench.cleanup("web").unwrap();
    }
}

#[test]
fn one_that_is_killed_for_another_reason_is_not_said_to_have_reached_its_limit() {
    let Some(world) = World::new(json!({}), mem(64.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let watching = world.bench.watch("web").unwrap().unwrap();
    let mut child = world.spawn("kill -9 $$");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(world.bench.limitation("web", None).unwrap(), None);
    // Removing the control group is news as well, and no limitation.
    world.bench.cleanup("web").unwrap();
    if world.is_v1() {
        World::await_event(&watching);
    }
    assert_eq!(world.bench.limitation("web", Some(watching.as_fd())).unwrap(), None);
}

#[test]
fn what_a_container_left_below_its_control_group_goes_with_it() {
    let Some(world) = World::new(json!({}), mem(64.0)) else { return };
    if !world.is_v1() {
        return; // There the directory is the agent's.
    }
    world.bench.prepare_container(&world.container).unwrap();
    fs::create_dir_all(world.cgroup.directory().join("a/b")).unwrap();
    fs::create_dir(world.cgroup.directory().join("c")).unwrap();
    world.bench.cleanup("web").unwrap();
    assert!(!world.cgroup.directory().exists());
}

#[test]
fn a_container_in_its_parents_control_groups_is_left_to_them() {
    let Some(world) = World::new(json!({}), mem(64.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let mut nested = world.bench.container("web.probe");
    nested.linux.share_cgroups = true;
    // The worst case: were it taken for its own, the parent's would be changed and removed.
    nested.cgroups = world.container.cgroups.clone();
    nested.resources = mem(512.0);
    let prepared = world.bench.prepare_container(&nested).unwrap();
    assert_eq!(prepared.launch, cofferdam_plugin_api::model::LaunchInfo::default());
    assert!(world.bench.watch("web.probe").unwrap().is_none());
    assert_eq!(world.bench.usage("web.probe").unwrap(), Usage::default());
    assert_eq!(world.bench.limitation("web.probe", None).unwrap(), None);
    let refused = world.bench.update("web.probe", mem(512.0)).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    world.bench.cleanup("web.probe").unwrap();
    assert_eq!(world.hard(), Some(64 * MIB), "the parent's limit was touched");
    world.bench.cleanup("web").unwrap();
}

#[test]
fn cleaning_up_what_was_never_seen_succeeds_twice() {
    let bench = PluginHarness::<Mem>::isolator(json!({})).unwrap();
    bench.cleanup("unknown").unwrap();
    bench.cleanup("unknown").unwrap();
    assert!(bench.recover(Vec::new(), Vec::new()).unwrap().verdicts.is_empty());
}

#[test]
fn a_host_without_the_controller_is_named() {
    let bench = PluginHarness::<Mem>::isolator(json!({})).unwrap();
    let refused = bench.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `memory`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "minimum": "32 parsecs" }), "`32 parsecs` is not a size"),
        (json!({ "limit_swap": "yes" }), "invalid type"),
        (json!({ "limits": 1 }), "unknown field `limits`"),
    ] {
        let refused = PluginHarness::<Mem>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}

/// Where there is swap, a limit that spares it does not kill soon.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}
