//! Calls to the participants of one container, one after the other.
//!
//! When a plugin times out or changes its thread, its job is lost, and with it everything on that thread's stack. So the progress of a
//! sequence is kept outside of the job, and another job continues it after the plugin that timed out, if the
//! container can do without that one.

use cofferdam_plugin_model::Method;
use parking_lot::Mutex;

use super::Chain;
use super::types::{ChainError, Participant};
use crate::blocking::Job;
use crate::plugin::{CallError, Plugin, Response};

/// Progress of a sequence of calls.
#[derive(Debug, Default)]
pub struct CallSequence<T> {
    state: Mutex<State<T>>,
    /// Whether any plugin may fail: a running container does not end because a plugin fails.
    tolerant: bool,
}

#[derive(Debug, Default)]
struct State<T> {
    participants: Vec<Participant>,
    /// Index of the participant that is called next.
    next: usize,
    result: T,
    failed: Vec<CallError>,
}

/// What a sequence of calls led to.
#[derive(Debug)]
pub struct SequenceOutcome<T> {
    /// The participants, as they are after the calls.
    pub participants: Vec<Participant>,
    /// The combined replies.
    pub result: T,
    /// Failures of plugins that the sequence continued without.
    pub failed: Vec<CallError>,
}

impl<T: Default> CallSequence<T> {
    /// For a launch: the failure of a required plugin ends it.
    #[must_use]
    pub fn for_launch(participants: Vec<Participant>) -> Self {
        Self { state: Mutex::new(State { participants, ..State::default() }), tolerant: false }
    }

    /// For a running container: plugins that fail are skipped and reported.
    #[must_use]
    pub fn for_running(participants: Vec<Participant>) -> Self {
        Self { tolerant: true, ..Self::for_launch(participants) }
    }

    /// Reads the combined replies so far.
    pub(super) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.state.lock().result)
    }

    /// Takes the outcome, leaving the sequence empty.
    #[must_use]
    pub fn take(&self) -> SequenceOutcome<T> {
        let State { participants, result, failed, .. } = std::mem::take(&mut *self.state.lock());
        SequenceOutcome { participants, result, failed }
    }
}

impl Chain {
    /// Runs a job that consists of sequences. Whenever a plugin times out, `skip` decides whether the container
    /// can do without it; then the job runs again and its sequences continue where they were.
    ///
    /// # Errors
    /// Those of the job and of `skip`.
    pub async fn run_sequences<T, E>(
        &self,
        work: impl Fn(&Job) -> Result<T, E> + Clone + Send + 'static,
        skip: impl Fn(CallError) -> Result<(), E>,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let min_timeout = self.min_timeout(Method::Prepare).min(self.min_timeout(Method::Watch));
        loop {
            match self.pool.run(min_timeout, work.clone()).await {
                Ok(outcome) => return outcome,
                Err(abandoned) => skip(self.attribute(abandoned))?,
            }
        }
    }

    /// Continues a sequence after the current plugin, which timed out.
    ///
    /// # Errors
    /// The timeout, if the container cannot do without the plugin.
    pub fn skip_current<T: Default>(
        &self,
        sequence: &CallSequence<T>,
        error: CallError,
    ) -> Result<(), ChainError> {
        let mut state = sequence.state.lock();
        let current = state.participants.get(state.next);
        if current.is_some_and(|participant| participant.plugin == error.plugin()) {
            self.skip(sequence, &mut state, error)
        } else {
            Err(error.into())
        }
    }

    /// Calls each participant that serves the container and has the method, from the current one.
    ///
    /// # Errors
    /// The first failure that the container cannot do without, or that `accept` returns.
    pub(super) fn call_each<T: Default>(
        &self,
        job: &Job,
        method: Method,
        sequence: &CallSequence<T>,
        call: impl Fn(&Plugin, &Participant) -> Result<Response, CallError>,
        accept: impl Fn(&mut T, &Plugin, &mut Participant, Response) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        loop {
            let (plugin, participant) = {
                let mut state = sequence.state.lock();
                let Some(participant) = state.participants.get(state.next) else { return Ok(()) };
                match self.serving(participant, method) {
                    Some(plugin) => (plugin, participant.clone()),
                    None => {
                        state.next += 1;
                        continue;
                    }
                }
            };
            let response = call(plugin, &participant);
            if job.is_abandoned() {
                // Another job has continued the sequence.
                return Err(CallError::Cancelled { plugin: plugin.name().to_string(), method }.into());
            }
            let mut state = sequence.state.lock();
            let State { participants, next, result, .. } = &mut *state;
            let Some(participant) = participants.get_mut(*next) else { return Ok(()) };
            let accepted = response
                .map_err(ChainError::from)
                .and_then(|response| accept(result, plugin, participant, response));
            match accepted {
                Ok(()) => state.next += 1,
                Err(ChainError::Call(error)) => self.skip(sequence, &mut state, error)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn skip<T>(
        &self,
        sequence: &CallSequence<T>,
        state: &mut State<T>,
        error: CallError,
    ) -> Result<(), ChainError> {
        if !sequence.tolerant {
            self.exclude(&error, &mut state.participants)?;
        }
        state.failed.push(error);
        state.next += 1;
        Ok(())
    }
}
