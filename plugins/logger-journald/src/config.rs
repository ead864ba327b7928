//! The operator's configuration, and what follows from it for a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cofferdam_plugin_api::config::Size;
use cofferdam_plugin_api::prelude::*;
use rustix::process::geteuid;

use crate::field;
use crate::job::{Job, Priority, WhenFull};

/// Where systemd has the socket.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest path of a unix socket.
const MAX_SOCKET: usize = 107;

/// Bounds of the size of a message: a file in memory is sent beyond the size of a datagram, and the companion keeps two of them.
const MIN_LINE: u64 = 1 << 10;
const MAX_LINE: u64 = 16 << 20;

/// Bounds of what is kept of a stream.
const MIN_BUFFER: u64 = 64 << 10;
const MAX_BUFFER: u64 = 1 << 30;

/// Bounds of the fields of labels.
const MAX_LABELS: u64 = 256 << 10;

/// The most fields that the operator adds, and how large they may be together.
const MAX_FIELDS: usize = 100;
const MAX_VALUES: usize = 64 << 10;

/// The most labels that are fields: the journal ignores entries with more than 1,024 fields without a word.
const MAX_LABEL_COUNT: usize = 512;

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Socket of the journal.
    socket: PathBuf,
    /// Priority of what is written to standard output.
    stdout_priority: Priority,
    /// Priority of what is written to standard error.
    stderr_priority: Priority,
    /// Fields that every entry gets, by name.
    fields: BTreeMap<String, String>,
    /// Whether the labels of a container are fields of its entries.
    labels: bool,
    /// How large these fields may be together.
    max_label_payload_size: Size,
    /// Size from which on a line is divided into several entries.
    max_line_size: Size,
    /// How much of a stream is kept while the journal does not receive it.
    max_buffer_size: Size,
    /// What happens when that is full.
    when_full: WhenFull,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: SOCKET.into(),
            stdout_priority: Priority::Info,
            stderr_priority: Priority::Err,
            fields: BTreeMap::new(),
            labels: true,
            max_label_payload_size: Size(10 << 10),
            max_line_size: Size(48 << 10),
            max_buffer_size: Size(1 << 20),
            when_full: WhenFull::Wait,
        }
    }
}

impl Config {
    /// Checks what the schema does not.
    pub(crate) fn check(&self) -> Result<()> {
        let socket = self.socket.as_os_str();
        if !self.socket.is_absolute() || socket.len() > MAX_SOCKET {
            return Err(Error::new(format!(
                "`socket` is `{}`; expected an absolute path of at most {MAX_SOCKET} bytes",
                self.socket.display()
            )));
        }
        check_size("max_line_size", self.max_line_size, MIN_LINE, MAX_LINE, "1 KiB to 16 MiB")?;
        check_size("max_buffer_size", self.max_buffer_size, MIN_BUFFER, MAX_BUFFER, "64 KiB to 1 GiB")?;
        check_size("max_label_payload_size", self.max_label_payload_size, 0, MAX_LABELS, "at most 256 KiB")?;
        if self.max_buffer_size.0 < 2 * self.max_line_size.0 {
            return Err(Error::new(format!(
                "`max_buffer_size` is {} bytes; expected at least twice `max_line_size`, which is {} bytes",
                self.max_buffer_size.0, self.max_line_size.0
            )));
        }
        if self.fields.len() > MAX_FIELDS {
            let count = self.fields.len();
            return Err(Error::new(format!("`fields` has {count} fields; expected at most {MAX_FIELDS}")));
        }
        let mut size = 0;
        for (name, value) in &self.fields {
            if !field::is_valid(name) {
                return Err(Error::new(format!(
                    "`fields` has `{name}`; expected a name of at most 64 capital letters, digits and underscores that \
                     begins with a letter"
                )));
            }
            if field::is_reserved(name) {
                return Err(Error::new(format!("`fields` has `{name}`, which the logger sets itself")));
            }
            size += name.len() + value.len();
        }
        if size > MAX_VALUES {
            return Err(Error::new(format!("`fields` has {size} bytes; expected at most {MAX_VALUES}")));
        }
        Ok(())
    }

    /// What the companion of a container is to do.
    pub(crate) fn job(&self, container: &Container) -> Result<Job> {
        let id = container.id.as_str();
        // The name within its parent.
        let name = id.rsplit('.').next().unwrap_or(id);
        let mut fields: Vec<(String, String)> =
            [("CONTAINER_ID", id), ("CONTAINER_NAME", name), ("SYSLOG_IDENTIFIER", id)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        fields.extend(self.fields.clone());
        if self.labels {
            let labels = container.labels.iter().map(|(name, value)| (field::of_label(name), value.clone()));
            let labels: Vec<(String, String)> = labels.collect();
            let size: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
            let Size(limit) = self.max_label_payload_size;
            if labels.len() > MAX_LABEL_COUNT {
                let count = labels.len();
                return Err(Error::invalid(format!(
                    "container `{id}` has {count} labels; at most {MAX_LABEL_COUNT} can be fields of the journal"
                )));
            }
            if size as u64 > limit {
                return Err(Error::invalid(format!(
                    "the labels of container `{id}` have {size} bytes as fields of the journal; \
                     `max_label_payload_size` is {limit} bytes"
                )));
            }
            fields.extend(labels);
        }
        Ok(Job {
            socket: self.socket.clone(),
            owner: geteuid().is_root().then_some((container.uid, container.gid)),
            fields,
            priorities: [self.stdout_priority, self.stderr_priority],
            max_line: self.max_line_size.0,
            max_buffer: self.max_buffer_size.0,
            when_full: self.when_full,
        })
    }
}

fn check_size(key: &str, Size(size): Size, minimum: u64, maximum: u64, expected: &str) -> Result<()> {
    if (minimum..=maximum).contains(&size) {
        Ok(())
    } else {
        Err(Error::new(format!("`{key}` is {size} bytes; expected {expected}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(config: Json) -> Config {
        serde_json::from_value(config).unwrap()
    }

    fn container(labels: &[(&str, &str)]) -> Container {
        let mut container = Container::new("pod.web".parse().unwrap());
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        container.labels = labels.iter().map(owned).collect();
        container
    }

    #[test]
    fn invalid_configurations_are_refused() {
        for (invalid, expected) in [
            (json!({ "socket": "run/socket" }), "`socket` is `run/socket`; expected an absolute path"),
            (json!({ "socket": format!("/{}", "x".repeat(200)) }), "of at most 107 bytes"),
            (json!({ "max_line_size": "1 B" }), "`max_line_size` is 1 bytes; expected 1 KiB to 16 MiB"),
            (json!({ "max_buffer_size": "1 TiB" }), "expected 64 KiB to 1 GiB"),
            (json!({ "max_line_size": "1 MiB" }), "expected at least twice `max_line_size`"),
            (json!({ "fields": { "site": "north" } }), "`fields` has `site`; expected a name of"),
            (
                json!({ "fields": { "SITE": "x".repeat(65 << 10) } }),
                "`fields` has 66564 bytes; expected at most",
            ),
            (json!({ "fields": { "MESSAGE": "x" } }), "`fields` has `MESSAGE`, which the logger sets"),
            (json!({ "fields": { "LABEL_A": "x" } }), "`fields` has `LABEL_A`, which the logger sets"),
        ] {
            let error = config(invalid).check().unwrap_err().causes().join(": ");
            assert!(error.contains(expected), "{error}");
        }
        config(json!({})).check().unwrap();
        config(json!({ "fields": { "SITE": "north" }, "when_full": "drop" })).check().unwrap();
    }

    #[test]
    fn entries_name_the_container_and_have_its_labels() {
        let job = config(json!({ "fields": { "SITE": "north" } }));
        let job = job.job(&container(&[("app", "shop"), ("MESSAGE", "forged")])).unwrap();
        let fields: Vec<(&str, &str)> =
            job.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            fields,
            [
                ("CONTAINER_ID", "pod.web"),
                ("CONTAINER_NAME", "web"),
                ("SYSLOG_IDENTIFIER", "pod.web"),
                ("SITE", "north"),
                ("LABEL_MESSAGE", "forged"),
                ("LABEL_APP", "shop"),
            ]
        );
        let none = config(json!({ "labels": false })).job(&container(&[("app", "shop")])).unwrap();
        assert_eq!(none.fields.len(), 3);
    }

    #[test]
    fn labels_that_are_too_large_fail_the_launch() {
        let long = "x".repeat(11 << 10);
        let refused = config(json!({})).job(&container(&[("app", &long)])).unwrap_err();
        let refused = refused.causes().join(": ");
        assert!(
            refused.contains("the labels of container `pod.web`") && refused.contains("10240"),
            "{refused}"
        );
        let names: Vec<String> = (0..513).map(|number| number.to_string()).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        let refused = config(json!({})).job(&container(&many)).unwrap_err().causes().join(": ");
        assert!(refused.contains("has 513 labels; at most 512"), "{refused}");
    }
}
