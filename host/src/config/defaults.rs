//! The defaults, which are a file: its text is what is documented and what is used.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value as Json;

use super::Environment;

/// The file of defaults, with placeholders where they depend on who runs the agent.
const DEFAULTS: &str = include_str!("defaults.toml");

/// The schema of the configuration file, for us and for editors.
pub const SCHEMA: &str = include_str!("schema.json");

/// The file of defaults as it is in force here, for people to read and to start from.
#[must_use]
pub fn text(environment: &Environment) -> String {
    let places =
        [("{run}", &environment.run), ("{state}", &environment.state), ("{plugins}", &environment.plugins)];
    places.iter().fold(DEFAULTS.to_owned(), |text, (placeholder, path)| {
        // The value is written by the TOML library, which knows what has to be escaped.
        let value = toml::Value::String(path.display().to_string()).to_string();
        text.replace(&format!("\"{placeholder}\""), &value)
    })
}

/// Where an agent listens that was not told otherwise.
#[must_use]
pub fn socket(environment: &Environment) -> PathBuf {
    environment.run.join("agent.sock")
}

pub(super) fn schema() -> &'static Json {
    static PARSED: LazyLock<Json> =
        LazyLock::new(|| serde_json::from_str(SCHEMA).expect("the schema is JSON; a test holds it to that"));
    &PARSED
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cofferdam_plugin_model::Method;

    use super::super::raw::Raw;
    use super::super::schema::{Owner, check};
    use super::*;
    use cofferdam_core::config::default_timeout;

    fn environment() -> Environment {
        Environment {
            uid: 0,
            cwd: PathBuf::from("/"),
            run: PathBuf::from("/run/with \"quotes\""),
            state: PathBuf::from("/state"),
            plugins: PathBuf::from("/plugins"),
            usual_file: PathBuf::from("/etc/agent.toml"),
        }
    }

    #[test]
    fn the_defaults_set_every_key_and_are_valid() {
        let text = text(&environment());
        let tree = toml::de::DeTable::parse(&text).unwrap();
        assert_eq!(check(tree.get_ref(), 0..0, schema(), Owner::Agent), []);
        for key in schema()["properties"].as_object().unwrap().keys() {
            let documented = text.contains(&format!("[{key}]"));
            assert!(documented || tree.get_ref().contains_key(key.as_str()), "{key} has no default");
        }
        for table in ["api", "timeout"] {
            let written = tree.get_ref()[table].get_ref().as_table().unwrap();
            for key in schema()["properties"][table]["properties"].as_object().unwrap().keys() {
                assert!(written.contains_key(key.as_str()), "{table}.{key} has no default");
            }
        }
        let raw = Raw::read(tree.get_ref());
        // Clients that know no configuration look for the agent there.
        let default = format!("{{runtime_dir}}/{}", socket(&environment()).file_name().unwrap().display());
        assert_eq!(raw.socket.unwrap().value.display().to_string(), default);
        assert_eq!(raw.runtime_dir.unwrap().value, PathBuf::from("/run/with \"quotes\""));
        // A configuration made by hand has the same.
        let written: BTreeMap<_, _> =
            raw.timeouts.into_iter().map(|(method, setting)| (method, setting.value)).collect();
        let made = Method::ALL.iter().map(|&method| (method, default_timeout(method))).collect();
        assert_eq!(written, made);
    }
}
