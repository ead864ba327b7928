//! Tags the packets of a container with a class of its own, by which traffic control and firewalls recognise them.
//!
//! The class is leased from the agent, which keeps leases on disk: no two containers have the same one, whatever happens to
//! agent and configuration. It is also the state of the container.

mod handles;

use cofferdam_plugin_api::prelude::*;

use crate::handles::Handles;

const CONTROLLERS: Controllers = Controllers::new("net_cls");

/// The pool of leases. Its numbers are classes: a primary handle in the upper half, a secondary one in the lower.
const POOL: &str = "net_cls";

const CLASS: &str = "net_cls.classid";

struct NetCls {
    handles: Option<Handles>,
    host: Host,
}

#[derive(Deserialize, PluginConfig, Default)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Primary handle of all classes. Without it, containers get a cgroup and no class.
    #[serde(alias = "cgroups_net_cls_primary_handle")]
    primary_handle: Option<u16>,
    /// First secondary handle, by default 1.
    first_secondary_handle: Option<u16>,
    /// Last secondary handle, by default 65535.
    last_secondary_handle: Option<u16>,
    /// First and last secondary handle as in Mesos, such as `0x0001,0x1000`.
    cgroups_net_cls_secondary_handles: Option<String>,
}

/// What is kept of a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct State {
    class: u32,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for NetCls {
    const NAME: &'static str = "cgroups/net_cls";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux", "service.leases"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let Config { primary_handle, first_secondary_handle: first, last_secondary_handle: last, .. } =
            config;
        let (first, last) = match &config.cgroups_net_cls_secondary_handles {
            None => (first, last),
            Some(text) if first.is_none() && last.is_none() => {
                let (first, last) = handles::range(text)?;
                (Some(first), Some(last))
            }
            Some(_) => {
                return Err(Error::new(
                    "`cgroups_net_cls_secondary_handles` is another form of `first_secondary_handle` and \
                     `last_secondary_handle`; set either",
                ));
            }
        };
        Ok(Self { handles: Handles::of(primary_handle, first, last)?, host })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let mut recovery = Recovery::new();
        let leases = self.host.leases().list(POOL)?;
        for Recovered { id, details, .. } in &request.containers {
            if details.state.is_null() {
                continue;
            }
            let State { class } = match State::deserialize(&details.state) {
                Ok(state) => state,
                Err(error) => {
                    recovery.refuse(id, format!("cannot read the plugin's own state: {error}"));
                    continue;
                }
            };
            // Whatever the configuration is now: the container keeps its class.
            if leases.iter().any(|lease| lease.number == class && lease.container == *id) {
                continue;
            }
            match self.host.leases().acquire(POOL, class..=class, id.as_str()) {
                Ok(_) => {
                    warn!(container = %id, class, "the lease of the container's class was lost; it has a new one")
                }
                Err(error) => error!(
                    container = %id,
                    class,
                    "the class of the container is that of another one as well: {error}"
                ),
            }
        }
        Ok(recovery)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let Some(cgroups) = CONTROLLERS.create(container)? else { return Ok(Prepared::new()) };
        let prepared = Prepared::new().cgroups(&cgroups);
        let Some(handles) = self.handles else { return Ok(prepared) };
        let class = self.host.leases().acquire(POOL, handles.classes(), container).context(format!(
            "no class is free for container `{}`: there is one for each secondary handle of `cgroups/net_cls`",
            container.id
        ))?;
        // Before it has a process: so its first packet has the class.
        if let Err(error) = cgroups.main().write(CLASS, class) {
            self.host.leases().release(POOL, class)?;
            return Err(error.into());
        }
        prepared.state(&State { class })
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        let own: Option<State> = container.state()?;
        let class = match own {
            Some(State { class }) => class,
            // That of the parent, or one that an operator has set.
            None => match Cgroup::find(&container.details()?.cgroups, CONTROLLERS.main()) {
                Some(cgroup) => cgroup.read_as(CLASS)?,
                None => 0,
            },
        };
        let status = Status::default();
        Ok(if class == 0 {
            status
        } else {
            status.with("cgroup_info", json!({ "net_cls": { "classid": class } }))
        })
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        CONTROLLERS.remove(container)?;
        // Nothing has the class any more, so that another container can have it.
        let own: Option<State> = container.state()?;
        own.map_or(Ok(()), |State { class }| self.host.leases().release_of(POOL, class, container.id()))
    }
}

#[cfg(test)]
mod tests;
