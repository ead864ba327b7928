//! The chain of `examples/batch.toml`.

use std::fs;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::world::{World, id};
use serde_json::json;

use super::lab::{lab_without_agent, named};

#[test]
fn tenants_have_networks_of_their_own() {
    lab_without_agent(|lab| {
        for (tenant, number) in [("red", 91), ("blue", 92)] {
            lab.bridge(tenant, number, json!({}));
        }
        let mut world = World::new();
        let chain = include_str!("../../../../examples/batch.toml")
            .replace("/etc/cofferdam/cni", &lab.path("config").display().to_string());
        world.chain = Some(chain);
        let daemon = Daemon::start(&world);
        let line = "busybox ip -o -4 addr show dev eth0 | busybox grep -o 'inet 10[.][0-9]*'; \
                    busybox ip link set eth0 down 2>/dev/null || echo refused; \
                    busybox grep NoNewPrivs /proc/self/status";
        for (tenant, address) in [("red", "10.91"), ("blue", "10.92")] {
            let mut request = Request::shell(id(tenant), line);
            request.rootfs = Some(world.rootfs());
            request.networks = vec![named(tenant)];
            daemon.launch(&request).unwrap();
            daemon.wait(&id(tenant)).unwrap();
            let output =
                fs::read_to_string(world.config.work_dir.join("containers").join(tenant).join("stdout"))
                    .unwrap();
            assert_eq!(output, format!("inet {address}\nrefused\nNoNewPrivs:\t1\n"));
            daemon.remove(&id(tenant)).unwrap();
        }
        daemon.terminate();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}
