//! Packets.

use cofferdam_core::model::NetworkRequest;
use cofferdam_tests::world::{id, run};
use serde_json::{Value as Json, json};

use super::lab::{Outside, SERVE, get, lab, mapped, named, shell};
use crate::isolators::Fixture;

#[test]
fn two_containers_reach_each_other_and_the_status_has_their_addresses() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        fixture.launch(fixture.networked("server", &[named("net")], SERVE)).await;
        let networks = fixture.networks("server").await;
        let expected = json!([{
            "name": "net",
            "ip_addresses": [{ "protocol": "IPv4", "ip_address": "10.88.0.2" }],
        }]);
        assert_eq!(networks, expected);
        let line = format!("{}; busybox ip -o -4 addr show eth0", get("10.88.0.2", 80, "hostname"));
        let output = run(&fixture.agent, fixture.networked("client", &[named("net")], &line)).await;
        assert!(output.starts_with("server\n") && output.contains(" 10.88.0.3/24 "), "{output}");
        fixture.agent.remove(&id("client")).await.unwrap();
        fixture.destroy("server").await;
        assert!(fixture.kept().is_empty());
    });
}

#[test]
fn a_mapped_port_is_reached_from_outside_until_the_container_ends() {
    lab(async |lab| {
        let outside = Outside::new();
        let fixture = lab.fixture().await;
        fixture.launch(fixture.networked("web", &[mapped("net", 8080, 80)], SERVE)).await;
        assert_eq!(outside.shell(&get("192.0.2.1", 8080, "hostname")), "web\n");
        let networks = fixture.networks("web").await;
        let mapping = json!([{ "host_port": 8080, "container_port": 80, "protocol": "tcp" }]);
        assert_eq!(networks[0]["port_mappings"], mapping);
        // The port is taken, and nothing of the other container is left.
        let message =
            fixture.agent.launch(fixture.networked("other", &[mapped("net", 8080, 80)], SERVE)).await;
        let message = super::super::describe(&message.unwrap_err());
        assert!(
            message.contains("port 8080/tcp of the host is mapped into container `web` already"),
            "{message}"
        );
        assert_eq!(outside.shell(&get("192.0.2.1", 8080, "hostname")), "web\n");
        fixture.destroy("web").await;
        assert_eq!(outside.shell(&get("192.0.2.1", 8080, "hostname")), "");
        // It is free again.
        fixture.launch(fixture.networked("other", &[mapped("net", 8080, 80)], SERVE)).await;
        fixture.destroy("other").await;
    });
}

#[test]
fn a_container_can_have_several_networks() {
    lab(async |lab| {
        // Something that a macvlan can be on.
        shell("ip link add lower type veth peer name upper; ip link set lower up; ip link set upper up");
        let fixture = lab.fixture().await;
        let macvlan = json!({
            "cniVersion": "0.3.1",
            "name": "direct",
            "type": "macvlan",
            "master": "lower",
            "ipam": { "type": "static", "addresses": [{ "address": "198.51.100.7/24" }] },
        });
        lab.configure("direct.conf", &macvlan);
        lab.bridge("second", 99, json!({}));
        let line = "busybox ip -o -4 addr show | busybox awk '{ print $2, $4 }'";
        let networks = [named("direct"), NetworkRequest::default(), named("net"), named("second")];
        let output = fixture.run(fixture.networked("web", &networks, line)).await;
        let expected = "lo 127.0.0.1/8\neth0 198.51.100.7/24\neth1 10.88.0.2/24\neth2 10.99.0.2/24\n";
        assert_eq!(output, expected);
        shell("ip link del lower");
    });
}

#[test]
fn an_address_can_be_requested() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        lab.bridge("chosen", 77, json!({ "capabilities": { "ips": true } }));
        let with = |name: &str| NetworkRequest { addresses: vec!["10.77.0.44".into()], ..named(name) };
        let line = "busybox ip -o -4 addr show eth0";
        let output = fixture.run(fixture.networked("web", &[with("chosen")], line)).await;
        assert!(output.contains(" 10.77.0.44/24 "), "{output}");
        let message = fixture.error(fixture.networked("web", &[with("net")], "true")).await;
        assert!(message.contains(r#"`"capabilities": {"ips": true}`"#), "{message}");
    });
}

#[test]
fn versions_of_cni_from_0_1_on_are_understood() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let mut network = lab.plugin("bridge", "br", 66, json!({}));
            network["name"] = json!("old");
            network["cniVersion"] = json!(version);
            lab.configure("old.conf", &network);
            fixture.launch(fixture.networked("web", &[named("old")], "true")).await;
            assert!(fixture.address("web").await.starts_with("10.66.0."), "{version}");
            fixture.destroy("web").await;
            assert_eq!(lab.addresses(), Vec::<String>::new(), "{version}");
        }
    });
}

/// Which has no interface of its own, and passes on what a plugin before it has made.
#[test]
fn the_loopback_plugin_is_a_network_and_a_part_of_one() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let loopback = json!({ "type": "loopback" });
        lab.list("own", json!([loopback]));
        lab.list("both", json!([lab.plugin("bridge", "br", 67, json!({})), loopback]));
        let show = "busybox ifconfig -a | grep -c '^[a-z]'; busybox ifconfig lo | grep -c 'addr:127.0.0.1'; \
                    busybox ifconfig lo | grep -c UP";
        let output = fixture.run(fixture.networked("web", &[named("own")], show)).await;
        assert_eq!(output, "1\n1\n1\n");
        fixture.launch(fixture.networked("web", &[named("both")], "true")).await;
        assert!(fixture.address("web").await.starts_with("10.67.0."));
        fixture.destroy("web").await;
    });
}

async fn statistics(fixture: &Fixture, name: &str) -> Json {
    let view = fixture.agent.usage(&id(name)).await.unwrap();
    assert!(view.failed.is_empty(), "{:?}", view.failed);
    json!(view.statistics)
}

#[test]
fn traffic_is_counted_under_the_names_of_mesos() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        fixture.launch(fixture.networked("web", &[named("net")], SERVE)).await;
        let count = |statistics: &Json, name: &str| statistics[name].as_f64().unwrap();
        let before = statistics(&fixture, "web").await;
        assert_eq!(count(&before, "net_rx_errors") + count(&before, "net_tx_dropped"), 0.0);
        shell(&get("10.88.0.2", 80, "hostname"));
        let after = statistics(&fixture, "web").await;
        for name in ["net_rx_packets", "net_rx_bytes", "net_tx_packets", "net_tx_bytes"] {
            assert!(count(&after, name) > count(&before, name), "{name}: {before} {after}");
        }
        // That of the host is nobody's.
        fixture.launch(fixture.networked("host", &[], "true")).await;
        assert!(statistics(&fixture, "host").await.get("net_rx_packets").is_none());
        fixture.agent.destroy(&id("host")).await.unwrap();
        fixture.agent.remove(&id("host")).await.unwrap();
        fixture.destroy("web").await;
    });
}

/// It has all capabilities in its namespace.
#[test]
fn what_root_does_to_its_interfaces_does_not_keep_it_from_being_detached() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        for line in [
            "busybox ip link set eth0 down && busybox ip link set eth0 name gone",
            "busybox ip link del eth0",
            "busybox ip addr flush dev eth0 && busybox ip addr add 10.88.0.77/24 dev eth0",
            "busybox ip link add eth7 type veth peer name eth8 && busybox ip link set eth0 name eth9",
        ] {
            let request =
                fixture.networked("web", &[mapped("net", 8080, 80)], &format!("{line}; busybox ip link"));
            fixture.launch(request).await;
            statistics(&fixture, "web").await;
            fixture.destroy("web").await;
            lab.assert_nothing_left();
        }
    });
}

/// The same by the tools of the host, which do more than those of the container.
#[test]
fn whatever_is_done_in_its_network_namespace_a_container_is_detached() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let many: String = (0..300).map(|number| format!(" altname {number}-{}", "x".repeat(100))).collect();
        let many = format!("ip link property add dev eth0{many}");
        // More than are listed.
        let flood: String = (0..60)
            .flat_map(|net| (1..255).map(move |host| format!("addr add 172.16.{net}.{host}/32 dev lo\n")))
            .collect();
        std::fs::write(lab.path("flood"), flood).unwrap();
        let flood = format!("ip -batch {}", lab.path("flood").display());
        let rename = "ip link set eth0 down; ip link set eth0 name gone";
        for line in [
            "ip link del eth0; ip link set lo down; ip link set lo name eth0",
            &format!("{rename}; ip link set lo down; ip link set lo name eth0"),
            &format!("{rename}; ip link property add dev lo altname eth0"),
            &format!("{rename}; ip link property add dev gone altname eth0"),
            &format!("{rename}; ip link add eth0 type bridge; ip link set gone master eth0"),
            &many,
            &flood,
            "ip addr add 172.16.0.1/32 dev eth0; ip link set eth0 alias docker0",
        ] {
            fixture.launch(fixture.networked("web", &[mapped("net", 8080, 80)], "true")).await;
            let namespace = fixture.kept().remove(0).join("ns");
            shell(&format!("nsenter --net={} sh -ec '{line}'", namespace.display()));
            statistics(&fixture, "web").await;
            fixture.destroy("web").await;
            lab.assert_nothing_left();
            assert!(fixture.kept().is_empty(), "{line}");
        }
    });
}

/// Another container could keep the namespace, and the address would be that of a third one.
#[test]
fn an_interface_that_was_moved_to_another_namespace_ends_with_its_container() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let other = Outside::new();
        fixture.launch(fixture.networked("web", &[named("net")], "true")).await;
        let namespace = fixture.kept().remove(0).join("ns");
        let ip = format!("nsenter --net={} ip link", namespace.display());
        shell(&format!("{ip} set eth0 netns {}; {ip} add index 100 eth0 type bridge", other.pid()));
        assert!(other.shell("ip -o link").contains(" eth0@"));
        fixture.destroy("web").await;
        assert!(!other.shell("ip -o link").contains(" eth0@"));
        lab.assert_nothing_left();
    });
}

/// Which cannot be replaced by another one, and which the plugin gives back to the host.
#[test]
fn an_interface_of_the_host_is_given_back_under_its_name_and_its_loss_does_not_matter() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let device = json!({
            "cniVersion": "1.0.0",
            "name": "device",
            "type": "host-device",
            "device": "lower",
            "ipam": { "type": "static", "addresses": [{ "address": "198.51.100.7/24" }] },
        });
        lab.configure("device.conf", &device);
        for (line, is_kept) in [
            ("true", true),
            ("ip link set eth0 down; ip link set eth0 name gone; ip link set gone alias upper", true),
            ("ip addr flush dev eth0; ip link property add dev eth0 altname other", true),
            ("ip link set eth0 down; ip link set eth0 name gone; ip link add eth0 type bridge", true),
            ("ip link del eth0", false),
        ] {
            shell("ip link add lower type veth peer name upper");
            fixture.launch(fixture.networked("web", &[named("device")], "true")).await;
            assert!(!shell("ip -o link").contains(" lower@"));
            let namespace = fixture.kept().remove(0).join("ns");
            shell(&format!("nsenter --net={} sh -ec '{line}'", namespace.display()));
            fixture.destroy("web").await;
            assert!(fixture.kept().is_empty(), "{line}");
            let links = shell("ip -o link");
            assert_eq!(links.contains(" lower@upper:"), is_kept, "{line}: {links}");
            if is_kept {
                shell("ip link del lower");
            }
        }
    });
}

#[test]
fn containers_that_are_launched_and_end_at_once_have_different_addresses() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let mut addresses = Vec::new();
        for _ in 0..2 {
            let names: Vec<String> = (0..8).map(|number| format!("web-{number}")).collect();
            let launches = names.iter().map(|name| fixture.networked(name, &[named("net")], "sleep 1000"));
            let mut tasks = tokio::task::JoinSet::new();
            for request in launches {
                let agent = fixture.agent.clone();
                tasks.spawn(async move { agent.launch(request).await.map(drop) });
            }
            for launched in tasks.join_all().await {
                launched.unwrap();
            }
            for name in &names {
                addresses.push(fixture.address(name).await);
            }
            let mut tasks = tokio::task::JoinSet::new();
            for name in names {
                let agent = fixture.agent.clone();
                tasks.spawn(async move {
                    agent.destroy(&id(&name)).await.unwrap();
                    agent.remove(&id(&name)).await.unwrap();
                });
            }
            tasks.join_all().await;
            fixture.assert_nothing_left("after all have ended");
            assert!(fixture.kept().is_empty());
            lab.assert_nothing_left();
        }
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 16);
    });
}
