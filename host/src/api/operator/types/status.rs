//! Status of a running container.

use super::{id::ContainerId, network::NetworkInfo};

message! {
    /// Status of a running container, as its isolators report it.
    pub struct ContainerStatus {
        /// Its id.
        optional container_id: ContainerId,
        /// Its networks and addresses.
        repeated network_infos: NetworkInfo,
        /// Its cgroups.
        optional cgroup_info: CgroupInfo,
        /// Pid of its first process on the host.
        optional executor_pid: u32,
    }
}

message! {
    /// Status of a container's cgroups.
    pub struct CgroupInfo {
        /// Its network class.
        optional net_cls: NetCls,
    }
}

message! {
    /// A network class of the `net_cls` controller.
    pub struct NetCls {
        /// The handle: major number in the upper, minor number in the lower 16 bits.
        optional classid: u32,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_survives_a_round_trip() {
        let wire = json!({
            "container_id": {"value": "web"},
            "executor_pid": 4242,
            "cgroup_info": {"net_cls": {"classid": 1_048_577}},
            "network_infos": [{"ip_addresses": [{"protocol": "IPv4", "ip_address": "10.1.0.7"}]}],
        });
        let status: ContainerStatus = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(serde_json::to_value(&status).unwrap(), wire);
    }
}
