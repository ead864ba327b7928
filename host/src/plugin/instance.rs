//! One made plugin, and the dispatch of a method to it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use abi_stable::std_types::{RResult, RSlice, RStr};
use cofferdam_plugin_abi::{Answer, Call, Failure, HostBox, IsolatorBox, LoggerBox, ModuleRef, Reply};
use cofferdam_plugin_model::{Kind, Method};

use super::descriptors;

/// One made plugin.
pub struct Instance {
    /// There until it is dropped.
    guest: Option<Guest>,
}

enum Guest {
    Isolator(IsolatorBox),
    Logger(LoggerBox),
}

/// What a call brought back.
#[derive(Debug, Default)]
pub struct Reaction {
    /// The payload; empty stands for the default of its type.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a call brought nothing back.
pub enum Trouble {
    /// The plugin says no, or did not survive it.
    Failure(Failure),
    /// Its answer cannot be taken as it is.
    Answer(String),
}

impl Instance {
    /// Has the module make one.
    pub fn create(module: ModuleRef, kind: Kind, host: HostBox, request: &[u8]) -> Result<Self, Failure> {
        let request = RSlice::from_slice(request);
        let guest = match kind {
            Kind::Isolator => (module.new_isolator())(host, request).into_result().map(Guest::Isolator)?,
            Kind::Logger => (module.new_logger())(host, request).into_result().map(Guest::Logger)?,
            other => return Err(Failure::unsupported(&other.to_string())),
        };
        Ok(Self { guest: Some(guest) })
    }

    /// Calls a method, on this thread, for as long as it takes.
    pub fn call(
        &self,
        method: Method,
        container: &str,
        deadline_unix_ms: u64,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reaction, Trouble> {
        let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let call = Call {
            container: RStr::from_str(container),
            span: 0,
            trace: [0; 2],
            deadline_unix_ms,
            descriptors: RSlice::from_slice(&numbers),
        };
        match self.dispatch(method, call, RSlice::from_slice(request)) {
            RResult::ROk(Answer { payload, descriptors }) => Ok(Reaction {
                payload: payload.into_vec(),
                descriptors: descriptors::adopt(&descriptors).map_err(Trouble::Answer)?,
            }),
            RResult::RErr(failure) => Err(Trouble::Failure(failure)),
        }
    }

    fn dispatch(&self, method: Method, call: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        match (&self.guest, method) {
            (Some(Guest::Isolator(isolator)), Method::Recover) => isolator.recover(call, request),
            (Some(Guest::Isolator(isolator)), Method::Prepare) => isolator.prepare(call, request),
            (Some(Guest::Isolator(isolator)), Method::Isolate) => isolator.isolate(call, request),
            (Some(Guest::Isolator(isolator)), Method::Watch) => isolator.watch(call, request),
            (Some(Guest::Isolator(isolator)), Method::Limitation) => isolator.limitation(call, request),
            (Some(Guest::Isolator(isolator)), Method::Update) => isolator.update(call, request),
            (Some(Guest::Isolator(isolator)), Method::Usage) => isolator.usage(call, request),
            (Some(Guest::Isolator(isolator)), Method::Status) => isolator.status(call, request),
            (Some(Guest::Isolator(isolator)), Method::Cleanup) => isolator.cleanup(call, request),
            (Some(Guest::Logger(logger)), Method::Recover) => logger.recover(call, request),
            (Some(Guest::Logger(logger)), Method::Prepare) => logger.prepare(call, request),
            (Some(Guest::Logger(logger)), Method::Cleanup) => logger.cleanup(call, request),
            (_, other) => RResult::RErr(Failure::unsupported(other.name())),
        }
    }
}

impl Drop for Instance {
    /// An author's `Drop` may block for as long as it likes, and nobody waits for what it answers: it gets
    /// a thread of its own.
    fn drop(&mut self) {
        let Some(guest) = self.guest.take() else { return };
        let span = tracing::Span::current();
        let farewell = move || span.in_scope(|| drop(guest));
        if let Err(error) = std::thread::Builder::new().name("plugin-drop".into()).spawn(farewell) {
            tracing::error!(%error, "cannot start a thread to drop a plugin's instance on");
        }
    }
}
