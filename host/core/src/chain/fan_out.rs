//! Calls to several plugins at once, and to a single one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cofferdam_plugin_model::{Limitation, Method, StateReply};
use serde::de::DeserializeOwned;

use super::Chain;
use super::types::{ChainError, ContainerContext, Participant, Responses};
use crate::blocking::{Abandoned, Job};
use crate::plugin::{CallError, Durability, Plugin};

impl Chain {
    /// Whether any plugin has an `isolate` to call for these participants.
    #[must_use]
    pub fn has_isolate(&self, participants: &[Participant]) -> bool {
        participants.iter().any(|participant| self.serving(participant, Method::Isolate).is_some())
    }

    /// Calls `isolate` of every plugin with the pidfd of the container's first process. Returns the failures, after
    /// all calls have ended.
    pub async fn isolate(&self, container: &ContainerContext, process: BorrowedFd<'_>) -> Vec<CallError> {
        let Responses { replies, mut failed } =
            self.call_all::<StateReply>(container, Method::Isolate, Some(process)).await;
        for (plugin, reply) in replies {
            let Some(state) = reply.state else { continue };
            // It is written when the command runs.
            let kept =
                self.recoverer.keep_state(&plugin, container.id.as_str(), state, Durability::NextWrite);
            failed.extend(kept.err().map(|error| CallError::state(&plugin, Method::Isolate, &error)));
        }
        failed
    }

    /// Whether a participant implements `removed`.
    #[must_use]
    pub fn observes_removal(&self, container: &ContainerContext) -> bool {
        !self.calls(container, Method::Removed).is_empty()
    }

    /// Calls `removed` of every participant, of a container whose sandbox is gone. Failures are logged only: what
    /// nobody asks for again is up to the plugin, which can release it in its next `recover`.
    pub async fn removed(&self, container: &ContainerContext) {
        let responses: Responses<()> = self.call_all(container, Method::Removed, None).await;
        for error in responses.failed {
            tracing::warn!(container = %container.id, "not told that the container is removed: {error}");
        }
    }

    /// Calls `limitation` of one plugin, with the descriptor of its `watch`.
    ///
    /// # Errors
    /// When the plugin failed.
    pub async fn limitation(
        &self,
        container: &ContainerContext,
        plugin: &str,
        watch: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Limitation>, ChainError> {
        const METHOD: Method = Method::Limitation;
        let mut calls = self.encoded_calls(container, METHOD).into_iter();
        let Some((plugin, request)) = calls.find(|(known, _)| &**known.name() == plugin) else {
            return Ok(None);
        };
        let request = request?;
        let recoverer = Arc::clone(&self.recoverer);
        let id = container.id.clone();
        let watch = duplicate(&plugin, METHOD, watch)?;
        self.run(METHOD, move |job| {
            let descriptors: Vec<BorrowedFd<'_>> = watch.iter().map(AsFd::as_fd).collect();
            let response =
                plugin.call_encoded(job, &*recoverer, METHOD, id.as_str(), &request, &descriptors)?;
            Ok(plugin.decode(METHOD, &response)?)
        })
        .await?
    }

    /// Calls `limitation` of every plugin, as steps of a job whose shortest timeout is
    /// [`Chain::teardown_timeout`]. Returns the first limitation.
    pub fn find_limitation(&self, job: &Job, container: &ContainerContext) -> Option<Limitation> {
        const METHOD: Method = Method::Limitation;
        let id = container.id.as_str();
        for (plugin, request) in self.encoded_calls(container, METHOD) {
            let reply = request
                .and_then(|request| plugin.call_encoded(job, &*self.recoverer, METHOD, id, &request, &[]))
                .and_then(|response| plugin.decode::<Option<Limitation>>(METHOD, &response));
            match reply {
                Ok(None) => {}
                Ok(limitation) => return limitation,
                Err(error) => {
                    tracing::warn!(container = id, "cannot tell whether a limit was exceeded: {error}");
                }
            }
        }
        None
    }

    /// Calls a method of each plugin that serves the container and has it, all at once.
    async fn call_all<T>(
        &self,
        container: &ContainerContext,
        method: Method,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Responses<T>
    where
        T: DeserializeOwned + Default + Send + 'static,
    {
        let mut responses = Responses { replies: Vec::new(), failed: Vec::new() };
        let mut running = Vec::new();
        for (plugin, request) in self.encoded_calls(container, method) {
            let arguments =
                request.and_then(|request| Ok((request, duplicate(&plugin, method, descriptor)?)));
            let (request, descriptor) = match arguments {
                Ok(arguments) => arguments,
                Err(error) => {
                    responses.failed.push(error);
                    continue;
                }
            };
            let pool = self.pool.clone();
            let recoverer = Arc::clone(&self.recoverer);
            let id = container.id.clone();
            let name = plugin.name().to_string();
            let min_timeout = plugin.min_timeout(method);
            let call = async move {
                pool.run(min_timeout, move |job| {
                    let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
                    plugin
                        .call_encoded(job, &*recoverer, method, id.as_str(), &request, &descriptors)
                        .and_then(|response| plugin.decode(method, &response))
                })
                .await
            };
            running.push((name, tokio::spawn(call)));
        }
        for (name, call) in running {
            match call.await {
                Ok(Ok(Ok(reply))) => responses.replies.push((name, reply)),
                Ok(Ok(Err(error))) => responses.failed.push(error),
                Ok(Err(abandoned)) => responses.failed.push(self.attribute(abandoned)),
                Err(_) => responses.failed.push(self.attribute(Abandoned::Died)),
            }
        }
        responses
    }
}

/// A descriptor of the request for a thread of its own.
fn duplicate(
    plugin: &Plugin,
    method: Method,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, CallError> {
    descriptor.map(|descriptor| descriptor.try_clone_to_owned()).transpose().map_err(|error| {
        let reason = format!("cannot duplicate its descriptor: {error}");
        CallError::Malformed { plugin: plugin.name().to_string(), method, reason }
    })
}
