use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam_plugin_api::model::{AgentInfo, PortMapping};
use cofferdam_plugin_api::testing::{PluginHarness, Refused, skip};

use super::*;

/// A CNI plugin that gives every container the same address, and logs its calls.
const PLUGIN: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> "${0%/*}/../log"
cat >> "${0%/*}/../input"
[ ! -e "${0%/*}/../fail" ] || { echo '{"code": 110, "msg": "no", "details": "never"}'; exit 1; }
[ "$CNI_COMMAND" != ADD ] || echo '{"ips": [{"address": "192.0.2.7/24"}], "dns": {"nameservers": ["192.0.2.1"]}}'
"#;

struct Lab {
    directory: std::path::PathBuf,
}

impl Lab {
    fn new(name: &str) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            skip("only root can create network namespaces");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("cofferdam-cni-{name}-{}", std::process::id()));
        for part in ["config", "plugins"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        let plugin = directory.join("plugins/fixed");
        fs::write(&plugin, PLUGIN).unwrap();
        fs::set_permissions(plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let lab = Self { directory };
        lab.configure(&json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [{ "type": "fixed", "capabilities": { "portMappings": true }, "args": { "x": 1 } }],
        }));
        Some(lab)
    }

    fn configure(&self, content: &Json) {
        fs::write(self.directory.join("config/net.conflist"), content.to_string()).unwrap();
    }

    fn config(&self) -> Json {
        json!({
            "network_cni_config_dir": self.directory.join("config"),
            "network_cni_plugins_dir": self.directory.join("plugins"),
        })
    }

    fn harness(&self) -> PluginHarness<Cni> {
        PluginHarness::isolator(self.config()).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = cofferdam_plugin_api::tree::remove(&self.directory);
    }
}

fn container(harness: &PluginHarness<Cni>, id: &str, networks: &[&str]) -> Container {
    let mut container = harness.container(id);
    let named = |name: &&str| NetworkRequest { name: Some((*name).to_owned()), ..NetworkRequest::default() };
    container.networks = networks.iter().map(named).collect();
    container
}

fn assert_nothing_mounted(below: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(below.to_str().unwrap()), "{table}");
}

#[test]
fn a_container_enters_its_namespace_and_its_children_do_too() {
    let Some(lab) = Lab::new("enters") else { return };
    let harness = lab.harness();
    let (reply, descriptors) =
        harness.prepare_with_descriptors(&container(&harness, "pod", &["net"])).unwrap();
    let index = reply.launch.enter_descriptors[&Namespace::Network];
    let number = network::number(&descriptors[index]).unwrap();
    assert_eq!(reply.launch.hostname.as_deref(), Some("pod"));
    assert_eq!(reply.launch.environment["LIBPROCESS_IP"], "0.0.0.0");
    assert_eq!(harness.state("pod")["networks"][0]["addresses"], json!(["192.0.2.7"]));
    let status = harness.status("pod").unwrap();
    assert_eq!(status.0["network_infos"][0]["ip_addresses"][0]["ip_address"], "192.0.2.7");
    let (reply, descriptors) = harness.prepare_with_descriptors(&harness.container("pod.web")).unwrap();
    let index = reply.launch.enter_descriptors[&Namespace::Network];
    assert_eq!(network::number(&descriptors[index]).unwrap(), number);
    assert!(reply.launch.enter_namespaces.contains(&Namespace::Uts) && reply.launch.hostname.is_none());
    let mut debug = harness.container("pod.debug");
    debug.class = ContainerClass::Debug;
    let (reply, _) = harness.prepare_with_descriptors(&debug).unwrap();
    assert!(reply.launch.operations.is_empty() && reply.launch.clone_namespaces.is_empty());
    harness.cleanup("pod.debug").unwrap();
    harness.cleanup("pod.web").unwrap();
    assert_eq!(lab.log(), "ADD pod eth0\n");
    for _ in 0..2 {
        harness.cleanup("pod").unwrap();
    }
    assert_eq!(lab.log(), "ADD pod eth0\nDEL pod eth0\n");
    assert_nothing_mounted(harness.directory());
}

#[test]
fn plugins_are_told_what_the_container_requests() {
    let Some(lab) = Lab::new("told") else { return };
    let harness = lab.harness();
    let mut request = container(&harness, "web", &["net"]);
    let mapping = PortMapping { host_port: 8080, container_port: 80, protocol: Some("udp".into()) };
    request.networks[0].port_mappings.push(mapping);
    request.networks[0].labels.insert("tier".into(), "front".into());
    harness.prepare_container(&request).unwrap();
    let input: Json = serde_json::from_slice(&fs::read(lab.directory.join("input")).unwrap()).unwrap();
    assert_eq!((&input["name"], &input["cniVersion"]), (&json!("net"), &json!("1.0.0")));
    let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "udp" }]);
    assert_eq!(input["runtimeConfig"], json!({ "portMappings": mapping }));
    let info = json!({
        "name": "net",
        "labels": { "labels": [{ "key": "tier", "value": "front" }] },
        "port_mappings": [{ "host_port": 8080, "container_port": 80, "protocol": "udp" }],
    });
    assert_eq!(input["args"], json!({ "x": 1, "org.apache.mesos": { "network_info": info } }));
    // Another container cannot have the port, and does not release it when it is cleaned up.
    request.id = ContainerId::parse("other").unwrap();
    for _ in 0..2 {
        let refused = harness.prepare_container(&request).unwrap_err();
        assert!(refused.message.contains("8080/udp of the host is mapped into container `web`"), "{refused}");
        harness.cleanup("other").unwrap();
    }
    harness.cleanup("web").unwrap();
    harness.prepare_container(&request).unwrap();
    harness.cleanup("other").unwrap();
    assert_nothing_mounted(harness.directory());
}

#[test]
fn what_failed_is_detached_by_cleanup_also_of_a_later_agent() {
    let Some(lab) = Lab::new("failed") else { return };
    let harness = lab.harness();
    let fail = lab.directory.join("fail");
    fs::write(&fail, "").unwrap();
    let refused = harness.prepare_container(&container(&harness, "web", &["net"])).unwrap_err();
    assert!(refused.message.contains("failed with code 110: no; never"), "{refused}");
    let refused = harness.cleanup("web").unwrap_err();
    assert!(
        refused.retryable && refused.message.contains("cannot detach it from the network `net`"),
        "{refused}"
    );
    let next = harness.restart(lab.config(), &[], &["web"]).unwrap();
    assert_eq!(lab.log(), "ADD web eth0\nDEL web eth0\n", "an orphan is left to cleanup");
    fs::remove_file(fail).unwrap();
    next.cleanup("web").unwrap();
    assert_eq!(lab.log(), "ADD web eth0\nDEL web eth0\nDEL web eth0\n");
    assert_nothing_mounted(harness.directory());
}

#[test]
fn networks_of_an_unknown_container_are_released_at_the_start() {
    let Some(lab) = Lab::new("unknown") else { return };
    let mut config = lab.config();
    for persist in [false, true] {
        config["network_cni_root_dir_persist"] = json!(persist);
        let harness = PluginHarness::<Cni>::isolator(config.clone()).unwrap();
        harness.prepare_container(&container(&harness, "web", &["net"])).unwrap();
        let parent = harness.directory().join(if persist { "work" } else { "runtime" });
        assert!(parent.join("containers/web/record").exists());
        let running = harness.restart(config.clone(), &["web"], &[]).unwrap();
        assert!(parent.join("containers/web/record").exists());
        harness.restart(config.clone(), &[], &[]).unwrap();
        assert!(!parent.join("containers").exists());
        running.cleanup("web").unwrap();
        assert_nothing_mounted(harness.directory());
    }
    assert_eq!(lab.log(), "ADD web eth0\nDEL web eth0\n".repeat(2));
}

#[test]
fn a_damaged_record_is_an_error_that_says_what_to_do() {
    let Some(lab) = Lab::new("damaged") else { return };
    let harness = lab.harness();
    harness.prepare_container(&container(&harness, "web", &["net"])).unwrap();
    let record = harness.directory().join("runtime/containers/web/record");
    fs::write(&record, "{").unwrap();
    let refused = harness.cleanup("web").unwrap_err();
    assert!(
        refused.message.contains("is damaged") && refused.message.contains("remove that file"),
        "{refused}"
    );
    fs::remove_file(record).unwrap();
    harness.cleanup("web").unwrap();
    assert_nothing_mounted(harness.directory());
}

/// It would remove what exists for this agent.
#[test]
fn a_cni_plugin_that_an_earlier_agent_has_started_for_all_containers_is_ended() {
    let Some(lab) = Lab::new("stale") else { return };
    let harness = lab.harness();
    let path = harness.directory().join("runtime/request");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create_new(&path).unwrap();
    file.lock().unwrap();
    let mut stale = std::process::Command::new("/bin/sleep").arg("1000").stdin(file).spawn().unwrap();
    harness.restart(lab.config(), &[], &[]).unwrap();
    assert!(!stale.wait().unwrap().success());
    assert!(!path.exists());
}

#[test]
fn requests_that_cannot_be_met_are_refused_before_anything_is_done() {
    let Some(lab) = Lab::new("refused") else { return };
    let harness = lab.harness();
    let refused = |container: &Container| -> Refused { harness.prepare_container(container).unwrap_err() };
    let with = |id: &str, networks: &[&str]| container(&harness, id, networks);
    let mut debug = with("pod.debug", &["net"]);
    debug.class = ContainerClass::Debug;
    let mut debug_name = with("pod.debug", &[]);
    debug_name.class = ContainerClass::Debug;
    debug_name.linux.hostname = Some("own".into());
    let mut name = with("web", &["net"]);
    name.linux.hostname = Some("not a name".into());
    let mut address = with("web", &["net"]);
    address.networks[0].addresses = vec!["192.0.2.9".into()];
    let mut nameless = with("web", &["net"]);
    nameless.networks[0].name = None;
    nameless.networks[0].addresses = vec!["192.0.2.9".into()];
    for (request, expected) in [
        (with("web", &["other"]), "no network `other`"),
        (with("web", &["net", "net"]), "requested twice"),
        (with("größe", &["net"]), "needs an id of letters"),
        (debug, "debug container"),
        (debug_name, "debug container"),
        (name, "the host name `not a name`"),
        (address, "capability `ips`"),
        (nameless, "without the `name`"),
    ] {
        let refused = refused(&request);
        assert!(refused.message.contains(expected), "{expected}: {refused}");
        assert!(!harness.directory().join("runtime").exists());
    }
    assert_eq!(lab.log(), "");
}

#[test]
fn without_configuration_only_the_network_of_the_host_is_used() {
    let harness = PluginHarness::<Cni>::isolator(json!({})).unwrap();
    let mut plain = harness.container("web");
    let reply = harness.prepare_container(&plain).unwrap();
    assert_eq!(reply.launch, cofferdam_plugin_api::model::LaunchInfo::default());
    let refused = harness.prepare_container(&container(&harness, "web", &["net"])).unwrap_err();
    assert!(refused.message.contains("set `network_cni_config_dir`"), "{refused}");
    plain.rootfs = Some(harness.directory().to_owned());
    let reply = harness.prepare_container(&plain).unwrap();
    let sources: Vec<_> = reply.launch.operations.iter().map(|operation| format!("{operation:?}")).collect();
    assert!(sources.iter().all(|bind| bind.contains("\"ro\"")), "{sources:?}");
    assert_eq!(sources.iter().any(|bind| bind.contains("/etc/hosts")), Path::new("/etc/hosts").exists());
    for _ in 0..2 {
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    let directory = std::env::temp_dir();
    let both = |config: &str, plugins: &str| json!({ "network_cni_config_dir": config, "network_cni_plugins_dir": plugins });
    let entry = |mode: &str, name: Json| {
        json!({ "default_container_dns": { "mesos": [
            { "network_mode": mode, "network_name": name, "dns": { "nameservers": ["192.0.2.1"] } },
            { "network_mode": mode, "network_name": name, "dns": { "nameservers": ["192.0.2.1"] } },
        ] } })
    };
    let bad = json!({ "default_container_dns": { "mesos": [
        { "network_mode": "CNI", "dns": { "nameservers": ["ns.example.org"] } },
    ] } });
    for (config, expected) in [
        (json!({ "network_cni_config_dir": "/etc" }), "`network_cni_plugins_dir` is missing"),
        (json!({ "network_cni_plugins_dir": "/etc" }), "`network_cni_config_dir` is missing"),
        (both("/etc/is-missing", "/etc"), "`/etc/is-missing` cannot be read"),
        (both("/etc", "/etc:relative"), "`relative` is not an absolute path"),
        (both("/etc", "/etc/passwd"), "`/etc/passwd` is not a directory"),
        (both(directory.to_str().unwrap(), "/etc"), "can be written by others"),
        (json!({ "network_cni_timeout": "0s" }), "`network_cni_timeout` is 0"),
        (entry("HOST", json!("x")), "which the network of the host has not"),
        (entry("CNI", Json::Null), "the same network as an earlier one"),
        (bad, "`ns.example.org` is not an address"),
        (json!({ "network_cni": true }), "unknown field `network_cni`"),
    ] {
        let refused = PluginHarness::<Cni>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
    let agent = AgentInfo { launcher: "posix".into(), ..AgentInfo::default() };
    let refused = PluginHarness::<Cni>::isolator_in(agent, both("/etc", "/etc")).err().unwrap();
    assert!(refused.message.contains("need the `linux` launcher"), "{refused}");
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Cni>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
