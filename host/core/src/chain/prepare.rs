//! Calls that lead to a launch: `prepare` and `watch`.

use std::cell::LazyCell;
use std::os::fd::OwnedFd;

use cofferdam_plugin_model::{Container, LoggerReply, Method, PrepareReply, Stream};

use super::sequence::CallSequence;
use super::types::{ChainError, ContainerContext, Participant, PreparedLaunch, StdioTarget, Watch};
use super::{Chain, encode};
use crate::blocking::Job;
use crate::plugin::{Plugin, Response};

impl Chain {
    /// Calls `prepare` of each plugin and merges what they request.
    ///
    /// # Errors
    /// The first failure of a required plugin, or a conflict between two.
    pub fn prepare(
        &self,
        job: &Job,
        container: &Container,
        sequence: &CallSequence<PreparedLaunch>,
    ) -> Result<(), ChainError> {
        const METHOD: Method = Method::Prepare;
        let request = LazyCell::new(|| serde_json::to_vec(container).unwrap_or_default());
        let id = container.id.as_str();
        let call = |plugin: &Plugin, _: &Participant| {
            plugin.call_encoded(job, &*self.recoverer, METHOD, id, &request, &[])
        };
        self.call_each(job, METHOD, sequence, call, |launch, plugin, participant, response| {
            let is_logger = self.logger.as_ref().is_some_and(|logger| logger.name() == plugin.name());
            if is_logger {
                let mut reply: LoggerReply = plugin.decode(METHOD, &response)?;
                let environment = std::mem::take(&mut reply.environment);
                launch.plan.merge_environment(plugin.name(), environment, std::iter::empty())?;
                launch.log_files = reply.files.take();
                if let Some(state) = reply.state.clone() {
                    participant.state = state;
                }
                launch.stdio = stdio_targets(plugin.name(), reply, response)?;
            } else {
                let reply: PrepareReply = plugin.decode(METHOD, &response)?;
                if let Some(state) = reply.state {
                    participant.state = state;
                }
                let (first, count) = (launch.descriptors.len(), response.descriptors.len());
                let secrets = reply.launch.secret_environment.clone();
                launch.plan.merge(plugin.name(), reply.launch, first, count)?;
                launch.descriptors.extend(response.descriptors);
                launch.secrets.extend(secrets);
            }
            Ok(())
        })
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
            let request = encode(&container.details_for(participant));
            plugin.call_encoded(job, &*self.recoverer, Method::Watch, id, &request, &[])
        };
        self.call_each(job, Method::Watch, sequence, call, |watches, plugin, _, mut response| {
            let plugin = plugin.name().to_string();
            watches.extend(response.descriptors.pop().map(|descriptor| Watch { plugin, descriptor }));
            Ok(())
        })
    }
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
