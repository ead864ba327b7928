//! What happens to containers and plugins, for clients that want to know.
//!
//! Events are recorded where the state itself changes: in `ContainerHandle` for containers, in `Lifecycle` for plugins. All
//! subscribers read one list of the last [`KEPT`] events, each at its own pace. One that is too slow delays nobody; it learns how
//! many events it has missed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::model::{ContainerId, FetchProgress, Phase, PullProgress, Termination};

/// How many events are kept.
pub const KEPT: usize = 8192;

/// Bytes of a text that are kept.
const MAX_TEXT: usize = 1024;

/// How many texts of one event, and limited resources, are kept.
const MAX_PARTS: usize = 16;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number: one more than that of the event before it. The first event of an agent is number 0.
    pub sequence: u64,
    /// When it was recorded. Not monotonic, as the clock may be set.
    pub time: SystemTime,
    /// What has happened.
    pub kind: EventKind,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A container has entered a phase.
    PhaseChanged {
        /// The container.
        container: ContainerId,
        /// The phase before. `None` for one that is new to this agent: it is being launched, or was recovered.
        previous: Option<Phase>,
        /// The phase.
        phase: Phase,
        /// Pid of its first process in the agent's pid namespace, while there is one.
        pid: Option<i32>,
        /// How it ended, if it has.
        termination: Option<Termination>,
    },
    /// The resources of a container were updated.
    ResourcesUpdated {
        /// The container.
        container: ContainerId,
    },
    /// The cleanup of a container has failed, and is retried.
    CleanupFailed {
        /// The container.
        container: ContainerId,
        /// What prevents it, one sentence per step or plugin.
        errors: Vec<String>,
    },
    /// The image of a container is being pulled. Recorded when the image is known, and for each tenth of it.
    ImagePull {
        /// The container.
        container: ContainerId,
        /// How far the pull is.
        progress: PullProgress,
    },
    /// The files of a container are being fetched. Recorded at the beginning, and for each tenth of them or of a large one.
    Fetch {
        /// The container.
        container: ContainerId,
        /// How far the fetch is.
        progress: FetchProgress,
    },
    /// A container was removed, after its end or because its launch failed.
    Removed {
        /// The container.
        container: ContainerId,
    },
    /// The condition of a plugin has changed.
    Plugin {
        /// The plugin.
        plugin: Arc<str>,
        /// How it has changed.
        change: PluginChange,
        /// Why, or which version it is.
        message: String,
    },
}

/// How the condition of a plugin has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginChange {
    /// It was loaded.
    Loaded,
    /// It has panicked.
    Panicked,
    /// It has a new instance, which has recovered the plugin's containers.
    Restarted,
    /// It has panicked too often and is not called any more, except for `cleanup`.
    Quarantined,
    /// It could not be restarted, or did not recover, and is not called any more, except for `cleanup`.
    OutOfService,
}

/// The events of an agent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Mutex<List>,
    /// The number of the next event.
    next: watch::Sender<u64>,
}

/// The last events. Their numbers are consecutive.
#[derive(Debug)]
struct List {
    events: VecDeque<Arc<Event>>,
    next: u64,
    /// What has happened since is in the list.
    kept_since: SystemTime,
}

impl Default for Shared {
    fn default() -> Self {
        let list = List { events: VecDeque::new(), next: 0, kept_since: SystemTime::now() };
        Self { list: Mutex::new(list), next: watch::Sender::default() }
    }
}

impl Events {
    /// Records an event.
    pub(crate) fn record(&self, kind: EventKind) {
        let kind = bounded(kind);
        let mut list = self.0.list.lock();
        if list.events.len() == KEPT {
            let forgotten = list.events.pop_front().map(|event| event.time);
            list.kept_since = forgotten.map_or(list.kept_since, |time| list.kept_since.max(time));
        }
        let event = Event { sequence: list.next, time: SystemTime::now(), kind };
        list.events.push_back(Arc::new(event));
        list.next += 1;
        // While the list is locked, so that the numbers arrive in order.
        self.0.next.send_replace(list.next);
    }

    /// Subscribes to the events from now on, or to those since a time, as far as they are kept.
    #[must_use]
    pub fn subscribe(&self, since: Option<SystemTime>) -> Subscription {
        let list = self.0.list.lock();
        let kept = since.and_then(|since| list.events.iter().find(|event| event.time >= since));
        let next = kept.map_or(list.next, |event| event.sequence);
        let (shared, changed) = (Arc::clone(&self.0), self.0.next.subscribe());
        Subscription { shared, changed, next, kept_since: list.kept_since }
    }
}

/// A subscriber's place in the list of events.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    next: u64,
    kept_since: SystemTime,
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// The next event.
    Event(Arc<Event>),
    /// So many events were forgotten before the subscriber received them.
    Missed(u64),
}

impl Subscription {
    /// From when on the events were kept at the time of the subscription: since the start of the agent, or since the last one
    /// that was forgotten.
    #[must_use]
    pub const fn kept_since(&self) -> SystemTime {
        self.kept_since
    }

    /// What comes next, if it has happened already.
    pub fn try_next(&mut self) -> Option<Received> {
        let list = self.shared.list.lock();
        let first = list.events.front().map_or(list.next, |event| event.sequence);
        if self.next < first {
            let missed = first - self.next;
            self.next = first;
            return Some(Received::Missed(missed));
        }
        let index = usize::try_from(self.next - first).ok()?;
        let event = Arc::clone(list.events.get(index)?);
        self.next += 1;
        Some(Received::Event(event))
    }

    /// Waits for what comes next. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Received {
        loop {
            if let Some(received) = self.try_next() {
                return received;
            }
            let next = self.next;
            if self.changed.wait_for(|recorded| *recorded > next).await.is_err() {
                // Unreachable, as this subscription owns the sender as well.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// An event without texts that a container or a plugin has made long.
fn bounded(kind: EventKind) -> EventKind {
    match kind {
        EventKind::PhaseChanged { container, previous, phase, pid, termination } => {
            let bounded = |mut ended: Termination| {
                ended.message = ended.message.map(shortened);
                if ended.limited.len() > MAX_PARTS {
                    ended.limited.clear();
                }
                ended
            };
            let termination = termination.map(bounded);
            EventKind::PhaseChanged { container, previous, phase, pid, termination }
        }
        EventKind::CleanupFailed { container, errors } => {
            let errors = errors.into_iter().take(MAX_PARTS).map(shortened).collect();
            EventKind::CleanupFailed { container, errors }
        }
        EventKind::Plugin { plugin, change, message } => {
            EventKind::Plugin { plugin, change, message: shortened(message) }
        }
        kind @ (EventKind::ResourcesUpdated { .. }
        | EventKind::ImagePull { .. }
        | EventKind::Fetch { .. }
        | EventKind::Removed { .. }) => kind,
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(number: u64) -> ContainerId {
        ContainerId::parse(&format!("c{number}")).unwrap()
    }

    fn record(events: &Events, numbers: std::ops::Range<u64>) {
        for number in numbers {
            events.record(EventKind::Removed { container: id(number) });
        }
    }

    fn sequence(received: Option<Received>) -> u64 {
        match received {
            Some(Received::Event(event)) => event.sequence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn subscribers_receive_every_event_in_order() {
        let events = Events::default();
        record(&events, 0..2);
        let (mut all, mut new) = (events.subscribe(Some(SystemTime::UNIX_EPOCH)), events.subscribe(None));
        record(&events, 2..3);
        assert_eq!([0, 1, 2], [(); 3].map(|()| sequence(all.try_next())));
        assert_eq!((all.try_next(), sequence(new.try_next()), new.try_next()), (None, 2, None));
        let later = SystemTime::now() + Duration::from_secs(3600);
        let mut later = events.subscribe(Some(later));
        assert_eq!(later.try_next(), None);
        record(&events, 3..4);
        assert_eq!(sequence(later.try_next()), 3);
    }

    #[test]
    fn a_slow_subscriber_learns_how_many_events_it_has_missed() {
        let events = Events::default();
        let mut slow = events.subscribe(None);
        let kept = KEPT as u64;
        record(&events, 0..kept + 10);
        assert_eq!(slow.try_next(), Some(Received::Missed(10)));
        assert_eq!(sequence(slow.try_next()), 10);
        record(&events, 0..2);
        assert_eq!(slow.try_next(), Some(Received::Missed(1)));
        assert_eq!(sequence(slow.try_next()), 12);
        assert_eq!(events.0.list.lock().events.len(), KEPT);
    }

    #[test]
    fn a_subscriber_learns_from_when_on_events_are_kept() {
        let before = SystemTime::now();
        let events = Events::default();
        let start = events.subscribe(None).kept_since();
        assert!(before <= start && start <= SystemTime::now());
        record(&events, 0..KEPT as u64);
        assert_eq!(events.subscribe(None).kept_since(), start, "none was forgotten");
        let first = events.0.list.lock().events[0].time;
        record(&events, 0..1);
        assert_eq!(events.subscribe(Some(start)).kept_since(), first.max(start));
    }

    #[tokio::test]
    async fn a_subscriber_waits_for_the_next_event() {
        let events = Events::default();
        let mut subscription = events.subscribe(None);
        let waiting = tokio::spawn(async move { subscription.next().await });
        record(&events, 0..1);
        assert_eq!(sequence(Some(waiting.await.unwrap())), 0);
    }

    #[test]
    fn what_is_kept_of_one_event_is_bounded() {
        let events = Events::default();
        let mut subscription = events.subscribe(None);
        let errors = vec!["ä".repeat(1 << 20); 1000];
        events.record(EventKind::CleanupFailed { container: id(0), errors });
        let Some(Received::Event(event)) = subscription.try_next() else { panic!("no event") };
        let EventKind::CleanupFailed { errors, .. } = &event.kind else { panic!("{event:?}") };
        assert_eq!(errors.len(), MAX_PARTS);
        assert!(errors.iter().all(|error| error.len() <= MAX_TEXT + '…'.len_utf8()));
    }
}
