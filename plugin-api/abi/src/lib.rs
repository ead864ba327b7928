//! The binary boundary between the agent and its plugins.
//!
//! ```text
//!        agent                          boundary                         plugin
//!   chain, deadlines   ── Call, bytes ──▶  Isolator | Logger  ──▶  bridge, panic guard   ──▶ author
//!   hooks              ◀── Reply ───────        | Hook         ◀──
//!   log, services      ◀───────────────── HostApi ◀──────────    tracing bridge
//! ```
//!
//! Only bytes, numbers and descriptors cross. Payloads (`cofferdam-plugin-model`) may grow; the types of this
//! crate are append-only from its first release:
//!
//! - structs do not change, fields are not renamed, methods keep their order, and `last_prefix_field` keeps its place;
//! - a new method is appended to its trait and has a default body that returns [`Failure::UNSUPPORTED`];
//! - a new root function is appended to [`Module`];
//! - there are no feature flags, no types of crates other than `abi_stable`, and the version is 1.0 or later.
//!
//! `abi_stable` compares the layouts of both sides when a plugin is loaded. The agent accepts a plugin if either
//! layout contains the other, so older plugins work in newer agents and vice versa.

#![deny(missing_docs)]
// Needed by the expansion of the macros of abi_stable only.
#![allow(non_local_definitions, non_camel_case_types, clippy::undocumented_unsafe_blocks)]

use abi_stable::declare_root_module_statics;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RSlice, RStr, RString, RVec};
use abi_stable::{StableAbi, sabi_trait};

/// Version of the plugin API, as stated in the manifest of a plugin.
pub const API_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name of this ABI in a manifest.
pub const ABI_NAME: &str = "abi_stable-0.11";

/// Name of the encoding of payloads in a manifest.
pub const ENCODING: &str = "json";

/// Owner field of the ELF note with the manifest.
pub const NOTE_OWNER: &str = "Cofferdam";

/// Type field of that note.
pub const NOTE_TYPE: u32 = 1;

/// Context of a call, in addition to its payload.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Call<'a> {
    /// Dotted id of the container; empty for calls that are not about one container.
    pub container: RStr<'a>,
    /// Span of the agent to log in; 0 for none.
    pub span: u64,
    /// Trace id for telemetry; zero for none.
    pub trace: [u64; 2],
    /// Deadline of the call in milliseconds since the Unix epoch; 0 for none.
    pub deadline_unix_ms: u64,
    /// Descriptors that belong to the payload, borrowed for the duration of the call.
    pub descriptors: RSlice<'a, i32>,
}

/// The reply to a successful call.
#[repr(C)]
#[derive(StableAbi)]
pub struct Answer {
    /// The reply, in the encoding that the manifest names. If empty, the reply is the default of its type.
    pub payload: RVec<u8>,
    /// Descriptors that the payload refers to by index; the receiver owns them.
    pub descriptors: RVec<i32>,
}

/// Why a call failed.
#[repr(C)]
#[derive(StableAbi)]
pub struct Failure {
    /// One of the constants of this type; an unknown code is treated as [`Failure::FAILED`].
    pub code: u32,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// Message for the operator: one line per cause, outermost first.
    pub message: RString,
    /// Location of a panic (`src/lib.rs:7`); empty otherwise.
    pub location: RString,
    /// A `StateReply`, in the encoding that the manifest names; empty if the state for the container is unchanged.
    pub payload: RVec<u8>,
}

impl Failure {
    /// The method returned an error.
    pub const FAILED: u32 = 1;
    /// The plugin's code panicked; the instance must not be called again.
    pub const PANICKED: u32 = 2;
    /// An earlier call panicked, so this one was not made.
    pub const POISONED: u32 = 3;
    /// The other side does not have this method.
    pub const UNSUPPORTED: u32 = 4;
    /// The payload could not be decoded.
    pub const MALFORMED: u32 = 5;
    /// The method returned an error that only another request of the client can help.
    pub const INVALID: u32 = 6;

    /// A failure that is not retryable, without location and state.
    #[must_use]
    pub fn new(code: u32, message: impl Into<RString>) -> Self {
        Self {
            code,
            retryable: false,
            message: message.into(),
            location: RString::new(),
            payload: RVec::new(),
        }
    }

    /// The failure of a call of a method, root function or service that this side does not have.
    #[must_use]
    pub fn unsupported(what: &str) -> Self {
        Self::new(Self::UNSUPPORTED, format!("`{what}` is not supported"))
    }
}

/// Result of a call: the reply or the failure.
pub type Reply = RResult<Answer, Failure>;

/// Methods of an isolator, with their request and reply. Any thread of the agent may call. Calls for different
/// containers may overlap; there is at most one call per container at a time.
#[sabi_trait]
pub trait Isolator: Send + Sync {
    /// `RecoverRequest` → `RecoverReply`.
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Container` → `PrepareReply`, with the descriptors that it refers to.
    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → `StateReply`; the first descriptor is a pidfd of the container's first process.
    fn isolate(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → nothing, with a descriptor to poll for reading, or none.
    fn watch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → `Limitation`, or nothing; the first descriptor is the one that `watch` returned.
    fn limitation(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `UpdateRequest` → `StateReply`.
    fn update(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → `Usage`.
    fn usage(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → `Status`.
    fn status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → nothing.
    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → nothing.
    #[sabi(last_prefix_field)]
    fn removed(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
}

/// Methods of a container logger, with their request and reply. The rules of [`Isolator`] apply.
#[sabi_trait]
pub trait Logger: Send + Sync {
    /// `RecoverRequest` → `RecoverReply`.
    fn recover(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `Container` → `LoggerReply`, with the descriptors that it refers to.
    fn prepare(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → nothing.
    fn cleanup(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ContainerDetails` → nothing.
    #[sabi(last_prefix_field)]
    fn removed(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
}

/// Methods of a hook, with their request and reply. Any thread of the agent may call. Calls for different containers may
/// overlap; there is at most one call per container at a time.
#[sabi_trait]
pub trait Hook: Send + Sync {
    /// `ExecutorEnvironment` → `ExecutorEnvironmentReply`.
    fn executor_environment(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `DockerLaunch` → `DockerLaunchReply`.
    fn pre_launch_docker(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `PostFetch` → nothing; the first descriptor is the sandbox, a directory that is open for reading.
    fn post_fetch(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `TaskStatus` → `TaskStatusReply`.
    fn task_status(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
    /// `ExecutorDetails` → nothing.
    #[sabi(last_prefix_field)]
    fn remove_executor(&self, call: Call<'_>, request: RSlice<'_, u8>) -> Reply;
}

/// Functions that the agent provides to plugins. They do not wait for other plugins and do not unwind. Any thread of
/// the plugin may call them.
#[sabi_trait]
pub trait HostApi: Send + Sync {
    /// Registers a log callsite and returns its number. The description is JSON: `level` (1 error to 5 trace),
    /// `span` (whether it is a span), `name`, `target`, `file`, `line`, `fields`.
    fn register_callsite(&self, description: RSlice<'_, u8>) -> u64;
    /// Whether the agent's current filter enables the callsite.
    fn enabled(&self, callsite: u64) -> bool;
    /// Logs an event inside `span` (0: none). The fields are a JSON object.
    fn event(&self, callsite: u64, span: u64, fields: RSlice<'_, u8>);
    /// Opens a span inside `parent` (0: none) and returns its number.
    fn open_span(&self, callsite: u64, parent: u64, fields: RSlice<'_, u8>) -> u64;
    /// Adds fields to a span.
    fn record(&self, span: u64, fields: RSlice<'_, u8>);
    /// Closes a span.
    fn close_span(&self, span: u64);
    /// Calls a service by name. Names and payloads are those of `cofferdam_plugin_model::service`; an unknown
    /// service fails with [`Failure::UNSUPPORTED`].
    #[sabi(last_prefix_field)]
    fn request(&self, service: RStr<'_>, payload: RSlice<'_, u8>) -> Reply;
}

/// The trait object through which a plugin calls the agent.
pub type HostBox = HostApi_TO<'static, RBox<()>>;
/// The trait object through which the agent calls an isolator.
pub type IsolatorBox = Isolator_TO<'static, RBox<()>>;
/// The trait object through which the agent calls a logger.
pub type LoggerBox = Logger_TO<'static, RBox<()>>;
/// The trait object through which the agent calls a hook.
pub type HookBox = Hook_TO<'static, RBox<()>>;

/// The root module that a plugin file exports. The functions of the kinds that the plugin does not have return
/// [`Failure::UNSUPPORTED`]. Those after `new_logger` are `None` in a plugin that was built before there were any.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModuleRef)))]
#[sabi(missing_field(option))]
pub struct Module {
    /// Creates an isolator from a `CreateRequest`.
    pub new_isolator: extern "C" fn(HostBox, RSlice<'_, u8>) -> RResult<IsolatorBox, Failure>,
    /// Creates a logger from a `CreateRequest`.
    #[sabi(last_prefix_field)]
    pub new_logger: extern "C" fn(HostBox, RSlice<'_, u8>) -> RResult<LoggerBox, Failure>,
    /// Creates a hook from a `CreateRequest`.
    pub new_hook: extern "C" fn(HostBox, RSlice<'_, u8>) -> RResult<HookBox, Failure>,
}

impl RootModule for ModuleRef {
    declare_root_module_statics! {ModuleRef}

    const BASE_NAME: &'static str = "cofferdam_plugin";
    const NAME: &'static str = "cofferdam_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
