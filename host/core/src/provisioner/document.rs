//! The JSON documents of an image, as OCI and Docker define them. What is not needed is not read.

use std::collections::BTreeMap;

use cofferdam_plugin_model::ImageConfig;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Maximum size of a manifest, an index, or the configuration of an image.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Maximum number of layers, as the kernel has it for an overlay.
pub const MAX_LAYERS: usize = 500;

/// Media types.
pub mod media_type {
    /// An index of manifests.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// The configuration of an image.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer that is not compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// An index of manifests.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Type of the blob.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Platform of the image, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations, such as names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether it refers to an index. Its type is optional in some documents, which then say so themselves.
    #[must_use]
    pub fn is_index(&self) -> bool {
        [media_type::OCI_INDEX, media_type::DOCKER_INDEX].contains(&self.media_type.as_str())
    }
}

/// What a program in an image can run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture, with the names of Go: `amd64`, `arm64`.
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Variant of the CPU: `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// That of this program.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// The variant, or the one that all CPUs of the architecture run.
    fn variant(&self) -> Option<&str> {
        let baseline = match self.architecture.as_str() {
            "amd64" => Some("v1"),
            "arm64" => Some("v8"),
            _ => None,
        };
        self.variant.as_deref().or(baseline)
    }

    /// The manifest of an index that is for this platform. Without a variant, the one that all CPUs of the architecture run
    /// comes first. A manifest without a platform is for all, and comes last.
    #[must_use]
    pub fn choose<'i>(&self, index: &'i Index) -> Option<&'i Descriptor> {
        let accepted = index
            .manifests
            .iter()
            .filter(|found| found.platform.as_ref().is_none_or(|platform| self.accepts(platform)));
        accepted.min_by_key(|found| {
            let is_other = |platform: &Self| platform.variant() != self.variant();
            (found.platform.is_none(), found.platform.as_ref().is_some_and(is_other))
        })
    }

    /// Whether programs of an image run here, which is for `OS/ARCHITECTURE`. Some images do not say what they are for.
    #[must_use]
    pub fn runs(&self, image: &str) -> bool {
        let Self { os, architecture, .. } = self;
        [format!("{os}/{architecture}"), format!("{os}/")].iter().any(|platform| platform == image)
    }

    /// Whether programs of `other` run here.
    #[must_use]
    pub fn accepts(&self, other: &Self) -> bool {
        let is_variant = self.variant.is_none() || self.variant() == other.variant();
        self.architecture == other.architecture && self.os == other.os && is_variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// An index of manifests: one for each platform, or for each image of a layout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Index {
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The platforms of the manifests that have one.
    pub fn platforms(&self) -> impl Iterator<Item = &Platform> {
        self.manifests.iter().filter_map(|manifest| manifest.platform.as_ref())
    }
}

/// A manifest: the configuration and the layers of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Type of the document.
    #[serde(default)]
    pub media_type: String,
    /// The configuration. Its digest is the id of the image.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// The configuration of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configuration {
    /// CPU architecture, with the names of Go.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// When it was created, as in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How a container of it is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Execution>,
    /// The layers.
    pub rootfs: Layers,
}

/// The layers of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layers {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the layers without compression, the lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How a container of an image is run. Docker writes `null` for what is not set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    /// A set: the values are empty objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

impl Execution {
    /// The configuration as plugins get it. As in Mesos, an entry of the environment without `=` is skipped.
    #[must_use]
    pub fn for_plugins(self) -> ImageConfig {
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        let variable = |entry: String| entry.split_once('=').map(|(name, value)| (name.into(), value.into()));
        ImageConfig {
            entrypoint: self.entrypoint.unwrap_or_default(),
            cmd: self.cmd.unwrap_or_default(),
            environment: self.env.unwrap_or_default().into_iter().filter_map(variable).collect(),
            working_directory: set(self.working_dir).map(Into::into),
            user: set(self.user),
            labels: self.labels.unwrap_or_default(),
            stop_signal: set(self.stop_signal),
            volumes: self.volumes.unwrap_or_default().into_keys().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_keys_are_accepted() {
        let text = r#"{"architecture": "amd64", "os": "linux", "docker_version": "20", "history": [{}],
            "config": {"Hostname": "", "User": "", "Env": ["A=1=2", "B=", "novalue"], "Cmd": null, "Volumes": null,
                       "Entrypoint": ["/a"], "WorkingDir": "", "Labels": null, "StopSignal": "SIGQUIT"},
            "rootfs": {"type": "layers", "diff_ids": []}}"#;
        let configuration: Configuration = serde_json::from_str(text).unwrap();
        let config = configuration.config.unwrap().for_plugins();
        assert_eq!(config.entrypoint, ["/a"]);
        assert!(config.cmd.is_empty() && config.user.is_none() && config.working_directory.is_none());
        assert_eq!(config.environment, BTreeMap::from([("A".into(), "1=2".into()), ("B".into(), "".into())]));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert!(config.volumes.is_empty());
        let execution: Execution =
            serde_json::from_str(r#"{"Volumes": {"/data": {}, "/log": null}}"#).unwrap();
        assert_eq!(execution.for_plugins().volumes, ["/data".to_owned(), "/log".to_owned()].into());
    }

    #[test]
    fn a_platform_without_a_variant_accepts_all_of_them() {
        let platform = |variant: Option<&str>| Platform {
            architecture: "arm64".into(),
            os: "linux".into(),
            variant: variant.map(Into::into),
        };
        assert!(platform(None).accepts(&platform(Some("v8"))));
        assert!(!platform(Some("v7")).accepts(&platform(Some("v8"))));
        assert!(!Platform { os: "windows".into(), ..platform(None) }.accepts(&platform(None)));
        let index = |platforms: &[Option<&str>]| Index {
            manifests: platforms
                .iter()
                .zip(0..)
                .map(|(variant, size)| Descriptor {
                    media_type: String::new(),
                    digest: Digest::of(b""),
                    size,
                    platform: Some(platform(*variant)),
                    annotations: BTreeMap::new(),
                })
                .collect(),
        };
        let chosen = |wanted: Option<&str>, platforms: &[Option<&str>]| {
            platform(wanted).choose(&index(platforms)).map(|descriptor| descriptor.size)
        };
        assert_eq!(chosen(None, &[Some("v9"), Some("v8")]), Some(1));
        assert_eq!(chosen(None, &[Some("v9"), None, Some("v8")]), Some(1));
        assert_eq!(chosen(None, &[Some("v9")]), Some(0));
        assert_eq!(chosen(Some("v9"), &[Some("v8"), Some("v9")]), Some(1));
        assert_eq!(chosen(Some("v7"), &[Some("v8"), None]), None);
        assert_eq!(chosen(Some("v8"), &[Some("v9"), None]), Some(1));
        let mut any = index(&[None, Some("v9")]);
        any.manifests[0].platform = None;
        assert_eq!(platform(None).choose(&any).map(|descriptor| descriptor.size), Some(1));
        assert_eq!(platform(Some("v7")).choose(&any).map(|descriptor| descriptor.size), Some(0));
        assert_eq!(platform(Some("v8")).to_string(), "linux/arm64/v8");
    }
}
