//! Calls that lead to a launch: `prepare` and `watch`.

use std::cell::RefCell;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_plugin_model::{Container, LogTarget, LoggerReply, Method, Parent, PrepareReply, Stream};
use rustix::event::epoll;
use rustix::io::Errno;
use serde_json::Value as Json;

use super::Chain;
use super::plan::Planned;
use super::sequence::CallSequence;
use super::stdio::{PassedOn, StdioTarget, UnnamedPipe};
use super::types::{ChainError, ContainerContext, Participant, PreparedLaunch, RunAs, Watch};
use crate::blocking::Job;
use crate::plugin::{CallError, Durability, Plugin, Recoverer, Response};

/// What a plugin is to the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Isolator,
    /// A logger that another one passes output on to.
    LogTarget,
    Logger,
}

/// Finds a user of a container.
pub type LookUpUser<'a> = dyn Fn(&str) -> Result<RunAs, Box<dyn Error + Send + Sync>> + 'a;

impl Chain {
    /// Calls `prepare` of each plugin and merges what they request. `look_up` finds a user that one of them requests.
    ///
    /// # Errors
    /// The first failure of a required plugin, or a conflict between two.
    pub fn prepare(
        &self,
        job: &Job,
        container: &Container,
        sequence: &CallSequence<PreparedLaunch>,
        look_up: &LookUpUser<'_>,
    ) -> Result<(), ChainError> {
        const METHOD: Method = Method::Prepare;
        let requests = RefCell::new(Requests { container, last: None });
        let call = |plugin: &Plugin, _: &Participant| {
            let planned = sequence.read(PreparedLaunch::planned);
            let log_targets = match self.role(plugin) {
                Role::Logger => sequence.read(|launch| launch.passed_on.targets.clone()),
                Role::Isolator | Role::LogTarget => Vec::new(),
            };
            let mut requests = requests.borrow_mut();
            let request = requests.encoded(&*self.recoverer, plugin, planned, log_targets)?;
            plugin.call_encoded(job, &*self.recoverer, METHOD, container.id.as_str(), request, &[])
        };
        self.call_each(job, METHOD, sequence, call, |launch, plugin, participant, response| {
            match self.role(plugin) {
                Role::Isolator => {
                    let mut reply: PrepareReply = plugin.decode(METHOD, &response)?;
                    self.keep_state(plugin, container, participant, reply.state.take())?;
                    if container.command.user.is_none() {
                        launch.user = requested_user(plugin, &reply, look_up)?.or(launch.user.take());
                    }
                    add_isolation(launch, plugin, reply, response)
                }
                role @ (Role::Logger | Role::LogTarget) => {
                    let mut reply: LoggerReply = plugin.decode(METHOD, &response)?;
                    self.keep_state(plugin, container, participant, reply.state.take())?;
                    add_logging(launch, plugin, role, reply, response)
                }
            }
        })
    }

    fn role(&self, plugin: &Plugin) -> Role {
        let is = |logger: &Arc<Plugin>| logger.name() == plugin.name();
        match &*self.loggers {
            [.., logger] if is(logger) => Role::Logger,
            [targets @ .., _] if targets.iter().any(is) => Role::LogTarget,
            _ => Role::Isolator,
        }
    }

    /// Keeps the state of a reply. It is written with the record of the first process.
    fn keep_state(
        &self,
        plugin: &Plugin,
        container: &Container,
        participant: &mut Participant,
        state: Option<Json>,
    ) -> Result<(), ChainError> {
        let Some(state) = state else { return Ok(()) };
        participant.state = state.clone();
        let id = container.id.as_str();
        let kept = self.recoverer.keep_state(plugin.name(), id, state, Durability::NextWrite);
        kept.map_err(|error| CallError::state(plugin.name(), Method::Prepare, &error).into())
    }

    /// Calls `watch` of each plugin.
    ///
    /// # Errors
    /// The first failure, unless the sequence is that of a running container.
    pub fn watch(
        &self,
        job: &Job,
        container: &ContainerContext,
        sequence: &CallSequence<Vec<Watch>>,
    ) -> Result<(), ChainError> {
        let id = container.id.as_str();
        let call = |plugin: &Plugin, participant: &Participant| {
            let request = plugin.encode(Method::Watch, &container.details_for(participant))?;
            plugin.call_encoded(job, &*self.recoverer, Method::Watch, id, &request, &[])
        };
        self.call_each(job, Method::Watch, sequence, call, |watches, plugin, _, mut response| {
            let Some(descriptor) = response.descriptors.pop() else { return Ok(()) };
            check_pollable(&descriptor).map_err(|error| {
                let reason =
                    format!("its descriptor cannot be polled (a regular file, for example): {error}");
                CallError::Malformed { plugin: plugin.name().to_string(), method: Method::Watch, reason }
            })?;
            watches.push(Watch { plugin: plugin.name().to_string(), descriptor });
            Ok(())
        })
    }
}

/// Checks that epoll accepts a descriptor. A watch that cannot be polled would never report a limitation. That the kernel watches
/// no more descriptors for now is no fault of the plugin.
fn check_pollable(descriptor: &OwnedFd) -> rustix::io::Result<()> {
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&instance, descriptor, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
        Err(Errno::NOSPC | Errno::NOMEM) => Ok(()),
        added => added,
    }
}

/// The requests of one sequence of calls. Most are the same: one is encoded again only for a nested container, when plugins
/// have added to it, and with the targets of a logger.
struct Requests<'c> {
    container: &'c Container,
    /// What was planned when the last one was encoded.
    last: Option<(Planned, Vec<u8>)>,
}

impl Requests<'_> {
    fn encoded(
        &mut self,
        recoverer: &dyn Recoverer,
        plugin: &Plugin,
        planned: Planned,
        log_targets: Vec<LogTarget>,
    ) -> Result<&[u8], CallError> {
        let container = self.container;
        let is_reusable = container.parent.is_none() && log_targets.is_empty();
        let last = self.last.take().filter(|(same, _)| is_reusable && *same == planned);
        let last = match last {
            Some(last) => last,
            None => {
                // Each plugin is told its own state for the parent.
                let parent = container.parent.as_ref().map(|parent| Parent {
                    state: recoverer.state(plugin.name(), &parent.id),
                    ..parent.clone()
                });
                let (uid, gid) = planned.user.unwrap_or((container.uid, container.gid));
                let container = Container {
                    parent,
                    uid,
                    gid,
                    bounding_capabilities: planned.bounding_capabilities.clone(),
                    sandbox_path: planned.sandbox_path.clone(),
                    log_targets,
                    ..container.clone()
                };
                (planned, plugin.encode(Method::Prepare, &container)?)
            }
        };
        Ok(&self.last.insert(last).1)
    }
}

/// Finds the user that a plugin requests, if it does.
fn requested_user(
    plugin: &Plugin,
    reply: &PrepareReply,
    look_up: &LookUpUser<'_>,
) -> Result<Option<RunAs>, ChainError> {
    let Some(user) = &reply.launch.user else { return Ok(None) };
    let found = look_up(user).map_err(|source| ChainError::User {
        plugin: plugin.name().to_string(),
        user: user.clone(),
        source,
    })?;
    Ok(Some(found))
}

/// Adds what an isolator requests.
fn add_isolation(
    launch: &mut PreparedLaunch,
    plugin: &Plugin,
    reply: PrepareReply,
    response: Response,
) -> Result<(), ChainError> {
    let (first, count) = (launch.descriptors.len(), response.descriptors.len());
    let secrets = reply.launch.secret_environment.clone();
    launch.plan.merge(plugin.name(), reply.launch, first, count)?;
    launch.descriptors.extend(response.descriptors);
    launch.secrets.extend(secrets);
    Ok(())
}

/// Adds where a logger wants the output.
fn add_logging(
    launch: &mut PreparedLaunch,
    plugin: &Plugin,
    role: Role,
    mut reply: LoggerReply,
    response: Response,
) -> Result<(), ChainError> {
    let environment = std::mem::take(&mut reply.environment);
    launch.plan.merge_environment(plugin.name(), environment, std::iter::empty())?;
    let files = reply.files.take();
    let stdio = stdio_targets(plugin.name(), reply, response)?;
    if role == Role::LogTarget {
        let added = launch.passed_on.add(plugin.name(), stdio, files);
        return added.map_err(|UnnamedPipe| ChainError::LogPipe { logger: plugin.name().to_string() });
    }
    launch.log_files = files.or_else(|| launch.passed_on.files_behind(&stdio));
    launch.stdio = stdio;
    // The logger has opened what it needs of them.
    launch.passed_on = PassedOn::default();
    Ok(())
}

/// Resolves the streams of a logger's reply.
fn stdio_targets(
    logger: &str,
    reply: LoggerReply,
    response: Response,
) -> Result<[StdioTarget; 3], ChainError> {
    let count = response.descriptors.len();
    let mut descriptors: Vec<Option<OwnedFd>> = response.descriptors.into_iter().map(Some).collect();
    let mut target = |stream: Stream| match stream {
        Stream::Null => Ok(StdioTarget::Null),
        Stream::Path { path } => Ok(StdioTarget::Path(path)),
        Stream::Descriptor { index } => {
            let descriptor = descriptors.get_mut(index).and_then(Option::take);
            descriptor.map(StdioTarget::Descriptor).ok_or_else(|| ChainError::Descriptor {
                logger: logger.to_owned(),
                index,
                count,
            })
        }
        _ => Err(ChainError::Stream { logger: logger.to_owned() }),
    };
    Ok([target(reply.stdin)?, target(reply.stdout)?, target(reply.stderr)?])
}
