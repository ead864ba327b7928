//! Network configurations: the files of a directory, as CNI and Mesos read them.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::prelude::*;
use serde_json::Map;

/// Most of a configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Most files of the directory.
const MAX_FILES: usize = 1000;

/// The versions of the specification that are known, in order.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(usize);

impl Version {
    pub const V0_3_0: Self = Self(2);
    pub const V0_4_0: Self = Self(4);
    pub const V1_1_0: Self = Self(6);

    fn parse(text: &str) -> Option<Self> {
        VERSIONS.iter().position(|known| *known == text).map(Self)
    }

    pub fn text(self) -> &'static str {
        VERSIONS.get(self.0).copied().unwrap_or_default()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a known version of CNI"))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text().to_owned()
    }
}

/// A network: a chain of CNI plugins, of one plugin if its file is not a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    /// The file it was read from, for errors.
    pub file: PathBuf,
    pub version: Version,
    pub plugins: Vec<Map<String, Json>>,
    #[serde(default)]
    pub disable_check: bool,
    #[serde(default)]
    pub disable_gc: bool,
}

impl Network {
    /// Whether any of its plugins declares a capability.
    pub fn is_capable(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| is_capable(plugin, capability))
    }
}

/// Whether a plugin's configuration declares a capability.
pub fn is_capable(plugin: &Map<String, Json>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Json::Bool(true))
}

/// The program that a plugin's configuration names.
pub fn kind(plugin: &Map<String, Json>) -> &str {
    plugin.get("type").and_then(Json::as_str).unwrap_or_default()
}

/// The directories of configurations and CNI plugins.
#[derive(Debug)]
pub struct Networks {
    config: PathBuf,
    plugins: Vec<PathBuf>,
}

/// What a directory contains.
#[derive(Debug, Default)]
pub struct Loaded {
    pub networks: BTreeMap<String, Network>,
    /// Files that are not used, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

impl Networks {
    /// # Errors
    /// If a directory is missing, or others may change it.
    pub fn new(config: &Path, plugins: &str) -> Result<Self> {
        let plugins: Vec<PathBuf> = plugins.split(':').map(PathBuf::from).collect();
        let known = plugins.iter().map(|path| ("network_cni_plugins_dir", path.as_path()));
        for (key, path) in known.chain([("network_cni_config_dir", config)]) {
            let wrong = |why: &str| Error::new(format!("`{key}`: `{}` {why}", path.display()));
            if !path.is_absolute() {
                return Err(wrong("is not an absolute path"));
            }
            let metadata =
                fs::metadata(path).context(format!("`{key}`: `{}` cannot be read", path.display()))?;
            if !metadata.is_dir() {
                return Err(wrong("is not a directory"));
            }
            check_owner(&metadata).map_err(|why| wrong(&why))?;
        }
        Ok(Self { config: config.to_owned(), plugins })
    }

    /// Directories of plugins, as in `CNI_PATH`.
    pub fn search_path(&self) -> String {
        self.plugins.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// The program of a plugin.
    ///
    /// # Errors
    /// If there is none, or others may change it.
    pub fn program(&self, kind: &str) -> Result<PathBuf> {
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(Error::new(format!("`{}` is not the name of a CNI plugin", kind.escape_debug())));
        }
        for directory in &self.plugins {
            let path = directory.join(kind);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
                continue;
            }
            return match check_owner(&metadata) {
                Ok(()) => Ok(path),
                Err(why) => Err(Error::new(format!("the CNI plugin `{}` {why}", path.display()))),
            };
        }
        Err(Error::new(format!(
            "there is no CNI plugin `{kind}` in `{}`; install it, or correct `network_cni_plugins_dir`",
            self.search_path()
        )))
    }

    /// The network of a name, from its file as it is now.
    pub fn find(&self, name: &str) -> Result<Network> {
        let mut loaded = self.load()?;
        if let Some(network) = loaded.networks.remove(name) {
            return Ok(network);
        }
        let known: Vec<&str> = loaded.networks.keys().map(String::as_str).collect();
        let known = match known.is_empty() {
            true => "none; add its configuration there".to_owned(),
            false => format!("`{}`; choose one of these, or add its configuration there", known.join("`, `")),
        };
        let mut message = format!(
            "there is no network `{}` in `{}`, which has: {known}",
            name.escape_debug(),
            self.config.display()
        );
        for (path, why) in loaded.skipped.iter().take(8) {
            message += &format!("; `{}` is not used: {why}", path.display());
        }
        Err(Error::invalid(message))
    }

    /// All networks. Files that cannot be used are skipped, as in Mesos.
    pub fn load(&self) -> Result<Loaded> {
        let read = || format!("cannot read `network_cni_config_dir`, `{}`", self.config.display());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.config).context(read())? {
            let entry = entry.context(read())?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                paths.push(entry.path());
            }
            if paths.len() > MAX_FILES {
                return Err(Error::new(format!("it has more than {MAX_FILES} files")).context(read()));
            }
        }
        paths.sort();
        let mut loaded = Loaded::default();
        for path in paths {
            match self.read(&path) {
                Ok(None) => {}
                Ok(Some(network)) => match loaded.networks.get(&network.name) {
                    Some(first) => loaded.skipped.push((
                        path,
                        format!(
                            "`{}` has a network of the same name, `{}`",
                            first.file.display(),
                            network.name
                        ),
                    )),
                    None => drop(loaded.networks.insert(network.name.clone(), network)),
                },
                Err(error) => loaded.skipped.push((path, error.causes().join(": "))),
            }
        }
        Ok(loaded)
    }

    /// `None` for what is no regular file.
    fn read(&self, path: &Path) -> Result<Option<Network>> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let file = File::open(path)?;
        check_owner(&file.metadata()?).map_err(Error::new)?;
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(Error::new(format!("it is larger than {MAX_FILE} bytes")));
        }
        let network = parse(&serde_json::from_slice(&text)?, path)?;
        for plugin in &network.plugins {
            self.program(kind(plugin))?;
            if let Some(ipam) = plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Json::as_str) {
                self.program(ipam)?;
            }
        }
        Ok(Some(network))
    }
}

fn parse(document: &Json, path: &Path) -> Result<Network> {
    let Json::Object(document) = document else { return Err(Error::new("it is not a JSON object")) };
    let text = |key: &str| document.get(key).and_then(Json::as_str);
    let name = text("name").filter(|name| is_network_name(name)).ok_or_else(|| {
        Error::new("expected a `name` of letters, digits, `.`, `_` and `-`, beginning with a letter or digit")
    })?;
    let version = version(document)?;
    let plugins = match document.get("plugins") {
        None => vec![document.clone()],
        Some(_) if version < Version::V0_3_0 => {
            return Err(Error::new(format!(
                "a list of plugins needs `cniVersion` 0.3.0 or later, not {}",
                version.text()
            )));
        }
        Some(Json::Array(plugins)) if !plugins.is_empty() => plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned().ok_or_else(|| Error::new("a plugin is not an object")))
            .collect::<Result<_>>()?,
        Some(_) => return Err(Error::new("`plugins` is not a list with at least one plugin")),
    };
    if plugins.iter().any(|plugin| kind(plugin).is_empty()) {
        return Err(Error::new("a plugin has no `type`"));
    }
    // Values of the agent, which the file must not have: CNI for the first two, Mesos for the last.
    for plugin in &plugins {
        for key in ["prevResult", "runtimeConfig"] {
            if plugin.contains_key(key) {
                return Err(Error::new(format!("it has `{key}`, which the agent sets; remove it")));
            }
        }
        if plugin
            .get("args")
            .and_then(|args| args.get(MESOS))
            .and_then(|mesos| mesos.get("network_info"))
            .is_some()
        {
            return Err(Error::new(format!(
                "it has `args.{MESOS}.network_info`, which the agent sets; remove it"
            )));
        }
    }
    let flag = |key: &str| document.get(key) == Some(&Json::Bool(true)) || text(key) == Some("true");
    Ok(Network {
        name: name.to_owned(),
        file: path.to_owned(),
        version,
        plugins,
        disable_check: flag("disableCheck"),
        disable_gc: flag("disableGC"),
    })
}

/// Key of what Mesos tells plugins in `args`.
pub const MESOS: &str = "org.apache.mesos";

/// The latest known version that the file offers.
fn version(document: &Map<String, Json>) -> Result<Version> {
    let mut offered: Vec<&str> = Vec::new();
    match document.get("cniVersion") {
        None => {}
        Some(Json::String(version)) => offered.push(version),
        Some(_) => return Err(Error::new("`cniVersion` is not a string")),
    }
    if let Some(Json::Array(versions)) = document.get("cniVersions") {
        offered.extend(versions.iter().filter_map(Json::as_str));
    }
    if offered.is_empty() {
        // As in the specification.
        offered.push(VERSIONS[0]);
    }
    offered.iter().filter_map(|text| Version::parse(text)).max().ok_or_else(|| {
        Error::new(format!(
            "its CNI version is {}; expected one of {}",
            offered.join(", ").escape_debug(),
            VERSIONS.join(", ")
        ))
    })
}

fn is_network_name(name: &str) -> bool {
    is_identifier(name) && name.len() <= 200
}

/// Whether CNI plugins accept it as a name of a network or an id of a container.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// These files decide what runs as root.
fn check_owner(metadata: &Metadata) -> std::result::Result<(), String> {
    let own = fs::metadata("/proc/self").map(|own| own.uid()).unwrap_or_default();
    if metadata.uid() != 0 && metadata.uid() != own {
        return Err(format!(
            "belongs to user {}, and what it contains runs as root; change its owner",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(
            "can be written by others, and what it contains runs as root; run `chmod go-w`".to_owned()
        );
    }
    Ok(())
}
