//! The connection to the agent: the subscription, and the updates that are sent beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::environment::{Endpoint, Environment};
use crate::exchange::{Exchange, ExchangeError};
use crate::http::{self, HttpError, Part};
use crate::message::{Event, EventError, after};
use crate::record_io::{Decoder, RecordError};
use crate::session::Session;
use crate::updates::{Subscribe, Updates};

/// The most bytes of a refusal that are printed.
const MAX_REFUSAL: usize = 1024;

/// The pause before an update that could not be sent is sent again. It doubles with each failure, up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where requests go, and with what.
#[derive(Clone)]
pub(crate) struct Address {
    endpoint: Endpoint,
    token: Option<String>,
}

impl Address {
    /// Connects, to send a request with this body.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> io::Result<Exchange> {
        Exchange::open(&self.endpoint, http::post(path, self.token.as_deref(), body))
    }
}

/// The connection to the agent.
pub(crate) struct Agent {
    address: Address,
    framework_id: String,
    executor_id: String,
    session: Session,
    subscription: Option<Subscription>,
    update: Option<SentUpdate>,
    /// Set while the last update that was sent could not be.
    postponed: Option<Postponed>,
}

/// When updates are sent again.
#[derive(Clone, Copy)]
struct Postponed {
    until: Instant,
    pause: Duration,
}

struct Subscription {
    exchange: Exchange,
    is_accepted: bool,
    records: Decoder,
    refusal: Refusal,
}

/// An update whose answer has not come yet.
struct SentUpdate {
    exchange: Exchange,
    uuid: String,
    refusal: Refusal,
}

/// The response to a request that the agent has not accepted.
#[derive(Debug, Default)]
struct Refusal {
    status: Option<u16>,
    text: Vec<u8>,
}

/// Why the subscription was lost, or an update was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("cannot connect to the agent: {0}")]
    Connect(io::Error),
    #[error("the connection to the agent was lost: {0}")]
    Connection(#[from] ExchangeError),
    #[error("the connection to the agent was lost: {0}")]
    Http(#[from] HttpError),
    #[error("the agent has closed the connection")]
    Ended,
    #[error("the agent sent a subscription that is not valid: {0}")]
    Records(#[from] RecordError),
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the agent has answered with status {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("cannot encode a request: {0}")]
    Encode(#[from] serde_json::Error),
}

impl Lost {
    /// Whether the agent does not know the executor any more. While it recovers, it does not say so.
    fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. })
    }
}

/// What has come from the agent.
pub(crate) enum Notice {
    Event(Event),
    Lost(Lost),
    /// An update was not stored, and is sent again. The subscription is as it was.
    Postponed(Lost),
    /// It has refused an update for good.
    Refused(Lost),
}

#[derive(Serialize)]
struct Call<'c> {
    #[serde(rename = "type")]
    kind: &'static str,
    framework_id: Value<'c>,
    executor_id: Value<'c>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscribe: Option<Subscribe<'c>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<&'c RawValue>,
}

#[derive(Serialize)]
struct Value<'c> {
    value: &'c str,
}

impl Agent {
    pub(crate) fn new(environment: &Environment, now: Instant) -> Self {
        Self {
            address: Address { endpoint: environment.agent.clone(), token: environment.token.clone() },
            framework_id: environment.framework_id.clone(),
            executor_id: environment.executor_id.clone(),
            session: Session::new(environment.recovery, environment.backoff_max, now),
            subscription: None,
            update: None,
            postponed: None,
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Since when the executor is subscribed.
    pub(crate) fn subscribed_since(&self) -> Option<Instant> {
        self.session.subscribed_since()
    }

    /// Whether the agent did not come back in time.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.session.is_abandoned()
    }

    /// Whether an update can be sent now.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        self.update.is_none()
            && self.session.subscribed_since().is_some()
            && self.postponed.is_none_or(|postponed| postponed.until <= now)
    }

    /// When something is to be done without input.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let postponed = self.postponed.map(|postponed| postponed.until).filter(|until| *until > now);
        [self.session.deadline(), postponed].into_iter().flatten().min()
    }

    /// What to wait for.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let subscription = self.subscription.iter().map(|subscription| &subscription.exchange);
        let exchanges = subscription.chain(self.update.iter().map(|update| &update.exchange));
        exchanges.map(|exchange| (exchange.as_fd(), exchange.interest()))
    }

    /// Continues as far as possible without waiting.
    pub(crate) fn advance(&mut self, updates: &mut Updates, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Err(lost) = self.try_advance(updates, now, &mut notices) {
            self.subscription = None;
            self.update = None;
            self.postponed = None;
            if lost.is_final() {
                self.session.abandon();
            } else {
                self.session.lost(now, jitter());
            }
            notices.push(Notice::Lost(lost));
        }
        self.session.expire(now);
        notices
    }

    fn try_advance(
        &mut self,
        updates: &mut Updates,
        now: Instant,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Lost> {
        if self.session.begin_attempt(now) {
            let call = self.call("SUBSCRIBE", Some(updates.subscribe()), None)?;
            self.subscription = Some(Subscription {
                exchange: self.address.post("/api/v1/executor", &call).map_err(Lost::Connect)?,
                is_accepted: false,
                records: Decoder::default(),
                refusal: Refusal::default(),
            });
        }
        if let Some(subscription) = &mut self.subscription {
            subscription.advance(|event| {
                if matches!(event, Event::Subscribed(_)) {
                    self.session.subscribed(now);
                }
                notices.push(Notice::Event(event));
            })?;
        }
        self.advance_update(updates, now, notices);
        self.send_next(updates, now, notices)
    }

    /// Continues with the update that is being sent. Only the end of the subscription is a loss of the agent: one that has
    /// too much to do may refuse an update, or close its connection.
    fn advance_update(&mut self, updates: &mut Updates, now: Instant, notices: &mut Vec<Notice>) {
        let Some(update) = &mut self.update else { return };
        let Some(answer) = update.advance().transpose() else { return };
        let uuid = std::mem::take(&mut update.uuid);
        self.update = None;
        match answer {
            Ok(answer) => {
                self.postponed = None;
                if let Err(refused) = answer {
                    updates.acknowledged(&uuid);
                    notices.push(Notice::Refused(refused));
                }
            }
            Err(error) => {
                updates.unsent(&uuid);
                notices.push(self.postpone(error, now));
            }
        }
    }

    /// Sends the next update, if there is one and the agent has answered the one before.
    fn send_next(
        &mut self,
        updates: &mut Updates,
        now: Instant,
        notices: &mut Vec<Notice>,
    ) -> Result<(), Lost> {
        if !self.is_idle(now) {
            return Ok(());
        }
        let Some((uuid, body)) = updates.next() else { return Ok(()) };
        let call = self.call("UPDATE", None, Some(body))?;
        let uuid = uuid.to_owned();
        match self.address.post("/api/v1/executor", &call) {
            Ok(exchange) => {
                updates.sent(&uuid);
                self.update = Some(SentUpdate { exchange, uuid, refusal: Refusal::default() });
            }
            Err(error) => notices.push(self.postpone(Lost::Connect(error), now)),
        }
        Ok(())
    }

    /// Updates are sent again after a pause.
    fn postpone(&mut self, error: Lost, now: Instant) -> Notice {
        let last = self.postponed.map(|postponed| postponed.pause);
        let pause = last.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        // Executors that the agent has refused shall not all come at the same time.
        let jittered = pause / 2 + pause * u32::from(jitter()) / 512;
        self.postponed = Some(Postponed { until: after(now, jittered).unwrap_or(now), pause });
        Notice::Postponed(error)
    }

    fn call(
        &self,
        kind: &'static str,
        subscribe: Option<Subscribe<'_>>,
        update: Option<&RawValue>,
    ) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Call {
            kind,
            framework_id: Value { value: &self.framework_id },
            executor_id: Value { value: &self.executor_id },
            subscribe,
            update,
        })
    }
}

impl Subscription {
    /// Hands on events; fails when the subscription has ended.
    fn advance(&mut self, mut handle: impl FnMut(Event)) -> Result<(), Lost> {
        // What was received before the connection broke is handled first.
        let advanced = self.exchange.advance();
        while let Some(part) = self.exchange.next()? {
            match part {
                Part::Head(200) => self.is_accepted = true,
                Part::Head(status) => self.refusal.status = Some(status),
                Part::Data(data) if self.is_accepted => {
                    self.records.push(&data);
                    while let Some(record) = self.records.next()? {
                        handle(Event::parse(&record)?);
                    }
                }
                Part::Data(data) => self.refusal.push(&data),
                Part::End => return Err(self.refusal.take().unwrap_or(Lost::Ended)),
            }
        }
        Ok(advanced?)
    }
}

impl SentUpdate {
    /// The answer, if it has come; it is an error if the agent will never accept the update.
    fn advance(&mut self) -> Result<Option<Result<(), Lost>>, Lost> {
        let advanced = self.exchange.advance();
        while let Some(part) = self.exchange.next()? {
            match part {
                Part::Head(200..300) => return Ok(Some(Ok(()))),
                Part::Head(status) => self.refusal.status = Some(status),
                Part::Data(data) => self.refusal.push(&data),
                Part::End => {
                    return match self.refusal.take() {
                        // 408: it had too much to do to read the request.
                        Some(lost @ Lost::Refused { status: 408, .. }) => Err(lost),
                        Some(refused @ Lost::Refused { status: 400..500, .. }) => Ok(Some(Err(refused))),
                        lost => Err(lost.unwrap_or(Lost::Ended)),
                    };
                }
            }
        }
        advanced?;
        Ok(None)
    }
}

impl Refusal {
    fn push(&mut self, data: &[u8]) {
        let space = MAX_REFUSAL - self.text.len();
        self.text.extend_from_slice(&data[..data.len().min(space)]);
    }

    fn take(&mut self) -> Option<Lost> {
        let status = self.status.take()?;
        Some(Lost::Refused { status, message: String::from_utf8_lossy(&self.text).trim().to_owned() })
    }
}

/// A random number; 0 if there is none.
fn jitter() -> u8 {
    let mut random = [0];
    let _ = getrandom(&mut random, GetRandomFlags::NONBLOCK);
    random[0]
}
