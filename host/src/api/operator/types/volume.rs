//! What is mounted into a container.

use super::{
    command::Secret,
    container::{Image, Parameter},
};

message! {
    /// One mount. Exactly one of `host_path`, `image` and `source` says what is mounted.
    pub struct Volume {
        /// Whether the container may write to it.
        required mode: VolumeMode,
        /// Where it appears: absolute in the container, or relative to its sandbox.
        required container_path: String,
        /// A path of the host, or relative to the sandbox.
        optional host_path: String,
        /// An image.
        optional image: Image,
        /// Anything else.
        optional source: VolumeSource,
    }
}

word! {
    /// Whether a container may write to a volume.
    pub enum VolumeMode {
        /// It may.
        #[default]
        Rw,
        /// It may not.
        Ro,
    }
}

message! {
    /// Where a volume comes from; the field named like the kind is set.
    pub struct VolumeSource {
        /// Which of the fields counts.
        #[serde(rename = "type")]
        optional kind: VolumeSourceKind,
        /// A volume of a docker volume driver.
        optional docker_volume: DockerVolume,
        /// A path of the host.
        optional host_path: HostPathVolume,
        /// A path in a sandbox.
        optional sandbox_path: SandboxPathVolume,
        /// A file that holds a secret.
        optional secret: Secret,
        /// A volume of a CSI plugin, as written: a plugin of ours reads it.
        optional csi_volume: serde_json::Value,
    }
}

word! {
    /// The kinds of sources.
    pub enum VolumeSourceKind {
        /// None; refused by validation.
        #[default]
        Unknown,
        /// `docker_volume`.
        DockerVolume,
        /// `host_path`.
        HostPath,
        /// `sandbox_path`.
        SandboxPath,
        /// `secret`.
        Secret,
        /// `csi_volume`.
        CsiVolume,
    }
}

message! {
    /// A volume of a docker volume driver.
    pub struct DockerVolume {
        /// The driver; the local one when absent.
        optional driver: String,
        /// The name of the volume.
        required name: String,
        /// What the driver is told: `{"parameter": [{"key", "value"}]}`.
        optional driver_options: DriverOptions,
    }
}

message! {
    /// Options of a volume driver.
    pub struct DriverOptions {
        /// The options.
        repeated parameter: Parameter,
    }
}

message! {
    /// A path of the host.
    pub struct HostPathVolume {
        /// The path: absolute, or relative to the sandbox.
        required path: String,
        /// Whether mounts made later travel between host and container.
        optional mount_propagation: MountPropagation,
    }
}

message! {
    /// Whether mounts made later travel.
    pub struct MountPropagation {
        /// In which directions; none when absent.
        optional mode: PropagationMode,
    }
}

word! {
    /// The directions in which mounts travel.
    pub enum PropagationMode {
        /// Not said: none.
        #[default]
        Unknown,
        /// Mounts of the host appear in the container.
        HostToContainer,
        /// And the other way as well.
        Bidirectional,
    }
}

message! {
    /// A path in a sandbox, shared between containers of one family.
    pub struct SandboxPathVolume {
        /// Whose sandbox.
        #[serde(rename = "type")]
        optional kind: SandboxPathKind,
        /// The path, relative to that sandbox.
        required path: String,
    }
}

word! {
    /// Whose sandbox a path is in.
    pub enum SandboxPathKind {
        /// Not said; refused by validation.
        #[default]
        Unknown,
        /// The container's own.
        #[serde(rename = "SELF")]
        Own,
        /// That of its parent.
        Parent,
    }
}
