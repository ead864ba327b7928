//! The protocol of Docker volume drivers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_api::prelude::*;

use crate::address::{Address, Directories, check_name};
use crate::http::{self, Failed};

/// Most bytes of a driver's message in an error.
const MAX_MESSAGE: usize = 1000;

/// A driver of this host.
#[derive(Debug)]
pub struct Driver {
    name: String,
    address: Address,
    timeout: Duration,
}

/// Why a call has failed.
#[derive(Debug)]
pub enum CallError {
    /// The driver was told nothing.
    NotCalled(Error),
    /// The driver has refused it.
    Refused(Error),
    /// The driver may have done it.
    Unknown(Error),
}

impl CallError {
    pub fn into_error(self) -> Error {
        match self {
            // It may have been restarted meanwhile.
            Self::NotCalled(error) | Self::Unknown(error) => error.retryable(),
            Self::Refused(error) => error,
        }
    }
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Named<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
}

#[derive(Serialize)]
struct Used<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "ID")]
    id: &'a str,
}

#[derive(Serialize)]
struct New<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "Opts")]
    options: &'a BTreeMap<String, String>,
}

/// What is needed of any answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    #[serde(rename = "Err")]
    error: Option<String>,
    #[serde(rename = "Implements")]
    implements: Option<Vec<String>>,
    #[serde(rename = "Mountpoint")]
    mount_point: Option<PathBuf>,
    #[serde(rename = "Volume")]
    volume: Option<Found>,
    #[serde(rename = "Volumes")]
    volumes: Option<Vec<Found>>,
    #[serde(rename = "Capabilities")]
    capabilities: Option<Capabilities>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Found {
    #[serde(rename = "Name")]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(rename = "Scope")]
    scope: Option<String>,
}

/// Calls of a driver.
impl Driver {
    /// The driver of this name, without a call.
    pub fn find(directories: &Directories, name: &str, timeout: Duration) -> Result<Self> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), address: directories.find(name)?, timeout })
    }

    /// Checks that it is a volume driver.
    pub fn activate(&self) -> Result<(), CallError> {
        let implements = self.call("Plugin.Activate", &Nothing {})?.implements.unwrap_or_default();
        if implements.iter().any(|kind| kind == "VolumeDriver") {
            return Ok(());
        }
        let error = format!("it is not a volume driver, but implements {implements:?}");
        Err(CallError::Refused(self.named("Plugin.Activate", Error::new(error))))
    }

    /// Whether its volumes are the same on all hosts: `global`, or `local`. Drivers of the first version of the protocol do not
    /// tell.
    pub fn scope(&self) -> Result<String, CallError> {
        let answer = match self.call("VolumeDriver.Capabilities", &Nothing {}) {
            Err(CallError::Refused(_)) => None,
            answer => answer?.capabilities,
        };
        let scope = answer.unwrap_or_default().scope.unwrap_or_default();
        Ok(if scope.eq_ignore_ascii_case("global") { "global" } else { "local" }.to_owned())
    }

    /// Whether it knows a volume.
    pub fn knows(&self, volume: &str) -> Result<bool, CallError> {
        match self.call("VolumeDriver.Get", &Named { name: volume }) {
            Ok(answer) => Ok(answer.volume.is_some()),
            Err(CallError::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether it lists its volumes without this one.
    pub fn has_lost(&self, volume: &str) -> bool {
        match self.call("VolumeDriver.List", &Nothing {}) {
            Ok(Answer { volumes: Some(volumes), .. }) => volumes.iter().all(|found| found.name != volume),
            _ => false,
        }
    }

    pub fn create(&self, volume: &str, options: &BTreeMap<String, String>) -> Result<(), CallError> {
        self.call("VolumeDriver.Create", &New { name: volume, options }).map(drop)
    }

    /// Mounts a volume for an id, and returns where.
    pub fn mount(&self, volume: &str, id: &str) -> Result<PathBuf, CallError> {
        let answer = self.call("VolumeDriver.Mount", &Used { name: volume, id })?;
        if let Some(path) = answer.mount_point.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(path);
        }
        match self.call("VolumeDriver.Path", &Named { name: volume }) {
            Ok(answer) => Ok(answer.mount_point.unwrap_or_default()),
            // The volume is mounted.
            Err(error) => Err(CallError::Unknown(error.into_error())),
        }
    }

    pub fn unmount(&self, volume: &str, id: &str) -> Result<(), CallError> {
        self.call("VolumeDriver.Unmount", &Used { name: volume, id }).map(drop)
    }

    fn call(&self, method: &str, request: &impl Serialize) -> Result<Answer, CallError> {
        if self.timeout.is_zero() {
            let error = Error::new("no time is left to call it");
            return Err(CallError::NotCalled(self.named(method, error)));
        }
        let body = match serde_json::to_vec(request) {
            Ok(body) => body,
            Err(error) => return Err(CallError::NotCalled(self.named(method, error.into()))),
        };
        let response = match http::post(&self.address, &format!("/{method}"), &body, self.timeout) {
            Ok(response) => response,
            Err(Failed::NotConnected(error)) => {
                return Err(CallError::NotCalled(self.named(method, error.into())));
            }
            Err(Failed::NoResponse(error)) => {
                return Err(CallError::Unknown(self.named(method, error.into())));
            }
        };
        let is_success = (200..300).contains(&response.status);
        let decode = || -> Result<Answer> { Ok(serde_json::from_slice(&response.body)?) };
        let answer = (!response.body.is_empty()).then(decode);
        let refused = |message: &str| Err(CallError::Refused(self.named(method, Error::new(shown(message)))));
        match answer {
            Some(Ok(Answer { error: Some(message), .. })) if !message.is_empty() => refused(&message),
            Some(Ok(answer)) if is_success => Ok(answer),
            None if is_success => Ok(Answer::default()),
            Some(Err(error)) if is_success => {
                let error = error.context("its answer is not the JSON of a volume driver");
                Err(CallError::Unknown(self.named(method, error)))
            }
            // Of something in between, such as a proxy, whose driver may do it all the same.
            _ if response.status >= 500 => {
                let error = Error::new(format!("it answers with HTTP status {} only", response.status));
                Err(CallError::Unknown(self.named(method, error)))
            }
            _ => refused(&format!("HTTP status {}", response.status)),
        }
    }

    fn named(&self, method: &str, error: Error) -> Error {
        error.context(format!("{method} of the driver `{}` at {} failed", self.name, self.address))
    }
}

/// A driver's message, on one line.
fn shown(message: &str) -> String {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default().trim().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_drivers_are_short_and_on_one_line() {
        assert_eq!(shown(" no space\n"), "no space");
        assert_eq!(shown("a\nb\u{1b}"), "a\\nb\\u{1b}");
        let long = format!("x{}", "ä".repeat(MAX_MESSAGE));
        assert_eq!(shown(&long).len(), MAX_MESSAGE - 1, "it ends between two characters");
    }
}
