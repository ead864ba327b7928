//! Sends a plugin's `tracing` events and spans to the agent.
//!
//! A plugin has its own copy of `tracing`, without a subscriber. The subscriber that is set here registers each
//! callsite with the agent once, and then sends only its number and the fields. So the filter and the format of the
//! agent apply.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use abi_stable::std_types::RSlice;
use cofferdam_plugin_abi::HostBox;
use serde_json::{Map, Value, json};
use tracing_core::callsite::Identifier;
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Current, Id, Record};
use tracing_core::{Event, Interest, Level, Metadata, Subscriber, dispatcher};

/// Sends the events and spans of this plugin to `host`. If a process has several agents with this plugin, all events go
/// to the first that created an instance, because a library has one subscriber.
pub(crate) fn connect(host: Arc<HostBox>) {
    static CONNECTED: OnceLock<()> = OnceLock::new();
    CONNECTED.get_or_init(|| {
        let bridge =
            Bridge { host, callsites: RwLock::default(), spans: RwLock::default(), next: AtomicU64::new(1) };
        // A unit test may have set its own subscriber.
        let _ = dispatcher::set_global_default(dispatcher::Dispatch::new(bridge));
    });
}

thread_local! {
    /// The spans that this thread has entered, innermost last.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

struct Bridge {
    host: Arc<HostBox>,
    callsites: RwLock<HashMap<Identifier, u64>>,
    /// The open spans, by a number that is unique in this library and not zero, as `tracing` requires.
    spans: RwLock<HashMap<u64, Span>>,
    next: AtomicU64,
}

#[derive(Clone, Copy)]
struct Span {
    /// The number that the agent gave it; 0 if it is disabled.
    host: u64,
    metadata: &'static Metadata<'static>,
}

impl Bridge {
    fn callsite(&self, metadata: &'static Metadata<'static>) -> u64 {
        let known = self.callsites.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = known.get(&metadata.callsite()) {
            return number;
        }
        drop(known);
        let fields: Vec<&str> = metadata.fields().iter().map(|field| field.name()).collect();
        let description = json!({
            "level": level_number(*metadata.level()),
            "span": metadata.is_span(),
            "name": metadata.name(),
            "target": metadata.target(),
            "file": metadata.file(),
            "line": metadata.line(),
            "fields": fields,
        });
        let number = self.host.register_callsite(RSlice::from_slice(description.to_string().as_bytes()));
        self.callsites.write().unwrap_or_else(PoisonError::into_inner).insert(metadata.callsite(), number);
        number
    }

    /// The agent's number of the span that an event or span belongs to.
    fn parent(&self, explicit: Option<&Id>, is_root: bool) -> u64 {
        let span = match explicit {
            Some(id) => Some(id.into_u64()),
            None if is_root => None,
            None => ENTERED.with_borrow(|stack| stack.last().copied()),
        };
        span.and_then(|span| self.span(span)).map_or(0, |span| span.host)
    }

    fn span(&self, span: u64) -> Option<Span> {
        self.spans.read().unwrap_or_else(PoisonError::into_inner).get(&span).copied()
    }
}

impl Subscriber for Bridge {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The agent's filter may change at any time.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // A callsite is registered when its first event or span is sent. Until then the agent's filter for it is not
        // known here, so it is enabled; `event` checks again.
        let known = self.callsites.read().unwrap_or_else(PoisonError::into_inner);
        match known.get(&metadata.callsite()) {
            Some(&number) => self.host.enabled(number),
            None => true,
        }
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let metadata = attributes.metadata();
        let parent = self.parent(attributes.parent(), attributes.is_root());
        let fields = fields(|visitor| attributes.record(visitor));
        let host = self.host.open_span(self.callsite(metadata), parent, RSlice::from_slice(&fields));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.spans.write().unwrap_or_else(PoisonError::into_inner).insert(number, Span { host, metadata });
        Id::from_u64(number)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some(Span { host, .. }) = self.span(span.into_u64()) {
            let fields = fields(|visitor| values.record(visitor));
            self.host.record(host, RSlice::from_slice(&fields));
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let callsite = self.callsite(event.metadata());
        if !self.host.enabled(callsite) {
            return;
        }
        let span = self.parent(event.parent(), event.is_root());
        let fields = fields(|visitor| event.record(visitor));
        self.host.event(callsite, span, RSlice::from_slice(&fields));
    }

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|stack| stack.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        ENTERED.with_borrow_mut(|stack| {
            if let Some(at) = stack.iter().rposition(|&entered| entered == span.into_u64()) {
                stack.remove(at);
            }
        });
    }

    fn try_close(&self, span: Id) -> bool {
        let closed = self.spans.write().unwrap_or_else(PoisonError::into_inner).remove(&span.into_u64());
        if let Some(Span { host, .. }) = closed {
            self.host.close_span(host);
        }
        closed.is_some()
    }

    fn current_span(&self) -> Current {
        let entered = ENTERED.with_borrow(|stack| stack.last().copied());
        match entered.and_then(|number| Some((number, self.span(number)?))) {
            Some((number, span)) => Current::new(Id::from_u64(number), span.metadata),
            None => Current::none(),
        }
    }
}

/// 1 (error) to 5 (trace).
fn level_number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The fields as a JSON object.
fn fields(record: impl FnOnce(&mut dyn Visit)) -> Vec<u8> {
    let mut collected = Collected(Map::new());
    record(&mut collected);
    Value::Object(collected.0).to_string().into_bytes()
}

struct Collected(Map<String, Value>);

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}
