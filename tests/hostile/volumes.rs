//! Containers that exchange directories and links while volumes of others are mounted from there.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{Request, Volume, VolumeSource};
use cofferdam_tests::world::{World, id, sandbox_logger, shipped as isolator};
use cofferdam_tests::{is_root, wait_for_text};
use serde_json::json;

use super::{assert_nothing_left, attacker, shipped, with_attacker};

/// Launches for each kind of volume, while the attacker goes on.
const LAUNCHES: usize = 8;

/// A directory of the host that no container may see or change: with the file `secret`.
fn victim(world: &World) -> PathBuf {
    let victim = world.directory().join("victim");
    fs::create_dir_all(victim.join("sub")).unwrap();
    fs::write(victim.join("secret"), "of the host").unwrap();
    // Permissions protect it from nobody.
    fs::set_permissions(world.directory(), Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o755)).unwrap();
    victim
}

/// What there is in a directory, with owners and modes.
fn listing(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let all = entries.flat_map(|path| {
        let below = if path.is_dir() { listing(&path) } else { BTreeSet::new() };
        below.into_iter().chain([show(&path)])
    });
    all.chain([show(directory)]).collect()
}

fn show(path: &Path) -> String {
    let found = path.symlink_metadata().unwrap();
    format!("{} {}:{} {:o} {}", path.display(), found.uid(), found.gid(), found.mode(), found.len())
}

fn volume(source: VolumeSource, target: &str) -> Volume {
    Volume { container_path: target.into(), read_only: false, source }
}

/// Launches a container again and again, which lists and changes its volume. Each time it is refused by `plugin`, or shows nothing
/// of the victim.
async fn launch_often(agent: &Agent, victim: &Path, plugin: &str, request: &Request) {
    let before = listing(victim);
    let (mut launched, mut refused) = (0, 0);
    for _ in 0..LAUNCHES {
        match agent.launch(request.clone()).await {
            Ok(_) => {
                agent.wait(&request.id).await.unwrap();
                let log = agent.inspect(&request.id).unwrap().logs.stdout.unwrap();
                let output = cofferdam_tests::text(&log);
                assert!(output.ends_with("listed\n") && !output.contains("secret"), "{output}");
                assert!(agent.remove(&request.id).await.unwrap());
                launched += 1;
            }
            Err(error) => {
                let message = describe(&error);
                assert!(message.contains(&format!("`{plugin}`")), "{message}");
                refused += 1;
            }
        }
        assert_eq!(listing(victim), before, "{:?}", request.volumes);
    }
    eprintln!("{:?}: {launched} launched, {refused} refused", request.volumes);
}

/// A launch that no attack concerns succeeds.
async fn launch_once(agent: &Agent, mut request: Request, line: &str) {
    request.command.value = Some(line.to_owned());
    let output = cofferdam_tests::world::run(agent, request.clone()).await;
    assert_eq!(output, "made\nlisted\n", "{:?}", request.volumes);
    assert!(agent.remove(&request.id).await.unwrap());
}

async fn start(agent: &Agent, request: Request) {
    let id = request.id.clone();
    agent.launch(request).await.unwrap_or_else(|error| panic!("{}", describe(&error)));
    wait_for_text(&agent.inspect(&id).unwrap().logs.stdout.unwrap(), "ready");
}

async fn end(agent: &Agent, world: &World, name: &str) {
    agent.destroy(&id(name)).await.unwrap();
    assert!(agent.remove(&id(name)).await.unwrap());
    assert_nothing_left(world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_the_parents_sandbox_never_leads_to_the_host_whatever_the_parent_exchanges() {
    if !is_root("mounts") {
        return;
    }
    let world = shipped();
    let victim = victim(&world);
    let agent = world.start().await.unwrap();
    for uid in [0, 1000] {
        start(&agent, attacker(&world, "pod", uid, &["swap", ".", victim.to_str().unwrap()])).await;
        for path in ["control", "data", "data/sub", "data/new/below"] {
            let line = "ls /x && touch /x/made && busybox chmod 777 /x; echo listed";
            let mut request = Request::shell(id("pod.web"), line);
            request.rootfs = Some(world.rootfs());
            let source = VolumeSource::SandboxPath { parent: true, path: path.into() };
            request.volumes = vec![volume(source, "/x")];
            if path == "control" {
                launch_once(&agent, request, "touch /x/made && ls /x; echo listed").await;
                continue;
            }
            launch_often(&agent, &victim, "volume/sandbox_path", &request).await;
        }
        end(&agent, &world, "pod").await;
    }
}

/// The attacker has the volume in which the paths of others are.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_the_host_never_leads_out_of_what_is_allowed_whatever_a_container_exchanges() {
    if !is_root("mounts") {
        return;
    }
    let mut world = shipped();
    let victim = victim(&world);
    let shared = world.directory().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    let plugin = world.config.isolators.iter_mut().find(|plugin| plugin.name == "volume/host_path").unwrap();
    plugin.table = json!({ "allowed_paths": [shared], "force_creation": [shared] });
    let agent = world.start().await.unwrap();
    let of_host = |path: &Path| VolumeSource::HostPath { path: path.into(), propagation: None };
    let mut pod = attacker(&world, "pod", 1000, &["swap", "/shared", victim.to_str().unwrap()]);
    pod.volumes = vec![volume(of_host(&shared), "/shared")];
    start(&agent, pod).await;
    for path in ["control", "data", "data/sub", "data/new/below"] {
        let line = "ls /x && touch /x/made && busybox chmod 777 /x; echo listed";
        let mut request = Request::shell(id("web"), line);
        request.rootfs = Some(world.rootfs());
        request.volumes = vec![volume(of_host(&shared.join(path)), "/x")];
        if path == "control" {
            launch_once(&agent, request, "touch /x/made && ls /x; echo listed").await;
            continue;
        }
        launch_often(&agent, &victim, "volume/host_path", &request).await;
    }
    end(&agent, &world, "pod").await;
}

/// The target is in a volume that the attacker has as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_never_mounted_outside_of_the_root_whatever_a_container_exchanges_at_its_target() {
    if !is_root("mounts") {
        return;
    }
    let world = shipped();
    let victim = victim(&world);
    let [shared, other] = ["shared", "other"].map(|name| world.directory().join(name));
    for directory in [&shared, &other] {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
    }
    let agent = world.start().await.unwrap();
    let of_host = |path: &Path| VolumeSource::HostPath { path: path.into(), propagation: None };
    let upwards = Path::new("../../../../../..").join(victim.strip_prefix("/").unwrap());
    for target in [&victim, &upwards] {
        let mut pod = attacker(&world, "pod", 1000, &["swap", "/shared", target.to_str().unwrap()]);
        pod.volumes = vec![volume(of_host(&shared), "/shared")];
        start(&agent, pod).await;
        for at in ["/shared/control", "/shared/data", "/shared/data/sub", "/shared/data/new/below"] {
            let mut request = Request::shell(id("web"), format!("ls {at} && touch {at}/made; echo listed"));
            request.rootfs = Some(world.rootfs());
            request.volumes = vec![volume(of_host(&shared), "/shared"), volume(of_host(&other), at)];
            if at == "/shared/control" {
                launch_once(&agent, request, &format!("touch {at}/made && ls {at}; echo listed")).await;
                continue;
            }
            launch_often(&agent, &victim, "volume/host_path", &request).await;
        }
        end(&agent, &world, "pod").await;
        for name in ["data", "link"] {
            let path = shared.join(name);
            if path.is_symlink() { fs::remove_file(path).unwrap() } else { fs::remove_dir_all(path).unwrap() }
        }
    }
}

/// Processes of one user, without root file systems of their own, reach the sandboxes of each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_directory_is_never_one_of_the_host_whatever_another_container_puts_in_its_place() {
    if !is_root("mounts") {
        return;
    }
    let mut world = World::new();
    world.config.isolators = vec![isolator("filesystem/shared")];
    world.config.logger = Some(sandbox_logger());
    world.share_plugin_store();
    let world = with_attacker(world);
    let victim = victim(&world);
    let agent = world.start().await.unwrap();
    let program = world.rootfs().join("bin/attacker");
    let private = world.config.work_dir.join("containers/web/private");
    let arguments = ["plant", private.to_str().unwrap(), victim.to_str().unwrap()];
    let mut other = attacker(&world, "other", 1000, &arguments);
    other.rootfs = None;
    other.command.value = Some(program.display().to_string());
    let line = "ls /var/tmp && touch /var/tmp/made; echo listed";
    let mut request = Request::shell(id("web"), line);
    request.command.user = Some("1000".into());
    let source = VolumeSource::HostPath { path: "private".into(), propagation: None };
    request.volumes = vec![volume(source, "/var/tmp")];
    launch_once(&agent, request.clone(), "touch /var/tmp/made && ls /var/tmp; echo listed").await;
    start(&agent, other).await;
    let log = agent.inspect(&id("other")).unwrap().logs.stdout.unwrap();
    let mut attempts = 0..10;
    while !cofferdam_tests::text(&log).contains("planted") {
        attempts.next().expect("the attacker has put a link there");
        launch_often(&agent, &victim, "filesystem/shared", &request).await;
    }
    end(&agent, &world, "other").await;
    assert!(!fs::exists("/var/tmp/made").unwrap());
}
