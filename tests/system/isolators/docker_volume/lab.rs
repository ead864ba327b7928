//! A driver in a process of its own, with real mounts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{Request, Volume, VolumeSource};
use cofferdam_tests::world::{World, sandbox_logger, shipped};
use cofferdam_tests::{is_root, paths};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::super::{Fixture, isolator};

/// Name of the driver.
pub const DRIVER: &str = "lab";

pub struct Lab {
    directory: TempDir,
    driver: Mutex<Option<Child>>,
}

impl Lab {
    /// With a running driver; `None` if this process may not mount.
    pub fn new() -> Option<Self> {
        if !is_root("mounts") {
            return None;
        }
        let lab = Self { directory: TempDir::new().unwrap(), driver: Mutex::new(None) };
        fs::create_dir(lab.path("plugins")).unwrap();
        fs::create_dir(lab.path("specs")).unwrap();
        lab.start();
        Some(lab)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("plugins").join(format!("{DRIVER}.sock"))
    }

    pub fn start(&self) {
        let program = paths::build().join("test-volume-driver");
        let mut child = Command::new(program)
            .args([self.socket(), self.directory.path().to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`cargo build --workspace` has built the driver");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        *self.driver.lock().unwrap() = Some(child);
    }

    /// Ends the driver, and removes its socket as most drivers do.
    pub fn stop(&self) {
        if let Some(mut child) = self.driver.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        drop(fs::remove_file(self.socket()));
    }

    /// What the driver does instead of a method.
    pub fn fault(&self, method: &str, fault: &str) {
        fs::write(self.path(&format!("fault-{method}")), fault).unwrap();
    }

    pub fn no_fault(&self, method: &str) {
        fs::remove_file(self.path(&format!("fault-{method}"))).unwrap();
    }

    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    /// The calls of the driver that mount and unmount, without ids.
    pub fn log(&self) -> Vec<String> {
        self.calls().into_iter().map(|(method, name, _)| format!("{method} {name}")).collect()
    }

    /// The calls of the driver that mount and unmount: method, volume, id.
    fn calls(&self) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let parts = |line: &str| {
            let ((method, rest), (_, id)) = (line.split_once(' ')?, line.rsplit_once(' ')?);
            Some((method.to_owned(), rest.strip_suffix(id)?.trim().to_owned(), id.to_owned()))
        };
        let calls = text.lines().filter_map(parts);
        calls.filter(|(method, ..)| matches!(method.as_str(), "Mount" | "Unmount")).collect()
    }

    pub fn count(&self, method: &str) -> usize {
        self.calls().iter().filter(|(called, ..)| called == method).count()
    }

    pub fn forget_log(&self) {
        drop(fs::remove_file(self.path("log")));
    }

    /// The file with the content of a volume.
    pub fn content(&self, volume: &str, file: &str) -> PathBuf {
        self.path("data").join(volume).join(file)
    }

    pub fn table(&self, more: Json) -> Json {
        let mut table = json!({
            "docker_plugin_sockets": self.path("plugins"),
            "docker_plugin_specs": [self.path("specs")],
        });
        table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        table
    }

    pub fn isolators(&self, more: Json) -> Vec<PluginConfig> {
        vec![isolator("docker/volume", self.table(more))]
    }

    /// An agent in this process, with this plugin.
    pub async fn fixture(&self, more: Json) -> Fixture {
        Fixture::start(self.isolators(more)).await
    }

    /// A world for agents in processes of their own.
    pub fn world(&self, more: Json) -> World {
        let mut world = World::new();
        world.config.isolators =
            [vec![shipped("filesystem/linux"), shipped("namespaces/pid")], self.isolators(more)].concat();
        world.config.logger = Some(sandbox_logger());
        world
    }

    /// The mounts of the driver on the host.
    pub fn mounts(&self) -> Vec<String> {
        let directory = self.path("mnt").display().to_string();
        // Those of this thread, which may have a mount namespace of its own.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(&directory)).map(str::to_owned).collect()
    }

    /// Nothing is mounted, nothing recorded, and no id was mounted more often than unmounted.
    pub fn assert_nothing_left(&self, world: &World) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        assert_eq!(records(world), Vec::<PathBuf>::new());
        let mut balance: BTreeMap<String, i32> = BTreeMap::new();
        for (method, _, id) in self.calls() {
            assert_eq!(id.len(), 64, "{id}");
            // Whether an Unmount is repeated depends on the test.
            let left = balance.entry(id).or_default();
            *left = if method == "Mount" { *left + 1 } else { 0 };
        }
        assert!(balance.values().all(|left| *left == 0), "{balance:?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
        // Those of a failed test.
        for entry in fs::read_dir(self.path("mnt")).into_iter().flatten().flatten() {
            let _ = unmount(entry.path(), UnmountFlags::DETACH);
        }
    }
}

/// The plugin's directories of volumes.
pub fn records(world: &World) -> Vec<PathBuf> {
    let entries = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let plugins = entries(&world.config.work_dir.join("isolators"));
    plugins.iter().flat_map(|plugin| entries(&plugin.join("volumes"))).collect()
}

/// A volume of the lab's driver.
pub fn volume(name: &str, target: &str) -> Volume {
    let source = VolumeSource::DockerVolume {
        driver: DRIVER.to_owned(),
        name: name.to_owned(),
        options: BTreeMap::new(),
    };
    Volume { container_path: target.into(), read_only: false, source }
}

pub fn with_options(name: &str, target: &str, options: &[(&str, &str)]) -> Volume {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let source = VolumeSource::DockerVolume { driver: DRIVER.to_owned(), name: name.to_owned(), options };
    Volume { source, ..volume(name, target) }
}

impl Fixture {
    pub fn with_docker_volumes(&self, name: &str, line: &str, volumes: &[Volume]) -> Request {
        Request { volumes: volumes.to_vec(), ..self.request(name, "root", line) }
    }
}
