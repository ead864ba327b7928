//! The networks a container asks for, and what it got.

message! {
    /// One network of a container: in a request what is wanted, in a status what is so.
    pub struct NetworkInfo {
        /// The addresses in it.
        repeated ip_addresses: IpAddress,
        /// Its name; the host's network when absent.
        optional name: String,
        /// Groups whose members may talk to each other, for networks that know such.
        repeated groups: String,
        /// What the network is told besides.
        optional labels: Labels,
        /// Ports of the host that lead into the container.
        repeated port_mappings: PortMapping,
    }
}

message! {
    /// One address.
    pub struct IpAddress {
        /// Its family; `IPv4` when absent.
        optional protocol: IpProtocol,
        /// The address in its usual notation; any free one when absent from a request.
        optional ip_address: String,
    }
}

word! {
    /// A family of addresses.
    pub enum IpProtocol {
        /// Four bytes.
        #[default]
        #[serde(rename = "IPv4")]
        Ipv4,
        /// Sixteen bytes.
        #[serde(rename = "IPv6")]
        Ipv6,
    }
}

message! {
    /// A port of the host that leads to one of the container.
    pub struct PortMapping {
        /// The port on the host.
        required host_port: u32,
        /// The port in the container.
        required container_port: u32,
        /// `tcp` or `udp`; `tcp` when absent.
        optional protocol: String,
    }
}

message! {
    /// Labels, in order; keys may occur more than once.
    pub struct Labels {
        /// The labels.
        repeated labels: Label,
    }
}

message! {
    /// A free-form mark on something.
    pub struct Label {
        /// Its key.
        required key: String,
        /// Its value, if it has one.
        optional value: String,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn address_families_are_spelt_as_the_schema_spells_them() {
        let wire = json!({"ip_addresses": [
            {"protocol": "IPv4", "ip_address": "192.168.1.20"},
            {"protocol": "IPv6", "ip_address": "fd00::20"},
        ]});
        let info: NetworkInfo = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(info.ip_addresses[1].protocol, Some(IpProtocol::Ipv6));
        assert_eq!(serde_json::to_value(&info).unwrap(), wire);
    }
}
