//! Mounts volumes of Docker volume drivers in containers, as the isolator of this name does in Mesos.
//!
//! ```text
//! prepare   record, Mount by the driver, its answer is opened once ──▶ mounted in the container by descriptor
//! cleanup   Unmount by the driver, if no other container uses the volume; the record is removed
//! recover   Unmount of volumes that only unknown containers use
//! ```

mod address;
mod driver;
mod http;
mod leftovers;
mod store;
#[cfg(test)]
mod tests;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::config::TimeSpan;
use cofferdam_plugin_api::model::{ContainerClass, Propagation, Volume as Requested, VolumeSource};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::volume::{self, Kind};

use crate::address::Directories;
use crate::leftovers::{Leftovers, not_released};
use crate::store::{Store, Volume};
use crate::volumes::{Limit, Volumes};

/// How long volumes of unknown containers are released, and how long one call of a driver may take, before the agent serves
/// requests. The rest is done later.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

struct DockerVolumes {
    config: Config,
    volumes: Arc<Volumes>,
    leftovers: Arc<Leftovers>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Drivers that containers can use; without this key, all.
    allowed_drivers: Option<Vec<String>>,
    /// Whether the root of a volume gets the container's user as its owner, unless that is root.
    docker_volume_chown: bool,
    /// How long a driver may take to answer one call.
    docker_volume_timeout: TimeSpan,
    /// Directory of sockets of drivers.
    docker_plugin_sockets: PathBuf,
    /// Directories of files with addresses of drivers, in order.
    docker_plugin_specs: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_drivers: None,
            docker_volume_chown: false,
            docker_volume_timeout: TimeSpan(Duration::from_secs(120)),
            docker_plugin_sockets: "/run/docker/plugins".into(),
            docker_plugin_specs: vec!["/etc/docker/plugins".into(), "/usr/lib/docker/plugins".into()],
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        if self.docker_volume_timeout.0.is_zero() {
            return Err(Error::new("`docker_volume_timeout` is 0, so that no driver could be called"));
        }
        for driver in self.allowed_drivers.iter().flatten() {
            address::check_name(driver).context("`allowed_drivers` cannot be used")?;
        }
        let sockets = ("docker_plugin_sockets", &self.docker_plugin_sockets);
        let specs = self.docker_plugin_specs.iter().map(|path| ("docker_plugin_specs", path));
        for (key, path) in std::iter::once(sockets).chain(specs) {
            if !path.is_absolute() {
                let path = path.display();
                return Err(Error::new(format!("`{key}` has `{path}`; expected an absolute path")));
            }
        }
        Ok(())
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for DockerVolumes {
    const NAME: &'static str = "docker/volume";
    const NESTING: bool = true;
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    // Nodes of devices would be created in a volume at `/dev`.
    const AFTER: &'static [&'static str] = &["filesystem/linux", "linux/devices"];
    const FEATURES: &'static [&'static str] = &["container.sandbox_path", "launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["volumes.docker_volume"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        config.check()?;
        let directories = Directories {
            sockets: config.docker_plugin_sockets.clone(),
            specs: config.docker_plugin_specs.clone(),
        };
        let store = Store::new(host.work_directory());
        let volumes = Arc::new(Volumes::new(store, directories, config.docker_volume_timeout.0)?);
        Ok(Self { config, volumes, leftovers: Arc::default() })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let is_known = |id: &str| {
            request.containers.iter().any(|container| container.id.as_str() == id)
                || request.orphans.iter().any(|orphan| orphan.as_str() == id)
        };
        let end = Instant::now() + RECOVERY_LIMIT;
        let mut left = Vec::new();
        for key in self.volumes.store.keys()? {
            match self.volumes.forget_unknown(&key, is_known) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    not_released(&key, &error);
                    continue;
                }
            }
            let limit = Limit {
                deadline: Some(request.deadline()),
                call: end.saturating_duration_since(Instant::now()),
            };
            if let Err(error) = self.volumes.release_unused(&key, limit) {
                not_released(&key, &error);
                left.push(key);
            }
        }
        if !left.is_empty() {
            self.leftovers.release_later(Arc::clone(&self.volumes), left)?;
        }
        Ok(Recovery::new())
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        let volumes = self.requested(container)?;
        let target = |path| volume::target(container, path, Kind::Directory);
        let targets = volumes.iter().map(|(_, requested)| target(&requested.container_path));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        for ((wanted, requested), target) in volumes.into_iter().zip(targets) {
            let failed = || {
                let Volume { driver, name, .. } = &wanted;
                format!("the volume `{}` of the driver `{driver}` cannot be mounted", name.escape_debug())
            };
            let limit = self.volumes.limit(container.deadline());
            let root = self.volumes.acquire(container.id.as_str(), &wanted, limit).context(failed())?;
            if self.config.docker_volume_chown && container.uid != 0 {
                volumes::change_owner(&root, container.uid, container.gid).context(failed())?;
            }
            prepared = prepared
                .bind_descriptor(root, &target, requested.read_only.then_some("ro"))
                // What the driver mounts below it later would be writable.
                .operation(Operation::Propagation {
                    path: target,
                    propagation: Propagation::Private,
                    recursive: true,
                });
        }
        Ok(prepared)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.volumes.release_all(container.id(), self.volumes.limit(container.deadline()))
    }
}

impl DockerVolumes {
    /// The volumes of a request, all of which are checked before the first is mounted.
    fn requested<'c>(&self, container: &'c NewContainer) -> Result<Vec<(Volume, &'c Requested)>> {
        let mut found: Vec<(Volume, &Requested)> = Vec::new();
        for requested in &container.volumes {
            let VolumeSource::DockerVolume { driver, name, options } = &requested.source else { continue };
            if container.class == ContainerClass::Debug {
                return Err(Error::invalid(
                    "a debug container has the mounts of its parent, and cannot have volumes",
                ));
            }
            address::check_name(driver)?;
            store::key(driver, name)?;
            if self.config.allowed_drivers.as_ref().is_some_and(|allowed| !allowed.contains(driver)) {
                return Err(Error::invalid(format!(
                    "the container requests a volume of the driver `{driver}`, which is not in `allowed_drivers`"
                )));
            }
            if found.iter().any(|(other, _)| other.driver == *driver && other.name == *name) {
                return Err(Error::invalid(format!(
                    "the container requests the volume `{name}` of the driver `{driver}` twice"
                )));
            }
            found.push((Volume::new(driver, name, options), requested));
        }
        Ok(found)
    }
}

impl Drop for DockerVolumes {
    fn drop(&mut self) {
        self.leftovers.stop();
    }
}
