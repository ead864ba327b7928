//! Default settings. They are defined by a configuration file that also documents them.

use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::Value as Json;

use super::Environment;

/// The file, with placeholders for values that depend on the environment.
const DEFAULTS: &str = include_str!("defaults.toml");

/// JSON schema of the configuration file.
pub const SCHEMA: &str = include_str!("schema.json");

/// A configuration file with all settings and their defaults.
#[must_use]
pub fn text(environment: &Environment) -> String {
    let placeholders = [
        ("{runtime_dir_default}", &environment.runtime_dir),
        ("{work_dir_default}", &environment.work_dir),
        ("{plugin_dir_default}", &environment.plugin_dir),
        ("{launcher_dir_default}", &environment.launcher_dir),
    ];
    placeholders.iter().fold(DEFAULTS.to_owned(), |text, (placeholder, path)| {
        // Escaped by the TOML library.
        let value = toml::Value::String(path.display().to_string()).to_string();
        text.replace(&format!("\"{placeholder}\""), &value)
    })
}

/// Default socket of the API.
#[must_use]
pub fn socket(environment: &Environment) -> PathBuf {
    environment.runtime_dir.join("agent.sock")
}

pub(super) fn schema() -> &'static Json {
    static PARSED: LazyLock<Json> =
        LazyLock::new(|| serde_json::from_str(SCHEMA).expect("the schema is valid JSON, as tested"));
    &PARSED
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cofferdam_plugin_model::Method;

    use super::super::raw::RawConfig;
    use super::super::schema::{Owner, check};
    use super::*;
    use cofferdam_core::config::default_timeout;

    fn environment() -> Environment {
        Environment {
            uid: 0,
            cwd: PathBuf::from("/"),
            runtime_dir: PathBuf::from("/run/with \"quotes\""),
            work_dir: PathBuf::from("/state"),
            plugin_dir: PathBuf::from("/plugins"),
            launcher_dir: PathBuf::from("/programs"),
            config_file: PathBuf::from("/etc/agent.toml"),
            credentials: Vec::new(),
        }
    }

    #[test]
    fn the_defaults_are_valid_and_complete() {
        let text = text(&environment());
        let tree = toml::de::DeTable::parse(&text).unwrap();
        assert_eq!(check(tree.get_ref(), 0..0, schema(), Owner::Agent), []);
        for key in schema()["properties"].as_object().unwrap().keys() {
            // Without a default, it is shown in a comment.
            let is_shown =
                [format!("[{key}]"), format!("\n# {key} = ")].iter().any(|form| text.contains(form));
            assert!(is_shown || tree.get_ref().contains_key(key.as_str()), "{key} has no default");
        }
        for table in ["api", "timeout"] {
            let values = tree.get_ref()[table].get_ref().as_table().unwrap();
            for key in schema()["properties"][table]["properties"].as_object().unwrap().keys() {
                let is_shown = text.contains(&format!("\n# {key} = "));
                assert!(is_shown || values.contains_key(key.as_str()), "{table}.{key} has no default");
            }
        }
    }

    #[test]
    fn the_defaults_agree_with_those_in_code() {
        let text = text(&environment());
        let tree = toml::de::DeTable::parse(&text).unwrap();
        let raw = RawConfig::read(tree.get_ref());
        let default = format!("{{runtime_dir}}/{}", socket(&environment()).file_name().unwrap().display());
        assert_eq!(raw.socket.unwrap().value.display().to_string(), default);
        assert_eq!(raw.runtime_dir.unwrap().value, PathBuf::from("/run/with \"quotes\""));
        let in_file: BTreeMap<_, _> =
            raw.timeouts.into_iter().map(|(method, setting)| (method, setting.value)).collect();
        let in_code = Method::ALL.iter().map(|&method| (method, default_timeout(method))).collect();
        assert_eq!(in_file, in_code);
    }
}
