//! Another engine with the same API: `podman system service`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cofferdam::engine::EngineSocket;
use cofferdam_core::config::{ContainerizerConfig, DockerConfig};
use cofferdam_core::model::{DockerNetwork, DockerParameter, Ended, Phase, Resources};
use cofferdam_tests::engine::{IMAGE, shell};
use cofferdam_tests::world::{World, id, launch_error, run, with_agent};
use cofferdam_tests::{assert_contains, is_root, text, wait_for_text};

/// Its limits are those that a host without privileges for resources allows.
const CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;

/// Serves the API until its standard input ends, and removes what is left. Its arguments are a directory, the name of an image, and
/// the cgroup of its containers.
const SCRIPT: &str = r#"
dir=$1 image=$2 parent=$3
mount -t tmpfs lab /dev/shm
mount -t tmpfs -o mode=755 lab /run
podman="podman --root $dir/root --runroot $dir/run --tmpdir $dir/tmp"
ip link set lo up
$podman import -q "$dir/rootfs.tar" "docker.io/$image" >/dev/null || { echo failed; exit 1; }
$podman system service --time 0 "unix://$dir/podman.sock" </dev/null &
service=$!
until [ -S "$dir/podman.sock" ]; do
    kill -0 $service 2>/dev/null || { echo failed; exit 1; }
    sleep 0.1
done
echo ready
while read _; do :; done
$podman rm -fa >/dev/null 2>&1
kill $service
wait $service
grep -o " $dir/[^ ]*" /proc/self/mounts | xargs -r umount -l
find /sys/fs/cgroup -depth -type d -path "*$parent*" -exec rmdir {} + 2>/dev/null
rm -rf "$dir"
"#;

struct Podman {
    directory: PathBuf,
    shell: Child,
}

impl Podman {
    /// `None` if it cannot be started here.
    fn start() -> Option<Self> {
        if !is_root("podman") {
            return None;
        }
        if Command::new("podman").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "podman is missing: install the package podman");
            eprintln!("SKIPPED podman: it is missing (package podman)");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("cofferdam-podman-").tempdir().unwrap().keep();
        fs::write(directory.join("containers.conf"), CONFIG).unwrap();
        let rootfs = World::new();
        let tar = Command::new("tar")
            .arg("-C")
            .arg(rootfs.rootfs())
            .arg("-cf")
            .arg(directory.join("rootfs.tar"))
            .arg(".")
            .status();
        assert!(tar.unwrap().success());
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut shell = Command::new("setsid")
            .args(["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", SCRIPT, "podman"])
            .arg(&directory)
            .arg(IMAGE)
            .arg(parent(&directory))
            .env("CONTAINERS_CONF", directory.join("containers.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("setsid and unshare of util-linux");
        let mut line = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", text(&directory.join("log")));
        Some(Self { directory, shell })
    }

    fn world(&self) -> World {
        let mut world = World::shipped();
        let config = DockerConfig::new(Arc::new(EngineSocket::new(self.directory.join("podman.sock"))));
        world.config.containerizers = vec![ContainerizerConfig::Docker(config), ContainerizerConfig::Mesos];
        world
    }
}

/// The cgroup of all containers. Podman's own is that of all of the machine's.
fn parent(directory: &Path) -> String {
    format!("/{}", directory.file_name().unwrap().to_str().unwrap())
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

#[test]
fn podman_serves_as_an_engine() {
    let Some(podman) = Podman::start() else { return };
    let world = podman.world();
    let of_podman = |name: &str, line: &str| {
        let mut request = shell(name, line);
        let docker = request.docker.as_mut().unwrap();
        docker.network = DockerNetwork::None;
        let value = parent(&podman.directory);
        docker.parameters.push(DockerParameter { key: "cgroup-parent".into(), value });
        request
    };
    with_agent(&world, async |agent| {
        let line = "echo out; echo err >&2; echo $MESOS_CONTAINER_NAME > $MESOS_SANDBOX/file; exit 7";
        agent.launch(of_podman("ends", line)).await.unwrap();
        assert_eq!(agent.wait(&id("ends")).await.unwrap().ended(), Some(Ended::Exited(7)));
        let inspection = agent.inspect(&id("ends")).unwrap();
        assert_eq!(text(inspection.logs.stdout.as_ref().unwrap()), "out\n");
        assert_eq!(text(inspection.logs.stderr.as_ref().unwrap()), "err\n");
        assert_eq!(text(&inspection.sandbox.join("file")), "mesos-ends\n");
        assert!(agent.remove(&id("ends")).await.unwrap());

        let mut request = of_podman("missing", "true");
        request.docker.as_mut().unwrap().image = "127.0.0.1:1/no/image".into();
        assert_contains(&launch_error(&agent, request).await, &["while PULLING", "can reach the registry"]);

        let mut request = of_podman("stays", "echo ready; while :; do sleep 0.1; done");
        request.resources = Resources::default().with("mem", 64.0);
        let pid = agent.launch(request).await.unwrap();
        assert!(pid > 0);
        wait_for_text(&agent.inspect(&id("stays")).unwrap().logs.stdout.unwrap(), "ready");
        let usage = agent.usage(&id("stays")).await.unwrap();
        assert_eq!(usage.number("mem_limit_bytes"), Some(f64::from(64 << 20)));
        assert!(usage.number("cpus_user_time_secs").is_some(), "{:?}", usage.statistics);
        // That of Debian 12 has no such call.
        if let Err(error) = agent.update(&id("stays"), Resources::default().with("mem", 96.0)).await {
            let error = cofferdam_core::error_chain::describe(&error);
            assert_contains(&error, &["refused to update the container (status 404)"]);
            assert_eq!(
                agent.usage(&id("stays")).await.unwrap().number("mem_limit_bytes"),
                Some(f64::from(64 << 20))
            );
        }
    });
    with_agent(&world, async |agent| {
        assert_eq!(agent.inspect(&id("stays")).unwrap().summary.phase, Phase::Running);
        let termination = agent.destroy(&id("stays")).await.unwrap();
        assert_eq!(termination.ended(), Some(Ended::Signaled(9)));
        assert!(agent.remove(&id("stays")).await.unwrap());
        assert_eq!(run(&agent, of_podman("stays", "echo again")).await, "again\n");
        assert!(agent.remove(&id("stays")).await.unwrap());
    });
    assert_eq!(world.leftovers(), [""; 0]);
}
