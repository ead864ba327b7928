//! Processes that evade a kill: frozen by a freezer of their own, moved to another cgroup, or both.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cofferdam_core::agent::Agent;
use cofferdam_core::model::{Phase, Request};
use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_linux::mounts::{Mount, mounts};
use cofferdam_linux::process::{Process, Stat};
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::pipe::Pipe;
use cofferdam_tests::program::compiled;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{is_root, text, wait_for_text, watch};

use super::{TIMEOUT, assert_nothing_left};

/// A cgroup that a container creates in a hierarchy of the host and freezes, removed at the end.
struct Freezer(Cgroup);

impl Freezer {
    /// Of v1; `None` if this machine has no v1 freezer.
    fn new(name: &str) -> Option<Self> {
        let name = format!("cofferdam-evade-{name}-{}", std::process::id());
        let found =
            Cgroups::detect().unwrap().cgroup("freezer", name).filter(|it| it.version() == Version::V1);
        if found.is_none() {
            eprintln!("\n*** SKIPPED: no v1 freezer is mounted, so self-freezing was NOT tested ***\n");
        }
        found.map(Self)
    }

    fn name(&self) -> &str {
        self.0.path().file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // Also after a failure, so that the processes can end.
        drop(self.0.thaw());
        drop(self.0.remove(TIMEOUT));
    }
}

/// A cgroup that a container creates in a hierarchy of the host, removed at the end.
struct Removed(Cgroup);

impl Drop for Removed {
    fn drop(&mut self) {
        drop(self.0.remove(TIMEOUT));
    }
}

/// A shell line that starts a process which ignores all signals that can be ignored, without waiting for it, and
/// executes `act` with its pid. Then it waits.
fn evader(act: &str) -> String {
    format!(
        "sh -c 'trap \"\" 1 2 15; exec sleep 1000' & pid=$!; {{ {act}; }} && echo ready || echo refused; sleep 1000"
    )
}

/// Whether the kernel refuses to move a process out of its cgroup namespace, as with the options that systemd mounts v2 with.
fn is_confined() -> bool {
    let is_confining = |mount: &Mount| {
        mount.kind == "cgroup2" && mount.super_options.iter().any(|option| option == "nsdelegate")
    };
    mounts().unwrap().iter().any(is_confining)
}

/// What an evader writes that has attempted to leave its cgroup.
fn of_leaving() -> &'static str {
    if is_confined() { "refused" } else { "ready" }
}

/// What a container reads until it has been launched: what it does to itself before makes its own launch fail.
fn launched(world: &World, share_pid: bool) -> Pipe {
    Pipe::new(world.directory().join(format!("launched-{share_pid}")))
}

/// Starts a container, waits until it has evaded, kills it, and checks that nothing is left.
async fn kill(agent: &Agent, world: &World, request: Request) {
    kill_when(agent, world, request, "ready", || ()).await;
}

/// Likewise, after the container has written a text, and something else to wait for.
async fn kill_when(agent: &Agent, world: &World, request: Request, written: &str, wait: impl FnOnce()) {
    let id = request.id.clone();
    agent.launch(request).await.unwrap();
    let logs = agent.inspect(&id).unwrap().logs;
    let (stdout, stderr) = (logs.stdout.unwrap(), logs.stderr.unwrap());
    if agent.inspect(&id).unwrap().summary.phase == Phase::Running {
        wait_for_text(&stdout, written);
    }
    wait();
    assert!(agent.kill(&id, 9).await.unwrap(), "{}", text(&stderr));
    agent.wait(&id).await.unwrap();
    assert!(agent.remove(&id).await.unwrap());
    assert_nothing_left(world);
}

/// Containers with a root file system mount the hierarchies themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_freezes_itself_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let Some(freezer) = Freezer::new("root") else { return };
    let world = World::privileged();
    let agent = world.start().await.unwrap();
    let group = format!("/tmp/freezer/{}", freezer.name());
    for below in ["", "/below"] {
        for share_pid in [false, true] {
            let act = format!(
                "busybox mkdir -p /tmp/freezer && busybox mount -t cgroup -o freezer freezer /tmp/freezer && \
                 busybox mkdir -p {group}{below} && echo $pid > {group}{below}/cgroup.procs && \
                 echo FROZEN > {group}/freezer.state"
            );
            let mut request = Request::shell(id("web"), evader(&act));
            request.rootfs = Some(world.rootfs());
            request.linux.share_pid_namespace = share_pid;
            kill(&agent, &world, request).await;
            // Where the container has a cgroup of its own in that hierarchy, it was below that.
            if freezer.0.exists() {
                freezer.0.thaw().unwrap();
            }
        }
    }
}

/// Its own cgroup, which it sees where the host has mounted it, or a cgroup of the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_freezes_itself_on_v2_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let machine = Cgroups::detect().unwrap();
    let world = World::shipped();
    let own = Path::new("cofferdam-test").join(world.instance()).join("web.container");
    let left = format!("cofferdam-evade-v2-{}", std::process::id());
    let (Some(own), Some(left)) = (machine.unified(own), machine.unified(left)) else {
        eprintln!("\n*** SKIPPED: cgroup v2 is not mounted, so its freezer was NOT tested ***\n");
        return;
    };
    if is_confined() {
        eprintln!("SKIPPED: with `nsdelegate` the kernel refuses a container to write to its own cgroup");
        return;
    }
    let agent = world.start().await.unwrap();
    let left = Freezer(left);
    for share_pid in [true, false] {
        let go = launched(&world, share_pid);
        let mut request = Request::shell(
            id("web"),
            format!(
                "echo ready; read go < {}; echo 1 > {}/cgroup.freeze; sleep 1000",
                go.path().display(),
                own.path().display()
            ),
        );
        request.linux.share_pid_namespace = share_pid;
        kill_when(&agent, &world, request, "ready", || {
            drop(go);
            let is_frozen = || own.is_frozen().unwrap();
            assert!(watch::until(own.path(), TIMEOUT, is_frozen), "it has not frozen itself");
        })
        .await;

        let group = left.0.path().display();
        let act =
            format!("mkdir -p {group} && echo $pid > {group}/cgroup.procs && echo 1 > {group}/cgroup.freeze");
        let mut request = Request::shell(id("web"), evader(&act));
        request.linux.share_pid_namespace = share_pid;
        kill_when(&agent, &world, request, of_leaving(), || ()).await;
        if left.0.exists() {
            left.0.thaw().unwrap();
        }
    }
}

/// A millisecond in each second. The end of a process takes more, if the kernel has memory of it to free.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_leaves_itself_no_cpu_time_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let own = world.cgroup_of_any_version("cpu", &id("web")).unwrap();
    let (write, quota, starved) = match world.cgroup("cpu", &id("web")) {
        Some(own) => {
            let own = own.display();
            let write = format!("echo 1000000 > {own}/cpu.cfs_period_us; echo 1000 > {own}/cpu.cfs_quota_us");
            (write, "cpu.cfs_quota_us", "1000")
        }
        None if is_confined() => {
            eprintln!("SKIPPED: with `nsdelegate` the kernel refuses a container to write to its own cgroup");
            return;
        }
        None => (format!("echo '1000 1000000' > {}/cpu.max", own.display()), "cpu.max", "1000 1000000"),
    };
    for share_pid in [true, false] {
        let go = launched(&world, share_pid);
        let line = format!(
            "exec 3>&1; (head -c 40000000 /dev/zero; echo ready >&3; read go < {}; {write}; sleep 1000) | tail -n 1 >/dev/null",
            go.path().display()
        );
        let mut request = Request::shell(id("web"), line);
        request.linux.share_pid_namespace = share_pid;
        kill_when(&agent, &world, request, "ready", || {
            drop(go);
            let is_starved = || text(&own.join(quota)).trim_end() == starved;
            assert!(watch::until(&own, TIMEOUT, is_starved), "it has not changed its quota");
        })
        .await;
    }
}

/// Likewise in a cgroup of the host, whose quota is not the agent's to lift.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_leaves_its_cgroup_for_one_without_cpu_time_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let group =
        Cgroups::detect().unwrap().cgroup("cpu", format!("cofferdam-evade-cpu-{}", std::process::id()));
    let group = Removed(group.unwrap());
    let path = group.0.path().display();
    let (starve, quota, starved) = match group.0.version() {
        Version::V1 => {
            let write =
                format!("echo 1000000 > {path}/cpu.cfs_period_us; echo 1000 > {path}/cpu.cfs_quota_us");
            (write, "cpu.cfs_quota_us", "1000")
        }
        Version::V2 if is_confined() => {
            eprintln!("SKIPPED: with `nsdelegate` no process leaves its cgroup, as another test shows");
            return;
        }
        Version::V2 => (format!("echo '1000 1000000' > {path}/cpu.max"), "cpu.max", "1000 1000000"),
    };
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    for share_pid in [true, false] {
        let go = launched(&world, share_pid);
        let line = format!(
            "mkdir -p {path}; echo $$ > {path}/cgroup.procs; exec 3>&1; \
             (head -c 40000000 /dev/zero; echo ready >&3; read go < {}; {starve}; sleep 1000) | tail -n 1 >/dev/null",
            go.path().display()
        );
        let mut request = Request::shell(id("web"), line);
        request.linux.share_pid_namespace = share_pid;
        kill_when(&agent, &world, request, "ready", || {
            drop(go);
            let is_starved = || text(&group.0.path().join(quota)).trim_end() == starved;
            assert!(watch::until(group.0.path(), TIMEOUT, is_starved), "it has not changed its quota");
        })
        .await;
        group.0.remove(TIMEOUT).unwrap();
    }
}

/// Without a root file system, a container sees where the host has mounted its hierarchies.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_leaves_its_cgroup_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let freezer = Freezer::new("left");
    let root = Cgroups::detect().unwrap().unified("");
    let Some(root) = root.map(|root| root.path().to_owned()) else {
        eprintln!("\n*** SKIPPED: cgroup v2 is not mounted, so leaving it was NOT tested ***\n");
        return;
    };
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let leave = format!("echo $pid > {}", root.join("cgroup.procs").display());
    let freeze = freezer.as_ref().map(|freezer| {
        let group = freezer.0.path().display();
        format!("mkdir -p {group} && echo $pid > {group}/cgroup.procs && echo FROZEN > {group}/freezer.state")
    });
    for share_pid in [true, false] {
        for act in [Some(leave.clone()), freeze.clone().map(|freeze| format!("{leave} && {freeze}"))] {
            let Some(act) = act else { continue };
            let mut request = Request::shell(id("web"), evader(&act));
            request.linux.share_pid_namespace = share_pid;
            kill_when(&agent, &world, request, of_leaving(), || ()).await;
            if let Some(freezer) = &freezer
                && freezer.0.exists()
            {
                freezer.0.thaw().unwrap();
            }
        }
    }
}

/// Also one whose command ends by itself, and whose other processes have become orphans.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_that_has_left_the_cgroup_of_a_container_ends_with_it() {
    if !is_root("cgroups") {
        return;
    }
    let Some(root) = Cgroups::detect().unwrap().unified("") else { return };
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    // Another container that shares the pid namespace of the host is not affected.
    let mut other = Request::shell(id("other"), "echo ready; exec sleep 1000");
    other.linux.share_pid_namespace = true;
    agent.launch(other).await.unwrap();
    let log = agent.inspect(&id("other")).unwrap().logs.stdout.unwrap();
    wait_for_text(&log, "ready");

    let procs = root.path().join("cgroup.procs");
    let line =
        format!("setsid sh -c 'echo $$ > {}; echo moved; exec sleep 1000' & sleep 1000", procs.display());
    let mut request = Request::shell(id("web"), &line);
    request.linux.share_pid_namespace = true;
    agent.launch(request).await.unwrap();
    wait_for_text(&agent.inspect(&id("web")).unwrap().logs.stdout.unwrap(), "moved");
    assert!(agent.kill(&id("web"), 15).await.unwrap());
    agent.wait(&id("web")).await.unwrap();
    assert!(agent.remove(&id("web")).await.unwrap());

    assert_eq!(agent.inspect(&id("other")).unwrap().summary.phase, Phase::Running);
    let own = world.processes();
    assert_eq!(own.len(), 1, "{own:?}");
    agent.destroy(&id("other")).await.unwrap();
    assert!(agent.remove(&id("other")).await.unwrap());
    assert_nothing_left(&world);
}

/// What a container mounts has its own cgroup as the root.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_no_cgroup_but_its_own() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::privileged();
    let agent = world.start().await.unwrap();
    let tracking =
        if Cgroups::detect().unwrap().unified.is_some() { "cgroup2 cgroup2" } else { "cgroup -o freezer x" };
    let line = format!(
        "cat /proc/self/cgroup; busybox mkdir -p /tmp/c; busybox mount -t {tracking} /tmp/c && \
         busybox find /tmp/c -type d | busybox sed 's/^/dir: /'; grep -q $$ /tmp/c/cgroup.procs && echo inside"
    );
    for share_pid in [false, true] {
        let mut request = Request::shell(id("web"), &line);
        request.rootfs = Some(world.rootfs());
        request.linux.share_pid_namespace = share_pid;
        let output = super::run_and_remove(&agent, request).await;
        let of_agent: Vec<&str> = output.lines().filter(|line| line.contains("cofferdam")).collect();
        assert!(of_agent.is_empty(), "{output}");
        let directories: Vec<&Path> =
            output.lines().filter_map(|line| line.strip_prefix("dir: ").map(Path::new)).collect();
        assert_eq!(directories, [PathBuf::from("/tmp/c")], "{output}");
        assert!(output.contains("inside"), "{output}");
    }
    assert_nothing_left(&world);
}

/// Each escaped process takes a descriptor of the agent while it is killed.
#[test]
fn more_processes_than_the_agent_has_descriptors_are_killed_outside_of_their_cgroup() {
    if !is_root("cgroups") {
        return;
    }
    let Some(root) = Cgroups::detect().unwrap().unified("").map(|root| root.path().to_owned()) else {
        eprintln!("\n*** SKIPPED: cgroup v2 is not mounted, so leaving it was NOT tested ***\n");
        return;
    };
    if is_confined() {
        eprintln!("SKIPPED: with `nsdelegate` no process leaves its cgroup, as another test shows");
        return;
    }
    for world in [World::privileged(), World::shipped()] {
        kill_with_few_descriptors(&world, &root);
    }
}

fn kill_with_few_descriptors(world: &World, root: &Path) {
    let daemon = Daemon::start(world);
    let line = format!(
        "n=0; while [ $n -lt 40 ]; do sh -c 'trap \"\" 1 2 15; exec sleep 1000' & echo $! > {}/cgroup.procs; \
         n=$((n+1)); done; echo ready; exec sleep 1000",
        root.display()
    );
    let mut request = Request::shell(id("web"), line);
    request.linux.share_pid_namespace = true;
    daemon.launch(&request).unwrap();
    wait_for_text(Path::new(&daemon.inspect(&request.id).unwrap().stdout.unwrap()), "ready");
    daemon.limit_descriptors(12);
    assert_eq!(daemon.destroy(&request.id).unwrap().exit_status, Some(9));
    daemon.remove(&request.id).unwrap();
    let log = daemon.log();
    assert!(log.contains("processes have left the cgroup of their container"), "{log}");
    assert_nothing_left(world);
}

/// A container that shares the pid namespace of the host and sees its cgroups. `$own` is its own cgroup of v2.
fn host_request(name: &str, own: &Path, line: &str) -> Request {
    let mut request = Request::shell(id(name), format!("own={}; {line}", own.display()));
    request.linux.share_pid_namespace = true;
    request
}

/// Nor do their names look like those of the agent's own cgroups to it.
#[tokio::test(flavor = "multi_thread")]
async fn cgroups_with_odd_names_keep_no_container_from_ending() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::shipped();
    let below = Path::new("cofferdam-test").join(world.instance());
    let Some(agents) = Cgroups::detect().unwrap().unified(&below) else {
        eprintln!("\n*** SKIPPED: cgroup v2 is not mounted, so names of its cgroups were NOT tested ***\n");
        return;
    };
    if is_confined() {
        eprintln!("SKIPPED: with `nsdelegate` no process leaves its cgroup, as another test shows");
        return;
    }
    let agent = world.start().await.unwrap();
    // No text, and as the cgroup of the keeper.
    for name in [r"\377".to_owned(), format!("{}/keeper", below.display())] {
        let own = agents.path().join("odd.container");
        let line = format!(
            "odd=$(printf '%s/{name}' $own); mkdir -p \"$odd\"; trap '' 1 2 15; echo $$ > \"$odd/cgroup.procs\"; \
             echo ready; sleep 1000"
        );
        agent.launch(host_request("odd", &own, &line)).await.unwrap();
        wait_for_text(&agent.inspect(&id("odd")).unwrap().logs.stdout.unwrap(), "ready");
        // Another container ends beside it, and it is not killed with that.
        agent.launch(host_request("web", &own, "exec sleep 1000")).await.unwrap();
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(agent.inspect(&id("odd")).unwrap().summary.phase, Phase::Running, "{name}");
        agent.destroy(&id("odd")).await.unwrap();
        assert!(agent.remove(&id("odd")).await.unwrap());
        assert_nothing_left(&world);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_first_thread_has_ended_is_killed() {
    let leaderless = compiled("leaderless", include_str!("leaderless.c")).display().to_string();
    let posix = World::posix();
    let agent = posix.start().await.unwrap();
    kill(&agent, &posix, Request::shell(id("web"), format!("{leaderless} & sleep 1000"))).await;
    kill(&agent, &posix, Request::shell(id("web"), format!("exec {leaderless}"))).await;
    agent.shutdown().await;
    let Some(root) = is_root("cgroups").then(|| Cgroups::detect().unwrap().unified("")).flatten() else {
        return;
    };
    if is_confined() {
        return;
    }
    // It has left its cgroup.
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let procs = root.path().join("cgroup.procs");
    let line = format!("sh -c 'echo $$ > {}; exec {leaderless}' & sleep 1000", procs.display());
    kill(&agent, &world, host_request("web", root.path(), &line)).await;
}

/// It is where the keeper is, and has its program, but was not forked by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_executes_the_program_of_the_keeper_is_killed() {
    if !is_root("cgroups") {
        return;
    }
    let world = World::privileged();
    let below = Path::new("cofferdam-test").join(world.instance());
    let Some(agents) = Cgroups::detect().unwrap().unified(&below) else { return };
    if is_confined() {
        eprintln!("SKIPPED: with `nsdelegate` no process leaves its cgroup, as another test shows");
        return;
    }
    let agent = world.start().await.unwrap();
    let keeper = agent.keepers().pid.unwrap();
    let fifo = world.directory().join("silent");
    // Its descriptors are a pipe in which nothing ever is, so that it waits like the keeper.
    let line = format!(
        "mkfifo {fifo}; sh -c 'echo $$ > {keepers}/cgroup.procs; exec 3<>{fifo} 4<&3 5<&3; exec /proc/{keeper}/exe' & \
         echo $!; sleep 1000",
        fifo = fifo.display(),
        keepers = agents.path().join("keeper").display(),
    );
    agent.launch(host_request("web", agents.path(), &line)).await.unwrap();
    let log = agent.inspect(&id("web")).unwrap().logs.stdout.unwrap();
    let pid = watch::content(&log, TIMEOUT, |text| text.ends_with('\n')).trim().parse().unwrap();
    let evader = Process::open_any(pid).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while Stat::read(pid).is_ok_and(|stat| stat.name != "cofferdam-keep") {
        assert!(Instant::now() < deadline && !evader.has_ended().unwrap(), "it does not execute the program");
        std::thread::yield_now();
    }
    agent.destroy(&id("web")).await.unwrap();
    assert!(evader.has_ended().unwrap());
    assert!(agent.remove(&id("web")).await.unwrap());
    assert_eq!(agent.keepers().pid, Some(keeper));
    std::fs::remove_file(&fifo).unwrap();
    assert_nothing_left(&world);
}
