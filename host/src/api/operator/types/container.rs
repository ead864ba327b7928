//! Container options.

use super::{
    docker::DockerInfo, image::Image, linux::LinuxInfo, network::NetworkInfo, rlimit::RLimitInfo,
    volume::Volume,
};

message! {
    /// Container options: everything but the command and the resources.
    pub struct ContainerInfo {
        /// Its containerizer.
        #[serde(rename = "type")]
        required kind: ContainerKind,
        /// Mounts.
        repeated volumes: Volume,
        /// Host name. Needs a UTS namespace.
        optional hostname: String,
        /// For `DOCKER`: options of the engine.
        optional docker: DockerInfo,
        /// For `MESOS`: root file system.
        optional mesos: MesosInfo,
        /// Networks to join, in order.
        repeated network_infos: NetworkInfo,
        /// Linux options.
        optional linux_info: LinuxInfo,
        /// Resource limits as in setrlimit(2).
        optional rlimit_info: RLimitInfo,
        /// Its terminal; none when absent.
        optional tty_info: TtyInfo,
    }
}

word! {
    /// A containerizer.
    pub enum ContainerKind {
        /// A container engine.
        Docker,
        /// The native containerizer.
        #[default]
        Mesos,
    }
}

message! {
    /// Root file system of a container of the native containerizer; that of the host when empty.
    pub struct MesosInfo {
        /// Image that provides it.
        optional image: Image,
        /// Directory on the host, which is not modified. Excludes `image`. Extension.
        optional rootfs: String,
    }
}

message! {
    /// A terminal.
    pub struct TtyInfo {
        /// Initial size.
        optional window_size: WindowSize,
    }
}

message! {
    /// Size of a terminal, in characters.
    pub struct WindowSize {
        required rows: u32,
        required columns: u32,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_native_container_survives_a_round_trip() {
        let wire = json!({
            "type": "MESOS",
            "hostname": "web-1",
            "mesos": {"image": {"type": "DOCKER", "docker": {"name": "library/busybox:1.36"}, "cached": true}},
            "volumes": [
                {"mode": "RO", "container_path": "/data", "host_path": "/srv/data"},
                {"mode": "RW", "container_path": "tmp",
                 "source": {"type": "SANDBOX_PATH", "sandbox_path": {"type": "PARENT", "path": "shared"}}},
            ],
            "network_infos": [{"name": "backbone", "port_mappings": [{"host_port": 8080, "container_port": 80}]}],
            "linux_info": {
                "effective_capabilities": {"capabilities": ["NET_BIND_SERVICE", "CHECKPOINT_RESTORE"]},
                "share_pid_namespace": false,
                "seccomp": {"profile_name": "strict.json"},
                "ipc_mode": "PRIVATE",
                "shm_size": 64,
                "share_cgroups": false,
            },
            "rlimit_info": {"rlimits": [{"type": "RLMT_NOFILE", "hard": 4096, "soft": 1024}, {"type": "RLMT_CORE"}]},
            "tty_info": {"window_size": {"rows": 24, "columns": 80}},
        });
        let info: ContainerInfo = serde_json::from_value(wire.clone()).unwrap();
        assert!(!info.linux_info.as_ref().unwrap().shares_cgroups());
        assert_eq!(serde_json::to_value(&info).unwrap(), wire);
    }

    #[test]
    fn an_engine_container_survives_a_round_trip() {
        let wire = json!({
            "type": "DOCKER",
            "docker": {
                "image": "nginx:1.27",
                "network": "BRIDGE",
                "port_mappings": [{"host_port": 31000, "container_port": 80, "protocol": "tcp"}],
                "parameters": [{"key": "label", "value": "tier=web"}],
            },
        });
        let info: ContainerInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(serde_json::to_value(&info).unwrap(), wire);
    }
}
