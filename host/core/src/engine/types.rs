//! What an engine reports. Fields that are not needed are ignored.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Version of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineVersion {
    /// Of the engine.
    pub version: String,
    /// Newest version of the API.
    pub api_version: String,
    /// Oldest version of the API.
    #[serde(rename = "MinAPIVersion", default)]
    pub min_api_version: String,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    /// Its id, which is a digest.
    pub id: String,
    /// What its containers run.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ImageConfig,
}

/// What containers of an image run, unless they are created with something else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// Program and first arguments.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Further arguments; the program, if there is no entry point.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// What asks them to end, by name or number; empty for SIGTERM.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its id.
    pub id: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name, after `/`.
    #[serde(default)]
    pub name: String,
    /// What it does.
    pub state: State,
    /// Its networks.
    #[serde(default)]
    pub network_settings: NetworkSettings,
    /// What it was created with.
    #[serde(default)]
    pub config: Config,
}

/// State of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: String,
    /// Whether it has a process.
    pub running: bool,
    /// Whether the kernel killed a process of it for lack of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Pid of its first process; 0 if it has none.
    pub pid: i32,
    /// Exit status; as a shell reports it.
    pub exit_code: i32,
    /// Why it did not start.
    pub error: String,
    /// When it ended, in RFC 3339.
    pub finished_at: String,
}

/// Networks of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// By the names of the networks.
    #[serde(deserialize_with = "null_is_default")]
    pub networks: BTreeMap<String, Endpoint>,
}

/// A container's part of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Its address; empty if it has none.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Likewise, of version 6.
    #[serde(rename = "GlobalIPv6Address")]
    pub ipv6_address: String,
}

/// What a container was created with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// Its labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerSummary {
    /// Its id.
    pub id: String,
    /// Its names, each after `/`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    /// Its labels.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// As [`State::status`].
    #[serde(default)]
    pub state: String,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Credentials {
    /// Name of the user.
    pub username: String,
    /// Password.
    pub password: String,
    /// The registry.
    pub serveraddress: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

/// Engines write `null` for what is empty.
fn null_is_default<'d, D: Deserializer<'d>, T: Default + Deserialize<'d>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Encodes a value of a query or a part of a path.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_an_engine_are_empty() {
        let json = r#"{"Id":"a","State":{"Status":"exited","ExitCode":3,"Pid":0},"Config":{"Labels":null},
            "NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2"}}}}"#;
        let container: Container = serde_json::from_str(json).unwrap();
        assert_eq!(container.state.exit_code, 3);
        assert!(container.config.labels.is_empty());
        assert_eq!(container.network_settings.networks["bridge"].ip_address, "172.17.0.2");
    }

    #[test]
    fn what_is_not_plain_in_a_query_is_encoded() {
        assert_eq!(percent_encode("a/b:1@sha256+ü"), "a%2Fb%3A1%40sha256%2B%C3%BC");
    }

    #[test]
    fn credentials_are_not_printed() {
        let credentials =
            Credentials { username: "u".into(), password: "hunter2".into(), serveraddress: "r".into() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
