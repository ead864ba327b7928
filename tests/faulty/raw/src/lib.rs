//! An isolator that uses the ABI without the SDK, and returns the configured bytes, descriptors and codes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RSlice};
use cofferdam_plugin_abi as abi;
use cofferdam_plugin_abi::{Answer, Call, Failure, HostBox, IsolatorBox, Reply};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{__private, model};

/// The responses, by method.
#[derive(Default, Deserialize)]
struct Raw {
    /// Payload, as bytes.
    #[serde(default)]
    payload: BTreeMap<String, String>,
    /// Descriptors, as numbers.
    #[serde(default)]
    descriptors: BTreeMap<String, Vec<i32>>,
    /// Code of a failure; its payload is that of `payload`.
    #[serde(default)]
    code: BTreeMap<String, u32>,
    /// File to record every request in, one line each: the method and the payload.
    journal: Option<PathBuf>,
}

extern "C" fn new_isolator(_: HostBox, request: RSlice<'_, u8>) -> RResult<IsolatorBox, Failure> {
    let request = serde_json::from_slice::<model::CreateRequest>(request.as_slice());
    match request.and_then(|request| serde_json::from_value::<Raw>(request.config)) {
        Ok(raw) => RResult::ROk(IsolatorBox::from_value(raw, TD_Opaque)),
        Err(error) => RResult::RErr(failure(Failure::MALFORMED, &error.to_string())),
    }
}

fn failure(code: u32, message: &str) -> Failure {
    Failure::new(code, message)
}

impl Raw {
    fn answer(&self, method: &str, request: RSlice<'_, u8>) -> Reply {
        if let Some(journal) = &self.journal {
            let line = [method.as_bytes(), b" ", request.as_slice(), b"\n"].concat();
            let written = OpenOptions::new().append(true).create(true).open(journal);
            if let Err(error) = written.and_then(|mut journal| journal.write_all(&line)) {
                return RResult::RErr(failure(Failure::FAILED, &error.to_string()));
            }
        }
        let payload = self.payload.get(method).map_or_else(Vec::new, |text| text.as_bytes().to_vec());
        if let Some(&code) = self.code.get(method) {
            return RResult::RErr(Failure { payload: payload.into(), ..failure(code, "by hand") });
        }
        let descriptors = self.descriptors.get(method).cloned().unwrap_or_default();
        RResult::ROk(Answer { payload: payload.into(), descriptors: descriptors.into() })
    }
}

impl abi::Isolator for Raw {
    fn recover(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("recover", request)
    }

    fn prepare(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("prepare", request)
    }

    fn isolate(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("isolate", request)
    }

    fn watch(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("watch", request)
    }

    fn limitation(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("limitation", request)
    }

    fn update(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("update", request)
    }

    fn usage(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("usage", request)
    }

    fn status(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("status", request)
    }

    fn cleanup(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("cleanup", request)
    }

    fn removed(&self, _: Call<'_>, request: RSlice<'_, u8>) -> Reply {
        self.answer("removed", request)
    }
}

/// Has the name for the manifest; never created.
struct Named;

#[derive(Deserialize, PluginConfig)]
struct Open {}

impl Isolator for Named {
    const NAME: &'static str = "test/raw";
    type Config = Open;

    fn create(_: Open, _: Host) -> Result<Self> {
        Err(Error::new("never created"))
    }
}

cofferdam_plugin_api::__export!(
    "isolator",
    cofferdam_plugin_api::Isolator,
    Named,
    [
        "recover",
        "prepare",
        "isolate",
        "watch",
        "limitation",
        "update",
        "usage",
        "status",
        "cleanup",
        "removed"
    ],
    false,
    true,
    &[],
    new_isolator,
    __private::no_logger,
    __private::no_hook
);
