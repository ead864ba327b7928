//! How the output of a container is rotated: the operator's configuration, and what a container changes of it.

use std::collections::BTreeMap;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::model::units;
use cofferdam_plugin_api::prelude::*;

/// The smallest size of a file: a page, as in Mesos.
const MIN_SIZE: u64 = 4096;

/// The largest.
const MAX_SIZE: u64 = 1 << 40;

/// The most rotated files of a stream: all of them are renamed at each rotation.
const MAX_FILES: u32 = 100;

/// Names of the options that a container may set, without the prefix.
const NAMES: &str = "MAX_STDOUT_SIZE, MAX_STDERR_SIZE, MAX_STDOUT_FILES, MAX_STDERR_FILES, COMPRESS or TIMES";

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Size at which the file with standard output is rotated.
    max_stdout_size: Size,
    /// Size at which the file with standard error is rotated.
    max_stderr_size: Size,
    /// How many rotated files of standard output are kept.
    max_stdout_files: u32,
    /// How many rotated files of standard error are kept.
    max_stderr_files: u32,
    /// Whether rotated files are compressed.
    compress: bool,
    /// Whether the times of the output are stored.
    times: bool,
    /// Whether containers may set these options in their environment.
    overrides: bool,
    /// Prefix of the environment variables with which they do.
    environment_variable_prefix: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_stdout_size: Size(10 << 20),
            max_stderr_size: Size(10 << 20),
            max_stdout_files: 5,
            max_stderr_files: 5,
            compress: false,
            times: true,
            overrides: true,
            environment_variable_prefix: "CONTAINER_LOGGER_".to_owned(),
        }
    }
}

impl Config {
    /// Checks what the schema does not.
    pub(crate) fn check(&self) -> Result<()> {
        let Size(stdout) = self.max_stdout_size;
        let Size(stderr) = self.max_stderr_size;
        for (key, size) in [("max_stdout_size", stdout), ("max_stderr_size", stderr)] {
            check_size(size)
                .map_err(|expected| Error::new(format!("`{key}` is {size} bytes; {expected}")))?;
        }
        for (key, files) in
            [("max_stdout_files", self.max_stdout_files), ("max_stderr_files", self.max_stderr_files)]
        {
            check_files(files).map_err(|expected| Error::new(format!("`{key}` is {files}; {expected}")))?;
        }
        let prefix = &self.environment_variable_prefix;
        if prefix.is_empty() || prefix.contains(['=', '\0']) {
            return Err(Error::new(format!(
                "`environment_variable_prefix` is `{prefix}`; expected the beginning of the names of environment \
                 variables, such as \"CONTAINER_LOGGER_\""
            )));
        }
        Ok(())
    }

    /// The options of a container with this environment.
    pub(crate) fn options(&self, environment: &BTreeMap<String, String>) -> Result<Options> {
        let mut options = Options {
            streams: [
                Limits { max_size: self.max_stdout_size.0, max_files: self.max_stdout_files },
                Limits { max_size: self.max_stderr_size.0, max_files: self.max_stderr_files },
            ],
            compress: self.compress,
            times: self.times,
        };
        let prefix = self.environment_variable_prefix.as_str();
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix(prefix) else { continue };
            if !self.overrides {
                return Err(Error::invalid(format!(
                    "environment variable `{variable}` is an option of the logger, which the operator lets no \
                     container set; remove it"
                )));
            }
            options.set(name, value).map_err(|expected| {
                Error::invalid(match expected {
                    Some(expected) => format!("environment variable `{variable}` is `{value}`; {expected}"),
                    None => unknown(variable, prefix, name),
                })
            })?;
        }
        Ok(options)
    }
}

/// The message for a variable that is no option.
fn unknown(variable: &str, prefix: &str, name: &str) -> String {
    let advice = match name.to_ascii_lowercase().as_str() {
        "logrotate_stdout_options" | "logrotate_stderr_options" => {
            "; files are not rotated by the program logrotate"
        }
        _ => "",
    };
    format!(
        "environment variable `{variable}` is not an option of the logger{advice}; expected {prefix} followed by {NAMES}"
    )
}

/// How the output of a container is rotated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Of standard output and of standard error.
    pub(crate) streams: [Limits; 2],
    /// Whether rotated files are compressed.
    pub(crate) compress: bool,
    /// Whether times are stored.
    pub(crate) times: bool,
}

/// Limits of the files of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Size of a file in bytes.
    pub(crate) max_size: u64,
    /// Number of rotated files.
    pub(crate) max_files: u32,
}

impl Options {
    /// Sets an option. Fails with what was expected, or `None` if there is no such option.
    fn set(&mut self, name: &str, value: &str) -> Result<(), Option<String>> {
        let [stdout, stderr] = &mut self.streams;
        match name.to_ascii_lowercase().as_str() {
            "max_stdout_size" => stdout.max_size = size(value)?,
            "max_stderr_size" => stderr.max_size = size(value)?,
            "max_stdout_files" => stdout.max_files = files(value)?,
            "max_stderr_files" => stderr.max_files = files(value)?,
            "compress" => self.compress = boolean(value)?,
            "times" => self.times = boolean(value)?,
            _ => return Err(None),
        }
        Ok(())
    }
}

fn size(value: &str) -> Result<u64, Option<String>> {
    let expected = "expected a size such as \"10 MiB\"".to_owned();
    let size = units::size(value.trim()).ok_or(expected)?;
    check_size(size)?;
    Ok(size)
}

fn check_size(size: u64) -> Result<(), String> {
    match size {
        MIN_SIZE..=MAX_SIZE => Ok(()),
        _ => Err("expected 4 KiB to 1 TiB".to_owned()),
    }
}

fn files(value: &str) -> Result<u32, Option<String>> {
    let files = value.trim().parse().map_err(|_| format!("expected a number from 1 to {MAX_FILES}"))?;
    check_files(files)?;
    Ok(files)
}

fn check_files(files: u32) -> Result<(), String> {
    match files {
        1..=MAX_FILES => Ok(()),
        _ => Err(format!("expected a number from 1 to {MAX_FILES}")),
    }
}

fn boolean(value: &str) -> Result<bool, Option<String>> {
    match value.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Some("expected `true` or `false`".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(config: Json, environment: &[(&str, &str)]) -> Result<Options> {
        let config: Config = serde_json::from_value(config).unwrap();
        config.check()?;
        let owned = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config.options(&owned.collect())
    }

    fn error(config: Json, environment: &[(&str, &str)]) -> String {
        options(config, environment).unwrap_err().causes().join(": ")
    }

    #[test]
    fn a_container_changes_the_options_of_the_configuration() {
        let config = json!({ "max_stdout_size": "1 MiB", "max_stderr_files": 7 });
        let set = options(
            config,
            &[
                ("CONTAINER_LOGGER_MAX_STDERR_SIZE", "5MB"),
                ("CONTAINER_LOGGER_MAX_STDOUT_FILES", "2"),
                ("CONTAINER_LOGGER_COMPRESS", "true"),
                ("CONTAINER_LOGGER_times", "false"),
                ("CONTAINER", "other"),
            ],
        );
        let expected = Options {
            streams: [
                Limits { max_size: 1 << 20, max_files: 2 },
                Limits { max_size: 5_000_000, max_files: 7 },
            ],
            compress: true,
            times: false,
        };
        assert_eq!(set.unwrap(), expected);
    }

    #[test]
    fn invalid_options_of_a_container_are_named_with_what_was_expected() {
        for (name, value, expected) in [
            ("MAX_STDOUT_SIZE", "5 parsecs", "is `5 parsecs`; expected a size such as \"10 MiB\""),
            ("MAX_STDOUT_SIZE", "4095", "is `4095`; expected 4 KiB to 1 TiB"),
            ("MAX_STDERR_SIZE", "2 TiB", "expected 4 KiB to 1 TiB"),
            ("MAX_STDOUT_FILES", "0", "expected a number from 1 to 100"),
            ("MAX_STDERR_FILES", "-1", "expected a number from 1 to 100"),
            ("COMPRESS", "yes", "is `yes`; expected `true` or `false`"),
            ("TIMES", "", "is ``; expected `true` or `false`"),
            ("MAX_SIZE", "1 MiB", "is not an option of the logger; expected CONTAINER_LOGGER_ followed by"),
            ("LOGROTATE_STDOUT_OPTIONS", "rotate 9", "not rotated by the program logrotate; expected"),
        ] {
            let variable = format!("CONTAINER_LOGGER_{name}");
            let error = error(json!({}), &[(&variable, value)]);
            assert!(error.contains(&variable) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_operator_chooses_the_prefix_and_whether_there_are_options() {
        let own = json!({ "environment_variable_prefix": "LOG_" });
        assert!(options(own.clone(), &[("CONTAINER_LOGGER_COMPRESS", "yes")]).is_ok());
        assert!(error(own, &[("LOG_COMPRESS", "yes")]).contains("`LOG_COMPRESS`"));
        let refused = error(json!({ "overrides": false }), &[("CONTAINER_LOGGER_COMPRESS", "true")]);
        assert!(refused.contains("which the operator lets no container set"), "{refused}");
    }

    #[test]
    fn invalid_configurations_are_refused() {
        for (config, expected) in [
            (json!({ "max_stdout_size": "1 B" }), "`max_stdout_size` is 1 bytes; expected 4 KiB"),
            (json!({ "max_stderr_files": 0 }), "`max_stderr_files` is 0; expected a number"),
            (json!({ "environment_variable_prefix": "" }), "`environment_variable_prefix` is ``"),
        ] {
            assert!(error(config, &[]).contains(expected));
        }
    }
}
