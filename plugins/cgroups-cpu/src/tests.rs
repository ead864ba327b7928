//! On the real cpu controllers of this machine, on whichever hierarchy they are.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::testing::{Hierarchies, PluginHarness};

use super::*;

/// A container on real control groups.
struct World {
    bench: PluginHarness<Cpu>,
    container: Container,
    cpu: Cgroup,
    // Last, so that the directories go when nothing needs them any more.
    _hierarchies: Hierarchies,
}

impl World {
    fn new(config: Json, resources: Resources) -> Option<Self> {
        let hierarchies = Hierarchies::of_this_machine(&[CONTROLLER, ACCOUNTING])?;
        let bench = PluginHarness::<Cpu>::isolator(config).unwrap();
        let mut container = bench.container("web");
        container.cgroups = hierarchies.cgroups().clone();
        container.resources = resources;
        let cpu = Cgroup::of(&container.cgroups, CONTROLLER).unwrap();
        Some(Self { bench, container, cpu, _hierarchies: hierarchies })
    }

    fn is_v1(&self) -> bool {
        self.cpu.version() == CgroupVersion::V1
    }

    fn knob(&self, v1: &str, v2: &str) -> String {
        self.cpu.read(if self.is_v1() { v1 } else { v2 }).unwrap()
    }

    /// Starts a shell that is in the container's control groups before it does anything.
    fn spawn(&self, script: &str) -> Child {
        let directories = if self.is_v1() {
            let accounting = Cgroup::of(&self.container.cgroups, ACCOUNTING).unwrap();
            vec![self.cpu.directory().to_owned(), accounting.directory().to_owned()]
        } else {
            vec![self.cpu.directory().join(PathBuf::from("leaf"))]
        };
        let join: String = directories
            .iter()
            .map(|directory| format!("echo $$ > '{}/cgroup.procs'; ", directory.display()))
            .collect();
        Command::new("sh")
            .args(["-c", &format!("{join}{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn cpus(cpus: f64) -> Resources {
    Resources::default().with("cpus", cpus)
}

#[test]
fn a_share_is_written_to_the_cgroup_that_the_container_is_created_in() {
    let Some(world) = World::new(json!({}), cpus(0.5)) else { return };
    let prepared = world.bench.prepare_container(&world.container).unwrap();
    assert_eq!(world.knob("cpu.shares", "cpu.weight"), if world.is_v1() { "512" } else { "50" });
    if world.is_v1() {
        assert_eq!(world.cpu.read("cpu.cfs_quota_us").unwrap(), "50000");
        assert_eq!(world.cpu.read("cpu.cfs_period_us").unwrap(), "100000");
        let accounting = Cgroup::of(&world.container.cgroups, ACCOUNTING).unwrap();
        assert_eq!(prepared.launch.cgroups, [world.cpu.directory(), accounting.directory()]);
        assert!(accounting.directory().is_dir());
    } else {
        assert_eq!(world.cpu.read("cpu.max").unwrap(), "50000 100000");
        assert!(prepared.launch.cgroups.is_empty());
    }
    world.bench.cleanup("web").unwrap();
    assert_eq!(world.cpu.directory().exists(), !world.is_v1(), "v1 directories are ours to remove");
    world.bench.cleanup("web").unwrap();
}

#[test]
fn an_update_goes_up_and_down_and_lifts() {
    let Some(world) = World::new(json!({ "cfs": false }), cpus(1.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let quota = || {
        let text = world.knob("cpu.cfs_quota_us", "cpu.max");
        text.split(' ').next().unwrap().parse::<i64>().ok().filter(|&quota| quota > 0)
    };
    assert_eq!(quota(), None, "a request is no limit here");
    for (resources, expected, share) in [
        (cpus(0.25).with_limit("cpus", Limit::At(0.5)), Some(50_000), ["256", "25"]),
        (cpus(4.0).with_limit("cpus", Limit::At(8.0)), Some(800_000), ["4096", "400"]),
        (Resources::default().with("mem", 64.0), Some(800_000), ["4096", "400"]),
        (cpus(0.0), None, ["2", "1"]),
    ] {
        world.bench.update("web", resources.clone()).unwrap();
        assert_eq!(quota(), expected, "after {resources:?}");
        let expected = share[usize::from(!world.is_v1())];
        assert_eq!(world.knob("cpu.shares", "cpu.weight"), expected, "after {resources:?}");
    }
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_container_is_stopped_at_its_limit_and_its_time_is_counted() {
    let Some(world) = World::new(json!({ "count_processes": true }), cpus(0.2)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let child = world.spawn("while :; do :; done");
    let mut child = Reaped(child);
    // Usage itself is what is waited for: it must rise, and the limit must have been met.
    let usage = loop {
        let usage = world.bench.usage("web").unwrap();
        if usage.number("cpus_user_time_secs").unwrap() + usage.number("cpus_system_time_secs").unwrap()
            >= 0.1
            && usage.number("cpus_nr_throttled").unwrap() >= 3.0
        {
            break usage;
        }
        assert!(child.0.try_wait().unwrap().is_none(), "the shell ended: {usage:?}");
        std::thread::yield_now();
    };
    assert!(usage.number("cpus_throttled_time_secs").unwrap() > 0.0, "{usage:?}");
    assert!(
        usage.number("cpus_nr_periods").unwrap() >= usage.number("cpus_nr_throttled").unwrap(),
        "{usage:?}"
    );
    assert_eq!((usage.number("processes").unwrap(), usage.number("threads").unwrap()), (1.0, 1.0));
    drop(child);
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_control_group_in_use_is_reported_and_goes_later() {
    let Some(world) = World::new(json!({}), cpus(1.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let mut child = world.spawn("echo here; read end");
    let mut said = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    if world.is_v1() {
        let refused = world.bench.cleanup("web").unwrap_err();
        assert!(refused.retryable, "{refused}");
        assert!(refused.message.contains(&world.cpu.directory().display().to_string()), "{refused}");
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    world.bench.cleanup("web").unwrap();
}

#[test]
fn a_container_in_its_parents_control_groups_is_left_to_them() {
    let Some(world) = World::new(json!({}), cpus(1.0)) else { return };
    world.bench.prepare_container(&world.container).unwrap();
    let mut nested = world.bench.container("web.probe");
    nested.class = cofferdam_plugin_api::model::ContainerClass::Debug;
    // The worst case: were it taken for its own, the parent's would be changed and removed.
    nested.cgroups = world.container.cgroups.clone();
    nested.resources = cpus(0.1);
    let prepared = world.bench.prepare_container(&nested).unwrap();
    assert_eq!(prepared.launch, cofferdam_plugin_api::model::LaunchInfo::default());
    assert_eq!(world.bench.usage("web.probe").unwrap(), Usage::default());
    let refused = world.bench.update("web.probe", cpus(0.1)).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    world.bench.cleanup("web.probe").unwrap();
    let untouched = if world.is_v1() { "1024" } else { "100" };
    assert_eq!(world.knob("cpu.shares", "cpu.weight"), untouched);
    world.bench.cleanup("web").unwrap();
}

#[test]
fn cleaning_up_what_was_never_seen_succeeds_twice() {
    let bench = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
    bench.cleanup("unknown").unwrap();
    bench.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let bench = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
    let refused = bench.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `cpu`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in
        [(json!({ "cfs": 1 }), "invalid type"), (json!({ "cfs_quota": true }), "unknown field `cfs_quota`")]
    {
        let refused = PluginHarness::<Cpu>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}

/// A process that does not outlive its test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
