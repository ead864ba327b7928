//! Linux options, resource limits and the terminal of a container.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::{ContainerId, IpcMode, LinuxOptions, Rlimit, SeccompRequest, Tty};

/// Decodes the Linux options of a container.
pub(super) fn decode_linux(id: &ContainerId, info: &wire::ContainerInfo) -> Result<LinuxOptions> {
    let linux_default = wire::LinuxInfo::default();
    let linux = info.linux_info.as_ref().unwrap_or(&linux_default);
    let field = |name: &str| format!("container.linux_info.{name}");
    if !id.is_nested() && linux.share_cgroups == Some(true) {
        let reason = "a top-level container has no parent to share cgroups with";
        return Err(DecodeError::field(field("share_cgroups"), reason));
    }
    if linux.capability_info.is_some() && linux.effective_capabilities.is_some() {
        let reason = "it is the deprecated name of `effective_capabilities`; give one of them";
        return Err(DecodeError::field(field("capability_info"), reason));
    }
    let ipc_mode = match linux.ipc_mode.unwrap_or_default() {
        wire::IpcMode::Unknown => None,
        wire::IpcMode::Private => Some(IpcMode::Private),
        wire::IpcMode::ShareParent => Some(IpcMode::ShareParent),
    };
    if linux.shm_size.is_some() && ipc_mode != Some(IpcMode::Private) {
        return Err(DecodeError::field(field("shm_size"), "it needs `ipc_mode` `PRIVATE`"));
    }
    let seccomp = linux.seccomp.as_ref().map(|seccomp| SeccompRequest {
        profile: seccomp.profile_name.clone(),
        unconfined: seccomp.unconfined.unwrap_or(false),
    });
    if seccomp.as_ref().is_some_and(|seccomp| seccomp.unconfined && seccomp.profile.is_some()) {
        let reason = "`unconfined` excludes `profile_name`";
        return Err(DecodeError::field(field("seccomp"), reason));
    }
    let effective = linux.effective_capabilities.as_ref().or(linux.capability_info.as_ref());
    Ok(LinuxOptions {
        share_pid_namespace: linux.share_pid_namespace.unwrap_or(false),
        without_init: !linux.init.unwrap_or(true),
        share_cgroups: id.is_nested() && linux.shares_cgroups(),
        hostname: info.hostname.clone(),
        ipc_mode,
        shm_size: linux.shm_size.map(|mebibytes| u64::from(mebibytes) << 20),
        effective_capabilities: decode_capabilities(&field("effective_capabilities"), effective)?,
        bounding_capabilities: decode_capabilities(
            &field("bounding_capabilities"),
            linux.bounding_capabilities.as_ref(),
        )?,
        seccomp,
        read_only_root: linux.read_only_root.unwrap_or(false),
    })
}

fn decode_capabilities(field: &str, info: Option<&wire::CapabilityInfo>) -> Result<Option<BTreeSet<String>>> {
    let Some(info) = info else { return Ok(None) };
    let decode = |capability: &wire::Capability| match capability {
        wire::Capability::Unknown => Err(DecodeError::field(field, "it contains `UNKNOWN`")),
        known => Ok(wire_name(known)),
    };
    info.capabilities.iter().map(decode).collect::<Result<_>>().map(Some)
}

/// Decodes resource limits. As in Mesos, an entry without values lifts the limit, and no resource may occur twice.
pub(super) fn decode_rlimits(info: Option<&wire::RLimitInfo>) -> Result<BTreeMap<String, Rlimit>> {
    let mut rlimits = BTreeMap::new();
    for (index, limit) in info.iter().flat_map(|info| &info.rlimits).enumerate() {
        let invalid = |reason| DecodeError::field(format!("container.rlimit_info.rlimits[{index}]"), reason);
        let kind = limit.kind.filter(|kind| *kind != wire::RLimitKind::Unknown);
        let name = wire_name(&kind.ok_or_else(|| invalid("`type` is missing"))?);
        let rlimit = match (limit.soft, limit.hard) {
            (Some(soft), Some(hard)) if soft > hard => return Err(invalid("`soft` is above `hard`")),
            (Some(_), None) | (None, Some(_)) => {
                return Err(invalid("expected both `soft` and `hard`, or neither for no limit"));
            }
            (soft, hard) => Rlimit { soft, hard },
        };
        let name = name.trim_start_matches("RLMT_").to_owned();
        if rlimits.insert(name, rlimit).is_some() {
            return Err(invalid("an earlier entry has the same `type`"));
        }
    }
    Ok(rlimits)
}

/// Decodes the terminal of a container.
pub(in crate::api::operator) fn decode_tty(info: Option<&wire::TtyInfo>) -> Result<Option<Tty>> {
    let Some(info) = info else { return Ok(None) };
    let Some(size) = &info.window_size else { return Ok(Some(Tty::default())) };
    match (u16::try_from(size.columns), u16::try_from(size.rows)) {
        (Ok(columns), Ok(rows)) => Ok(Some(Tty { columns, rows })),
        _ => Err(DecodeError::field("container.tty_info.window_size", "it is above 65535")),
    }
}

/// The name of an enum value in messages.
fn wire_name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // Enums of the API are strings.
        _ => String::new(),
    }
}
