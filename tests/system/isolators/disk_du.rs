//! `disk/du`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_core::model::{Reason, Request, Resources, Termination, Value, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, remove, run, shipped};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

const REASON: &str = "REASON_CONTAINER_LIMITATION_DISK";

fn config(enforces: bool) -> cofferdam_core::config::PluginConfig {
    let table = json!({
        "container_disk_watch_interval": "50ms",
        "enforce_container_disk_quota": enforces,
    });
    isolator("disk/du", table)
}

impl Fixture {
    fn with_disk(&self, name: &str, mebibytes: f64, line: &str) -> Request {
        let resources = Resources::default().with("disk", mebibytes);
        Request { resources, ..self.request(name, "root", line) }
    }

    async fn disk_used(&self, name: &str) -> Option<u64> {
        let usage = self.agent.usage(&id(name)).await.unwrap();
        assert_eq!(usage.failed, [].into());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
        usage.number("disk_used_bytes").map(|bytes| bytes as u64)
    }

    /// Waits until the use of a container is as expected.
    async fn wait_for_use(&self, name: &str, is_expected: impl Fn(u64) -> bool) -> u64 {
        loop {
            if let Some(used) = self.disk_used(name).await.filter(|used| is_expected(*used)) {
                return used;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn ended_by_its_limit(&self, name: &str) -> Termination {
        let termination = self.agent.wait(&id(name)).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::Limitation(REASON.into())), "{termination:?}");
        termination
    }
}

/// Allocated bytes of a directory with one level of files.
fn allocated(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    (fs::metadata(directory).unwrap().blocks() + files.map(|file| file.blocks()).sum::<u64>()) * 512
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fills_its_root_file_system_or_sandbox_ends() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![config(true)]).await;
    for (name, target) in [("sandbox", "$MESOS_SANDBOX/file"), ("root", "/file")] {
        let line = format!("dd if=/dev/zero of={target} bs=1M count=9; sleep 1000");
        fixture.agent.launch(fixture.with_disk(name, 8.0, &line)).await.unwrap();
        let termination = fixture.ended_by_its_limit(name).await;
        let message = termination.message.unwrap();
        assert!(message.contains("disk limit of 8.0 MiB exceeded"), "{message}");
        let Value::Scalar(used) = termination.limited["disk"] else { panic!("{:?}", termination.limited) };
        assert!((8.0..9.5).contains(&used), "{used}");
        fixture.destroy(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_is_shown_and_limits_are_changed_while_it_runs() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![config(true)]).await;
    let line = "dd if=/dev/zero of=$MESOS_SANDBOX/file bs=1M count=4 2>/dev/null";
    fixture.launch(fixture.with_disk("web", 8.0, line)).await;
    let sandbox = fixture.agent.inspect(&id("web")).unwrap().sandbox;
    let used = fixture.wait_for_use("web", |used| used > 4 << 20).await;
    assert!(used >= allocated(&sandbox) && used < 5 << 20, "{used}");
    let usage = fixture.agent.usage(&id("web")).await.unwrap();
    assert_eq!(usage.number("disk_limit_bytes"), Some(f64::from(8 << 20)));
    assert_eq!(usage.owners["disk_used_bytes"], "disk/du");
    for mebibytes in [16.0, 5.0] {
        let resources = Resources::default().with("disk", mebibytes);
        fixture.agent.update(&id("web"), resources).await.unwrap();
        let usage = fixture.agent.usage(&id("web")).await.unwrap();
        assert_eq!(usage.number("disk_limit_bytes"), Some(mebibytes * f64::from(1 << 20)));
        fixture.wait_for_use("web", |used| used > 4 << 20).await;
    }
    fixture.agent.update(&id("web"), Resources::default().with("disk", 3.0)).await.unwrap();
    fixture.ended_by_its_limit("web").await;
    fixture.destroy("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_the_host_has_statistics_of_its_own_if_configured() {
    if !is_root("root file systems") {
        return;
    }
    let mut du = config(true);
    du.table["measure_volumes"] = json!(true);
    let fixture = Fixture::start(vec![du, shipped("volume/host_path")]).await;
    let data = fixture.world.directory().join("data");
    fs::create_dir(&data).unwrap();
    let line = "dd if=/dev/zero of=/data/file bs=1M count=4 2>/dev/null";
    let mut request = fixture.with_disk("web", 2.0, line);
    request.volumes = vec![Volume {
        container_path: "/data".into(),
        read_only: false,
        source: VolumeSource::HostPath { path: data.clone(), propagation: None },
    }];
    fixture.launch(request).await;
    let disks = loop {
        let disks = fixture.agent.usage(&id("web")).await.unwrap().statistics.remove("disk_statistics");
        match disks {
            Some(disks) if disks[0]["used_bytes"].as_u64() >= Some(4 << 20) => break disks,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(disks[0]["source"], json!({ "type": "PATH", "path": { "root": data } }));
    assert!(disks[0]["used_bytes"].as_u64() < Some(5 << 20), "{disks}");
    assert_eq!(disks[1]["limit_bytes"], 2 << 20, "{disks}");
    fixture.wait_for_use("web", |used| used < 2 << 20).await;
    fixture.destroy("web").await;
}

/// Names beyond the length of paths, links to the host, a file with many links, and what is not on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_makes_of_its_sandbox_neither_stops_nor_misleads_the_measurement() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![config(false)]).await;
    let line = "cd $MESOS_SANDBOX; name=$(busybox printf '%0200d' 0); \
                busybox ln -s / host; busybox ln -s ../.. up; busybox mkfifo fifo; \
                dd if=/dev/zero of=data bs=1M count=2 2>/dev/null; \
                i=0; while [ $i -lt 50 ]; do busybox ln data link$i; i=$((i+1)); done; \
                busybox truncate -s 1T sparse; \
                i=0; while [ $i -lt 100 ]; do busybox mkdir $name; cd $name; i=$((i+1)); done; \
                dd if=/dev/zero of=deep bs=1M count=1 2>/dev/null";
    fixture.launch(fixture.with_disk("web", 1.0, line)).await;
    let used = fixture.wait_for_use("web", |used| used > 3 << 20).await;
    assert!(used < 5 << 20, "{used}");
    fixture.destroy("web").await;
}

#[test]
fn a_pod_is_measured_with_what_is_nested_in_it_also_by_a_later_agent() {
    if !is_root("nested containers") {
        return;
    }
    let write = "dd if=/dev/zero of=$MESOS_SANDBOX/file bs=1M count=3 2>/dev/null";
    across_restart(
        &world(vec![config(true)]),
        async |fixture| {
            fixture.launch(fixture.with_disk("pod", 12.0, "true")).await;
            fixture.launch(fixture.request("pod.running", "root", write)).await;
            run(&fixture.agent, fixture.request("pod.ended", "root", write)).await;
            fixture.wait_for_use("pod", |used| used > 6 << 20).await;
        },
        async |fixture| {
            fixture.wait_for_use("pod", |used| used > 6 << 20).await;
            fixture.wait_for_use("pod.running", |used| used > 3 << 20).await;
            assert!(fixture.agent.remove(&id("pod.ended")).await.unwrap());
            fixture.wait_for_use("pod", |used| used < 4 << 20).await;
            let more = "dd if=/dev/zero of=$MESOS_SANDBOX/file bs=1M count=10 2>/dev/null; sleep 1000";
            fixture.agent.launch(fixture.request("pod.more", "root", more)).await.unwrap();
            fixture.ended_by_its_limit("pod").await;
            fixture.destroy("pod").await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_is_measured_too() {
    let mut world = World::posix();
    world.config.isolators.push(config(true));
    let agent = world.start().await.unwrap();
    let line = "dd if=/dev/zero of=$MESOS_SANDBOX/file bs=1024k count=3 2>/dev/null; sleep 1000";
    let mut request = Request::shell(id("plain"), line);
    request.resources = Resources::default().with("disk", 2.0);
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("plain")).await.unwrap();
    assert_eq!(termination.reason, Some(Reason::Limitation(REASON.into())), "{termination:?}");
    remove(&world, &agent, &["plain"]).await;
}
