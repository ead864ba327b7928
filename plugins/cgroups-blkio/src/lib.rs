//! Reports the block I/O of containers with cgroups.
//!
//! There is no state: everything is read from the kernel, so nothing is lost when the agent restarts.

mod device;
mod statistics;

use std::path::PathBuf;

use cofferdam_plugin_api::Pressure;
use cofferdam_plugin_api::cgroup::CgroupVersion;
use cofferdam_plugin_api::prelude::*;

use crate::device::Device;

const CONTROLLERS: Controllers = Controllers::new("blkio");

struct Blkio {
    psi: bool,
    counted: Vec<Device>,
}

#[derive(Deserialize, PluginConfig, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Block devices of the host, such as `/dev/sda`, whose I/O the kernel is to count on cgroup v1: Linux 6.10 or later does
    /// not, unless somebody limits it.
    devices: Vec<PathBuf>,
    /// Whether usage has for how long processes waited for I/O.
    psi: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Blkio {
    const NAME: &'static str = "cgroups/blkio";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let counted = config.devices.iter().map(|path| Device::open(path)).collect::<Result<_>>()?;
        Ok(Self { psi: config.psi, counted })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        if cgroups.main().version() == CgroupVersion::V1 {
            for device in &self.counted {
                // No limit, but from now on the kernel counts.
                cgroups.main().write("blkio.throttle.read_bps_device", format!("{device} 0")).context(
                    format!("cannot count the I/O of device {device}; `devices` can only have whole disks"),
                )?;
            }
        }
        Ok(Prepared::new().cgroups(&cgroups))
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let Some(cgroups) = CONTROLLERS.find(container)? else { return Ok(Usage::default()) };
        let usage = Usage::default().with("blkio_statistics", statistics::read(cgroups.main())?);
        match self.psi.then(|| Pressure::read(container, "io")).transpose()?.flatten() {
            Some(waited) => Ok(usage
                .with("io_pressure_some_secs", waited.some.as_secs_f64())
                .with("io_pressure_full_secs", waited.full.as_secs_f64())),
            None => Ok(usage),
        }
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)
    }
}

#[cfg(test)]
mod tests;
