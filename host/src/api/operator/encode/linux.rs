//! Linux options, resource limits and networks of a launch request.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::api::operator::types as wire;
use cofferdam_core::model::{IpcMode, NetworkRequest, PortMapping, Request, Rlimit, Tty};

pub(super) fn encode_linux(request: &Request) -> wire::LinuxInfo {
    let linux = &request.linux;
    wire::LinuxInfo {
        capability_info: None,
        bounding_capabilities: linux.bounding_capabilities.as_ref().map(encode_capabilities),
        effective_capabilities: linux.effective_capabilities.as_ref().map(encode_capabilities),
        share_pid_namespace: Some(linux.share_pid_namespace),
        init: Some(!linux.without_init),
        seccomp: linux.seccomp.as_ref().map(|seccomp| wire::SeccompInfo {
            profile_name: seccomp.profile.clone(),
            unconfined: seccomp.unconfined.then_some(true),
        }),
        ipc_mode: linux.ipc_mode.map(|mode| match mode {
            IpcMode::Private => wire::IpcMode::Private,
            IpcMode::ShareParent => wire::IpcMode::ShareParent,
            _ => wire::IpcMode::Unknown,
        }),
        shm_size: linux.shm_size.map(|bytes| u32::try_from(bytes >> 20).unwrap_or(u32::MAX)),
        share_cgroups: request.id.is_nested().then_some(linux.share_cgroups),
        read_only_root: linux.read_only_root.then_some(true),
    }
}

fn encode_capabilities(names: &BTreeSet<String>) -> wire::CapabilityInfo {
    wire::CapabilityInfo { capabilities: names.iter().map(|name| from_wire_name(name)).collect() }
}

pub(super) fn encode_rlimits(rlimits: &BTreeMap<String, Rlimit>) -> Option<wire::RLimitInfo> {
    let encode = |(name, limit): (&String, &Rlimit)| wire::RLimit {
        kind: Some(from_wire_name(&format!("RLMT_{name}"))),
        hard: limit.hard,
        soft: limit.soft,
    };
    (!rlimits.is_empty()).then(|| wire::RLimitInfo { rlimits: rlimits.iter().map(encode).collect() })
}

pub(super) fn encode_tty(tty: &Tty) -> wire::TtyInfo {
    let size = wire::WindowSize { rows: tty.rows.into(), columns: tty.columns.into() };
    wire::TtyInfo { window_size: (*tty != Tty::default()).then_some(size) }
}

pub(super) fn encode_network(network: &NetworkRequest) -> wire::NetworkInfo {
    let encode_address =
        |address: &String| wire::IpAddress { protocol: None, ip_address: Some(address.clone()) };
    let encode_label =
        |(key, value): (&String, &String)| wire::Label { key: key.clone(), value: Some(value.clone()) };
    let labels: Vec<wire::Label> = network.labels.iter().map(encode_label).collect();
    wire::NetworkInfo {
        ip_addresses: network.addresses.iter().map(encode_address).collect(),
        name: network.name.clone(),
        groups: Vec::new(),
        labels: (!labels.is_empty()).then_some(wire::Labels { labels }),
        port_mappings: network.port_mappings.iter().map(encode_port_mapping).collect(),
    }
}

pub(super) fn encode_port_mapping(mapping: &PortMapping) -> wire::PortMapping {
    wire::PortMapping {
        host_port: mapping.host_port.into(),
        container_port: mapping.container_port.into(),
        protocol: mapping.protocol.clone(),
    }
}

/// The enum value of a name in messages; that for unknown values if there is none.
fn from_wire_name<T: DeserializeOwned + Default>(name: &str) -> T {
    serde_json::from_value(Json::from(name)).unwrap_or_default()
}
