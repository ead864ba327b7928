//! Containers of a container engine.

use super::network::PortMapping;

message! {
    /// A container of a container engine.
    pub struct DockerInfo {
        /// Its image.
        required image: String,
        /// Its network mode; `HOST` when absent.
        optional network: DockerNetwork,
        /// Published ports. Not with the network of the host.
        repeated port_mappings: PortMapping,
        /// Whether it has full access to the host; false when absent.
        optional privileged: bool,
        /// Further command-line options of the engine, without leading dashes.
        repeated parameters: Parameter,
        /// Whether the image is pulled even if it is present; false when absent.
        optional force_pull_image: bool,
        /// Deprecated: the driver of all its volumes.
        optional volume_driver: String,
    }
}

word! {
    /// Network mode of a container engine.
    pub enum DockerNetwork {
        /// The network of the host.
        #[default]
        Host,
        /// The engine's bridge.
        Bridge,
        /// No network.
        None,
        /// The network named in `network_infos`.
        User,
    }
}

message! {
    /// A key and its value.
    pub struct Parameter {
        required key: String,
        required value: String,
    }
}
