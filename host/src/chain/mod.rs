//! The chain: all isolators in the operator's order, and the logger, as one thing to call.
//!
//! ```text
//! prepare     one after the other, in order; the first failure stops it
//! isolate     all at once; waits until every one that was started has ended
//! update      one after the other; when one fails, those before it are told to go back
//! usage       all at once; what fails is left out and named
//! cleanup     one after the other, in reverse; a failure never costs the others their turn
//! ```
//!
//! Whatever fails, undoing it is not done here: the container is then destroyed, and `cleanup` comes.

mod plan;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
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
}

/// What the chain made of a container that is to be.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The merged wishes.
    pub plan: LaunchPlan,
    /// The plugins that were asked, in order, the logger last.
    pub parties: Vec<Party>,
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
            })
            .collect()
    }

    /// Asks each plugin in turn what the launch needs, and the logger where the output goes; as steps of an
    /// errand whose patience is [`Chain::patience_up`].
    ///
    /// # Errors
    /// The first plugin that says no, or two that contradict each other.
    pub fn prepare(
        &self,
        errand: &Errand,
        container: &Container,
        mut parties: Vec<Party>,
    ) -> Result<Prepared, ChainError> {
        let request = serde_json::to_vec(container).unwrap_or_default();
        let id = container.id.as_str();
        let mut prepared = Prepared::default();
        for party in &mut parties {
            let Some(plugin) = self.plugin(&party.plugin).filter(|p| p.implements(Method::Prepare)) else {
                continue;
            };
            let outcome = plugin.call_raw(errand, &*self.recoverer, Method::Prepare, id, &request, &[]);
            let is_logger = self.logger.as_ref().is_some_and(|logger| Arc::ptr_eq(logger, plugin));
            let outcome = outcome.map_err(ChainError::from).and_then(|reaction| {
                if is_logger {
                    let reply: LoggerReply = plugin.read(Method::Prepare, &reaction)?;
                    party.state = reply.state.clone();
                    prepared.streams = outlets(plugin.name(), reply, reaction)?;
                } else {
                    let reply: PrepareReply = plugin.read(Method::Prepare, &reaction)?;
                    party.state = reply.state;
                    prepared.plan.merge(plugin.name(), reply.launch)?;
                }
                Ok(())
            });
            match (outcome, plugin.policy()) {
                (Ok(()), _) => {}
                (Err(ChainError::Call(error)), FailPolicy::Optional) => {
                    tracing::warn!(plugin = %plugin.name(), "the container runs without it: {error}");
                    party.absent = Some(error.to_string());
                }
                (Err(error), _) => return Err(error),
            }
        }
        prepared.parties = parties;
        Ok(prepared)
    }

    /// Asks what to wait for, as steps of an errand whose patience is [`Chain::patience_up`].
    ///
    /// # Errors
    /// The first plugin that says no.
    pub fn watch(&self, errand: &Errand, case: &Case) -> Result<Vec<Watch>, ChainError> {
        let mut watches = Vec::new();
        for (plugin, request) in self.calls(case, Method::Watch) {
            let reaction =
                plugin.call_raw(errand, &*self.recoverer, Method::Watch, case.id.as_str(), &request, &[]);
            let mut reaction = match (reaction, plugin.policy()) {
                (Ok(reaction), _) => reaction,
                (Err(error), FailPolicy::Optional) => {
                    tracing::warn!(plugin = %plugin.name(), "the container is not watched by it: {error}");
                    continue;
                }
                (Err(error), FailPolicy::Required) => return Err(error.into()),
            };
            if let Some(descriptor) = reaction.descriptors.pop() {
                watches.push(Watch { plugin: plugin.name().to_string(), descriptor });
            }
        }
        Ok(watches)
    }

    /// The shortest deadline of any call on a container's way up.
    #[must_use]
    pub fn patience_up(&self) -> Duration {
        self.patience(Method::Prepare).min(self.patience(Method::Watch))
    }

    /// Makes an error of an errand that was left behind, and notes whose call was late.
    #[must_use]
    pub fn left_behind(&self, abandoned: Abandoned) -> ChainError {
        self.blame(abandoned).into()
    }

    /// Lets every isolator get hold of the first process, and waits for all of them.
    ///
    /// # Errors
    /// The first plugin that said no, once all have ended.
    pub async fn isolate(&self, case: &Case, process: BorrowedFd<'_>) -> Result<(), ChainError> {
        let said: Said<()> = self.each(case, Method::Isolate, Some(process)).await;
        for error in said.failed {
            let optional = self.plugin(error.plugin()).is_some_and(|p| p.policy() == FailPolicy::Optional);
            if !optional {
                return Err(error.into());
            }
            tracing::warn!("the container runs without it: {error}");
        }
        Ok(())
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

    /// Asks every plugin that watches whether a limit was reached, and answers the first that was.
    pub async fn limitations(&self, case: &Case) -> Option<Limitation> {
        let said: Said<Option<Limitation>> = self.each(case, Method::Limitation, None).await;
        for error in said.failed {
            tracing::warn!(container = %case.id, "cannot tell whether a limit was reached: {error}");
        }
        said.answers.into_iter().find_map(|(_, limitation)| limitation)
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
        let plugins: Vec<(Arc<Plugin>, Subject)> = self.subjects(case, Method::Update);
        if plugins.is_empty() {
            return Ok(BTreeMap::new());
        }
        let recoverer = Arc::clone(&self.recoverer);
        let id = case.id.clone();
        self.errand(Method::Update, move |errand| {
            let update = |plugin: &Plugin, subject: &Subject, resources: &Resources| {
                let request = UpdateRequest { subject: subject.clone(), resources: resources.clone() };
                plugin.call::<UpdateReply>(errand, &*recoverer, Method::Update, id.as_str(), &request)
            };
            let mut states = BTreeMap::new();
            for (done, (plugin, subject)) in plugins.iter().enumerate() {
                match update(plugin, subject, &to) {
                    Ok(UpdateReply { state: Some(state) }) => {
                        states.insert(plugin.name().to_string(), state);
                    }
                    Ok(UpdateReply { state: None }) => {}
                    Err(cause) => {
                        // The one that failed may have done half of it.
                        let undo: Vec<CallError> = plugins[..=done]
                            .iter()
                            .rev()
                            .filter_map(|(plugin, subject)| update(plugin, subject, &from).err())
                            .collect();
                        return Err(if undo.is_empty() {
                            cause.into()
                        } else {
                            ChainError::HalfUpdated { cause, undo }
                        });
                    }
                }
            }
            Ok(states)
        })
        .await?
    }

    /// Asks every isolator what the container uses.
    pub async fn usage(&self, case: &Case) -> Said<Usage> {
        self.each(case, Method::Usage, None).await
    }

    /// Asks every isolator how the container is.
    pub async fn status(&self, case: &Case) -> Said<Status> {
        self.each(case, Method::Status, None).await
    }

    /// Undoes everything, last first. Answers who could not; they are to be asked again.
    pub async fn cleanup(&self, case: &Case) -> Vec<CallError> {
        let mut calls = self.subjects(case, Method::Cleanup);
        calls.reverse();
        let mut failed: Vec<CallError> = case
            .parties
            .iter()
            .filter(|party| self.plugin(&party.plugin).is_none())
            .map(|party| CallError::Unwell {
                plugin: party.plugin.clone(),
                method: Method::Cleanup,
                state: "not in the chain",
                reason: "it prepared this container and must clean up after it; add it to the configuration \
                         and restart the agent"
                    .into(),
            })
            .collect();
        // After a late call, the rest go on a new errand.
        while !calls.is_empty() {
            let recoverer = Arc::clone(&self.recoverer);
            let id = case.id.clone();
            let (tell, told) = std::sync::mpsc::channel();
            let batch = calls.clone();
            let outcome = self
                .errand(Method::Cleanup, move |errand| {
                    for (plugin, subject) in batch {
                        let request = serde_json::to_vec(&subject).unwrap_or_default();
                        let outcome = plugin
                            .call_raw(errand, &*recoverer, Method::Cleanup, id.as_str(), &request, &[])
                            .map(drop);
                        // The receiver is gone only when nobody waits any more.
                        drop(tell.send(outcome));
                    }
                })
                .await;
            let finished: Vec<_> = told.try_iter().collect();
            calls.drain(..finished.len().min(calls.len()));
            failed.extend(finished.into_iter().filter_map(Result::err));
            if let Err(error) = outcome {
                failed.push(error);
                if !calls.is_empty() {
                    calls.remove(0);
                }
            }
        }
        failed
    }

    /// Tells every plugin what is there already. One that does not recover is out of service.
    pub async fn recover(&self) {
        for plugin in self.plugins() {
            let (guest, recoverer) = (Arc::clone(plugin), Arc::clone(&self.recoverer));
            let patience = plugin.deadline(Method::Recover);
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
            let patience = plugin.deadline(method);
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

    /// The parties of a case that have a method and serve it, with what each is to be told.
    fn subjects(&self, case: &Case, method: Method) -> Vec<(Arc<Plugin>, Subject)> {
        case.parties
            .iter()
            // Whoever was asked to prepare is asked to clean up, whatever came in between.
            .filter(|party| party.absent.is_none() || method == Method::Cleanup)
            .filter_map(|party| {
                let plugin = self.plugin(&party.plugin).filter(|plugin| plugin.implements(method))?;
                let subject = Subject { state: party.state.clone(), ..case.subject.clone() };
                Some((Arc::clone(plugin), subject))
            })
            .collect()
    }

    fn calls(&self, case: &Case, method: Method) -> Vec<(Arc<Plugin>, Vec<u8>)> {
        let subjects = self.subjects(case, method).into_iter();
        subjects.map(|(plugin, subject)| (plugin, serde_json::to_vec(&subject).unwrap_or_default())).collect()
    }

    /// Runs work with calls of one method, and says in words if one of them was late.
    async fn errand<T: Send + 'static>(
        &self,
        method: Method,
        work: impl FnOnce(&Errand) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.errands.run(self.patience(method), work).await.map_err(|abandoned| self.blame(abandoned))
    }

    /// The shortest deadline of any plugin for a method.
    fn patience(&self, method: Method) -> Duration {
        self.plugins().map(|plugin| plugin.deadline(method)).min().unwrap_or_else(|| default_deadline(method))
    }

    fn blame(&self, abandoned: Abandoned) -> CallError {
        let plugin = match &abandoned {
            Abandoned::Late(step) => {
                if let (Some(plugin), Some(method)) =
                    (self.plugin(&step.plugin), Method::from_name(step.method))
                {
                    plugin.was_late(method);
                }
                tracing::error!(plugin = %step.plugin, method = step.method, "{abandoned}; its thread is lost");
                step.plugin.to_string()
            }
            Abandoned::Died => "the agent".to_owned(),
        };
        CallError::Late { plugin, reason: abandoned.to_string() }
    }
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
