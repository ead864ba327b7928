//! Ports of the host that are mapped into containers: each is leased, as two CNI plugins would map the same port without
//! an error, and only one of them with an effect.

use cofferdam_plugin_api::model::{NetworkRequest, PortMapping};
use cofferdam_plugin_api::prelude::*;

const POOLS: [&str; 2] = ["host_port_tcp", "host_port_udp"];

pub fn protocol(mapping: &PortMapping) -> &str {
    mapping.protocol.as_deref().unwrap_or("tcp")
}

/// Leases the ports of a container.
pub fn acquire(host: &Host, container: &NewContainer, networks: &[NetworkRequest]) -> Result<()> {
    for mapping in networks.iter().flat_map(|network| &network.port_mappings) {
        let (port, protocol) = (u32::from(mapping.host_port), protocol(mapping));
        let pool = format!("host_port_{protocol}");
        let Err(error) = host.leases().acquire(&pool, port..=port, container) else { continue };
        let leases = host.leases().list(&pool)?;
        return Err(match leases.iter().find(|lease| lease.number == port) {
            Some(lease) => Error::new(format!(
                "port {port}/{protocol} of the host is mapped into container `{}` already; map another one",
                lease.container
            )),
            None => error.context(format!("cannot lease port {port}/{protocol} of the host")),
        });
    }
    Ok(())
}

/// Releases the ports of a container.
pub fn release(host: &Host, id: &str) -> Result<()> {
    for pool in POOLS {
        for lease in host.leases().list(pool)? {
            if lease.container.as_str() == id && lease.plugin == host.name() {
                host.leases().release(pool, lease.number)?;
            }
        }
    }
    Ok(())
}
