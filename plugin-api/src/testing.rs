//! Drives a plugin in a unit test exactly as the agent does: through the real bridge, in real payloads.
//!
//! ```
//! # use cofferdam_plugin_api::prelude::*;
//! # struct Building;
//! # impl Isolator for Building {
//! #     const NAME: &'static str = "example/building";
//! #     type Config = ();
//! #     fn create(_: (), _: Host) -> Result<Self> { Ok(Self) }
//! #     fn prepare(&self, _: &Container) -> Result<Prepared> {
//! #         Ok(Prepared::new().environment("BUILDING", "north"))
//! #     }
//! # }
//! use cofferdam_plugin_api::testing::PluginHarness;
//!
//! let bench = PluginHarness::<Building>::isolator(serde_json::json!({}))?;
//! let prepared = bench.prepare("web")?;
//! assert_eq!(prepared.launch.environment["BUILDING"], "north");
//! bench.cleanup("web")?;
//! # Ok::<(), cofferdam_plugin_api::testing::Refused>(())
//! ```

mod hierarchies;

use std::collections::HashMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice, RStr};
use cofferdam_plugin_abi::{Answer, Call, Failure, HostApi, HostBox, IsolatorBox, LoggerBox, Reply};
use cofferdam_plugin_model as model;
use model::{
    Container, ContainerId, Limitation, LoggerReply, PrepareReply, RecoverReply, Recovered, Resources,
    Status, Usage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::bridge::{new_isolator, new_logger};
use crate::{Isolator, Logger};

pub use hierarchies::Hierarchies;

/// A call that the plugin refused or did not survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What the agent would report, one cause per line.
    pub message: String,
    /// Where the plugin panicked, if it did.
    pub location: Option<String>,
    /// Whether the agent would try again.
    pub retryable: bool,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        let panicked = matches!(failure.code, Failure::PANICKED);
        Self {
            message: failure.message.into(),
            location: panicked.then(|| failure.location.into()),
            retryable: failure.retryable,
        }
    }
}

/// A plugin on the bench, with a temporary world and with its states kept as the agent keeps them.
pub struct PluginHarness<P> {
    instance: Instance,
    world: World,
    details: Mutex<HashMap<String, model::ContainerDetails>>,
    log: Arc<Log>,
    plugin: PhantomData<P>,
}

enum Instance {
    Isolator(IsolatorBox),
    Logger(LoggerBox),
}

impl<I: Isolator> PluginHarness<I> {
    /// Makes an isolator with its table of the configuration.
    ///
    /// # Errors
    /// What the operator would read if the agent did not start.
    pub fn isolator(config: Json) -> Result<Self, Refused> {
        Self::make(I::NAME, config, |host, request| match new_isolator::<I>(host, request) {
            RResult::ROk(isolator) => Ok(Instance::Isolator(isolator)),
            RResult::RErr(failure) => Err(failure.into()),
        })
    }
}

impl<L: Logger> PluginHarness<L> {
    /// Makes a logger with its table of the configuration.
    ///
    /// # Errors
    /// What the operator would read if the agent did not start.
    pub fn logger(config: Json) -> Result<Self, Refused> {
        Self::make(L::NAME, config, |host, request| match new_logger::<L>(host, request) {
            RResult::ROk(logger) => Ok(Instance::Logger(logger)),
            RResult::RErr(failure) => Err(failure.into()),
        })
    }
}

impl<P> PluginHarness<P> {
    fn make(
        name: &str,
        config: Json,
        new: impl FnOnce(HostBox, RSlice<'_, u8>) -> Result<Instance, Refused>,
    ) -> Result<Self, Refused> {
        let world = World::new().map_err(|error| Refused {
            message: format!("cannot make the bench's temporary directory: {error}"),
            location: None,
            retryable: false,
        })?;
        let request = model::CreateRequest {
            config,
            name: name.to_owned(),
            agent: model::AgentInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..model::AgentInfo::default()
            },
            runtime_directory: world.0.join("runtime"),
            work_directory: world.0.join("work"),
        };
        let log = Arc::<Log>::default();
        let host = HostBox::from_value(BenchHost(Arc::clone(&log)), TD_Opaque);
        let instance = new(host, RSlice::from_slice(&write(&request)?))?;
        Ok(Self { instance, world, details: Mutex::default(), log, plugin: PhantomData })
    }

    /// The bench's temporary directory; gone when the bench is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.world.0
    }

    /// A container as the agent would describe it, with a sandbox and a scratch directory that exist.
    ///
    /// # Panics
    /// When `id` is not a container id or the directories cannot be made: this is a test.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test's own mistake")]
    pub fn container(&self, id: &str) -> Container {
        let mut container = Container::new(ContainerId::parse(id).expect("a container id"));
        container.sandbox = self.world.0.join("sandbox").join(id);
        container.scratch = self.world.0.join("scratch").join(id);
        container.standalone = true;
        container.command.value = Some("true".into());
        for directory in [&container.sandbox, &container.scratch] {
            std::fs::create_dir_all(directory).expect("a directory of the bench");
        }
        container
    }

    /// `prepare` of an isolator, for a container of that id and nothing special.
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn prepare(&self, id: &str) -> Result<PrepareReply, Refused> {
        self.prepare_container(&self.container(id))
    }

    /// `prepare` of an isolator.
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn prepare_container(&self, container: &Container) -> Result<PrepareReply, Refused> {
        self.admit(container);
        let answer = self.call(model::Method::Prepare, container.id.as_str(), &write(container)?, &[])?;
        let reply: PrepareReply = read(&answer)?;
        self.change(container.id.as_str(), |details| details.state = reply.state.clone().unwrap_or_default());
        Ok(reply)
    }

    /// `prepare` of a logger, with the descriptors that it handed over.
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn open(&self, container: &Container) -> Result<(LoggerReply, Vec<OwnedFd>), Refused> {
        self.admit(container);
        let answer = self.call(model::Method::Prepare, container.id.as_str(), &write(container)?, &[])?;
        let reply: LoggerReply = read(&answer)?;
        self.change(container.id.as_str(), |details| details.state = reply.state.clone().unwrap_or_default());
        Ok((reply, own(&answer)))
    }

    /// `isolate`, with a pidfd. Later calls are told the pid, until [`PluginHarness::ended`].
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn isolate(&self, id: &str, pid: i32, pidfd: BorrowedFd<'_>) -> Result<(), Refused> {
        self.started(id, pid);
        let details = write(&self.details(id))?;
        self.call(model::Method::Isolate, id, &details, &[pidfd.as_raw_fd()]).map(drop)
    }

    /// The container's first process is this one from now on; no call. For plugins without `isolate`.
    pub fn started(&self, id: &str, pid: i32) {
        self.change(id, |details| details.pid = Some(pid));
    }

    /// The container's first process has ended; no call.
    pub fn ended(&self, id: &str) {
        self.change(id, |details| details.pid = None);
    }

    /// `watch`.
    ///
    /// # Errors
    /// What would fail the launch.
    pub fn watch(&self, id: &str) -> Result<Option<OwnedFd>, Refused> {
        let answer = self.call(model::Method::Watch, id, &write(&self.details(id))?, &[])?;
        Ok(own(&answer).into_iter().next())
    }

    /// `limitation`, with the descriptor that `watch` gave.
    ///
    /// # Errors
    /// What the agent would report.
    pub fn limitation(&self, id: &str, watch: Option<BorrowedFd<'_>>) -> Result<Option<Limitation>, Refused> {
        let descriptors: Vec<i32> = watch.iter().map(AsRawFd::as_raw_fd).collect();
        let answer = self.call(model::Method::Limitation, id, &write(&self.details(id))?, &descriptors)?;
        if answer.payload.is_empty() { Ok(None) } else { read(&answer).map(Some) }
    }

    /// `update`.
    ///
    /// # Errors
    /// What would fail the update.
    pub fn update(&self, id: &str, resources: Resources) -> Result<(), Refused> {
        let request = model::UpdateRequest { details: self.details(id), resources };
        let answer = self.call(model::Method::Update, id, &write(&request)?, &[])?;
        let reply: model::StateReply = read(&answer)?;
        if let Some(state) = reply.state {
            self.change(id, |details| details.state = state);
        }
        Ok(())
    }

    /// `usage`.
    ///
    /// # Errors
    /// What the agent would report.
    pub fn usage(&self, id: &str) -> Result<Usage, Refused> {
        read(&self.call(model::Method::Usage, id, &write(&self.details(id))?, &[])?)
    }

    /// `status`.
    ///
    /// # Errors
    /// What the agent would report.
    pub fn status(&self, id: &str) -> Result<Status, Refused> {
        read(&self.call(model::Method::Status, id, &write(&self.details(id))?, &[])?)
    }

    /// `cleanup`.
    ///
    /// # Errors
    /// What the agent would report, and retry.
    pub fn cleanup(&self, id: &str) -> Result<(), Refused> {
        self.call(model::Method::Cleanup, id, &write(&self.details(id))?, &[]).map(drop)
    }

    /// `recover`. Later calls are told what is said of the containers here, and the states as the plugin
    /// migrated them.
    ///
    /// # Errors
    /// What would keep the plugin out of service.
    pub fn recover(
        &self,
        containers: Vec<Recovered>,
        orphans: Vec<ContainerId>,
    ) -> Result<RecoverReply, Refused> {
        let request = model::RecoverRequest { containers, orphans };
        let reply: RecoverReply = read(&self.call(model::Method::Recover, "", &write(&request)?, &[])?)?;
        for container in request.containers {
            let migrated = match reply.verdicts.get(&container.id) {
                Some(model::Verdict::Migrated { state }) => Some(state.clone()),
                _ => None,
            };
            let state = migrated.unwrap_or(container.details.state);
            self.change(container.id.as_str(), |details| {
                *details = model::ContainerDetails { state, ..container.details };
            });
        }
        Ok(reply)
    }

    /// What the plugin asked the agent to keep for a container.
    #[must_use]
    pub fn state(&self, id: &str) -> Json {
        self.details(id).state
    }

    /// The fields of the events the plugin logged, in order, if this bench is the first in its process.
    #[must_use]
    pub fn logged(&self) -> Vec<Json> {
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A launch begins: from here on the container is known, even if a plugin fails it.
    fn admit(&self, container: &Container) {
        self.change(container.id.as_str(), |details| {
            *details = model::ContainerDetails {
                sandbox: container.sandbox.clone(),
                scratch: container.scratch.clone(),
                cgroups: container.cgroups.clone(),
                ..model::ContainerDetails::default()
            };
        });
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut model::ContainerDetails)) {
        let mut details = self.details.lock().unwrap_or_else(PoisonError::into_inner);
        change(details.entry(id.to_owned()).or_default());
    }

    fn details(&self, id: &str) -> model::ContainerDetails {
        let details = self.details.lock().unwrap_or_else(PoisonError::into_inner);
        details.get(id).cloned().unwrap_or_default()
    }

    fn call(
        &self,
        method: model::Method,
        id: &str,
        request: &[u8],
        descriptors: &[i32],
    ) -> Result<Answer, Refused> {
        use model::Method as M;
        let call = Call {
            container: RStr::from_str(id),
            span: 0,
            trace: [0; 2],
            deadline_unix_ms: 0,
            descriptors: RSlice::from_slice(descriptors),
        };
        let request = RSlice::from_slice(request);
        let reply = match (&self.instance, method) {
            (Instance::Isolator(isolator), M::Recover) => isolator.recover(call, request),
            (Instance::Isolator(isolator), M::Prepare) => isolator.prepare(call, request),
            (Instance::Isolator(isolator), M::Isolate) => isolator.isolate(call, request),
            (Instance::Isolator(isolator), M::Watch) => isolator.watch(call, request),
            (Instance::Isolator(isolator), M::Limitation) => isolator.limitation(call, request),
            (Instance::Isolator(isolator), M::Update) => isolator.update(call, request),
            (Instance::Isolator(isolator), M::Usage) => isolator.usage(call, request),
            (Instance::Isolator(isolator), M::Status) => isolator.status(call, request),
            (Instance::Isolator(isolator), M::Cleanup) => isolator.cleanup(call, request),
            (Instance::Logger(logger), M::Recover) => logger.recover(call, request),
            (Instance::Logger(logger), M::Prepare) => logger.prepare(call, request),
            (Instance::Logger(logger), M::Cleanup) => logger.cleanup(call, request),
            (_, other) => RResult::RErr(Failure::unsupported(other.name())),
        };
        match reply {
            RResult::ROk(answer) => Ok(answer),
            RResult::RErr(failure) => Err(failure.into()),
        }
    }
}

/// Says loudly that a test does not run here; it must return at once.
///
/// # Panics
/// Where the environment says `CI=true`: there nothing is skipped.
pub fn skip(reason: impl std::fmt::Display) {
    use std::io::Write;
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot be skipped here: {reason}");
    // Not `eprintln`, which the test harness would keep to itself.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

fn write(request: &impl Serialize) -> Result<Vec<u8>, Refused> {
    serde_json::to_vec(request).map_err(|error| malformed(&error))
}

fn read<T: DeserializeOwned + Default>(answer: &Answer) -> Result<T, Refused> {
    if answer.payload.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&answer.payload).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Refused {
    Refused {
        message: format!("a payload is not what it should be: {error}"),
        location: None,
        retryable: false,
    }
}

#[allow(unsafe_code)]
fn own(answer: &Answer) -> Vec<OwnedFd> {
    // SAFETY: the ABI gives the descriptors of an answer to its receiver, and each answer passes here once.
    answer.descriptors.iter().map(|&number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// A temporary directory.
struct World(PathBuf);

impl World {
    fn new() -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cofferdam-bench-{}-{number}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<Json>>);

struct BenchHost(Arc<Log>);

impl HostApi for BenchHost {
    fn register_callsite(&self, _: RSlice<'_, u8>) -> u64 {
        1
    }

    fn enabled(&self, _: u64) -> bool {
        true
    }

    fn event(&self, _: u64, _: u64, fields: RSlice<'_, u8>) {
        let fields = serde_json::from_slice(fields.as_slice()).unwrap_or_default();
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(fields);
    }

    fn open_span(&self, _: u64, _: u64, _: RSlice<'_, u8>) -> u64 {
        1
    }

    fn record(&self, _: u64, _: RSlice<'_, u8>) {}

    fn close_span(&self, _: u64) {}

    fn request(&self, service: RStr<'_>, _: RSlice<'_, u8>) -> Reply {
        RResult::RErr(Failure::unsupported(service.as_str()))
    }
}
