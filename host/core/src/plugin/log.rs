//! What plugins say, in the agent's own log.
//!
//! `tracing` wants a static callsite for everything it is told. A plugin names each of its callsites
//! once; a matching one is leaked here (there are as many as there are log lines in the plugin's source),
//! under the target `plugin::<name>::<its own target>`, so filters and formats work as for our own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice, RStr, RVec};
use cofferdam_plugin_abi::{Answer, Failure, HostApi, HostBox, Reply};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use tracing::Span;
use tracing_core::callsite::{Callsite, Identifier};
use tracing_core::field::{DisplayValue, Field, FieldSet, Value, display};
use tracing_core::{Event, Interest, Kind, Level, Metadata, dispatcher, span};

use super::limits::{MAX_CALLSITES, MAX_LOG_TEXT, MAX_PAYLOAD, MAX_SPANS, cut};
use super::services::{ServiceError, Services};

/// How many fields of an event are kept; `tracing` takes them as an array.
const MOST_FIELDS: usize = 32;

/// The agent, as handed to one plugin.
pub fn host_for(plugin: &str, services: Arc<Services>) -> HostBox {
    HostBox::from_value(
        Host {
            plugin: plugin.to_owned(),
            services,
            callsites: AtomicUsize::new(0),
            spans: RwLock::default(),
        },
        TD_Opaque,
    )
}

struct Host {
    plugin: String,
    services: Arc<Services>,
    /// Number of callsites that it registered.
    callsites: AtomicUsize,
    /// The plugin's open spans: number − 1 is the place.
    spans: RwLock<Vec<Option<Span>>>,
}

#[derive(Deserialize)]
struct Description {
    level: u8,
    span: bool,
    name: String,
    target: String,
    file: Option<String>,
    line: Option<u32>,
    fields: Vec<String>,
}

struct Site {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Site {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        // It is set before the site is registered, and nobody can ask earlier.
        self.metadata.get().unwrap_or_else(|| unreachable!("a callsite without metadata"))
    }
}

/// Every callsite of every plugin; number − 1 is the place.
static SITES: RwLock<Vec<&'static Site>> = RwLock::new(Vec::new());

fn site(number: u64) -> Option<&'static Metadata<'static>> {
    let place = usize::try_from(number.checked_sub(1)?).ok()?;
    let site: &'static Site = SITES.read().get(place).copied()?;
    site.metadata.get()
}

fn is_enabled(metadata: &'static Metadata<'static>) -> bool {
    dispatcher::get_default(|dispatch| dispatch.enabled(metadata))
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn add_site(plugin: &str, description: Description) -> u64 {
    let level = match description.level {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let fields: Vec<&'static str> = description.fields.into_iter().take(MOST_FIELDS).map(leak).collect();
    let site: &'static Site = Box::leak(Box::new(Site { metadata: OnceLock::new() }));
    let metadata = Metadata::new(
        leak(description.name),
        leak(format!("plugin::{plugin}::{}", description.target)),
        level,
        description.file.map(leak),
        description.line,
        None,
        FieldSet::new(Box::leak(fields.into_boxed_slice()), Identifier(site)),
        if description.span { Kind::SPAN } else { Kind::EVENT },
    );
    // It was made a moment ago, so nobody has set it.
    let _ = site.metadata.set(metadata);
    tracing_core::callsite::register(site);
    let mut sites = SITES.write();
    sites.push(site);
    sites.len() as u64
}

/// Hands an object of fields to `tracing`, which wants an array of a fixed length.
fn with_fields<T>(
    metadata: &'static Metadata<'static>,
    fields: RSlice<'_, u8>,
    use_them: impl FnOnce(&tracing_core::field::ValueSet<'_>) -> T,
) -> T {
    let fields = if fields.len() > MAX_PAYLOAD { &[][..] } else { fields.as_slice() };
    let object: Map<String, Json> = serde_json::from_slice(fields).unwrap_or_default();
    let mut remaining = MAX_LOG_TEXT;
    let texts: Vec<(Field, DisplayValue<String>)> = object
        .into_iter()
        .filter_map(|(name, value)| {
            let field = metadata.fields().field(&name)?;
            let mut text = match value {
                Json::String(text) => text,
                other => other.to_string(),
            };
            cut(&mut text, remaining);
            remaining = remaining.saturating_sub(text.len());
            Some((field, display(text)))
        })
        .take(MOST_FIELDS)
        .collect();
    let Some(filler) = metadata.fields().iter().next() else {
        return use_them(&metadata.fields().value_set(&[]));
    };
    let mut values: [(&Field, Option<&dyn Value>); MOST_FIELDS] = [(&filler, None); MOST_FIELDS];
    for (place, (field, text)) in values.iter_mut().zip(&texts) {
        *place = (field, Some(text));
    }
    use_them(&metadata.fields().value_set(&values))
}

impl Host {
    fn span(&self, number: u64) -> Option<Span> {
        let place = usize::try_from(number.checked_sub(1)?).ok()?;
        self.spans.read().get(place)?.clone()
    }

    fn open(&self, callsite: u64, parent: u64, fields: RSlice<'_, u8>) -> u64 {
        // A plugin asks first, except for the very first span of a callsite.
        let Some(metadata) = site(callsite).filter(|&site| is_enabled(site)) else { return 0 };
        let span = with_fields(metadata, fields, |values| match self.span(parent) {
            Some(parent) => Span::child_of(parent.id(), metadata, values),
            None => Span::new(metadata, values),
        });
        let mut spans = self.spans.write();
        if spans.len() >= MAX_SPANS && spans.iter().all(Option::is_some) {
            return 0;
        }
        if let Some(free) = spans.iter().position(Option::is_none) {
            spans[free] = Some(span);
            return free as u64 + 1;
        }
        spans.push(Some(span));
        spans.len() as u64
    }

    fn emit(&self, callsite: u64, span: u64, fields: RSlice<'_, u8>) {
        let Some(metadata) = site(callsite) else { return };
        with_fields(metadata, fields, |values| match self.span(span) {
            // Entered, and not only named as the parent: some formats show what is entered.
            Some(span) => span.in_scope(|| Event::dispatch(metadata, values)),
            None => Event::dispatch(metadata, values),
        });
    }
}

/// Runs what a plugin asked for. A panic here must not unwind into the plugin, which would end the agent.
fn guarded<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(otherwise)
}

impl HostApi for Host {
    fn register_callsite(&self, description: RSlice<'_, u8>) -> u64 {
        guarded(0, || {
            if description.len() > MAX_LOG_TEXT {
                return 0;
            }
            let Ok(description) = serde_json::from_slice(description.as_slice()) else { return 0 };
            // Each one is leaked, so a plugin must not register them without end.
            if self.callsites.fetch_add(1, Ordering::Relaxed) >= MAX_CALLSITES {
                tracing::warn!(
                    plugin = self.plugin,
                    "log callsite ignored: the plugin has registered {MAX_CALLSITES}"
                );
                return 0;
            }
            add_site(&self.plugin, description)
        })
    }

    fn enabled(&self, callsite: u64) -> bool {
        guarded(false, || site(callsite).is_some_and(is_enabled))
    }

    fn event(&self, callsite: u64, span: u64, fields: RSlice<'_, u8>) {
        guarded((), || self.emit(callsite, span, fields));
    }

    fn open_span(&self, callsite: u64, parent: u64, fields: RSlice<'_, u8>) -> u64 {
        guarded(0, || self.open(callsite, parent, fields))
    }

    fn record(&self, number: u64, fields: RSlice<'_, u8>) {
        guarded((), || {
            let Some(span) = self.span(number) else { return };
            let Some(metadata) = span.metadata() else { return };
            with_fields(metadata, fields, |values| {
                span.with_subscriber(|(id, dispatch)| dispatch.record(id, &span::Record::new(values)));
            });
        });
    }

    fn close_span(&self, number: u64) {
        guarded((), || {
            let Some(place) = number.checked_sub(1).and_then(|place| usize::try_from(place).ok()) else {
                return;
            };
            let mut spans = self.spans.write();
            let closed = spans.get_mut(place).and_then(Option::take);
            drop(spans);
            drop(closed);
        });
    }

    fn request(&self, service: RStr<'_>, request: RSlice<'_, u8>) -> Reply {
        let failed = |code, message: String| RResult::RErr(Failure::new(code, message));
        if request.len() > MAX_PAYLOAD {
            let message = format!("a request of {} bytes; the limit is {MAX_PAYLOAD}", request.len());
            return failed(Failure::MALFORMED, message);
        }
        let call = || Some(self.services.call(&self.plugin, service.as_str(), request.as_slice()));
        match guarded(None, call) {
            Some(Ok(payload)) => RResult::ROk(Answer { payload: payload.into(), descriptors: RVec::new() }),
            Some(Err(ServiceError::Unknown)) => RResult::RErr(Failure::unsupported(service.as_str())),
            Some(Err(ServiceError::Malformed(message))) => failed(Failure::MALFORMED, message),
            Some(Err(ServiceError::Failed { reason, retryable })) => {
                RResult::RErr(Failure { retryable, ..Failure::new(Failure::FAILED, reason) })
            }
            None => {
                failed(Failure::FAILED, format!("service `{service}` panicked; this is a bug of the agent"))
            }
        }
    }
}
