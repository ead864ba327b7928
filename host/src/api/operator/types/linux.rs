//! Linux options of a container.

message! {
    /// Linux options.
    pub struct LinuxInfo {
        /// Deprecated: `effective_capabilities`, if that is absent.
        optional capability_info: CapabilityInfo,
        /// Bounding capabilities of the command.
        optional bounding_capabilities: CapabilityInfo,
        /// Effective capabilities of the command.
        optional effective_capabilities: CapabilityInfo,
        /// Whether it shares the pid namespace of its parent, or of the host for a top-level container; false when
        /// absent.
        optional share_pid_namespace: bool,
        /// Whether process 1 of its own pid namespace is an init that reaps orphans, and not the command; true when
        /// absent. Not in Mesos.
        optional init: bool,
        /// System call filter.
        optional seccomp: SeccompInfo,
        /// IPC namespace and `/dev/shm`.
        optional ipc_mode: IpcMode,
        /// Size of `/dev/shm` in MiB. Only with `PRIVATE`.
        optional shm_size: u32,
        /// Whether a nested container shares the cgroups of its parent; see [`LinuxInfo::shares_cgroups`].
        optional share_cgroups: bool,
        /// Whether its root file system, which must be its own, is read-only; false when absent. Extension.
        optional read_only_root: bool,
    }
}

word! {
    /// Where a container gets its IPC namespace and `/dev/shm` from.
    pub enum IpcMode {
        /// Not set: a nested container shares, a top-level container follows the isolator's configuration.
        #[default]
        Unknown,
        /// Its own.
        Private,
        /// Those of its parent, or of the host for a top-level container.
        ShareParent,
    }
}

message! {
    /// System call filter of a container.
    pub struct SeccompInfo {
        /// File name of a profile; the agent's default profile when absent.
        optional profile_name: String,
        /// Whether there is no filter. Excludes `profile_name`.
        optional unconfined: bool,
    }
}

message! {
    /// A set of capabilities. Present and empty means none.
    pub struct CapabilityInfo {
        repeated capabilities: Capability,
    }
}

word! {
    /// A capability, as in capabilities(7) without the prefix `CAP_`.
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

impl LinuxInfo {
    /// Whether a nested container shares the cgroups of its parent. The default is true.
    ///
    /// Top-level containers never share; for them, an explicit `true` is an error.
    pub fn shares_cgroups(&self) -> bool {
        self.share_cgroups.unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_enum_value_is_an_error_that_lists_the_known_ones() {
        let error =
            serde_json::from_value::<LinuxInfo>(json!({"ipc_mode": "PRIVAT"})).unwrap_err().to_string();
        assert!(error.contains("`PRIVAT`") && error.contains("`SHARE_PARENT`"), "{error}");
    }
}
