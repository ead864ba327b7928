//! From the networks of a request to what CNI plugins are told.

use std::net::IpAddr;

use cofferdam_plugin_api::model::{NetworkRequest, PortMapping};
use cofferdam_plugin_api::prelude::*;
use serde_json::Map;

use crate::networks::{MESOS, Network, Networks, is_capable};
use crate::ports;
use crate::store::Attachment;

/// The kernel's limit for a host name in bytes.
const MAX_HOSTNAME: usize = 64;

/// Reads the configurations of the requested networks. Interfaces are named in the order of the request.
pub fn attachments(networks: &Networks, requested: &[NetworkRequest]) -> Result<Vec<Attachment>> {
    let mut attachments: Vec<Attachment> = Vec::new();
    for request in requested {
        let name = request.name.as_deref().unwrap_or_default();
        if attachments.iter().any(|attachment| attachment.network.name == name) {
            return Err(Error::invalid(format!("the network `{name}` is requested twice")));
        }
        let mut network = networks.find(name)?;
        add_request(&mut network, request)?;
        let remaining = network.plugins.len();
        let interface = format!("eth{}", attachments.len());
        attachments.push(Attachment {
            interface,
            network,
            result: None,
            remaining,
            failure: None,
            original: None,
        });
    }
    Ok(attachments)
}

/// Adds what the container requests to the configurations of the network's plugins: as `runtimeConfig` for those that
/// declare the capability, and in `args` as Mesos does.
fn add_request(network: &mut Network, request: &NetworkRequest) -> Result<()> {
    let mut runtime: Vec<(&str, Json)> = Vec::new();
    if !request.port_mappings.is_empty() {
        runtime.push(("portMappings", request.port_mappings.iter().map(port_mapping).collect()));
    }
    if !request.addresses.is_empty() {
        for address in &request.addresses {
            if address.split('/').next().unwrap_or_default().parse::<IpAddr>().is_err() {
                return Err(Error::invalid(format!("`{}` is not an address", address.escape_debug())));
            }
        }
        runtime.push(("ips", json!(request.addresses)));
    }
    for (capability, _) in &runtime {
        if !network.is_capable(capability) {
            let what = if *capability == "ips" { "addresses" } else { "port mappings" };
            return Err(Error::invalid(format!(
                "{what} are requested of the network `{}`, none of whose plugins has the capability `{capability}`: \
                 add `\"capabilities\": {{\"{capability}\": true}}` to the plugin in `{}` that supports it",
                network.name,
                network.file.display()
            )));
        }
    }
    let info = network_info(request);
    for plugin in &mut network.plugins {
        let own: Map<String, Json> = runtime
            .iter()
            .filter(|(capability, _)| is_capable(plugin, capability))
            .map(|(capability, value)| ((*capability).to_owned(), value.clone()))
            .collect();
        if !own.is_empty() {
            plugin.insert("runtimeConfig".to_owned(), Json::Object(own));
        }
        let args = plugin.entry("args").or_insert_with(|| json!({}));
        let Json::Object(args) = args else {
            return Err(Error::new(format!("`args` in `{}` is not an object", network.file.display())));
        };
        let mesos = args.entry(MESOS).or_insert_with(|| json!({}));
        let Json::Object(mesos) = mesos else {
            return Err(Error::new(format!(
                "`args.{MESOS}` in `{}` is not an object",
                network.file.display()
            )));
        };
        mesos.insert("network_info".to_owned(), info.clone());
    }
    Ok(())
}

fn port_mapping(mapping: &PortMapping) -> Json {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": ports::protocol(mapping),
    })
}

/// The request as the Mesos message `NetworkInfo`.
fn network_info(request: &NetworkRequest) -> Json {
    let mut info = json!({ "name": request.name });
    if !request.addresses.is_empty() {
        let addresses: Vec<Json> =
            request.addresses.iter().map(|address| json!({ "ip_address": address })).collect();
        info["ip_addresses"] = json!(addresses);
    }
    if !request.labels.is_empty() {
        info["labels"] = labels(request);
    }
    if !request.port_mappings.is_empty() {
        info["port_mappings"] = port_mappings(request);
    }
    info
}

pub fn labels(request: &NetworkRequest) -> Json {
    let label = |(key, value)| json!({ "key": key, "value": value });
    json!({ "labels": request.labels.iter().map(label).collect::<Vec<Json>>() })
}

pub fn port_mappings(request: &NetworkRequest) -> Json {
    let mapping = |mapping: &PortMapping| {
        json!({
            "host_port": mapping.host_port,
            "container_port": mapping.container_port,
            "protocol": ports::protocol(mapping),
        })
    };
    request.port_mappings.iter().map(mapping).collect()
}

/// The requested host name, or the last value of the id as far as it fits.
pub fn hostname(container: &Container) -> Result<String> {
    let Some(name) = container.linux.hostname.as_deref() else {
        let value = container.id.value();
        return Ok(value.get(..MAX_HOSTNAME).unwrap_or(value).to_owned());
    };
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > MAX_HOSTNAME || !name.chars().all(is_valid) {
        return Err(Error::invalid(format!(
            "the container requests the host name `{}`; expected 1 to {MAX_HOSTNAME} letters, digits, dots, hyphens and \
             underscores",
            name.escape_debug()
        )));
    }
    Ok(name.to_owned())
}
