//! Filters the system calls of a container by a profile.
//!
//! The filter is compiled here and installed by the process that becomes the command. The kernel keeps it for the process
//! and all that descend from it, so nothing has to be recovered or undone.

mod bpf;
mod document;
mod numbers;
mod profile;
mod standard;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cofferdam_plugin_api::capability::{self, NAMES};
use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

use crate::profile::Circumstances;
use crate::store::{STANDARD, Store};

/// The name that stands for no filter.
const UNCONFINED: &str = "unconfined";

struct Filters {
    store: Store,
    /// Name of the profile of containers that request none.
    default: String,
    disallow_unconfined: bool,
    kernel: (u32, u32),
    /// Bounding capabilities of the agent.
    agent: u64,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Directory of profiles in Docker's JSON format, which containers request by file name.
    #[serde(alias = "seccomp_config_dir")]
    config_dir: Option<PathBuf>,
    /// Profile of containers that request none: a file in `config_dir`; `runtime/default`, which is part of the plugin; or
    /// `unconfined` for no filter.
    #[serde(alias = "seccomp_profile_name")]
    profile_name: String,
    /// Whether to reject containers that request to have no filter.
    disallow_unconfined: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { config_dir: None, profile_name: STANDARD.to_owned(), disallow_unconfined: false }
    }
}

/// What a container has, for debug containers that enter it.
#[derive(Serialize, Deserialize)]
struct State {
    profile: String,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Filters {
    const NAME: &'static str = "linux/seccomp";
    const NESTING: bool = true;
    // Rules depend on the capabilities that a container can have.
    const AFTER: &'static [&'static str] = &["linux/capabilities"];
    const FEATURES: &'static [&'static str] =
        &["agent.process", "container.bounding_capabilities", "launch.seccomp"];
    const HANDLES: &'static [&'static str] = &["seccomp"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let Config { config_dir, profile_name, disallow_unconfined } = config;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let release = release.context("cannot read the version of the kernel")?;
        let kernel = document::kernel_version(&release)
            .ok_or_else(|| Error::new(format!("`{}` is not a version of the kernel", release.trim())))?;
        let agent = host.agent().process.bounding_capabilities;
        let store = Store::new(config_dir);
        let filters = Self { store, default: profile_name, disallow_unconfined, kernel, agent };
        if filters.default != UNCONFINED {
            let circumstances = filters.circumstances(None)?;
            filters
                .store
                .filter(&filters.default, &circumstances)
                .context("`profile_name` cannot be used")?;
        }
        Ok(filters)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let profile = self.profile(container)?;
        let prepared = Prepared::new();
        let prepared = if profile == UNCONFINED {
            prepared
        } else {
            let circumstances = self.circumstances(container.bounding_capabilities.as_ref())?;
            prepared.seccomp((*self.store.filter(&profile, &circumstances)?).clone())
        };
        prepared.state(&State { profile })
    }
}

impl Filters {
    /// The name of a container's profile.
    fn profile(&self, container: &NewContainer) -> Result<String> {
        let Some(request) = &container.linux.seccomp else {
            // A debug container executes files of its parent, so it has the same filter.
            let parent: Option<State> = match container.class {
                ContainerClass::Debug => container.parent_state()?,
                _ => None,
            };
            return Ok(parent.map_or_else(|| self.default.clone(), |state| state.profile));
        };
        match (&request.profile, request.unconfined) {
            (Some(_), true) => Err(Error::invalid(
                "the container requests a profile and to be unconfined; request one of them",
            )),
            (None, true) if self.disallow_unconfined => Err(Error::invalid(
                "the container requests to be unconfined, which `disallow_unconfined` forbids",
            )),
            (None, true) => Ok(UNCONFINED.to_owned()),
            (Some(name), false) if name == UNCONFINED => Err(Error::invalid(format!(
                "the container requests the profile `{UNCONFINED}`, which is the name for none; set `unconfined`"
            ))),
            (Some(name), false) => Ok(name.clone()),
            (None, false) => Ok(self.default.clone()),
        }
    }

    /// `bounding` is the set that other plugins request; if none does, a container can have what the agent has.
    fn circumstances(&self, bounding: Option<&BTreeSet<String>>) -> Result<Circumstances> {
        let capabilities = match bounding {
            Some(names) => names.clone(),
            None => {
                let names = NAMES.iter().enumerate();
                names
                    .filter(|(number, _)| capability::contains(self.agent, *number))
                    .map(|(_, &name)| name.to_owned())
                    .collect()
            }
        };
        Ok(Circumstances { capabilities, kernel: self.kernel })
    }
}
