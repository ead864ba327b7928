//! A host with CNI plugins and configurations, in a network namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{NetworkRequest, PortMapping, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, sandbox_logger, shipped};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::super::{Fixture, isolator};

/// Where distributions install the reference plugins.
const INSTALLED: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A CNI plugin that logs what it is called with, does what files in the lab's directory say, and runs `bridge`.
const RECORDER: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME ${CNI_NETNS:+netns}" >> "@LAB/log"
case $CNI_COMMAND in
    ADD)
        [ ! -e "@LAB/hang" ] || exec sleep 1000
        if [ -e "@LAB/partial" ]; then
            "@CNI/bridge" > /dev/null
            echo '{"code": 7, "msg": "failed to parse the routes"}'
            exit 1
        fi
        if [ -e "@LAB/stuck" ]; then
            kill -9 $PPID
            # Both have the FIFO open, and the first one its input.
            exec 3> "@LAB/stuck"
            sleep 1000 < /dev/null &
            sleep 1000
        fi
        [ ! -e "@LAB/garbage" ] || { echo "not JSON"; exit 0; }
        if [ -e "@LAB/kill" ]; then
            rm "@LAB/kill"
            "@CNI/bridge" > "@LAB/result"
            kill -9 $PPID
            exit
        fi
        if [ -e "@LAB/slow" ]; then
            kill -9 $PPID
            # It continues when the next agent has started.
            cat "@LAB/slow" > /dev/null
            "@CNI/bridge" > /dev/null
            echo "ADD has ended" >> "@LAB/log"
            exit
        fi
        ;;
    DEL)
        [ ! -e "@LAB/hang-$CNI_CONTAINERID" ] || read line < "@LAB/hang-$CNI_CONTAINERID"
        if [ -e "@LAB/picky" ]; then
            echo '{"code": 7, "msg": "failed to parse something else"}'
            exit 1
        fi
        # In the namespace of a number.
        if [ -e "@LAB/refuse" ] && [ "$(stat -L -c %i "$CNI_NETNS")" = "$(cat "@LAB/refuse")" ]; then
            echo '{"code": 999, "msg": "this namespace is strange"}'
            exit 1
        fi
        if [ -e "@LAB/busy" ]; then
            echo '{"cniVersion": "1.0.0", "code": 11, "msg": "the switch is busy"}'
            exit 1
        fi
        ;;
    CHECK) [ ! -e "@LAB/broken" ] || { echo '{"code": 120, "msg": "the cable is cut"}'; exit 1; } ;;
    STATUS) [ ! -e "@LAB/down" ] || { echo '{"code": 50, "msg": "the switch is off"}'; exit 1; } ;;
    GC) cat >> "@LAB/gc"; exit ;;
esac
[ ! -e "@LAB/new" ] || { cat "@LAB/new"; exit; }
exec "@CNI/bridge"
"#;

pub struct Lab {
    directory: TempDir,
    installed: PathBuf,
}

/// Runs a test in a network namespace of its own, on a thread of its own. Everything that the test starts is in it.
pub fn lab(test: impl AsyncFnOnce(&Lab) + Send) {
    lab_without_agent(|lab| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(test(lab));
    });
}

/// As [`lab`], for tests with agents in other processes.
pub fn lab_without_agent(test: impl FnOnce(&Lab) + Send) {
    if !is_root("network namespaces") {
        return;
    }
    let Some(installed) = installed() else { return };
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        shell("ip link set lo up");
        let lab = Lab { directory: TempDir::new().unwrap(), installed };
        for directory in ["config", "plugins"] {
            fs::create_dir(lab.path(directory)).unwrap();
        }
        let script = RECORDER
            .replace("@LAB", &lab.directory.path().display().to_string())
            .replace("@CNI", &lab.installed.display().to_string());
        let recorder = lab.path("plugins/recorder");
        fs::write(&recorder, script).unwrap();
        fs::set_permissions(&recorder, fs::Permissions::from_mode(0o755)).unwrap();
        test(&lab);
        lab.assert_nothing_left();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The directory with the reference plugins; `None` if there is none, which is reported.
pub fn installed() -> Option<PathBuf> {
    let found = INSTALLED.iter().map(PathBuf::from).find(|path| path.join("portmap").exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "the package containernetworking-plugins is not installed");
        eprintln!("SKIPPED: the package containernetworking-plugins is not installed");
    }
    found
}

impl Lab {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn set(&self, name: &str, is_set: bool) {
        if is_set {
            fs::write(self.path(name), "").unwrap()
        } else {
            fs::remove_file(self.path(name)).unwrap()
        }
    }

    /// The plugin's table.
    pub fn table(&self, more: Json) -> Json {
        let plugins = format!("{}:{}", self.path("plugins").display(), self.installed.display());
        let mut table =
            json!({ "network_cni_config_dir": self.path("config"), "network_cni_plugins_dir": plugins });
        table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        table
    }

    pub fn isolators(&self, more: Json) -> Vec<PluginConfig> {
        vec![isolator("network/cni", self.table(more))]
    }

    /// An agent in this process, with this plugin and a network `net`.
    pub(in crate::isolators) async fn fixture(&self) -> Fixture {
        self.bridge("net", 88, json!({}));
        Fixture::start(self.isolators(json!({}))).await
    }

    /// A world for agents in processes of their own.
    pub fn world(&self, more: Json) -> World {
        let mut world = World::new();
        world.config.isolators =
            [vec![shipped("filesystem/linux"), shipped("namespaces/pid")], self.isolators(more)].concat();
        world.config.logger = Some(sandbox_logger());
        world
    }

    /// Configures a network with the bridge of that name, addresses 10.NUMBER.0.0/24, and mapped ports.
    pub fn bridge(&self, name: &str, number: u8, more: Json) {
        self.list(name, json!([self.plugin("bridge", name, number, more), self.portmap()]));
    }

    /// The same by way of the recorder.
    pub fn recorded(&self, name: &str, number: u8) {
        self.list(name, json!([self.plugin("recorder", name, number, json!({}))]));
    }

    pub fn list(&self, name: &str, plugins: Json) {
        let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins });
        self.configure(&format!("{name}.conflist"), &list);
    }

    pub fn configure(&self, file: &str, content: &Json) {
        fs::write(self.path("config").join(file), content.to_string()).unwrap();
    }

    pub fn plugin(&self, kind: &str, bridge: &str, number: u8, more: Json) -> Json {
        let mut plugin = json!({
            "type": kind,
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.path("addresses"),
                "ranges": [[{ "subnet": format!("10.{number}.0.0/24") }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        plugin.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        plugin
    }

    pub fn portmap(&self) -> Json {
        json!({ "type": "portmap", "capabilities": { "portMappings": true } })
    }

    /// A FIFO.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        shell(&format!("mkfifo {}", path.display()));
        path
    }

    /// What the recorder was called with.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// How often the recorder was called with a command for a container.
    pub fn calls(&self, command: &str, container: &str) -> usize {
        let start = format!("{command} {container} ");
        self.log().iter().filter(|line| line.starts_with(&start)).count()
    }

    /// Addresses that are in use.
    pub fn addresses(&self) -> Vec<String> {
        let mut found = Vec::new();
        for network in entries(&self.path("addresses")) {
            let names = entries(&network)
                .into_iter()
                .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
            found.extend(names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())));
        }
        found
    }

    /// No address, interface or packet filter of a container.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.addresses(), Vec::<String>::new());
        let links = shell("ip -o link show");
        assert!(!links.contains("veth"), "{links}");
        for rules in [shell("iptables-save"), shell("iptables -t nat -S")] {
            // Base chains, which are part of the host's setup, have other names.
            assert!(!rules.contains("CNI-DN-") && !rules.contains(" id: "), "{rules}");
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Runs a line in the lab's network, and returns its output.
pub fn shell(line: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", line]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Another host, which the lab's host can reach: the lab has 192.0.2.1, it has 192.0.2.2.
pub struct Outside(Child);

impl Outside {
    pub fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_line(child.stdout.as_mut().unwrap());
        let pid = child.id();
        shell(&format!(
            "ip link add outside type veth peer name inside netns {pid} && ip addr add 192.0.2.1/24 dev outside && \
             ip link set outside up"
        ));
        let outside = Self(child);
        outside.shell("ip addr add 192.0.2.2/24 dev inside && ip link set inside up");
        outside
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn shell(&self, line: &str) -> String {
        shell(&format!("nsenter --net=/proc/{}/ns/net sh -c '{line}'", self.0.id()))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
        let _ = Command::new("ip").args(["link", "del", "outside"]).stderr(Stdio::null()).status();
    }
}

fn wait_for_line(output: &mut ChildStdout) {
    use std::io::Read;
    let mut byte = [0];
    while output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {}
}

pub fn named(name: &str) -> NetworkRequest {
    NetworkRequest { name: Some(name.to_owned()), ..NetworkRequest::default() }
}

pub fn mapped(name: &str, host_port: u16, container_port: u16) -> NetworkRequest {
    let mapping = PortMapping { host_port, container_port, protocol: None };
    NetworkRequest { port_mappings: vec![mapping], ..named(name) }
}

/// A line that serves the files of `/etc` once it has ended.
pub const SERVE: &str = "busybox httpd -p 80 -h /etc";

/// A line that prints the last line of a file of such a server, and nothing if there is no server.
pub fn get(address: &str, port: u16, file: &str) -> String {
    format!(
        r#"printf "GET /{file} HTTP/1.0\r\n\r\n" | busybox nc -w 5 {address} {port} 2>/dev/null | busybox tail -n 1"#
    )
}

impl Fixture {
    pub fn networked(&self, name: &str, networks: &[NetworkRequest], line: &str) -> Request {
        let mut request = self.request(name, "root", line);
        request.networks = networks.to_vec();
        request
    }

    /// What the status says of a container's networks.
    pub async fn networks(&self, name: &str) -> Json {
        let view = self.agent.status(&id(name)).await.unwrap();
        assert!(view.failed.is_empty(), "{:?}", view.failed);
        view.status.get("network_infos").cloned().unwrap_or_default()
    }

    /// The first address of a container.
    pub async fn address(&self, name: &str) -> String {
        let networks = self.networks(name).await;
        networks[0]["ip_addresses"][0]["ip_address"]
            .as_str()
            .unwrap_or_else(|| panic!("{networks}"))
            .to_owned()
    }

    /// The plugin's directories of containers.
    pub fn kept(&self) -> Vec<PathBuf> {
        kept(&self.world)
    }
}

/// The plugin's directories of containers.
pub fn kept(world: &World) -> Vec<PathBuf> {
    entries(&world.config.runtime_dir.join("isolators"))
        .iter()
        .flat_map(|path| entries(&path.join("containers")))
        .collect()
}
