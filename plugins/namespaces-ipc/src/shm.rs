//! The file system at `/dev/shm`.

use std::os::fd::AsFd;

use cofferdam_plugin_api::mount;
use cofferdam_plugin_api::prelude::*;

use crate::directory;

const FLAGS: [&str; 2] = ["nodev", "nosuid"];

/// Whose `/dev/shm` a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shm {
    /// The host's.
    Host,
    /// One of containers.
    Own {
        /// Number of the device, by which it is recognised: no other file system has the same while it exists.
        device: u64,
    },
}

impl Shm {
    /// Mounts a new one.
    pub fn create(prepared: Prepared, size: u64) -> Result<(Prepared, Self)> {
        let size = format!("size={size}");
        let flags = [FLAGS.as_slice(), &["strictatime"]].concat();
        let tmpfs = mount::filesystem("tmpfs", &flags, &["mode=1777", &size])?;
        let device = mount::device(tmpfs.as_fd())?;
        Ok((prepared.bind_descriptor(tmpfs, directory(), []), Self::Own { device }))
    }

    /// Mounts that of a container's parent.
    pub fn share(self, prepared: Prepared, container: &NewContainer) -> Result<Prepared> {
        let device = match self {
            Self::Host => return Ok(of_host(prepared, container)),
            Self::Own { device } => device,
        };
        let parent = container.parent.as_ref();
        let pid =
            parent.and_then(|parent| parent.pid).ok_or_else(|| Error::new("its parent has no process"))?;
        let shm = mount::clone_of_process(pid, directory(), container.deadline().remaining())
            .context("cannot share the `/dev/shm` of its parent")?;
        // Processes of the parent may have mounted something else there.
        if mount::device(shm.as_fd())? != device {
            return Err(Error::new(
                "its parent has mounted another file system at `/dev/shm`, which is not shared",
            ));
        }
        Ok(prepared.bind_descriptor(shm, directory(), FLAGS))
    }
}

/// Mounts that of the host. Without a root file system, a container sees it anyway.
pub fn of_host(prepared: Prepared, container: &NewContainer) -> Prepared {
    if container.rootfs.is_none() {
        return prepared;
    }
    prepared.operation(Operation::Bind {
        source: directory().to_owned(),
        target: directory().to_owned(),
        recursive: false,
        flags: FLAGS.map(str::to_owned).into(),
    })
}
