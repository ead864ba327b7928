//! Limits and accounts for what containers write, with project quotas of XFS or ext4.
//!
//! A container's directories belong to a project, and so does what is created in them. The project is leased from the agent,
//! which keeps leases on disk until the container is removed; it is also the state of the container.

mod disk;
mod poll;
mod range;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::config::{Size, TimeSpan};
use cofferdam_plugin_api::event;
use cofferdam_plugin_api::model::service::Lease;
use cofferdam_plugin_api::prelude::*;

use crate::disk::Disk;
use crate::poll::Poll;

const REASON: &str = "REASON_CONTAINER_LIMITATION_DISK";

/// The pool of leases.
const POOL: &str = "xfs_project";

const MIB: f64 = 1024.0 * 1024.0;

/// How long XFS may take to free removed files, and how often it is asked: there is no event.
const FREED_WITHIN: Duration = Duration::from_secs(2);
const FREED_INTERVAL: Duration = Duration::from_millis(10);

struct Xfs {
    host: Host,
    disk: Arc<Disk>,
    projects: Vec<RangeInclusive<u32>>,
    policy: Policy,
    poll: Poll,
}

/// What happens to a container that reaches its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Nothing.
    Account,
    /// Its writes fail.
    Refuse,
    /// It ends. Its writes fail if it uses so many bytes more before that.
    Kill { headroom: u64 },
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Ids of the projects of containers, which nothing else on the file system may use: `[5000-10000]`.
    xfs_project_range: String,
    /// Whether a container that exceeds its limit ends. Otherwise its writes fail.
    xfs_kill_containers: bool,
    /// How much more than its limit a container can write before it ends.
    xfs_quota_headroom: Size,
    /// Whether limits are enforced. Otherwise it is only measured.
    enforce_container_disk_quota: bool,
    /// Time between two measurements, with `xfs_kill_containers`.
    container_disk_watch_interval: TimeSpan,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            xfs_project_range: "[5000-10000]".to_owned(),
            xfs_kill_containers: false,
            xfs_quota_headroom: Size(10 << 20),
            enforce_container_disk_quota: false,
            container_disk_watch_interval: TimeSpan(Duration::from_secs(15)),
        }
    }
}

/// What is kept of a container.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    /// 0 for none.
    project: u32,
    /// Whether it is that of the container it is nested in.
    #[serde(default)]
    is_shared: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Xfs {
    const NAME: &'static str = "disk/xfs";
    const NESTING: bool = true;
    const CONFLICTS: &'static [&'static str] = &["disk/du"];
    // What is created in its directories later belongs to its project without further work.
    const BEFORE: &'static [&'static str] = &["filesystem/linux"];
    const FEATURES: &'static [&'static str] = &["method.removed", "service.leases", "service.state"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let policy = match (config.enforce_container_disk_quota, config.xfs_kill_containers) {
            (false, false) => Policy::Account,
            (true, false) => Policy::Refuse,
            (true, true) => Policy::Kill { headroom: config.xfs_quota_headroom.0 },
            (false, true) => {
                return Err(Error::new("`xfs_kill_containers` needs `enforce_container_disk_quota`"));
            }
        };
        let interval = config.container_disk_watch_interval.0;
        if interval.is_zero() {
            return Err(Error::new("`container_disk_watch_interval` is 0; expected a time such as \"15s\""));
        }
        let projects = range::parse(&config.xfs_project_range)?;
        // The plugin's own directory is in the work directory, as sandboxes are.
        let disk = Arc::new(Disk::open(host.work_directory(), policy != Policy::Account)?);
        let poll = Poll::new(Arc::clone(&disk), interval);
        Ok(Self { host, disk, projects, policy, poll })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let mut recovery = Recovery::new();
        let leases = self.host.leases().list(POOL)?;
        for Recovered { id, details, .. } in &request.containers {
            if details.state.is_null() {
                continue;
            }
            let State { project, is_shared } = match State::deserialize(&details.state) {
                Ok(state) => state,
                Err(error) => {
                    recovery.refuse(id, format!("cannot read the plugin's own state: {error}"));
                    continue;
                }
            };
            if project == 0 || is_shared {
                continue;
            }
            // Whatever the range is now: the container keeps its project.
            if !leases.iter().any(|lease| lease.number == project && lease.container == *id) {
                match self.host.leases().acquire(POOL, project..=project, id.as_str()) {
                    Ok(_) => {
                        warn!(container = %id, project, "the lease of the container's project was lost; it has a new one")
                    }
                    Err(error) => {
                        error!(container = %id, project, "the project of the container is that of another one as well: {error}");
                        continue;
                    }
                }
            }
            match self.disk.project(&details.sandbox) {
                Ok(Some(found)) if found != project => {
                    warn!(container = %id, project, found, "the sandbox of the container belongs to another project");
                }
                Ok(_) => {}
                Err(error) => warn!(container = %id, "{error}"),
            }
            // The policy may have changed.
            if let Err(error) = self.apply(project, &details.resources) {
                error!(container = %id, "{error}");
            }
        }
        Ok(recovery)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let parent: Option<State> = container.parent_state()?;
        let parent = parent.filter(|parent| parent.project != 0);
        let state = match (parent, limit(&container.resources)) {
            (Some(parent), None) => State { project: parent.project, is_shared: true },
            _ => State { project: self.acquire(container)?, is_shared: false },
        };
        // Before its directories belong to the project.
        self.host.put_state(container, &state)?;
        if !state.is_shared {
            self.apply(state.project, &container.resources)?;
        }
        for directory in [&container.sandbox, &container.scratch] {
            self.disk.label(directory, state.project)?;
        }
        Prepared::new().state(&state)
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        let State { project, is_shared } = container.state()?;
        if project == 0 || is_shared || !matches!(self.policy, Policy::Kill { .. }) {
            return Ok(None);
        }
        self.poll.watch(container.id(), project).map(Some)
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        if let Some(watched) = container.descriptor(0) {
            event::drain(watched)?;
        }
        let State { project, is_shared } = container.state()?;
        if project == 0 || is_shared || !matches!(self.policy, Policy::Kill { .. }) {
            return Ok(None);
        }
        let quota = self.disk.read(project)?;
        if quota.soft == 0 || quota.used <= quota.soft {
            return Ok(None);
        }
        let (limit, used) = (mebibytes(quota.soft), mebibytes(quota.used));
        Ok(Some(Limitation {
            reason: REASON.to_owned(),
            message: format!("disk limit of {limit:.1} MiB exceeded: {used:.1} MiB are in use"),
            resources: [("disk".to_owned(), Value::Scalar(used))].into(),
            container: None,
        }))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        if !container.changes(resources, "disk")? {
            return Ok(Applied::new());
        }
        let State { project, is_shared } = container.state()?;
        match (project, limit(resources)) {
            (0, _) => {}
            (_, Some(_)) if is_shared => {
                return Err(Error::invalid(format!(
                    "container `{}` has no limit of its own for `disk`: what it writes counts for the container that it is \
                     nested in; launch it with `disk`",
                    container.id()
                )));
            }
            _ if is_shared => {}
            _ => self.apply(project, resources)?,
        }
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let State { project, is_shared } = container.state()?;
        if project == 0 || is_shared {
            return Ok(Usage::default());
        }
        let used = self.disk.read(project)?.used;
        let limit = limit(&container.details()?.resources).flatten();
        // Null is omitted, as in Mesos.
        let sandbox = Usage::default().with("limit_bytes", limit).with("used_bytes", used);
        Ok(Usage::default()
            .with("disk_limit_bytes", limit)
            .with("disk_used_bytes", used)
            .with("disk_statistics", json!([sandbox])))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.poll.forget(container.id());
        Ok(())
    }

    fn removed(&self, container: &ContainerRef) -> Result<()> {
        let State { project, is_shared } = container.state()?;
        if project == 0 || is_shared {
            return Ok(());
        }
        let leases = self.host.leases();
        let is_of_another =
            |lease: &Lease| lease.number == project && lease.container.as_str() != container.id();
        if leases.list(POOL)?.iter().any(is_of_another) {
            return Ok(());
        }
        if self.keeps_files(project)? {
            // They keep their limit, and no other container gets the project, as `acquire` finds them.
            warn!(
                container = container.id(),
                project, "files of the container are left outside of its directories"
            );
        } else {
            self.disk.set_limits(project, 0, 0)?;
        }
        leases.release(POOL, project)
    }
}

impl Xfs {
    /// Whether there are files of a project whose containers are removed. XFS counts removed files until it has freed them, in the
    /// background, soon after their quota was read.
    fn keeps_files(&self, project: u32) -> Result<bool> {
        let latest = Instant::now() + FREED_WITHIN;
        while self.disk.read(project)?.inodes > 0 {
            if Instant::now() >= latest {
                return Ok(true);
            }
            thread::sleep(FREED_INTERVAL);
        }
        Ok(false)
    }

    /// Leases the smallest project of which there are no files.
    fn acquire(&self, container: &NewContainer) -> Result<u32> {
        let leases = self.host.leases();
        let mut leased: BTreeSet<u32> = leases.list(POOL)?.into_iter().map(|lease| lease.number).collect();
        let mut with_files = Vec::new();
        for project in self.projects.iter().cloned().flatten() {
            if leased.contains(&project) {
                continue;
            }
            if self.disk.read(project)?.inodes > 0 {
                with_files.push(project);
                continue;
            }
            match leases.acquire(POOL, project..=project, container) {
                Ok(project) => return Ok(project),
                // Another container was faster.
                Err(_) if leases.list(POOL)?.iter().any(|lease| lease.number == project) => {
                    leased.insert(project);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(format!(
            "no project is free for container `{}`: of `xfs_project_range`, {} are leased by other containers, which keep \
             them until they are removed, and {} have files of something else; remove containers, give these files to \
             another project, or extend the range",
            container.id,
            range::describe(leased.iter().copied()),
            range::describe(with_files)
        ))
        .retryable())
    }

    /// Sets the limits of a project.
    fn apply(&self, project: u32, resources: &Resources) -> Result<()> {
        let limit = limit(resources).flatten().unwrap_or(0);
        let (soft, hard) = match self.policy {
            Policy::Account => (0, 0),
            Policy::Refuse => (limit, limit),
            Policy::Kill { .. } if limit == 0 => (0, 0),
            Policy::Kill { headroom } => (limit, limit.saturating_add(headroom)),
        };
        self.disk.set_limits(project, soft, hard)
    }
}

/// The limit in bytes: `Some(None)` if there is to be none, `None` if nothing is requested.
fn limit(resources: &Resources) -> Option<Option<u64>> {
    // No limit is 0 for the kernel.
    Some(resources.disk_limit_bytes()?.map(|limit| limit.max(1)))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[cfg(test)]
mod tests;
