//! Creates nodes of the host's devices in the `/dev` of containers with a root file system.

mod device;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use cofferdam_plugin_api::model::{ContainerClass, VolumeSource};
use cofferdam_plugin_api::prelude::*;

use crate::device::{Access, Node};

struct Devices {
    allowed: Vec<Allowed>,
}

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Devices of the host that containers can have.
    allowed_devices: Vec<Allowed>,
}

/// A device of the host.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Allowed {
    /// Path of the device on the host and in containers, below `/dev`.
    path: PathBuf,
    /// What users other than root may do with it: `r`, `w` or both.
    #[serde(default = "read_and_write")]
    access: String,
    /// Whether only containers that request it as a volume have it.
    #[serde(default)]
    on_request: bool,
}

fn read_and_write() -> String {
    "rw".to_owned()
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Devices {
    const NAME: &'static str = "linux/devices";
    const NESTING: bool = true;
    // It mounts the `/dev` in which the nodes are created.
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    const AFTER: &'static [&'static str] = &["filesystem/linux"];
    const HANDLES: &'static [&'static str] = &["volumes.device"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let mut paths = BTreeSet::new();
        for allowed in &config.allowed_devices {
            let named = || format!("`allowed_devices` has `{}`", allowed.path.display());
            check_path(&allowed.path).context(named())?;
            Access::parse(&allowed.access).context(named())?;
            Node::of_host(&allowed.path).context(named())?;
            if !paths.insert(&allowed.path) {
                return Err(Error::new(format!("{} twice", named())));
            }
        }
        Ok(Self { allowed: config.allowed_devices })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let requested = self.requested(container)?;
        if container.rootfs.is_none() {
            return match requested.first() {
                None => Ok(Prepared::new()),
                Some(device) => Err(Error::new(format!(
                    "the container requests the device `{}` without a root file system of its own{}",
                    device.target.display(),
                    if container.class == ContainerClass::Debug {
                        ": a debug container has those of its parent"
                    } else {
                        ""
                    }
                ))),
            };
        }
        let always = self.allowed.iter().filter(|allowed| !allowed.on_request).map(|allowed| Requested {
            allowed,
            target: &allowed.path,
            read_only: false,
        });
        let mut prepared = Prepared::new();
        let mut targets = BTreeSet::new();
        // What a container requests at the path of another device replaces that one.
        for Requested { allowed, target, read_only } in requested.into_iter().chain(always) {
            if !targets.insert(target) {
                continue;
            }
            let node = Node::of_host(&allowed.path).context(format!(
                "the device `{}` of the configuration cannot be created",
                allowed.path.display()
            ))?;
            let access = Access::parse(&allowed.access)?;
            let access = if read_only { access.read_only() } else { access };
            prepared = prepared.operation(node.operation(target, access));
        }
        Ok(prepared)
    }
}

/// A device that a container gets.
struct Requested<'a> {
    allowed: &'a Allowed,
    target: &'a Path,
    read_only: bool,
}

impl Devices {
    /// The devices among the volumes of a container.
    fn requested<'a>(&'a self, container: &'a NewContainer) -> Result<Vec<Requested<'a>>> {
        let mut requested: Vec<Requested<'a>> = Vec::new();
        for volume in &container.volumes {
            let VolumeSource::Device { path } = &volume.source else { continue };
            let allowed = self.allowed.iter().find(|allowed| allowed.path == *path).ok_or_else(|| {
                Error::new(format!(
                    "the container requests the device `{}`, which is not among `allowed_devices`",
                    path.display()
                ))
            })?;
            let target = &volume.container_path;
            check_path(target)
                .context(format!("the container requests a device at `{}`", target.display()))?;
            if requested.iter().any(|other| other.target == target) {
                return Err(Error::new(format!(
                    "the container requests two devices at `{}`",
                    target.display()
                )));
            }
            requested.push(Requested { allowed, target, read_only: volume.read_only });
        }
        Ok(requested)
    }
}

/// Checks that a path is below `/dev`, where containers have a file system of their own.
fn check_path(path: &Path) -> Result<()> {
    let mut components = path.components();
    let is_below = components.next() == Some(Component::RootDir)
        && components.next() == Some(Component::Normal("dev".as_ref()))
        && components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)));
    if is_below { Ok(()) } else { Err(Error::new("expected a path below `/dev`, without `..`")) }
}
