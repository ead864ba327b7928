//! Names and name servers.

use std::fs;
use std::os::unix::fs::symlink;

use cofferdam_tests::world::{id, run};
use serde_json::json;

use super::lab::{lab, named};
use crate::isolators::Fixture;

const SHOW: &str = "cat /etc/hostname; cat /etc/hosts; cat /etc/resolv.conf; cat /proc/sys/kernel/hostname";

#[test]
fn a_container_sees_its_own_names_with_and_without_a_root_file_system() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let dns = json!({ "dns": { "nameservers": ["10.88.0.1"], "search": ["example.test"] } });
        lab.bridge("net", 88, dns);
        let before = fs::read("/etc/hosts").unwrap();
        for (hostname, expected) in [(None, "web"), (Some("web-1.example".to_owned()), "web-1.example")] {
            let mut request = fixture.networked("web", &[named("net")], SHOW);
            request.linux.hostname = hostname;
            for rootfs in [request.rootfs.clone(), None] {
                request.rootfs = rootfs;
                let output = fixture.run(request.clone()).await;
                let start = format!("{expected}\n127.0.0.1\tlocalhost\n");
                let end = format!("\t{expected}\nsearch example.test\nnameserver 10.88.0.1\n{expected}\n");
                assert!(output.starts_with(&start) && output.ends_with(&end), "{output}");
                assert!(output.contains("\n10.88.0."), "{output}");
            }
        }
        // Root cannot change them, and the host's are as before.
        let line = "echo x > /etc/hosts && echo written; busybox mount -o remount,rw /etc/hosts; \
                    busybox dd if=/dev/zero of=/etc/hosts bs=64k count=10 2>/dev/null; busybox wc -c < /etc/hosts";
        let output = fixture.run(fixture.networked("web", &[named("net")], line)).await;
        let size: u64 = output.trim().parse().unwrap_or_else(|_| panic!("{output}"));
        assert!(size <= 4096, "{size}");
        assert_eq!(fs::read("/etc/hosts").unwrap(), before);
    });
}

#[test]
fn name_servers_are_those_of_the_networks_then_the_configured_then_the_hosts() {
    lab(async |lab| {
        lab.bridge("with", 88, json!({ "dns": { "nameservers": ["10.88.0.1"] } }));
        lab.bridge("without", 89, json!({}));
        lab.bridge("named", 90, json!({}));
        let defaults = json!({ "default_container_dns": { "mesos": [
            { "network_mode": "CNI", "dns": { "nameservers": ["192.0.2.53"] } },
            { "network_mode": "CNI", "network_name": "named", "dns": { "nameservers": ["192.0.2.54"], "domain": "d.test" } },
            { "network_mode": "HOST", "dns": { "nameservers": ["192.0.2.55"] } },
        ] } });
        let fixture = Fixture::start(lab.isolators(defaults)).await;
        let line = "cat /etc/resolv.conf";
        for (networks, expected) in [
            (vec![named("with")], "nameserver 10.88.0.1\n"),
            (vec![named("without")], "nameserver 192.0.2.53\n"),
            (
                vec![named("without"), named("with"), named("named")],
                "domain d.test\nnameserver 192.0.2.53\nnameserver 10.88.0.1\nnameserver 192.0.2.54\n",
            ),
            (vec![], "nameserver 192.0.2.55\n"),
        ] {
            assert_eq!(fixture.run(fixture.networked("web", &networks, line)).await, expected);
        }
        drop(fixture);
        let fixture = Fixture::start(lab.isolators(json!({}))).await;
        let of_host = fs::read_to_string("/etc/resolv.conf").unwrap();
        let output = fixture.run(fixture.networked("web", &[named("without")], line)).await;
        for server in of_host.lines().filter(|line| line.starts_with("nameserver") && !line.contains(" 127."))
        {
            assert!(output.contains(server), "{output} of {of_host}");
        }
        assert_eq!(fixture.run(fixture.networked("web", &[], line)).await, of_host);
    });
}

#[test]
fn files_of_an_image_that_are_links_lead_nowhere_else() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let etc = fixture.world.rootfs().join("etc");
        let outside = lab.path("outside");
        fs::write(&outside, "of the host").unwrap();
        symlink("../run/systemd/resolve/stub.conf", etc.join("resolv.conf")).unwrap();
        symlink(&outside, etc.join("hosts")).unwrap();
        symlink("/proc/1/root/etc/hostname", etc.join("hostname")).unwrap();
        let line = "cat /etc/hosts; cat /etc/resolv.conf > /dev/null; cat /run/systemd/resolve/stub.conf > /dev/null";
        let mut request = fixture.networked("web", &[named("net")], line);
        let message = fixture.agent.launch(request.clone()).await;
        // A link through /proc is refused; nothing was changed.
        if let Ok(()) = message.map(drop) {
            fixture.agent.wait(&id("web")).await.unwrap();
            fixture.agent.remove(&id("web")).await.unwrap();
        }
        fs::remove_file(etc.join("hostname")).unwrap();
        request.command.value = Some(line.into());
        let output = fixture.run(request).await;
        assert!(output.contains("127.0.0.1\tlocalhost"), "{output}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "of the host");
        for name in ["resolv.conf", "hosts"] {
            assert!(etc.join(name).is_symlink(), "{name}");
        }
        assert!(!fixture.world.rootfs().join("run").exists());
        for name in ["resolv.conf", "hosts"] {
            fs::remove_file(etc.join(name)).unwrap();
        }
    });
}

#[test]
fn with_namespaces_uts_both_agree_on_the_name() {
    lab(async |lab| {
        lab.bridge("net", 88, json!({}));
        let isolators =
            [vec![super::super::isolator("namespaces/uts", json!({}))], lab.isolators(json!({}))].concat();
        let fixture = Fixture::start(isolators).await;
        let line = "busybox hostname; cat /etc/hostname";
        let mut request = fixture.networked("web", &[named("net")], line);
        assert_eq!(fixture.run(request.clone()).await, "web\nweb\n");
        request.linux.hostname = Some("own".into());
        assert_eq!(fixture.run(request.clone()).await, "own\nown\n");
        request.networks.clear();
        assert_eq!(run(&fixture.agent, request).await, "own\nown\n");
        fixture.agent.remove(&id("web")).await.unwrap();
    });
}
