//! A round: the parties of one container are asked one after the other, by an errand.
//!
//! When a plugin is late, its errand is lost, and with it everything that was on that thread. So what a round has
//! brought so far lies outside, and another errand goes on with it behind the plugin that was late, if the container
//! can do without that one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_plugin_model::Method;

use super::{Chain, ChainError, Party};
use crate::errand::Errand;
use crate::plugin::{CallError, Plugin, Reaction};

/// A round, as far as it has come.
#[derive(Debug, Default)]
pub struct Round<T> {
    state: Mutex<State<T>>,
    /// Whether anyone may fail: a container that runs is not ended because a plugin is not well.
    lenient: bool,
}

#[derive(Debug, Default)]
struct State<T> {
    parties: Vec<Party>,
    /// The place of the party that is asked next.
    next: usize,
    brought: T,
    failed: Vec<CallError>,
}

/// What a round has brought.
#[derive(Debug)]
pub struct Brought<T> {
    /// Those who were asked, with what became of them.
    pub parties: Vec<Party>,
    /// What they said.
    pub brought: T,
    /// Whom it went on without.
    pub failed: Vec<CallError>,
}

impl<T: Default> Round<T> {
    /// A round for a container that is being launched: it fails with the first who fails, unless the operator said
    /// that a container can do without that one.
    #[must_use]
    pub fn of_launch(parties: Vec<Party>) -> Self {
        Self { state: Mutex::new(State { parties, ..State::default() }), lenient: false }
    }

    /// A round for a container that runs: whoever fails is left out, and named.
    #[must_use]
    pub fn of_running(parties: Vec<Party>) -> Self {
        Self { lenient: true, ..Self::of_launch(parties) }
    }

    /// What it has brought. Nothing is left of it.
    #[must_use]
    pub fn take(&self) -> Brought<T> {
        let State { parties, brought, failed, .. } = std::mem::take(&mut *self.lock());
        Brought { parties, brought, failed }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chain {
    /// Does work that goes rounds. Whenever a plugin in it is late, `go_on` is told, and says whether it can do
    /// without: then the work is done again, and its rounds go on from where they were.
    ///
    /// # Errors
    /// Those of the work and of `go_on`.
    pub async fn rounds<T, E>(
        &self,
        work: impl Fn(&Errand) -> Result<T, E> + Clone + Send + 'static,
        go_on: impl Fn(ChainError) -> Result<(), E>,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let patience = self.patience(Method::Prepare).min(self.patience(Method::Watch));
        loop {
            match self.errands.run(patience, work.clone()).await {
                Ok(outcome) => return outcome,
                Err(abandoned) => go_on(self.left_behind(abandoned))?,
            }
        }
    }

    /// Goes on with a round behind the plugin in hand, which was late.
    ///
    /// # Errors
    /// That it was late, if the container cannot do without.
    pub fn go_on_without<T: Default>(&self, round: &Round<T>, late: ChainError) -> Result<(), ChainError> {
        let ChainError::Call(error) = late else { return Err(late) };
        let mut state = round.lock();
        let in_hand = state.parties.get(state.next).is_some_and(|party| party.plugin == error.plugin());
        if in_hand { self.pass_over(round, &mut state, error) } else { Err(error.into()) }
    }

    /// Asks each party that serves and has the method, from the one whose turn it is.
    ///
    /// # Errors
    /// The first that the container cannot do without, or that `take` refuses.
    pub(super) fn go_round<T: Default>(
        &self,
        errand: &Errand,
        method: Method,
        round: &Round<T>,
        ask: impl Fn(&Plugin, &Party) -> Result<Reaction, CallError>,
        take: impl Fn(&mut T, &Plugin, &mut Party, Reaction) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        loop {
            let (plugin, party) = {
                let mut state = round.lock();
                let Some(party) = state.parties.get(state.next) else { return Ok(()) };
                match self.serves(party, method) {
                    Some(plugin) => (plugin, party.clone()),
                    None => {
                        state.next += 1;
                        continue;
                    }
                }
            };
            let reaction = ask(plugin, &party);
            if errand.is_abandoned() {
                // Whoever waited has gone on with the round.
                return Err(CallError::NotBegun { plugin: plugin.name().to_string(), method }.into());
            }
            let mut state = round.lock();
            let State { parties, next, brought, .. } = &mut *state;
            let Some(party) = parties.get_mut(*next) else { return Ok(()) };
            let taken =
                reaction.map_err(ChainError::from).and_then(|said| take(brought, plugin, party, said));
            match taken {
                Ok(()) => state.next += 1,
                Err(ChainError::Call(error)) => self.pass_over(round, &mut state, error)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn pass_over<T>(
        &self,
        round: &Round<T>,
        state: &mut State<T>,
        error: CallError,
    ) -> Result<(), ChainError> {
        if !round.lenient {
            self.do_without(&error, &mut state.parties)?;
        }
        state.failed.push(error);
        state.next += 1;
        Ok(())
    }
}
