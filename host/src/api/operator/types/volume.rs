//! Volumes.

use super::{command::Secret, docker::Parameter, image::Image};

message! {
    /// A mount. Exactly one of `host_path`, `image` and `source` is set.
    pub struct Volume {
        /// Access mode.
        required mode: VolumeMode,
        /// Mount point: absolute in the container, or relative to its sandbox.
        required container_path: String,
        /// A path on the host, or relative to the sandbox.
        optional host_path: String,
        /// An image.
        optional image: Image,
        /// Any other source.
        optional source: VolumeSource,
    }
}

word! {
    /// Access mode of a volume.
    pub enum VolumeMode {
        /// Read and write.
        #[default]
        Rw,
        /// Read only.
        Ro,
    }
}

message! {
    /// Source of a volume: the field named like its type is set.
    pub struct VolumeSource {
        /// Which field is set.
        #[serde(rename = "type")]
        optional kind: VolumeSourceKind,
        /// A volume of a docker volume driver.
        optional docker_volume: DockerVolume,
        /// A path on the host.
        optional host_path: HostPathVolume,
        /// A path in a sandbox.
        optional sandbox_path: SandboxPathVolume,
        /// A file with a secret.
        optional secret: Secret,
        /// A volume of a CSI plugin, verbatim: it is interpreted by a plugin.
        optional csi_volume: serde_json::Value,
    }
}

word! {
    /// Types of volume sources.
    pub enum VolumeSourceKind {
        /// Not set; invalid.
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
        /// The driver; `local` when absent.
        optional driver: String,
        /// Name of the volume.
        required name: String,
        /// Options passed to the driver.
        optional driver_options: DriverOptions,
    }
}

message! {
    /// Options of a volume driver.
    pub struct DriverOptions {
        repeated parameter: Parameter,
    }
}

message! {
    /// A path on the host.
    pub struct HostPathVolume {
        /// Absolute, or relative to the sandbox.
        required path: String,
        /// Mount propagation.
        optional mount_propagation: MountPropagation,
    }
}

message! {
    /// Mount propagation, see mount_namespaces(7).
    pub struct MountPropagation {
        /// Direction; none when absent.
        optional mode: PropagationMode,
    }
}

word! {
    /// Direction of mount propagation.
    pub enum PropagationMode {
        /// Not set: none.
        #[default]
        Unknown,
        /// Mounts on the host appear in the container.
        HostToContainer,
        /// Also the other way round.
        Bidirectional,
    }
}

message! {
    /// A path in the sandbox of the container or its parent.
    pub struct SandboxPathVolume {
        /// Which sandbox.
        #[serde(rename = "type")]
        optional kind: SandboxPathKind,
        /// Path relative to that sandbox.
        required path: String,
    }
}

word! {
    /// Which sandbox a path is relative to.
    pub enum SandboxPathKind {
        /// Not set; invalid.
        #[default]
        Unknown,
        /// That of the container itself.
        #[serde(rename = "SELF")]
        Own,
        /// That of its parent.
        Parent,
    }
}
