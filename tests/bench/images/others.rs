//! Other programs that handle images, as Debian has them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use cofferdam_linux::tree;

use super::daemon::Daemon;
use super::{Place, Tool};
use crate::Outcome;
use crate::embedded::{CPUS, MEM};
use crate::engine::locate;
use crate::environment::Environment;

/// A program and the package that has it.
pub type Program = (&'static str, &'static str);

const RUNC: Program = ("runc", "runc");

/// A tool, if its programs are installed.
pub struct Candidate {
    /// Name of its directory.
    name: &'static str,
    /// The programs that its name and version are of.
    named: &'static [&'static str],
    needs: &'static [Program],
    create: fn(String, Place) -> Outcome<Box<dyn Tool>>,
}

/// All of them.
pub const CANDIDATES: [Candidate; 4] = [
    Candidate {
        name: "skopeo",
        named: &["skopeo", "umoci"],
        needs: &[("skopeo", "skopeo"), ("umoci", "umoci")],
        create: SkopeoUmoci::create,
    },
    Candidate {
        name: "podman",
        named: &["podman"],
        needs: &[("podman", "podman"), ("conmon", "conmon"), RUNC],
        create: Podman::create,
    },
    Candidate {
        name: "dockerd",
        named: &["dockerd"],
        needs: &[("docker", "docker.io"), ("dockerd", "docker.io"), ("containerd", "containerd"), RUNC],
        create: Docker::create,
    },
    Candidate {
        name: "containerd",
        named: &["containerd"],
        needs: &[
            ("ctr", "containerd"),
            ("containerd", "containerd"),
            ("containerd-shim-runc-v2", "containerd"),
            RUNC,
        ],
        create: Containerd::create,
    },
];

impl Candidate {
    /// The tool; `None` if it is not wanted, or, with a message, if it does not work on this machine.
    pub fn start(
        &self,
        environment: &Environment,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Outcome<Option<Box<dyn Tool>>> {
        if !is_wanted(self.name) || !installed(self.name, self.needs) {
            return Ok(None);
        }
        let label = self.named.iter().map(|program| label(program)).collect::<Outcome<Vec<_>>>()?.join(", ");
        let place = Place::create(environment, self.name)?;
        match (self.create)(label, place) {
            Ok(tool) => Ok(Some(tool)),
            Err(error) => {
                eprintln!("bench: SKIPPED {}: {error}", self.name);
                Ok(None)
            }
        }
    }
}

/// Whether all programs are installed; reports those that are not.
pub fn installed(what: &str, programs: &[Program]) -> bool {
    let is_missing = |(program, _): &&Program| locate(Path::new(program)).is_none();
    let missing: Vec<String> = programs
        .iter()
        .filter(is_missing)
        .map(|(program, package)| format!("`{program}` (Debian package {package})"))
        .collect();
    if !missing.is_empty() {
        eprintln!("bench: SKIPPED {what}: not installed: {}", missing.join(", "));
    }
    missing.is_empty()
}

/// The name and version of a program, for its row: the first word of what it prints for `--version` that is a number.
fn label(program: &str) -> Outcome<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let version = version.ok_or_else(|| format!("`{program} --version` prints no version: {text}"))?;
    Ok(format!("{program} {}", version.trim_end_matches(',')))
}

/// skopeo(1) for the registry and archives, and umoci(1) to unpack.
struct SkopeoUmoci {
    name: String,
    place: Place,
}

impl SkopeoUmoci {
    fn create(name: String, place: Place) -> Outcome<Box<dyn Tool>> {
        Ok(Box::new(Self { name, place }))
    }

    /// Copies an image to a layout, and unpacks it unless that was done before.
    fn copy(&self, options: &str, source: &str) -> Command {
        let copy = format!(r#"skopeo --insecure-policy copy --quiet {options} "$1" "oci:$0/layout:bench""#);
        let unpack = r#"umoci unpack --image "$0/layout:bench" "$0/bundle""#;
        let mut shell = self.place.command("sh");
        let line = format!(r#"{copy} && {{ [ -d "$0/bundle" ] || {unpack}; }}"#);
        shell.args(["-c", &line]).arg(self.place.path("store")).arg(source);
        shell
    }
}

impl Tool for SkopeoUmoci {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn clear(&self) -> Outcome<()> {
        let store = self.place.path("store");
        tree::remove(&store)?;
        Ok(fs::create_dir(store)?)
    }

    fn pull(&self, image: &str) -> Command {
        self.copy("--src-tls-verify=false", &format!("docker://{image}"))
    }

    fn import(&self, archive: &Path) -> Command {
        self.copy("", &format!("oci-archive:{}", archive.display()))
    }
}

/// podman(1).
struct Podman {
    name: String,
    place: Place,
}

impl Podman {
    fn create(name: String, place: Place) -> Outcome<Box<dyn Tool>> {
        let podman = Self { name, place };
        let mut info = podman.podman();
        info.arg("info");
        podman.place.run(info)?;
        Ok(Box::new(podman))
    }

    fn podman(&self) -> Command {
        let mut podman = self.place.command("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "libpod")] {
            podman.arg(option).arg(self.place.path(name));
        }
        podman.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        podman.args(["--storage-driver", "overlay", "--runtime", "runc"]);
        podman
    }
}

impl Tool for Podman {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn clear(&self) -> Outcome<()> {
        let mut remove = self.podman();
        remove.args(["rmi", "--all", "--force"]);
        self.place.run(remove).map(drop)
    }

    fn pull(&self, image: &str) -> Command {
        let mut pull = self.podman();
        pull.args(["pull", "--quiet", "--tls-verify=false", image]);
        pull
    }

    fn import(&self, archive: &Path) -> Command {
        let mut load = self.podman();
        load.args(["load", "--quiet", "--input"]).arg(archive);
        load
    }

    fn launch(&self, image: &str) -> Option<Command> {
        let mut run = self.podman();
        run.args(["run", "--rm", "--network", "host", "--cgroup-parent", self.place.containers()]);
        run.args(["--cpus", &CPUS.to_string(), "--memory", &format!("{MEM}m")]);
        // Its defaults are limits that root may not be permitted to set.
        run.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        run.args([image, "/bin/busybox", "true"]);
        Some(run)
    }
}

/// docker(1) and dockerd(8).
struct Docker {
    name: String,
    // Dropped before the place that it runs in.
    _daemon: Daemon,
    place: Place,
}

impl Docker {
    fn create(name: String, place: Place) -> Outcome<Box<dyn Tool>> {
        let socket = place.path("docker.sock");
        let mut daemon = place.command("dockerd");
        daemon.arg("--host").arg(format!("unix://{}", socket.display()));
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            daemon.arg(option).arg(place.path(name));
        }
        daemon.args(["--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"]);
        daemon.args(["--cgroup-parent", place.containers()]);
        // Nothing of the host's network is changed.
        daemon.args(["--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        let daemon = place.start(&daemon, &socket)?;
        Ok(Box::new(Self { name, _daemon: daemon, place }))
    }

    fn docker(&self) -> Command {
        let mut docker = self.place.command("docker");
        docker.arg("--host").arg(format!("unix://{}", self.place.path("docker.sock").display()));
        docker
    }
}

impl Tool for Docker {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn clear(&self) -> Outcome<()> {
        let mut prune = self.docker();
        prune.args(["image", "prune", "--all", "--force"]);
        self.place.run(prune).map(drop)
    }

    fn pull(&self, image: &str) -> Command {
        let mut pull = self.docker();
        pull.args(["pull", "--quiet", image]);
        pull
    }

    fn import(&self, archive: &Path) -> Command {
        let mut load = self.docker();
        load.args(["load", "--quiet", "--input"]).arg(archive);
        load
    }

    fn launch(&self, image: &str) -> Option<Command> {
        let mut run = self.docker();
        run.args(["run", "--rm", "--network", "host"]);
        run.args(["--cpus", &CPUS.to_string(), "--memory", &format!("{MEM}m")]);
        run.args([image, "/bin/busybox", "true"]);
        Some(run)
    }
}

/// ctr(8) and containerd(8).
struct Containerd {
    name: String,
    next: AtomicU64,
    // Dropped before the place that it runs in.
    _daemon: Daemon,
    place: Place,
}

impl Containerd {
    fn create(name: String, place: Place) -> Outcome<Box<dyn Tool>> {
        let socket = place.path("containerd.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            place.path("root"),
            place.path("state"),
            socket
        );
        let file = place.path("config.toml");
        fs::write(&file, config)?;
        let mut daemon = place.command("containerd");
        daemon.arg("--config").arg(file);
        let daemon = place.start(&daemon, &socket)?;
        Ok(Box::new(Self { name, next: AtomicU64::new(0), _daemon: daemon, place }))
    }

    fn ctr(&self) -> Command {
        let mut ctr = self.place.command("ctr");
        ctr.arg("--address").arg(self.place.path("containerd.sock"));
        ctr
    }
}

impl Tool for Containerd {
    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn clear(&self) -> Outcome<()> {
        let mut list = self.ctr();
        list.args(["images", "ls", "--quiet"]);
        for image in self.place.output(list)?.lines() {
            let mut remove = self.ctr();
            // Waits until the content and the layers are removed as well.
            remove.args(["images", "rm", "--sync", image]);
            self.place.run(remove)?;
        }
        Ok(())
    }

    fn pull(&self, image: &str) -> Command {
        let mut pull = self.ctr();
        pull.args(["images", "pull", "--plain-http", image]);
        pull
    }

    fn import(&self, archive: &Path) -> Command {
        let mut import = self.ctr();
        import.args(["images", "import"]).arg(archive);
        import
    }

    fn launch(&self, image: &str) -> Option<Command> {
        let id = format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let mut run = self.ctr();
        run.args(["run", "--rm", "--net-host", "--cgroup", &format!("{}/{id}", self.place.containers())]);
        run.args(["--cpus", &CPUS.to_string(), "--memory-limit", &format!("{}", MEM * 1024.0 * 1024.0)]);
        run.args([image, &id, "/bin/busybox", "true"]);
        Some(run)
    }
}
