//! What a hostile parent can see of the processes that are created for nested containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cofferdam_core::agent::Agent;
use cofferdam_core::model::Request;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id};

use super::{
    Attack, Kind, Line, assert_nothing_left, attacker, is_privileged, lines, of_kind, run_and_remove, world,
    worlds,
};

/// In the memory of the agent and in the environment of another container.
const SECRET: &str = "hostile-secret-8ad5c1";

const ROUNDS: usize = 3;

/// Limit for the launches until the attacker has traced enough: it misses those during which it does not get the CPU.
const MAX_LAUNCHES: usize = 50;

/// Reported by the attacker after what it has read of a process that executed its program at that time, or ended.
const MEANWHILE: &str = "executed or ended meanwhile";

/// Reported by the attacker when a process executes its program.
const TRACED: &str = "traced to its exec";

/// Reported by the attacker when it is not permitted to trace a process.
const NOT_TRACED: &str = "not traced: Operation not permitted";

/// A container with the secret in its environment.
async fn launch_other(agent: &Agent, world: &World) {
    let mut other = Request::shell(id("other"), "sleep 1000");
    other.rootfs = Some(world.rootfs());
    other.command.environment = [("TOKEN".into(), SECRET.into())].into();
    agent.launch(other).await.unwrap();
}

async fn end_other(agent: &Agent) {
    agent.destroy(&id("other")).await.unwrap();
    assert!(agent.remove(&id("other")).await.unwrap());
}

/// Destroys the parent.
async fn end(attack: Attack<'_>) {
    attack.agent.destroy(&id("pod")).await.unwrap();
    assert!(attack.agent.remove(&id("pod")).await.unwrap());
}

/// What nested containers report of themselves, which an attacker may see of them.
#[derive(Default)]
struct Own {
    directories: BTreeSet<String>,
    environment: BTreeSet<String>,
}

impl Own {
    fn add(&mut self, output: &str) {
        for Line { what, .. } in lines(output) {
            match what.split(' ').collect::<Vec<_>>()[..] {
                ["directory", _, device] => self.directories.insert(device.to_owned()),
                ["cgroup", ..] => true,
                ["environ", ..] => self.environment.insert(what),
                _ => panic!("{what}"),
            };
        }
    }
}

/// Checks all that was seen of processes that had not executed their programs yet.
fn check(attack: &Attack<'_>, own: &Own, when: &str) -> Vec<Line> {
    let report = attack.report();
    let namespace = |pid: &str, kind: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().into_os_string().into_string().unwrap()
    };
    let mut seen = BTreeMap::<_, BTreeSet<_>>::new();
    for Line { what, .. } in &report {
        let words: Vec<&str> = what.splitn(3, ' ').collect();
        let is_allowed = match words[..] {
            ["CGROUPS" | "ESCAPE" | "SHARED" | "SECRET", ..] => false,
            ["directory", name, device] => {
                // Mounts of the container are descriptors until they are in place.
                own.directories.contains(device) || name.starts_with("fd/")
            }
            ["path", ref path @ ..] => !path.concat().contains("(unreachable)"),
            ["exe", ..] => what.starts_with("exe /memfd:cofferdam-keeper") || what == "exe /bin/attacker",
            ["ns/mnt", link] => link != namespace("self", "mnt"),
            ["ns/pid", link] => link == namespace(&attack.pid.to_string(), "pid"),
            ["ns/cgroup", link] => link != namespace("self", "cgroup"),
            // The shipped chain creates no others.
            ["ns/ipc" | "ns/net" | "ns/uts", _] => true,
            // At or below those of the attacker, whose cgroup namespace shows others as `..`.
            ["cgroup", ..] => !what.contains("/.."),
            ["environ", ..] => own.environment.contains(what),
            [name, ref link @ ..] if name.starts_with("fd/") => {
                let link = link.join(" ");
                let link = link.as_str();
                let name = link.split(':').next().unwrap_or_default();
                // A context is that of a file system which the process itself mounts.
                name == "pipe"
                    || link == "anon_inode:[fscontext]"
                    || link.starts_with('/') && !link.starts_with("/memfd:")
            }
            ["memory" | "seen"] => true,
            _ => {
                what == TRACED
                    || what == MEANWHILE
                    || what.starts_with("not traced")
                    || what.starts_with("ended after")
            }
        };
        assert!(is_allowed, "{when}: {what}\n{report:#?}");
        seen.entry(words[0].to_owned()).or_default().insert(what.as_str());
    }
    eprintln!("{when}: {seen:#?}");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_seen_of_a_container_with_its_own_pid_namespace() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        let agent = world.start().await.unwrap();
        for uid in [0, 1000] {
            let attack = Attack::start(&agent, &world, uid, &["kill"]).await;
            for nested in [0, 1000].repeat(ROUNDS) {
                let request = of_kind(attacker(&world, "pod.web", nested, &["self"]), Kind::Own);
                run_and_remove(&agent, request).await;
            }
            assert_eq!(attack.end().await, []);
        }
    }
}

/// The attacker stops each process at each of its system calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_traced_process_shows_nothing_of_the_host_at_any_system_call() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        trace(&world).await;
    }
}

async fn trace(world: &World) {
    let marker = world.directory().join("marker");
    fs::write(&marker, SECRET).unwrap();
    let agent = world.start().await.unwrap();
    launch_other(&agent, world).await;
    for kind in [Kind::Shared, Kind::Debug] {
        let attack = Attack::start(&agent, world, 0, &["trace", marker.to_str().unwrap(), SECRET]).await;
        // With fewer capabilities than a setup process, the attacker is refused until that has given up its own.
        let tried = || attack.count(TRACED) + if is_privileged(world) { 0 } else { attack.count(NOT_TRACED) };
        let mut own = Own::default();
        let mut launches = 0..MAX_LAUNCHES;
        while tried() < ROUNDS {
            launches.next().unwrap_or_else(|| panic!("{kind:?}: {:#?}", attack.report()));
            let request = of_kind(attacker(world, "pod.web", 0, &["self"]), kind);
            own.add(&run_and_remove(&agent, request).await);
        }
        check(&attack, &own, &format!("{kind:?}"));
        end(attack).await;
    }
    end_other(&agent).await;
    assert_nothing_left(world);
}

/// What the other tests do not find would be found.
#[tokio::test(flavor = "multi_thread")]
async fn the_attacker_finds_what_is_there() {
    if !is_root("nested containers") {
        return;
    }
    let world = world();
    let agent = world.start().await.unwrap();
    let attack = Attack::start(&agent, &world, 0, &["trace", super::ATTACKER, SECRET]).await;
    let mut launches = 0..MAX_LAUNCHES;
    while attack.count(TRACED) == 0 {
        launches.next().unwrap_or_else(|| panic!("{:#?}", attack.report()));
        let mut request = of_kind(attacker(&world, "pod.web", 0, &["self"]), Kind::Shared);
        request.command.environment = [("TOKEN".into(), SECRET.into())].into();
        run_and_remove(&agent, request).await;
    }
    let report = attack.report();
    for expected in ["ESCAPE /proc/", "SECRET "] {
        assert!(report.iter().any(|line| line.what.starts_with(expected)), "{expected}: {report:#?}");
    }
    end(attack).await;
    assert_nothing_left(&world);
}

/// The attacker reads as fast as it can, and does not interfere.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_shows_nothing_of_the_host_to_a_parent_that_reads_all_the_time() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        look(&world).await;
    }
}

async fn look(world: &World) {
    let marker = world.directory().join("marker");
    fs::write(&marker, SECRET).unwrap();
    let agent = world.start().await.unwrap();
    launch_other(&agent, world).await;
    for uid in [0, 1000] {
        for kind in [Kind::Shared, Kind::Debug] {
            let attack = Attack::start(&agent, world, uid, &["look", marker.to_str().unwrap(), SECRET]).await;
            let mut own = Own::default();
            for nested in [0, 1000].repeat(2 * ROUNDS) {
                let request = of_kind(attacker(world, "pod.web", nested, &["self"]), kind);
                own.add(&run_and_remove(&agent, request).await);
            }
            let report = check(&attack, &own, &format!("{kind:?} as {uid}"));
            // A user can read an own process that has executed its program. Memory is read last.
            let is_program = |next: Option<&Line>| next.is_some_and(|next| next.what == MEANWHILE);
            for (at, _) in report.iter().enumerate().filter(|(_, line)| line.what == "memory") {
                assert!(uid == 0 || is_program(report.get(at + 1)), "{report:#?}");
            }
            end(attack).await;
        }
    }
    end_other(&agent).await;
    assert_nothing_left(world);
}
