//! Calls of a plugin that have not returned yet: at most one per container.
//!
//! A call waits for the one in progress about its container, unless that is late: a call that timed out continues on
//! its abandoned thread, and may never return. Until it does, other calls about its container fail, so that `cleanup`
//! does not run beside a late `prepare`, and calls of a hung plugin do not pile up.

use std::time::{Duration, Instant};

use cofferdam_plugin_model::Method;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::error::CallError;

/// Late calls of one plugin, each on a thread of its own, at which no further call is made.
const MAX_LATE: usize = 16;

/// The calls of one plugin that are in progress, by container.
#[derive(Default)]
pub(super) struct InFlight {
    /// Few enough to be searched one by one: each has a thread.
    calls: Mutex<Vec<Call>>,
    /// Wakes the threads that wait for a call to end.
    ended: Condvar,
    /// Wakes the tasks that wait for a call to end.
    ended_async: Notify,
}

struct Call {
    container: Box<str>,
    method: Method,
    since: Instant,
    timeout: Duration,
}

/// The right to call a plugin about a container, for as long as it is held.
pub(super) struct Claim<'a> {
    in_flight: &'a InFlight,
    container: &'a str,
}

impl InFlight {
    /// Claims a container for one call. Calls that are not about one container need no claim. Blocks while another
    /// call about the container is in progress, until that is late and for `timeout` at most.
    pub(super) fn claim<'a>(
        &'a self,
        plugin: &str,
        container: &'a str,
        method: Method,
        timeout: Duration,
    ) -> Result<Option<Claim<'a>>, CallError> {
        if container.is_empty() {
            return Ok(None);
        }
        let mut now = Instant::now();
        let latest = now + timeout;
        let mut calls = self.calls.lock();
        while let Some(call) = find(&calls, container) {
            let until = latest.min(call.since + call.timeout);
            if until <= now {
                return Err(CallError::Busy {
                    plugin: plugin.to_owned(),
                    method,
                    in_flight: call.method,
                    since: call.since.elapsed(),
                });
            }
            self.ended.wait_until(&mut calls, until);
            now = Instant::now();
        }
        // The count is only needed where it can be reached.
        if calls.len() >= MAX_LATE && late(&calls) >= MAX_LATE {
            return Err(CallError::Overloaded { plugin: plugin.to_owned(), method, late: late(&calls) });
        }
        calls.push(Call { container: container.into(), method, since: now, timeout });
        Ok(Some(Claim { in_flight: self, container }))
    }

    /// The calls in progress: the container, the method, and for how long.
    pub(super) fn list(&self) -> Vec<(Box<str>, Method, Duration)> {
        let calls = self.calls.lock();
        calls.iter().map(|call| (call.container.clone(), call.method, call.since.elapsed())).collect()
    }

    /// Waits until the plugin can be called about a container.
    pub(super) async fn claimable(&self, container: &str) {
        loop {
            let ended = self.ended_async.notified();
            tokio::pin!(ended);
            // Before the check, so that no end is missed.
            ended.as_mut().enable();
            let is_claimable = {
                let calls = self.calls.lock();
                find(&calls, container).is_none() && late(&calls) < MAX_LATE
            };
            if is_claimable {
                return;
            }
            ended.await;
        }
    }
}

fn find<'a>(calls: &'a [Call], container: &str) -> Option<&'a Call> {
    calls.iter().find(|call| *call.container == *container)
}

fn late(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.since.elapsed() > call.timeout).count()
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut calls = self.in_flight.calls.lock();
        if let Some(index) = calls.iter().position(|call| *call.container == *self.container) {
            calls.swap_remove(index);
        }
        drop(calls);
        self.in_flight.ended.notify_all();
        self.in_flight.ended_async.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_container_is_claimed_by_one_call_at_a_time() {
        let in_flight = InFlight::default();
        let claim = in_flight.claim("p", "web", Method::Prepare, Duration::ZERO).unwrap();
        let refused = in_flight.claim("p", "web", Method::Cleanup, TIMEOUT).err();
        assert!(matches!(refused, Some(CallError::Busy { in_flight: Method::Prepare, .. })), "{refused:?}");
        assert!(in_flight.claim("p", "other", Method::Cleanup, TIMEOUT).unwrap().is_some());
        let [(container, method, _)] = &in_flight.list()[..] else { panic!("{:?}", in_flight.list()) };
        assert_eq!((&**container, *method), ("web", Method::Prepare));
        let (claimable, ()) = tokio::join!(in_flight.claimable("web"), async { drop(claim) });
        let () = claimable;
        assert!(in_flight.claim("p", "web", Method::Cleanup, TIMEOUT).is_ok());
    }

    #[test]
    fn a_claim_waits_for_a_call_in_time() {
        let in_flight = InFlight::default();
        let claim = in_flight.claim("p", "web", Method::Limitation, TIMEOUT).unwrap();
        // Its own timeout bounds the wait.
        let refused = in_flight.claim("p", "web", Method::Usage, Duration::ZERO).err();
        assert!(matches!(refused, Some(CallError::Busy { .. })), "{refused:?}");
        std::thread::scope(|scope| {
            let waiting = scope
                .spawn(|| in_flight.claim("p", "web", Method::Cleanup, TIMEOUT).is_ok_and(|c| c.is_some()));
            drop(claim);
            assert!(waiting.join().unwrap());
        });
    }

    #[tokio::test]
    async fn late_calls_are_bounded_and_calls_in_time_are_not() {
        let in_flight = InFlight::default();
        let ids: Vec<String> = (0..=MAX_LATE).map(|n| format!("c{n}")).collect();
        let in_time: Vec<_> =
            ids.iter().map(|id| in_flight.claim("p", id, Method::Usage, TIMEOUT).unwrap()).collect();
        drop(in_time);
        let mut late: Vec<_> = ids[1..]
            .iter()
            .map(|id| in_flight.claim("p", id, Method::Usage, Duration::ZERO).unwrap())
            .collect();
        let refused = in_flight.claim("p", &ids[0], Method::Usage, TIMEOUT).err();
        assert!(matches!(refused, Some(CallError::Overloaded { late: MAX_LATE, .. })), "{refused:?}");
        let ((), ()) = tokio::join!(in_flight.claimable(&ids[0]), async { drop(late.pop()) });
        assert!(in_flight.claim("p", &ids[0], Method::Usage, TIMEOUT).is_ok());
    }
}
