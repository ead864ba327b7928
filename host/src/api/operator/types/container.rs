//! How a container is set up around its program.

use super::{
    command::Secret,
    network::{NetworkInfo, PortMapping},
    volume::Volume,
};

message! {
    /// The surroundings of a container: who runs it, what it sees and what it may do.
    pub struct ContainerInfo {
        /// Which containerizer is to run it.
        #[serde(rename = "type")]
        required kind: ContainerKind,
        /// What is mounted into it.
        repeated volumes: Volume,
        /// Its host name. Needs a namespace of its own.
        optional hostname: String,
        /// For `DOCKER`: what the engine is told.
        optional docker: DockerInfo,
        /// For `MESOS`: its image.
        optional mesos: MesosInfo,
        /// The networks it joins, in order.
        repeated network_infos: NetworkInfo,
        /// What is specific to Linux.
        optional linux_info: LinuxInfo,
        /// Its resource limits of the kind of `setrlimit`.
        optional rlimit_info: RLimitInfo,
        /// Its terminal, if it is to have one.
        optional tty_info: TtyInfo,
    }
}

word! {
    /// Which containerizer runs a container.
    pub enum ContainerKind {
        /// A container engine.
        Docker,
        /// The native containerizer.
        #[default]
        Mesos,
    }
}

message! {
    /// A container of the native containerizer.
    pub struct MesosInfo {
        /// The image its root file system comes from; that of the host when absent.
        optional image: Image,
        /// A folder on the host as its root file system, which stays as it is. Ours; excludes `image`.
        optional rootfs: String,
    }
}

message! {
    /// A file system image.
    pub struct Image {
        /// Its format.
        #[serde(rename = "type")]
        required kind: ImageKind,
        /// For `DOCKER`: its name and access.
        optional docker: DockerImage,
        /// Whether a copy in the store is good enough; it is when absent.
        optional cached: bool,
    }
}

word! {
    /// The format of an image.
    pub enum ImageKind {
        /// Retired, and refused where images are used.
        Appc,
        /// Of a registry that speaks docker's or OCI's protocol.
        #[default]
        Docker,
    }
}

message! {
    /// An image in a registry.
    pub struct DockerImage {
        /// `[registry/]repository[:tag|@digest]`.
        required name: String,
        /// The content of a docker `config.json` that grants access.
        optional config: Secret,
    }
}

message! {
    /// A container of an engine.
    pub struct DockerInfo {
        /// Its image.
        required image: String,
        /// Its network mode; `HOST` when absent.
        optional network: DockerNetwork,
        /// Its published ports. Only with a network of its own.
        repeated port_mappings: PortMapping,
        /// Whether it is confined at all; it is when absent.
        optional privileged: bool,
        /// Further options of the engine's command line, without leading dashes.
        repeated parameters: Parameter,
        /// Whether the image is pulled although it is there; not when absent.
        optional force_pull_image: bool,
        /// Retired: the driver of all its volumes.
        optional volume_driver: String,
    }
}

word! {
    /// How an engine connects a container.
    pub enum DockerNetwork {
        /// With the network of the host.
        #[default]
        Host,
        /// With the engine's bridge.
        Bridge,
        /// Not at all.
        None,
        /// With the network named in `network_infos`.
        User,
    }
}

message! {
    /// A key with a value.
    pub struct Parameter {
        /// The key.
        required key: String,
        /// The value.
        required value: String,
    }
}

message! {
    /// What is specific to Linux.
    pub struct LinuxInfo {
        /// Retired: read as `effective_capabilities` when that is absent.
        optional capability_info: CapabilityInfo,
        /// The most the program, and what it executes, can ever have.
        optional bounding_capabilities: CapabilityInfo,
        /// What the program has.
        optional effective_capabilities: CapabilityInfo,
        /// Whether it sees the processes of its parent, or of the host when it has none; not when absent.
        optional share_pid_namespace: bool,
        /// Its system call filter.
        optional seccomp: SeccompInfo,
        /// Whose IPC objects and `/dev/shm` it sees.
        optional ipc_mode: IpcMode,
        /// The size of its `/dev/shm`, in MiB. Only with a private one.
        optional shm_size: u32,
        /// Whether a nested container lives in its parent's cgroups; see [`LinuxInfo::shares_cgroups`].
        optional share_cgroups: bool,
    }
}

word! {
    /// Whose IPC objects a container sees.
    pub enum IpcMode {
        /// Not said: a nested container shares, a top-level one follows the isolator's setting.
        #[default]
        Unknown,
        /// Its own.
        Private,
        /// Those of its parent, or of the host when it has none.
        ShareParent,
    }
}

message! {
    /// Which system call filter a container gets.
    pub struct SeccompInfo {
        /// A profile by its file name; the agent's default when absent.
        optional profile_name: String,
        /// Whether it gets none at all. Excludes `profile_name`.
        optional unconfined: bool,
    }
}

message! {
    /// A set of capabilities. Present and empty means none.
    pub struct CapabilityInfo {
        /// Its members.
        repeated capabilities: Capability,
    }
}

word! {
    /// A capability of Linux, without the prefix `CAP_`.
    /// capabilities(7) says what each is for.
    pub enum Capability {
        #[default]
        Unknown,
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    }
}

message! {
    /// Limits of the kind of `setrlimit`.
    pub struct RLimitInfo {
        /// One per resource.
        repeated rlimits: RLimit,
    }
}

message! {
    /// One limit. Without `hard` and `soft` there is no limit; one without the other is refused.
    pub struct RLimit {
        /// What is limited.
        #[serde(rename = "type")]
        optional kind: RLimitKind,
        /// How far `soft` may be raised, in the unit of `setrlimit`.
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional hard: u64,
        /// The limit in force, in the unit of `setrlimit`.
        #[serde(deserialize_with = "super::wire::optional_integer")]
        optional soft: u64,
    }
}

word! {
    /// What `setrlimit` limits.
    /// setrlimit(2) says what each means, and its unit.
    pub enum RLimitKind {
        #[default]
        Unknown,
        RlmtAs,
        RlmtCore,
        RlmtCpu,
        RlmtData,
        RlmtFsize,
        RlmtLocks,
        RlmtMemlock,
        RlmtMsgqueue,
        RlmtNice,
        RlmtNofile,
        RlmtNproc,
        RlmtRss,
        RlmtRtprio,
        RlmtRttime,
        RlmtSigpending,
        RlmtStack,
    }
}

message! {
    /// A terminal.
    pub struct TtyInfo {
        /// Its size at the start.
        optional window_size: WindowSize,
    }
}

message! {
    /// The size of a terminal, in characters.
    pub struct WindowSize {
        /// Height.
        required rows: u32,
        /// Width.
        required columns: u32,
    }
}

impl LinuxInfo {
    /// Whether a nested container lives in its parent's cgroups, which it does unless it says otherwise.
    ///
    /// A top-level container has its own whatever this answers; for one, saying `true` aloud is a mistake that
    /// validation reports, which is why the field itself stays optional.
    pub fn shares_cgroups(&self) -> bool {
        self.share_cgroups.unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_with_everything_survives_the_round_trip() {
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
    fn an_engine_container_survives_the_round_trip() {
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

    #[test]
    fn a_misspelt_word_is_an_error_that_lists_the_right_ones() {
        let error =
            serde_json::from_value::<LinuxInfo>(json!({"ipc_mode": "PRIVAT"})).unwrap_err().to_string();
        assert!(error.contains("`PRIVAT`") && error.contains("`SHARE_PARENT`"), "{error}");
    }

    #[test]
    fn limits_beyond_what_json_numbers_carry_may_be_quoted() {
        let limit: RLimit =
            serde_json::from_value(json!({"type": "RLMT_AS", "hard": "18446744073709551615", "soft": null}))
                .unwrap();
        assert_eq!((limit.hard, limit.soft), (Some(u64::MAX), None));
    }
}
