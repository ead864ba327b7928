//! An isolator that requests for a launch what it is configured to, or what a label of the container says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use cofferdam_plugin_api::config::Schema;
use cofferdam_plugin_api::model::{self, LaunchInfo};
use cofferdam_plugin_api::mount;
use cofferdam_plugin_api::prelude::*;

/// A label of a container: a table like that of the configuration, as JSON, which replaces it for this container.
const LABEL: &str = "request";

struct Requester(Config);

#[derive(Default, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// What to request.
    launch: Launch,
    /// Files of namespaces to enter by descriptor, by kind: `network` = `/proc/<pid>/ns/net`.
    enter: BTreeMap<String, PathBuf>,
    /// What to bind-mount by descriptor.
    bind: Vec<Bind>,
}

/// A `LaunchInfo`, as the payload of a reply has it.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Launch(LaunchInfo);

impl PluginConfig for Launch {
    const SCHEMA: &'static Schema = &Schema::Table { fields: &[], closed: false };
}

/// A bind mount by descriptor.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Bind {
    /// Path of the host, which the plugin opens.
    source: PathBuf,
    /// Path of the container.
    target: PathBuf,
    /// Mount flags: `ro`, ….
    #[serde(default)]
    flags: BTreeSet<String>,
    /// Whether the descriptor is that of a detached mount, a clone of that of `source`.
    #[serde(default)]
    detached: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Requester {
    const NAME: &'static str = "test/request";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = model::FEATURES;
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let label = container.labels.get(LABEL).map(|label| Config::deserialize(label.parse::<Json>()?));
        let label = label.transpose().context(format!("cannot read the label `{LABEL}`"))?;
        let config = label.as_ref().unwrap_or(&self.0);
        let mut prepared = Prepared::new();
        *prepared.launch() = config.launch.0.clone();
        for (kind, file) in &config.enter {
            let kind = Namespace::deserialize(json!(kind))?;
            prepared = prepared.enter_by_descriptor(kind, File::open(file)?.into());
        }
        for Bind { source, target, flags, detached } in &config.bind {
            let flags = flags.iter().map(String::as_str);
            let descriptor = if *detached { mount::clone(source, true)? } else { File::open(source)?.into() };
            prepared = prepared.bind_descriptor(descriptor, target, flags);
        }
        Ok(prepared)
    }
}
