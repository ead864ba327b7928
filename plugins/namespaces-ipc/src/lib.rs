//! Gives a container an IPC namespace and a `/dev/shm`, or shares those of its parent or of the host.
//!
//! A `/dev/shm` of its own is a detached mount, which the kernel removes with the last mount namespace that it is in. A
//! nested container that shares it gets a clone of the mount in its parent's mount namespace. So nothing is mounted on
//! the host, and nothing has to be undone.

mod shm;

use std::path::Path;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::model::{ContainerClass, IpcMode};
use cofferdam_plugin_api::prelude::*;

use crate::shm::Shm;

struct Ipc {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Maximum size of a container's own `/dev/shm` if it requests none.
    default_container_shm_size: Size,
    /// Whether to reject top-level containers that request to share the agent's IPC namespace.
    disallow_sharing_agent_ipc_namespace: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { default_container_shm_size: Size(64 << 20), disallow_sharing_agent_ipc_namespace: false }
    }
}

/// What nested containers need to know of a container.
#[derive(Serialize, Deserialize)]
struct State {
    shm: Shm,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Ipc {
    const NAME: &'static str = "namespaces/ipc";
    const NESTING: bool = true;
    // That plugin creates the mount namespace, and mounts a `/dev/shm` that this one covers.
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    const AFTER: &'static [&'static str] = &["filesystem/linux"];
    const FEATURES: &'static [&'static str] = &["launch.bind_descriptor"];
    const HANDLES: &'static [&'static str] = &["ipc_mode", "shm_size"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        if config.default_container_shm_size.0 == 0 {
            return Err(Error::new("`default_container_shm_size` is 0, which the kernel takes for no limit"));
        }
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mode = container.linux.ipc_mode;
        if container.linux.shm_size.is_some() && mode != Some(IpcMode::Private) {
            return Err(Error::invalid(
                "the container requests a size of `/dev/shm` without the IPC mode PRIVATE",
            ));
        }
        let parent: Option<State> = container.parent_state()?;
        if container.class == ContainerClass::Debug {
            return debug(mode, parent);
        }
        let (prepared, shm) = match (mode, container.id.is_nested()) {
            (None, nested) => {
                let prepared = if nested { enter() } else { own() };
                // Without a root file system it sees that of the host.
                match container.rootfs {
                    Some(_) => self.own_shm(container, prepared)?,
                    None => (prepared, Shm::Host),
                }
            }
            (Some(IpcMode::Private), _) => self.own_shm(container, own())?,
            (Some(IpcMode::ShareParent), false) => {
                if self.config.disallow_sharing_agent_ipc_namespace {
                    return Err(Error::invalid(
                        "the container requests to share the agent's IPC namespace, which \
                         `disallow_sharing_agent_ipc_namespace` forbids",
                    ));
                }
                (shm::of_host(Prepared::new(), container), Shm::Host)
            }
            (Some(IpcMode::ShareParent), true) => {
                let parent = parent.ok_or_else(|| {
                    Error::invalid("its parent was launched without `namespaces/ipc`, so its `/dev/shm` cannot be shared")
                })?;
                (parent.shm.share(enter(), container)?, parent.shm)
            }
            _ => {
                return Err(Error::invalid(
                    "the container requests an IPC mode that this version does not know",
                ));
            }
        };
        prepared.state(&State { shm })
    }
}

impl Ipc {
    fn own_shm(&self, container: &NewContainer, prepared: Prepared) -> Result<(Prepared, Shm)> {
        let size = container.linux.shm_size.unwrap_or(self.config.default_container_shm_size.0);
        if size == 0 {
            return Err(Error::invalid(
                "the container requests a `/dev/shm` of size 0; request at least one page",
            ));
        }
        Shm::create(prepared, size)
    }
}

fn own() -> Prepared {
    Prepared::new().clone_namespace(Namespace::Ipc)
}

fn enter() -> Prepared {
    Prepared::new().enter_namespace(Namespace::Ipc)
}

/// A debug container is in the mount namespace of its parent, `/dev/shm` included.
fn debug(mode: Option<IpcMode>, parent: Option<State>) -> Result<Prepared> {
    if mode == Some(IpcMode::Private) {
        return Err(Error::invalid(
            "a debug container enters the IPC namespace of its parent, and cannot have the IPC mode PRIVATE",
        ));
    }
    match parent {
        Some(state) => enter().state(&state),
        None => Ok(enter()),
    }
}

/// Where containers find their shared memory.
fn directory() -> &'static Path {
    Path::new("/dev/shm")
}

#[cfg(test)]
mod tests;
