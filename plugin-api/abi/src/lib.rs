//! The binary boundary between the agent and its plugins.
//!
//! ```text
//!        agent                          boundary                         plugin
//!   chain, deadlines   ── Call, bytes ──▶ Isolator | Logger ──▶   bridge, panic guard   ──▶ author
//!                      ◀── Reply ───────                    ◀──
//!   log, services      ◀───────────────── HostApi ◀──────────    tracing bridge
//! ```
//!
//! Only bytes, numbers and descriptors cross, so that what is *said* can grow (see
//! `cofferdam-plugin-model`) while what is *here* stands still. This crate is append only:
//!
//! - no struct changes, no field is renamed, no method moves, `last_prefix_field` stays where it is;
//! - a new method goes to the end of its trait and has a body that answers [`Failure::UNSUPPORTED`];
//! - a new root function goes to the end of [`Module`];
//! - no feature flag, no type of another crate than `abi_stable`, a version of 1.0 or more.
//!
//! `abi_stable` compares both sides' layouts when a plugin is loaded. The agent accepts a plugin when
//! either side's layout contains the other's: an older plugin in a newer agent is as welcome as the reverse.

#![deny(missing_docs)]
// What the macros of abi_stable expand to; nothing else in the tree needs these.
#![allow(non_local_definitions, non_camel_case_types, clippy::undocumented_unsafe_blocks)]

use abi_stable::declare_root_module_statics;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RSlice, RStr, RString, RVec};
use abi_stable::{StableAbi, sabi_trait};

/// The version of the plugin API that this crate is, as a plugin's manifest states it.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// How a plugin's manifest names this boundary.
pub const ABI_NAME: &str = "abi_stable-0.11";

/// How a plugin's manifest names the way payloads are written.
pub const ENCODING: &str = "json";

/// The owner field of the ELF note that holds a plugin's manifest.
pub const NOTE_OWNER: &str = "Cofferdam";

/// The type field of that note.
pub const NOTE_TYPE: u32 = 1;

/// What every call carries besides its payload.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Call<'a> {
    /// The container's dotted id; empty where the call is not about one container.
    pub container: RStr<'a>,
    /// The host's span to log in; 0 for none.
    pub span: u64,
    /// A trace id for telemetry; zeros for none.
    pub trace: [u64; 2],
    /// When the host stops waiting, in milliseconds since the Unix epoch; 0 for never.
    pub deadline_unix_ms: u64,
    /// Descriptors that belong to the payload, borrowed for the length of the call.
    pub descriptors: RSlice<'a, i32>,
}

/// What a call brings back.
#[repr(C)]
#[derive(StableAbi)]
pub struct Answer {
    /// The answer, in the encoding of the manifest. Empty stands for the default of its type.
    pub payload: RVec<u8>,
    /// Descriptors that belong to it; the receiver owns them from now on.
    pub descriptors: RVec<i32>,
}

/// Why a call failed.
#[repr(C)]
#[derive(StableAbi)]
pub struct Failure {
    /// One of the constants of this type; an unknown one counts as [`Failure::FAILED`].
    pub code: u32,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// Sentences for people, one line per cause, outermost first.
    pub message: RString,
    /// Where a panic happened (`src/lib.rs:7`); otherwise empty.
    pub location: RString,
}

impl Failure {
    /// The plugin says no.
    pub const FAILED: u32 = 1;
    /// The plugin's code panicked; the instance must not be called again.
    pub const PANICKED: u32 = 2;
    /// An earlier call panicked, so this one was not made.
    pub const POISONED: u32 = 3;
    /// The other side does not have this method.
    pub const UNSUPPORTED: u32 = 4;
    /// The payload could not be read.
    pub const MALFORMED: u32 = 5;

    /// An answer for what this side does not have.
    #[must_use]
    pub fn unsupported(what: &str) -> Self {
        Self {
            code: Self::UNSUPPORTED,
            retryable: false,
            message: RString::from(format!("`{what}` is not part of this plugin")),
            location: RString::new(),
        }
    }
}

/// How every call ends.
pub type Reply = RResult<Answer, Failure>;

/// What the agent may ask of an isolator. Any thread may call, and calls for different containers may
/// overlap; calls for one container follow each other.
#[sabi_trait]
pub trait Isolator: Send + Sync {
    /// `RecoverRequest` → `RecoverReply`.
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Container` → `PrepareReply`.
    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → nothing; the first descriptor is a pidfd of the container's first process.
    fn isolate(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → nothing, with a descriptor to poll for reading, or none.
    fn watch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → `Limitation`, or nothing; the first descriptor is the one that `watch` gave.
    fn limitation(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `UpdateRequest` → `UpdateReply`.
    fn update(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → `Usage`.
    fn usage(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → `Status`.
    fn status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → nothing.
    #[sabi(last_prefix_field)]
    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
}

/// What the agent may ask of a container logger. The rules of [`Isolator`] hold here too.
#[sabi_trait]
pub trait Logger: Send + Sync {
    /// `RecoverRequest` → `RecoverReply`.
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Container` → `LoggerReply`, with the descriptors that it names.
    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Subject` → nothing.
    #[sabi(last_prefix_field)]
    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
}

/// What a plugin may ask of the agent. It never blocks and never unwinds.
#[sabi_trait]
pub trait HostApi: Send + Sync {
    /// Makes a log callsite known, once; answers its number. The description is JSON: `level` (1 error to
    /// 5 trace), `span` (whether it is a span), `name`, `target`, `file`, `line`, `fields`.
    fn register_callsite(&self, description: RSlice<'_, u8>) -> u64;
    /// Whether anybody listens to that callsite now.
    fn enabled(&self, callsite: u64) -> bool;
    /// Logs one event inside `span` (0: none). The fields are a JSON object.
    fn event(&self, callsite: u64, span: u64, fields: RSlice<'_, u8>);
    /// Opens a span inside `parent` (0: none); answers its number.
    fn open_span(&self, callsite: u64, parent: u64, fields: RSlice<'_, u8>) -> u64;
    /// Adds fields to a span.
    fn record(&self, span: u64, fields: RSlice<'_, u8>);
    /// Closes a span.
    fn close_span(&self, span: u64);
    /// Asks for a service by name. This agent's services are named by its documentation.
    #[sabi(last_prefix_field)]
    fn request(&self, service: RStr<'_>, payload: RSlice<'_, u8>) -> Reply;
}

/// The agent, as a plugin holds it.
pub type HostBox = HostApi_TO<'static, RBox<()>>;
/// An isolator, as the agent holds it.
pub type IsolatorBox = Isolator_TO<'static, RBox<()>>;
/// A logger, as the agent holds it.
pub type LoggerBox = Logger_TO<'static, RBox<()>>;

/// What a plugin file exports. A plugin is of one kind; the other function answers
/// [`Failure::UNSUPPORTED`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModuleRef)))]
#[sabi(missing_field(option))]
pub struct Module {
    /// Makes an isolator from a `CreateRequest`.
    pub new_isolator: extern "C" fn(HostBox, RSlice<'_, u8>) -> RResult<IsolatorBox, Failure>,
    /// Makes a logger from a `CreateRequest`.
    #[sabi(last_prefix_field)]
    pub new_logger: extern "C" fn(HostBox, RSlice<'_, u8>) -> RResult<LoggerBox, Failure>,
}

impl RootModule for ModuleRef {
    declare_root_module_statics! {ModuleRef}

    const BASE_NAME: &'static str = "cofferdam_plugin";
    const NAME: &'static str = "cofferdam_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
