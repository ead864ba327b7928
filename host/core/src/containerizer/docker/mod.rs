//! The docker containerizer: containers of a container engine.
//!
//! ```text
//!            launch.rs   fetch, pull, create, attach, start     recover.rs  containers of an earlier agent
//!                │         spec.rs, parameters.rs: what the       │
//!                ▼         engine is asked for                    ▼
//!   mod.rs ── supervise.rs  what tells that a running container has to end
//!                │
//!                ▼
//!            destroy.rs  teardown          removal.rs  removes what has ended from the engine, later
//! ```
//!
//! These are the steps of a backend; `../lifecycle` calls them.
//!
//! The engine is a process that may be slow, stopped, or gone at any time. So whatever is asked of it has a deadline and can
//! be cancelled; the end of a container is seen on its pidfd; and a container whose engine does not answer is killed by the
//! agent. What is left in the engine is found by its labels, and removed when the engine answers again.

mod abandon;
pub(crate) mod agent_container;
mod begin;
mod destroy;
mod hooks;
mod launch;
mod older_names;
mod parameters;
mod phase;
mod processes;
mod record;
mod recover;
mod removal;
mod spec;
mod supervise;
mod update;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_linux::cgroup::Cgroups;

use super::lifecycle::{self, Backend};
use super::{KillError, LaunchError, RemoveError};
use crate::config::DockerConfig;
use crate::engine::{Client, Container};
use crate::keeper::Keepers;
use crate::model::view::{PlanEntry, Report, WantedReports};
use crate::model::{ContainerId, Phase, Record, Request};

pub use record::DockerRecord;
pub(crate) use record::DockerTable;

use record::Handle;

/// Name in the configuration and in records: that of the Mesos containerizer.
pub(super) const NAME: &str = "docker";

/// Has an engine make containers.
pub(crate) struct Docker {
    pub(crate) keepers: Arc<Keepers>,
    pub(crate) cgroups: Cgroups,
    pub(crate) destroy_timeout: Duration,
    pub(crate) engine: Client,
    pub(crate) config: DockerConfig,
    /// Identifies the agent to the engine.
    pub(crate) agent: String,
    /// A container has ended, or has to be searched for.
    pub(crate) sweep: tokio::sync::Notify,
}

/// Its chain is the logger alone.
type Shared = lifecycle::Shared<Docker>;

impl Backend for Docker {
    type Part = DockerRecord;

    const NAME: &'static str = NAME;
    const SANDBOXES: &'static str = "docker";
    const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

    fn part(_: &Shared, request: &Request) -> DockerRecord {
        DockerRecord { name: spec::name_of(request), ..DockerRecord::default() }
    }

    async fn signal(shared: &Shared, handle: &Handle, signal: i32) -> Result<bool, KillError> {
        let id = handle.id();
        if handle.phase() != Phase::Running {
            return Err(KillError::NoProcess { id: id.clone() });
        }
        let sent = shared.backend.engine.kill(&engine_name(&handle.record()), signal).await;
        sent.map_err(|source| KillError::Engine { id: id.clone(), signal, source })
    }

    async fn reports(shared: &Arc<Shared>, ids: &[ContainerId], wanted: WantedReports) -> Vec<Report> {
        usage::collect(shared, ids, wanted).await
    }

    fn plan(record: &Record<DockerRecord>) -> Vec<PlanEntry> {
        let entry = |field: &str, value: String, owner: &str| PlanEntry {
            field: field.to_owned(),
            value,
            owner: owner.to_owned(),
        };
        let image =
            record.request.docker.as_ref().map(|docker| entry("image", docker.image.clone(), "request"));
        let name = entry("name", record.part.name.clone(), "agent");
        let engine_id = record.part.engine_id.clone().map(|id| entry("engine_id", id, "engine"));
        image.into_iter().chain([name]).chain(engine_id).collect()
    }

    async fn before_removal(shared: &Shared, handle: &Handle) -> Result<(), RemoveError> {
        // Its name in the engine is that of the next container of this id.
        let removed = removal::remove(shared, handle).await;
        removed.map_err(|source| RemoveError::Engine { id: handle.id().clone(), source })
    }
}

/// An error of the agent itself.
fn internal(handle: &Handle, reason: &str) -> LaunchError {
    LaunchError::Internal { id: handle.id().clone(), reason: reason.to_owned() }
}

/// How the engine knows a container: by its id, or by its name as long as that is not known.
fn engine_name(record: &Record<DockerRecord>) -> String {
    record.part.engine_id.clone().unwrap_or_else(|| record.part.name.clone())
}

/// Whether a container that the engine lists under a name has that which the agent gives to one of an id.
fn is_named_after(listed: &str, id: &ContainerId) -> bool {
    let name = listed.strip_prefix('/').unwrap_or_default();
    name == spec::name(id) || name == spec::executor_name(id)
}

/// The addresses of a container, by network.
fn addresses(container: &Container) -> BTreeMap<String, Vec<String>> {
    let networks = container.network_settings.networks.iter();
    networks
        .map(|(name, endpoint)| {
            let addresses = [&endpoint.ip_address, &endpoint.ipv6_address].into_iter();
            (name.clone(), addresses.filter(|address| !address.is_empty()).cloned().collect())
        })
        .collect()
}

impl Shared {
    /// Whether a container of the engine is the one of a record. Labels alone do not tell: those of an image are also those
    /// of its containers, and `docker commit` makes an image with the labels of a container.
    fn owns(&self, container: &Container, record: &Record<DockerRecord>) -> bool {
        let engine_id = record.part.engine_id.as_ref();
        // Of a record that was lost, any launch will do.
        let launch = (record.created_unix_ms != 0).then_some(record.created_unix_ms);
        engine_id.is_none_or(|id| *id == container.id) && self.is_of_launch(container, &record.id, launch)
    }

    /// Whether a container of the engine is of an id and one of its launches.
    fn is_of_launch(&self, container: &Container, id: &ContainerId, launch: Option<u64>) -> bool {
        let labels = &container.config.labels;
        let is = |label: &str, value: &str| labels.get(label).is_some_and(|found| found == value);
        is_named_after(&container.name, id)
            && is(spec::AGENT_LABEL, &self.backend.agent)
            && is(spec::CONTAINER_LABEL, id.as_str())
            && launch.is_none_or(|launch| is(spec::LAUNCH_LABEL, &launch.to_string()))
    }
}
