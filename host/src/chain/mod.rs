//! The chain: all isolators in the operator's order, and the logger, as one thing to call.
//!
//! ```text
//! prepare     one after the other, in order; the first failure stops it
//! watch       one after the other, in order; the first failure stops a launch
//! isolate     all at once; waits until every one that was started has ended
//! update      one after the other; when one fails, those before it are told to go back
//! usage       all at once; what fails is left out and named
//! cleanup     one after the other, in reverse; a failure never costs the others their turn
//! ```
//!
//! Whatever fails, undoing it is not done here: the container is then destroyed, and `cleanup` comes.

mod plan;
mod round;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cofferdam_plugin_model::{
    Container, ContainerId, Limitation, LoggerReply, Method, PrepareReply, Resources, Status, Stream,
    Subject, UpdateReply, UpdateRequest, Usage,
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::{FailPolicy, default_deadline};
use crate::errand::{Abandoned, Errand, Errands};
use crate::plugin::{CallError, Plugin, Reaction, Recoverer};

pub use plan::{Conflict, LaunchPlan, Owned};
pub use round::{Brought, Round};

/// All plugins of an agent, in the order in which they are asked.
#[derive(Clone)]
pub struct Chain {
    isolators: Arc<[Arc<Plugin>]>,
    logger: Option<Arc<Plugin>>,
    errands: Errands,
    recoverer: Arc<dyn Recoverer>,
}

/// What a plugin has to do with a container; kept in the container's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Party {
    /// The plugin.
    pub plugin: String,
    /// The version that wrote the state.
    pub version: semver::Version,
    /// What it keeps for the container.
    #[serde(default)]
    pub state: Json,
    /// Why it does not serve the container, if it does not.
    #[serde(default)]
    pub absent: Option<String>,
    /// Whether the container was launched without it: then it will never serve it, and only cleans up.
    #[serde(default)]
    pub left_out: bool,
}

/// What the plugins wish for a container that is to be.
#[derive(Debug, Default)]
pub struct Wishes {
    /// All but the next, merged.
    pub plan: LaunchPlan,
    /// Where input and output go.
    pub streams: [Outlet; 3],
}

/// One end of a container's input or output.
#[derive(Debug, Default)]
pub enum Outlet {
    /// `/dev/null`.
    #[default]
    Null,
    /// A file.
    Path(PathBuf),
    /// What the logger opened.
    Descriptor(OwnedFd),
}

/// A container as the chain has to know it for all calls after `prepare`.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its id.
    pub id: ContainerId,
    /// What every plugin is told of it; the state is each plugin's own.
    pub subject: Subject,
    /// The plugins that have to do with it.
    pub parties: Vec<Party>,
}

/// A descriptor that tells when a plugin wants to be asked for a limitation.
#[derive(Debug)]
pub struct Watch {
    /// Which plugin.
    pub plugin: String,
    /// Becomes readable.
    pub descriptor: OwnedFd,
}

/// Why the chain could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A plugin did not deliver.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Two plugins want different things.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A descriptor that the logger names did not come.
    #[error("logger `{logger}` names descriptor {index} and sent {sent}")]
    Descriptor {
        /// The logger.
        logger: String,
        /// Which.
        index: usize,
        /// How many came.
        sent: usize,
    },
    /// A newer logger wants something this agent cannot do.
    #[error("logger `{logger}` wants an output that this agent does not know; upgrade the agent")]
    Stream {
        /// The logger.
        logger: String,
    },
    /// An update failed half way and could not be taken back everywhere.
    #[error("{cause}; going back failed too: {}", .undo.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    HalfUpdated {
        /// Why it failed.
        cause: CallError,
        /// Who could not go back.
        undo: Vec<CallError>,
    },
}

/// What each plugin said, and who could not say anything.
#[derive(Debug, Default)]
pub struct Said<T> {
    /// By plugin, in the order of the chain.
    pub answers: Vec<(String, T)>,
    /// Who failed.
    pub failed: Vec<CallError>,
}

impl Chain {
    /// A chain of these plugins, in this order.
    #[must_use]
    pub fn new(
        isolators: Vec<Arc<Plugin>>,
        logger: Option<Arc<Plugin>>,
        errands: Errands,
        recoverer: Arc<dyn Recoverer>,
    ) -> Self {
        Self { isolators: isolators.into(), logger, errands, recoverer }
    }

    /// Every plugin, the logger last.
    pub fn plugins(&self) -> impl DoubleEndedIterator<Item = &Arc<Plugin>> {
        self.isolators.iter().chain(&self.logger)
    }

    /// Whether there is any isolator.
    #[must_use]
    pub fn has_isolators(&self) -> bool {
        !self.isolators.is_empty()
    }

    /// The plugin of that name.
    #[must_use]
    pub fn plugin(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.plugins().find(|plugin| &**plugin.name() == name)
    }

    /// The parties of a container that is to be: every plugin that takes part in such a container. They are
    /// on record before the first is asked, because whoever may have been asked must be asked to clean up.
    #[must_use]
    pub fn parties(&self, container: &Container) -> Vec<Party> {
        let takes_part = |plugin: &&Arc<Plugin>| {
            let manifest = plugin.manifest();
            (!container.id.is_nested() || manifest.nesting) && (!container.standalone || manifest.standalone)
        };
        self.plugins()
            .filter(takes_part)
            .map(|plugin| Party {
                plugin: plugin.name().to_string(),
                version: plugin.manifest().version.clone(),
                state: Json::Null,
                absent: None,
                left_out: false,
            })
            .collect()
    }

    /// Asks each plugin in turn what the launch needs, and the logger where the output goes.
    ///
    /// # Errors
    /// The first plugin that says no, or two that contradict each other.
    pub fn prepare(
        &self,
        errand: &Errand,
        container: &Container,
        round: &Round<Wishes>,
    ) -> Result<(), ChainError> {
        const METHOD: Method = Method::Prepare;
        let request = LazyCell::new(|| serde_json::to_vec(container).unwrap_or_default());
        let id = container.id.as_str();
        let ask =
            |plugin: &Plugin, _: &Party| plugin.call_raw(errand, &*self.recoverer, METHOD, id, &request, &[]);
        self.go_round(errand, METHOD, round, ask, |wishes, plugin, party, reaction| {
            let is_logger = self.logger.as_ref().is_some_and(|logger| logger.name() == plugin.name());
            if is_logger {
                let reply: LoggerReply = plugin.read(METHOD, &reaction)?;
                party.state = reply.state.clone();
                wishes.streams = outlets(plugin.name(), reply, reaction)?;
            } else {
                let reply: PrepareReply = plugin.read(METHOD, &reaction)?;
                party.state = reply.state;
                wishes.plan.merge(plugin.name(), reply.launch)?;
            }
            Ok(())
        })
    }

    /// Asks each plugin in turn what to wait for.
    ///
    /// # Errors
    /// The first plugin that could not say, unless the round is that of a container that runs.
    pub fn watch(&self, errand: &Errand, case: &Case, round: &Round<Vec<Watch>>) -> Result<(), ChainError> {
        let id = case.id.as_str();
        let ask = |plugin: &Plugin, party: &Party| {
            plugin.call_raw(errand, &*self.recoverer, Method::Watch, id, &said_to(case, party), &[])
        };
        self.go_round(errand, Method::Watch, round, ask, |watches, plugin, _, mut reaction| {
            let plugin = plugin.name().to_string();
            watches.extend(reaction.descriptors.pop().map(|descriptor| Watch { plugin, descriptor }));
            Ok(())
        })
    }

    /// Whether any plugin wants to get hold of this container's first process.
    #[must_use]
    pub fn isolates(&self, parties: &[Party]) -> bool {
        parties.iter().any(|party| self.serves(party, Method::Isolate).is_some())
    }

    /// Makes an error of an errand that was left behind, and notes whose call was late.
    #[must_use]
    pub fn left_behind(&self, abandoned: Abandoned) -> ChainError {
        self.blame(abandoned).into()
    }

    /// Whether a launch can do without a plugin that failed: then it is absent from now on.
    ///
    /// # Errors
    /// Its error, if the launch cannot.
    pub fn do_without(&self, error: &CallError, parties: &mut [Party]) -> Result<(), ChainError> {
        let party = parties.iter_mut().find(|party| party.plugin == error.plugin());
        let Some(party) = party.filter(|_| self.is_optional(error.plugin())) else {
            return Err(error.clone().into());
        };
        tracing::warn!(plugin = party.plugin, "the container runs without it: {error}");
        party.absent = Some(error.to_string());
        party.left_out = true;
        Ok(())
    }

    fn is_optional(&self, plugin: &str) -> bool {
        self.plugin(plugin).is_some_and(|plugin| plugin.policy() == FailPolicy::Optional)
    }

    /// Lets every isolator get hold of the first process, and waits for all of them. Answers who failed.
    pub async fn isolate(&self, case: &Case, process: BorrowedFd<'_>) -> Vec<CallError> {
        let said: Said<()> = self.each(case, Method::Isolate, Some(process)).await;
        said.failed
    }

    /// Asks one plugin which limit was reached.
    ///
    /// # Errors
    /// When it did not deliver.
    pub async fn limitation(
        &self,
        case: &Case,
        plugin: &str,
        watch: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Limitation>, ChainError> {
        let Some((plugin, request)) =
            self.calls(case, Method::Limitation).into_iter().find(|(known, _)| &**known.name() == plugin)
        else {
            return Ok(None);
        };
        let recoverer = Arc::clone(&self.recoverer);
        let id = case.id.clone();
        let watch = watch.and_then(|watch| watch.try_clone_to_owned().ok());
        self.errand(Method::Limitation, move |errand| {
            let descriptors: Vec<BorrowedFd<'_>> = watch.iter().map(AsFd::as_fd).collect();
            let reaction = plugin.call_raw(
                errand,
                &*recoverer,
                Method::Limitation,
                id.as_str(),
                &request,
                &descriptors,
            )?;
            if reaction.payload.is_empty() {
                return Ok(None);
            }
            Ok(Some(plugin.read(Method::Limitation, &reaction)?))
        })
        .await?
    }

    /// Asks every plugin that can tell whether a limit was reached, as steps of an errand whose patience is
    /// [`Chain::patience_down`], and answers the first that was.
    pub fn limitations(&self, errand: &Errand, case: &Case) -> Option<Limitation> {
        let id = case.id.as_str();
        for (plugin, request) in self.calls(case, Method::Limitation) {
            let asked = plugin
                .call_raw(errand, &*self.recoverer, Method::Limitation, id, &request, &[])
                .and_then(|reaction| plugin.read::<Option<Limitation>>(Method::Limitation, &reaction));
            match asked {
                Ok(None) => {}
                Ok(reached) => return reached,
                Err(error) => {
                    tracing::warn!(container = id, "cannot tell whether a limit was reached: {error}");
                }
            }
        }
        None
    }

    /// Changes what a container may use. When a plugin says no, those before it are told to go back.
    ///
    /// Answers the states that changed, by plugin.
    ///
    /// # Errors
    /// The plugin that said no.
    pub async fn update(
        &self,
        case: &Case,
        from: Resources,
        to: Resources,
    ) -> Result<BTreeMap<String, Json>, ChainError> {
        let plugins = self.subjects(case, Method::Update);
        if plugins.is_empty() {
            return Ok(BTreeMap::new());
        }
        // How many have accepted; whoever waits must know when one of them is late.
        let done = Arc::new(AtomicUsize::new(0));
        let (recoverer, id) = (Arc::clone(&self.recoverer), case.id.clone());
        let (asked, accepted) = (plugins.clone(), Arc::clone(&done));
        let outcome = self
            .errand(Method::Update, move |errand| {
                let mut states = BTreeMap::new();
                for (plugin, subject) in &asked {
                    let reply = update(errand, &*recoverer, &id, plugin, subject, &to)?;
                    if let Some(state) = reply.state {
                        states.insert(plugin.name().to_string(), state);
                    }
                    accepted.fetch_add(1, Ordering::Release);
                }
                Ok(states)
            })
            .await;
        let done = done.load(Ordering::Acquire);
        let (cause, concerned) = match outcome {
            Ok(Ok(states)) => return Ok(states),
            // The one that failed may have done half of it.
            Ok(Err(cause)) => (cause, plugins.into_iter().take(done + 1)),
            // The one that was late is still at it, and one container's calls follow each other.
            Err(late) => (late, plugins.into_iter().take(done)),
        };
        let (recoverer, id) = (Arc::clone(&self.recoverer), case.id.clone());
        let going_back: Vec<_> = concerned.rev().collect();
        let undo = self
            .errand(Method::Update, move |errand| {
                let back = going_back.iter().filter_map(|(plugin, subject)| {
                    update(errand, &*recoverer, &id, plugin, subject, &from).err()
                });
                back.collect::<Vec<CallError>>()
            })
            .await
            .unwrap_or_else(|late| vec![late]);
        Err(if undo.is_empty() { cause.into() } else { ChainError::HalfUpdated { cause, undo } })
    }

    /// Asks every isolator what the container uses.
    pub async fn usage(&self, case: &Case) -> Said<Usage> {
        self.each(case, Method::Usage, None).await
    }

    /// Asks every isolator how the container is.
    pub async fn status(&self, case: &Case) -> Said<Status> {
        self.each(case, Method::Status, None).await
    }

    /// Undoes everything, last first, as steps of an errand whose patience is [`Chain::patience_down`]. Answers
    /// who could not; they are to be asked again. Those in `late` are not asked this time.
    pub fn cleanup(&self, errand: &Errand, case: &Case, late: &BTreeSet<String>) -> Vec<CallError> {
        let (dispensable, missing): (Vec<_>, Vec<_>) = case
            .parties
            .iter()
            .filter(|party| self.plugin(&party.plugin).is_none())
            .partition(|party| party.left_out);
        for party in dispensable {
            // It failed, the container did without, and the operator took it out.
            tracing::warn!(container = %case.id, plugin = party.plugin, "is not there to clean up after itself");
        }
        let mut failed: Vec<CallError> = missing
            .into_iter()
            .map(|party| CallError::Unwell {
                plugin: party.plugin.clone(),
                method: Method::Cleanup,
                state: "not in the chain",
                reason: "it prepared this container and must clean up after it; add it to the configuration \
                         and restart the agent"
                    .into(),
            })
            .collect();
        for (plugin, request) in self.calls(case, Method::Cleanup).into_iter().rev() {
            if late.contains(&**plugin.name()) {
                let reason = "did not answer a moment ago, and is asked again later".into();
                failed.push(CallError::Late { plugin: plugin.name().to_string(), reason });
                continue;
            }
            let id = case.id.as_str();
            let outcome = plugin.call_raw(errand, &*self.recoverer, Method::Cleanup, id, &request, &[]);
            failed.extend(outcome.err());
        }
        failed
    }

    /// The shortest deadline of any call on a container's way down.
    #[must_use]
    pub fn patience_down(&self) -> Duration {
        self.patience(Method::Cleanup).min(self.patience(Method::Limitation))
    }

    /// Tells every plugin what is there already. One that does not recover is out of service.
    pub async fn recover(&self) {
        for plugin in self.plugins() {
            let (guest, recoverer) = (Arc::clone(plugin), Arc::clone(&self.recoverer));
            let patience = plugin.patience(Method::Recover);
            let outcome = self.errands.run(patience, move |errand| guest.recover(errand, &*recoverer)).await;
            let reason = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(abandoned) => self.blame(abandoned).to_string(),
            };
            tracing::error!(plugin = %plugin.name(), "out of service, no container is harmed: {reason}");
            plugin.retire(format!("it did not recover: {reason}"));
        }
    }

    /// Makes one call to each party that has the method, all at once.
    async fn each<T>(&self, case: &Case, method: Method, descriptor: Option<BorrowedFd<'_>>) -> Said<T>
    where
        T: serde::de::DeserializeOwned + Default + Send + 'static,
    {
        let mut running = Vec::new();
        for (plugin, request) in self.calls(case, method) {
            let errands = self.errands.clone();
            let recoverer = Arc::clone(&self.recoverer);
            let id = case.id.clone();
            let name = plugin.name().to_string();
            let descriptor = descriptor.and_then(|descriptor| descriptor.try_clone_to_owned().ok());
            let patience = plugin.patience(method);
            let call = async move {
                errands
                    .run(patience, move |errand| {
                        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
                        plugin
                            .call_raw(errand, &*recoverer, method, id.as_str(), &request, &descriptors)
                            .and_then(|reaction| plugin.read(method, &reaction))
                    })
                    .await
            };
            running.push((name, tokio::spawn(call)));
        }
        let mut said = Said { answers: Vec::new(), failed: Vec::new() };
        for (name, call) in running {
            match call.await {
                Ok(Ok(Ok(answer))) => said.answers.push((name, answer)),
                Ok(Ok(Err(error))) => said.failed.push(error),
                Ok(Err(abandoned)) => said.failed.push(self.blame(abandoned)),
                Err(_) => said.failed.push(self.blame(Abandoned::Died)),
            }
        }
        said
    }

    /// The plugin of a party, if it serves the container and has the method.
    fn serves(&self, party: &Party, method: Method) -> Option<&Arc<Plugin>> {
        // Whoever was asked to prepare is asked to clean up, whatever came in between.
        let present = party.absent.is_none() || method == Method::Cleanup;
        self.plugin(&party.plugin).filter(|plugin| present && plugin.implements(method))
    }

    /// The parties of a case that have a method and serve it, with what each is to be told.
    fn subjects(&self, case: &Case, method: Method) -> Vec<(Arc<Plugin>, Subject)> {
        let parties = case.parties.iter();
        parties
            .filter_map(|party| Some((Arc::clone(self.serves(party, method)?), subject(case, party))))
            .collect()
    }

    fn calls(&self, case: &Case, method: Method) -> Vec<(Arc<Plugin>, Vec<u8>)> {
        let parties = case.parties.iter();
        parties
            .filter_map(|party| Some((Arc::clone(self.serves(party, method)?), said_to(case, party))))
            .collect()
    }

    /// Runs work with calls of one method, and says in words if one of them was late.
    async fn errand<T: Send + 'static>(
        &self,
        method: Method,
        work: impl FnOnce(&Errand) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.errands.run(self.patience(method), work).await.map_err(|abandoned| self.blame(abandoned))
    }

    /// The shortest patience of any plugin for a method.
    fn patience(&self, method: Method) -> Duration {
        self.plugins().map(|plugin| plugin.patience(method)).min().unwrap_or_else(|| default_deadline(method))
    }

    fn blame(&self, abandoned: Abandoned) -> CallError {
        let plugin = match &abandoned {
            Abandoned::Late(step) => {
                if let (Some(plugin), Some(method)) =
                    (self.plugin(&step.plugin), Method::from_name(step.method))
                {
                    plugin.was_late(method);
                    // Its instance is poisoned, and nobody knows when there is another.
                    if method == Method::Create {
                        plugin.retire(format!("it could not be made anew after a panic: {abandoned}"));
                    }
                }
                tracing::error!(plugin = %step.plugin, method = step.method, "{abandoned}; its thread is lost");
                step.plugin.to_string()
            }
            Abandoned::Died => "the agent".to_owned(),
        };
        CallError::Late { plugin, reason: abandoned.to_string() }
    }
}

/// A container as one of its parties is told of it.
fn subject(case: &Case, party: &Party) -> Subject {
    Subject { state: party.state.clone(), ..case.subject.clone() }
}

fn said_to(case: &Case, party: &Party) -> Vec<u8> {
    serde_json::to_vec(&subject(case, party)).unwrap_or_default()
}

fn update(
    errand: &Errand,
    recoverer: &dyn Recoverer,
    id: &ContainerId,
    plugin: &Plugin,
    subject: &Subject,
    resources: &Resources,
) -> Result<UpdateReply, CallError> {
    let request = UpdateRequest { subject: subject.clone(), resources: resources.clone() };
    plugin.call(errand, recoverer, Method::Update, id.as_str(), &request)
}

/// Makes of a logger's words what can be opened.
fn outlets(logger: &str, reply: LoggerReply, reaction: Reaction) -> Result<[Outlet; 3], ChainError> {
    let sent = reaction.descriptors.len();
    let mut descriptors: Vec<Option<OwnedFd>> = reaction.descriptors.into_iter().map(Some).collect();
    let mut outlet = |stream: Stream| match stream {
        Stream::Null => Ok(Outlet::Null),
        Stream::Path { path } => Ok(Outlet::Path(path)),
        Stream::Descriptor { index } => {
            let descriptor = descriptors.get_mut(index).and_then(Option::take);
            descriptor.map(Outlet::Descriptor).ok_or_else(|| ChainError::Descriptor {
                logger: logger.to_owned(),
                index,
                sent,
            })
        }
        _ => Err(ChainError::Stream { logger: logger.to_owned() }),
    };
    Ok([outlet(reply.stdin)?, outlet(reply.stdout)?, outlet(reply.stderr)?])
}
