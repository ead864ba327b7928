//! Networks and labels.

message! {
    /// A network of a container: requested in a launch, actual in a status.
    pub struct NetworkInfo {
        /// Addresses of the container.
        repeated ip_addresses: IpAddress,
        /// Name of the network; that of the host when absent.
        optional name: String,
        /// Network groups, for networks that support them.
        repeated groups: String,
        /// Labels passed to the network.
        optional labels: Labels,
        /// Ports of the host that are forwarded to the container.
        repeated port_mappings: PortMapping,
    }
}

message! {
    /// An IP address.
    pub struct IpAddress {
        /// Address family; `IPv4` when absent.
        optional protocol: IpProtocol,
        /// The address as text; absent from a request, any free one.
        optional ip_address: String,
    }
}

word! {
    /// An address family.
    pub enum IpProtocol {
        #[default]
        #[serde(rename = "IPv4")]
        Ipv4,
        #[serde(rename = "IPv6")]
        Ipv6,
    }
}

message! {
    /// A port of the host that is forwarded to a port of the container.
    pub struct PortMapping {
        required host_port: u32,
        required container_port: u32,
        /// `tcp` or `udp`; `tcp` when absent.
        optional protocol: String,
    }
}

message! {
    /// Labels, in order; a key may occur more than once.
    pub struct Labels {
        repeated labels: Label,
    }
}

message! {
    /// A label.
    pub struct Label {
        required key: String,
        optional value: String,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn address_families_have_the_names_of_mesos() {
        let wire = json!({"ip_addresses": [
            {"protocol": "IPv4", "ip_address": "192.168.1.20"},
            {"protocol": "IPv6", "ip_address": "fd00::20"},
        ]});
        let info: NetworkInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(info.ip_addresses[1].protocol, Some(IpProtocol::Ipv6));
        assert_eq!(serde_json::to_value(&info).unwrap(), wire);
    }
}
