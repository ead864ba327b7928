//! `disk/xfs`, on file systems with quotas: in the virtual machines of [`crate::guests`], and on hosts whose kernel has them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cofferdam_core::model::{Reason, Request, Resources, Value};
use cofferdam_linux::quota;
use cofferdam_tests::is_root;
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::world::{World, id, launch_error, run, shipped, with_agent};
use rustix::mount::mount_bind;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{Fixture, describe, isolator, world};

const REASON: &str = "REASON_CONTAINER_LIMITATION_DISK";

/// Those that containers have in these tests.
const PROJECTS: [u32; 3] = [5000, 5001, 5002];

/// A file system in a file, mounted.
struct Disk {
    directory: TempDir,
}

impl Disk {
    /// `None` if this kernel has no quotas, which a virtual machine always has.
    fn xfs(options: &str) -> Option<Self> {
        Self::new("mkfs.xfs -q -f", "xfs", options)
    }

    fn ext4(options: &str) -> Option<Self> {
        Self::new("mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota", "ext4", options)
    }

    fn new(mkfs: &str, kind: &str, options: &str) -> Option<Self> {
        if !is_root("file systems with quotas") {
            return None;
        }
        let disk = Self { directory: tempfile::Builder::new().prefix("cofferdam-disk-").tempdir().unwrap() };
        fs::create_dir(disk.path()).unwrap();
        let (image, mounted) = (disk.directory.path().join("image"), disk.path());
        let (image, mounted) = (image.display(), mounted.display());
        shell(&format!("modprobe -aq loop {kind}; truncate -s 400M {image} && {mkfs} {image}")).unwrap();
        match shell(&format!("mount -o loop,{options} {image} {mounted}")) {
            Ok(()) => {}
            // With `CI=true` too, as it must not be skipped where it can run.
            Err(error) if !crate::guest::inside() => {
                let test = std::thread::current().name().unwrap_or("a test").to_owned();
                // Unlike `eprintln!`, this is not captured when the test passes. An error cannot be reported.
                writeln!(
                    std::io::stderr(),
                    "\nSKIPPED: {test} needs a kernel with quotas of {kind}; it runs in the virtual machines of \
                     `guests::`. {error}"
                )
                .ok();
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// A world whose work directory is on it.
    fn world(&self, table: Json) -> World {
        let world = world(vec![]);
        let mut world = Arc::into_inner(world).unwrap();
        world.config.isolators.insert(0, isolator("disk/xfs", table));
        world.config.work_dir = self.path().join("work");
        world
    }

    fn fixture(&self, table: Json) -> Arc<World> {
        Arc::new(self.world(table))
    }

    fn quota(&self, project: u32) -> quota::Quota {
        quota::read(File::open(self.path()).unwrap(), project).unwrap()
    }

    fn assert_nothing_left(&self, world: &World) {
        assert_eq!(world.leftovers(), Vec::<String>::new());
        for directory in ["containers", "scratch/containers"] {
            let left: Vec<_> = fs::read_dir(self.path().join("work").join(directory)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        for project in PROJECTS {
            assert_eq!(self.quota(project), quota::Quota::default(), "project {project}");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // If a test fails, processes may use it. An error does not affect others.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

fn shell(line: &str) -> Result<(), String> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new("sh").args(["-c", line]).env("PATH", path).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(format!("{line}: {output:?}")) }
}

fn table(kill: bool) -> Json {
    json!({
        "xfs_project_range": "[5000-5001]",
        "enforce_container_disk_quota": true,
        "xfs_kill_containers": kill,
        "xfs_quota_headroom": "4 MiB",
        "container_disk_watch_interval": "50ms",
    })
}

impl Fixture {
    fn with_quota(&self, name: &str, user: &str, mebibytes: f64, line: &str) -> Request {
        let resources = Resources::default().with("disk", mebibytes);
        Request { resources, ..self.request(name, user, line) }
    }

    async fn quota_used(&self, name: &str) -> f64 {
        let usage = self.agent.usage(&id(name)).await.unwrap();
        assert_eq!(usage.failed, [].into());
        usage.number("disk_used_bytes").unwrap() / f64::from(1 << 20)
    }

    /// Waits until a line is in the standard output of a container.
    fn wait_for_line(&self, name: &str, line: &str) {
        cofferdam_tests::wait_for_text(&self.agent.inspect(&id(name)).unwrap().logs.stdout.unwrap(), line);
    }
}

/// Writes 2 MiB after another to a file until that fails, and sets `why` to the reason. Output is written to the sandbox
/// too, so some space for it is kept and then released.
const FILL: &str = "fill() { dd if=/dev/zero of=$MESOS_SANDBOX/spare bs=1M count=1 2> /dev/null; i=0; why=; \
                    while [ -z \"$why\" ] && [ $i -lt 30 ]; do i=$((i+1)); \
                    why=$(dd if=/dev/zero bs=2M count=1 2>&1 >> $1 | grep -o -e 'No space left' -e 'quota exceeded'); \
                    done; : > $MESOS_SANDBOX/spare; };";

/// What a write beyond the limit fails with.
fn is_refusal(why: &str) -> bool {
    why == "No space left" || why == "quota exceeded"
}

#[test]
fn writes_beyond_the_limit_fail_until_it_is_raised_also_with_a_later_agent() {
    let Some(disk) = Disk::xfs("pquota") else { return };
    let world = disk.fixture(table(false));
    super::across_restart(
        &world,
        async |fixture| {
            let line = format!(
                "{FILL} fill $MESOS_SANDBOX/a; echo full: $why; while ! [ -e $MESOS_SANDBOX/go ]; do sleep 0.1; done; \
                 fill /b; echo full again: $why; sleep 1000"
            );
            fixture.agent.launch(fixture.with_quota("web", "root", 16.0, &line)).await.unwrap();
            fixture.wait_for_line("web", "full: ");
            let used = fixture.quota_used("web").await;
            assert!((12.0..=16.0).contains(&used), "{used}");
            let quota = disk.quota(5000);
            assert_eq!((quota.soft, quota.hard), (16 << 20, 16 << 20));
        },
        async |fixture| {
            let before = fixture.quota_used("web").await;
            assert!((12.0..=16.0).contains(&before), "{before}");
            fixture.agent.update(&id("web"), Resources::default().with("disk", 32.0)).await.unwrap();
            assert_eq!(disk.quota(5000).hard, 32 << 20);

            // A nested one writes to the same project, another container does not.
            let line = "dd if=/dev/zero of=$MESOS_SANDBOX/x bs=1M count=4 2> /dev/null && echo written";
            let output = run(&fixture.agent, fixture.request("web.nested", "root", line)).await;
            assert_eq!(output, "written\n");
            assert!(fixture.quota_used("web").await >= before + 4.0);
            let output = run(&fixture.agent, fixture.with_quota("other", "root", 8.0, line)).await;
            assert_eq!(output, "written\n");
            assert_eq!(project_of(&fixture.agent.inspect(&id("other")).unwrap().sandbox), 5001);
            let message =
                launch_error(&fixture.agent, fixture.with_quota("third", "root", 8.0, "true")).await;
            assert!(message.contains("no project is free for container `third`"), "{message}");

            let sandbox = fixture.agent.inspect(&id("web")).unwrap().sandbox;
            fs::write(sandbox.join("go"), "").unwrap();
            fixture.wait_for_line("web", "full again: ");
            let used = fixture.quota_used("web").await;
            assert!((28.0..=32.0).contains(&used), "{used}");
            let output = fs::read_to_string(sandbox.join("stdout")).unwrap();
            let whys = ["full: ", "full again: "].map(|name| super::value(&output, name));
            assert!(whys.into_iter().all(is_refusal), "{output}");
            // Lowered below what is used: it continues.
            fixture.agent.update(&id("web"), Resources::default().with("disk", 8.0)).await.unwrap();
            assert_eq!(disk.quota(5000).hard, 8 << 20);
            let usage = fixture.agent.usage(&id("web")).await.unwrap();
            assert_eq!(usage.number("disk_limit_bytes"), Some(f64::from(8 << 20)));
            for name in ["other", "web"] {
                fixture.agent.destroy(&id(name)).await.unwrap();
                assert!(fixture.agent.remove(&id(name)).await.unwrap());
            }
        },
    );
    disk.assert_nothing_left(&world);

    // A project with files is not given away, and an agent without a limit only accounts.
    let left = disk.path().join("left");
    fs::write(&left, "text").unwrap();
    quota::set_project(File::open(&left).unwrap(), 5000).unwrap();
    let world = disk.fixture(json!({ "xfs_project_range": "[5000-5001]" }));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let line = "dd if=/dev/zero of=$MESOS_SANDBOX/x bs=1M count=4 2> /dev/null";
        fixture.launch(fixture.with_quota("web", "web", 1.0, line)).await;
        assert_eq!(project_of(&fixture.agent.inspect(&id("web")).unwrap().sandbox), 5001);
        let used = fixture.quota_used("web").await;
        assert!((4.0..5.0).contains(&used), "{used}");
        let message = launch_error(&fixture.agent, fixture.with_quota("next", "web", 1.0, "true")).await;
        assert!(message.contains(" 5000 have files"), "{message}");
        fs::remove_file(&left).unwrap();
        fixture.agent.destroy(&id("web")).await.unwrap();
        assert!(fixture.agent.remove(&id("web")).await.unwrap());
    });
    disk.assert_nothing_left(&world);
}

fn project_of(directory: &Path) -> u32 {
    quota::project(File::open(directory).unwrap()).unwrap()
}

#[test]
fn a_container_that_exceeds_its_limit_ends_if_configured() {
    let Some(disk) = Disk::xfs("pquota") else { return };
    let world = disk.fixture(table(true));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let line = "dd if=/dev/zero of=/file bs=1M count=10; sleep 1000";
        fixture.agent.launch(fixture.with_quota("web", "root", 8.0, line)).await.unwrap();
        assert_eq!(disk.quota(5000).hard, 12 << 20);
        let termination = fixture.agent.wait(&id("web")).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::Limitation(REASON.into())), "{termination:?}");
        let message = termination.message.unwrap();
        assert!(message.contains("disk limit of 8.0 MiB exceeded"), "{message}");
        let Value::Scalar(used) = termination.limited["disk"] else { panic!("{:?}", termination.limited) };
        assert!((8.0..=12.0).contains(&used), "{used}");
        assert!(fixture.agent.remove(&id("web")).await.unwrap());
    });
    disk.assert_nothing_left(&world);
}

#[test]
fn ext4_has_quotas_too() {
    let Some(disk) = Disk::ext4("prjquota") else { return };
    let world = disk.fixture(table(false));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        // Root may exceed them.
        let line = format!("{FILL} fill $MESOS_SANDBOX/a; echo $why");
        let output = run(&fixture.agent, fixture.with_quota("web", "web", 16.0, &line)).await;
        assert!(is_refusal(output.trim()), "{output}");
        let used = disk.quota(5000).used >> 20;
        assert!((12..=16).contains(&used), "{used}");
        assert!(fixture.agent.remove(&id("web")).await.unwrap());
    });
    disk.assert_nothing_left(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_quotas_on_its_disk_does_not_start_and_says_what_to_do() {
    if !is_root("root file systems") {
        return;
    }
    let mut world = World::new();
    world.config.isolators = vec![shipped("disk/xfs")];
    let message = describe(&world.start().await.err().unwrap());
    assert!(message.contains("`disk/xfs`") && message.contains("or use `disk/du`"), "{message}");
    let Some(disk) = Disk::xfs("noquota") else { return };
    let world = disk.world(table(false));
    let message = describe(&world.start().await.err().unwrap());
    assert!(message.contains("has no quotas for projects") && message.contains("`pquota`"), "{message}");
}

#[test]
fn a_later_agent_enforces_its_own_policy_also_outside_its_range_and_without_a_lease() {
    let Some(disk) = Disk::xfs("pquota") else { return };
    let mut world = disk.fixture(table(false));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let line = "while ! [ -e $MESOS_SANDBOX/go ]; do sleep 0.1; done; \
                    dd if=/dev/zero of=$MESOS_SANDBOX/file bs=1M count=20; sleep 1000";
        for name in ["web", "lost"] {
            fixture.agent.launch(fixture.with_quota(name, "root", 8.0, line)).await.unwrap();
        }
        assert_eq!([5000, 5001].map(|project| disk.quota(project).hard), [8 << 20; 2]);
    });
    lose_leases(&world, "lost");
    let mut kills = table(true);
    kills["xfs_project_range"] = json!("[5001-5002]");
    Arc::get_mut(&mut world).unwrap().config.isolators[0] = isolator("disk/xfs", kills);
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        for project in [5000, 5001] {
            let quota = disk.quota(project);
            assert_eq!((quota.soft, quota.hard), (8 << 20, 12 << 20), "project {project}");
        }
        fixture.agent.launch(fixture.with_quota("new", "root", 8.0, "sleep 1000")).await.unwrap();
        assert_eq!(project_of(&fixture.agent.inspect(&id("new")).unwrap().sandbox), 5002);
        for name in ["web", "lost"] {
            fs::write(fixture.agent.inspect(&id(name)).unwrap().sandbox.join("go"), "").unwrap();
            let termination = fixture.agent.wait(&id(name)).await.unwrap();
            assert_eq!(termination.reason, Some(Reason::Limitation(REASON.into())), "{termination:?}");
        }
        fixture.agent.destroy(&id("new")).await.unwrap();
        for name in ["web", "lost", "new"] {
            assert!(fixture.agent.remove(&id(name)).await.unwrap());
        }
    });
    disk.assert_nothing_left(&world);
}

/// Takes the leases of a container from its record, as a defect of an earlier agent might have.
fn lose_leases(world: &World, name: &str) {
    let path = cofferdam_core::ledger::nested_directory(&world.config.runtime_dir, &id(name)).join("record");
    let content = fs::read_to_string(&path).unwrap();
    let (head, body) = content.split_once('\n').unwrap();
    let mut record: Json = serde_json::from_str(body).unwrap();
    assert_eq!(record["part"]["leases"].as_array().unwrap().len(), 1, "{record}");
    record["part"]["leases"] = json!([]);
    let body = record.to_string();
    let (head, _) = head.rsplit_once(' ').unwrap();
    fs::write(path, format!("{head} {:08x}\n{body}", crc32fast::hash(body.as_bytes()))).unwrap();
}

#[test]
fn a_nested_container_with_a_limit_of_its_own_does_not_count_for_the_pod() {
    let Some(disk) = Disk::xfs("pquota") else { return };
    let world = disk.fixture(table(false));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let sandbox = |name| fixture.agent.inspect(&id(name)).unwrap().sandbox;
        fixture.launch(fixture.with_quota("pod", "root", 32.0, "true")).await;
        let line = format!("{FILL} fill $MESOS_SANDBOX/a; echo $why");
        let output = run(&fixture.agent, fixture.with_quota("pod.own", "root", 8.0, &line)).await;
        assert!(is_refusal(output.trim()), "{output}");
        assert_eq!(project_of(&sandbox("pod.own")), 5001);
        assert!((4..=8).contains(&(disk.quota(5001).used >> 20)), "{:?}", disk.quota(5001));
        assert!(disk.quota(5000).used >> 20 < 2, "{:?}", disk.quota(5000));

        fixture.launch(fixture.request("pod.shared", "root", "true")).await;
        assert_eq!(project_of(&sandbox("pod.shared")), 5000);
        let limited = Resources::default().with("disk", 8.0);
        let refused = fixture.agent.update(&id("pod.shared"), limited).await.unwrap_err();
        let message = describe(&refused);
        assert!(message.contains("`pod.shared` has no limit of its own for `disk`"), "{message}");
        assert_eq!(disk.quota(5000).hard, 32 << 20);

        assert!(fixture.agent.remove(&id("pod.own")).await.unwrap());
        assert_eq!(disk.quota(5001), quota::Quota::default());
        fixture.destroy("pod").await;
    });
    disk.assert_nothing_left(&world);
}

#[test]
fn a_project_with_files_outside_of_the_container_keeps_its_limit_and_is_not_given_away() {
    let Some(disk) = Disk::xfs("pquota") else { return };
    let world = disk.fixture(table(false));
    with_agent(&world, async |agent| {
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let project = |name| project_of(&fixture.agent.inspect(&id(name)).unwrap().sandbox);
        fixture.launch(fixture.with_quota("web", "root", 16.0, "true")).await;
        let stray = disk.path().join("stray");
        fs::write(&stray, "text").unwrap();
        quota::set_project(File::open(&stray).unwrap(), 5000).unwrap();
        fixture.destroy("web").await;
        assert_eq!((disk.quota(5000).hard, disk.quota(5000).inodes), (16 << 20, 1));
        fixture.launch(fixture.with_quota("next", "root", 8.0, "true")).await;
        assert_eq!(project("next"), 5001);

        fs::remove_file(&stray).unwrap();
        // XFS counts it until it has freed it, in the background.
        while disk.quota(5000).inodes > 0 {
            tokio::task::yield_now().await;
        }
        fixture.launch(fixture.with_quota("last", "root", 8.0, "true")).await;
        assert_eq!((project("last"), disk.quota(5000).hard), (5000, 8 << 20));
        fixture.agent.destroy(&id("last")).await.unwrap();
        assert!(fixture.agent.remove(&id("last")).await.unwrap());
        fixture.destroy("next").await;
    });
    disk.assert_nothing_left(&world);
}

#[test]
fn limits_are_turned_on_where_quotas_are_only_counted() {
    let Some(disk) = Disk::xfs("pqnoenforce") else { return };
    let quotas = || quota::quotas(File::open(disk.path()).unwrap()).unwrap();
    assert_eq!((quotas().are_counted, quotas().are_enforced), (true, false));
    let world = disk.fixture(json!({ "xfs_project_range": "[5000-5001]" }));
    with_agent(&world, async |_| ());
    assert!(!quotas().are_enforced, "an agent that only counts changes nothing");
    let world = disk.fixture(table(false));
    with_agent(&world, async |agent| {
        assert!(quotas().are_enforced);
        let fixture = Fixture { world: Arc::clone(&world), agent };
        let line = format!("{FILL} fill $MESOS_SANDBOX/a; echo $why");
        let output = run(&fixture.agent, fixture.with_quota("web", "root", 8.0, &line)).await;
        assert!(is_refusal(output.trim()), "{output}");
        assert!(fixture.agent.remove(&id("web")).await.unwrap());
    });
    disk.assert_nothing_left(&world);
}

/// Links, and mounts of the same and of another file system.
#[test]
fn a_tree_is_given_to_a_project_without_what_is_linked_or_mounted_in_it() {
    // Files have projects without quotas too.
    let Some(disk) = Disk::xfs("noquota") else { return };
    let [tree, other] = ["tree", "other"].map(|name| disk.path().join(name));
    for directory in ["", "a/b", "mounted", "memory"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::create_dir_all(other.join("below")).unwrap();
    for file in [other.join("file"), other.join("below/file"), tree.join("a/b/file"), tree.join("bound")] {
        fs::write(file, "").unwrap();
    }
    symlink(&other, tree.join("link")).unwrap();
    symlink(other.join("file"), tree.join("a/link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("a/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    in_own_namespace(|| {
        mount_bind(&other, tree.join("mounted")).unwrap();
        mount_bind(other.join("file"), tree.join("bound")).unwrap();
        let _memory = Memory::mount(&tree.join("memory"), "size=1m");
        quota::set_project_of_tree(File::open(&tree).unwrap(), 5000).unwrap();
        for path in ["", "below", "below/file", "file"] {
            assert_eq!(project_of(&other.join(path)), 0, "{path}");
        }
        rustix::mount::unmount(tree.join("mounted"), rustix::mount::UnmountFlags::empty()).unwrap();
        rustix::mount::unmount(tree.join("bound"), rustix::mount::UnmountFlags::empty()).unwrap();
    });
    for path in ["", "a", "a/b", "a/b/file"] {
        assert_eq!(project_of(&tree.join(path)), 5000, "{path}");
    }
    // What is below a mount is not seen.
    for path in ["mounted", "memory", "bound"] {
        assert_eq!(project_of(&tree.join(path)), 0, "{path}");
    }
    // What is created later belongs to it too.
    fs::create_dir(tree.join("a/later")).unwrap();
    assert_eq!(project_of(&tree.join("a/later")), 5000);
}
