//! Networks.

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::{NetworkRequest, PortMapping};

/// Decodes the networks of a container.
pub(super) fn decode_networks(infos: &[wire::NetworkInfo]) -> Result<Vec<NetworkRequest>> {
    infos.iter().enumerate().map(|(index, info)| decode_network(index, info)).collect()
}

fn decode_network(index: usize, info: &wire::NetworkInfo) -> Result<NetworkRequest> {
    let field = |name: &str| format!("container.network_infos[{index}].{name}");
    if !info.groups.is_empty() {
        return Err(DecodeError::Unsupported { field: field("groups"), advice: "; use `labels`" });
    }
    let labels = info.labels.iter().flat_map(|labels| &labels.labels);
    Ok(NetworkRequest {
        name: info.name.clone(),
        // One without an address requests any free one, as is done for a network without addresses.
        addresses: info.ip_addresses.iter().filter_map(|address| address.ip_address.clone()).collect(),
        port_mappings: info
            .port_mappings
            .iter()
            .map(|mapping| decode_port_mapping(&field("port_mappings"), mapping))
            .collect::<Result<_>>()?,
        labels: labels.map(|label| (label.key.clone(), label.value.clone().unwrap_or_default())).collect(),
    })
}

pub(super) fn decode_port_mapping(field: &str, mapping: &wire::PortMapping) -> Result<PortMapping> {
    let port = |number: u32| match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(DecodeError::field(field, format!("{number} is not a port; expected 1 to 65535"))),
    };
    match mapping.protocol.as_deref() {
        // Clients of docker write it in any case.
        None | Some("tcp" | "udp" | "TCP" | "UDP") => {}
        Some(other) => {
            let reason = format!("the protocol is `{other}`; expected `tcp` or `udp`");
            return Err(DecodeError::field(field, reason));
        }
    }
    Ok(PortMapping {
        host_port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
        protocol: mapping.protocol.clone(),
    })
}
