//! CNI plugins that fail, hang, or are missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cofferdam_tests::world::id;
use serde_json::json;

use super::lab::{lab, mapped, named};
use crate::isolators::{Fixture, describe, isolator};

#[test]
fn a_launch_that_fails_after_add_is_followed_by_one_del() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        lab.recorded("net", 88);
        let mut request = fixture.networked("web", &[named("net")], "true");
        request.command.shell = false;
        request.command.value = Some("/bin/is-missing".into());
        fixture.error(request).await;
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns"]);
        lab.assert_nothing_left();
        assert!(fixture.kept().is_empty());
    });
}

#[test]
fn a_cni_plugin_that_hangs_is_killed_and_the_launch_fails() {
    lab(async |lab| {
        lab.recorded("net", 88);
        let fixture = Fixture::start(lab.isolators(json!({ "network_cni_timeout": "2s" }))).await;
        lab.set("hang", true);
        let message = fixture.error(fixture.networked("web", &[named("net")], "true")).await;
        assert!(
            message.contains("`recorder` (ADD, ") && message.contains("within 2s and was killed"),
            "{message}"
        );
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns"]);
        lab.assert_nothing_left();
        lab.set("hang", false);
        let fixture = Fixture::start(lab.isolators(json!({}))).await;
        fixture.run(fixture.networked("web", &[named("net")], "true")).await;
    });
}

#[test]
fn del_is_repeated_until_it_succeeds_and_not_afterwards() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        lab.list("net", json!([lab.plugin("bridge", "net", 88, json!({})), { "type": "recorder" }]));
        // The second plugin of the list adds nothing.
        fs::write(lab.path("new"), r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.2/24"}]}"#)
            .unwrap();
        fixture.launch(fixture.networked("web", &[named("net")], "true")).await;
        lab.set("busy", true);
        let agent = &fixture.agent;
        let destroyed = async { agent.destroy(&id("web")).await.unwrap() };
        let repaired = async {
            while lab.calls("DEL", "web") < 3 {
                tokio::task::yield_now().await;
            }
            let inspected = agent.inspect(&id("web")).unwrap();
            lab.set("busy", false);
            inspected
        };
        let (_, inspected) = tokio::join!(destroyed, repaired);
        let errors = inspected.summary.cleanup_errors.join("\n");
        assert!(errors.contains("`net`") && errors.contains("code 11: the switch is busy"), "{errors}");
        assert!(agent.remove(&id("web")).await.unwrap());
        fixture.assert_nothing_left("after the last DEL");
        let after = lab.calls("DEL", "web");
        assert!(after >= 4, "{:?}", lab.log());
    });
}

/// It has done nothing that DEL could undo, and would refuse DEL forever.
#[test]
fn a_container_whose_network_a_cni_plugin_rejects_leaves_nothing() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let (good, bad) = (
            lab.plugin("bridge", "net", 88, json!({})),
            lab.plugin("bridge", "net", 88, json!({ "mtu": "large" })),
        );
        for plugins in [json!([bad]), json!([good, { "type": "portmap", "snat": "yes" }]), json!([bad, good])]
        {
            lab.list("wrong", plugins);
            let message =
                fixture.error(fixture.networked("web", &[named("net"), named("wrong")], "true")).await;
            assert!(message.contains("`wrong`") && message.contains("unmarshal"), "{message}");
            lab.assert_nothing_left();
        }
    });
}

/// As the reference plugins do: what fails is the plugin for addresses that they run, or what they do afterwards.
#[test]
fn a_cni_plugin_that_rejects_its_configuration_after_it_has_created_an_interface_is_called_until_del_succeeds()
 {
    lab(async |lab| {
        lab.recorded("net", 88);
        let fixture = Fixture::start(lab.isolators(json!({}))).await;
        lab.set("partial", true);
        lab.set("picky", true);
        let request = fixture.networked("web", &[named("net")], "true");
        let agent = &fixture.agent;
        let launched = async { agent.launch(request).await.unwrap_err() };
        let repaired = async {
            while lab.calls("DEL", "web") < 3 {
                tokio::task::yield_now().await;
            }
            assert_eq!(lab.addresses(), ["10.88.0.2"]);
            lab.set("picky", false);
        };
        let (error, ()) = tokio::join!(launched, repaired);
        assert!(describe(&error).contains("code 7: failed to parse the routes"), "{}", describe(&error));
        while agent.inspect(&id("web")).is_some() {
            tokio::task::yield_now().await;
        }
        fixture.assert_nothing_left("after the last DEL");
    });
}

#[test]
fn del_is_called_with_another_namespace_if_it_fails_with_that_of_the_container() {
    lab(async |lab| {
        lab.list("net", json!([lab.plugin("recorder", "net", 88, json!({})), lab.portmap()]));
        let fixture = Fixture::start(lab.isolators(json!({}))).await;
        fixture.launch(fixture.networked("web", &[mapped("net", 8080, 80)], "true")).await;
        let namespace = fixture.kept().remove(0).join("ns");
        let number = std::os::unix::fs::MetadataExt::ino(&fs::metadata(namespace).unwrap());
        fs::write(lab.path("refuse"), number.to_string()).unwrap();
        fixture.destroy("web").await;
        assert_eq!(lab.log(), ["ADD web eth0 netns", "DEL web eth0 netns", "DEL web eth0 netns"]);
        lab.assert_nothing_left();
        assert!(fixture.kept().is_empty());
    });
}

#[test]
fn networks_are_read_again_for_every_launch() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let request =
            |name: &str| fixture.networked("web", &[named(name)], "busybox ip -o -4 addr show eth0");
        let message = fixture.error(request("late")).await;
        assert!(
            message.contains("no network `late` in")
                && message.contains("which has: `net`; choose one of these, or add its configuration there"),
            "{message}"
        );
        lab.bridge("late", 55, json!({}));
        assert!(fixture.run(request("late")).await.contains(" 10.55.0.2/24 "));
        fs::remove_dir_all(lab.path("addresses/late")).unwrap();
        lab.list("late", json!([lab.plugin("bridge", "later", 56, json!({}))]));
        assert!(fixture.run(request("late")).await.contains(" 10.56.0.2/24 "));
        for (content, why) in [
            (json!({ "name": "late", "cniVersion": "9.0.0", "type": "bridge" }), "its CNI version is 9.0.0"),
            (
                json!({ "name": "late", "cniVersion": "1.0.0", "type": "unheard-of" }),
                "no CNI plugin `unheard-of`",
            ),
            (
                json!({ "name": "late", "cniVersion": "1.0.0", "type": "../bridge" }),
                "not the name of a CNI plugin",
            ),
            (json!({ "cniVersion": "1.0.0", "type": "bridge" }), "expected a `name`"),
            (
                json!({ "name": "late", "cniVersion": "0.2.0", "plugins": [{ "type": "bridge" }] }),
                "0.3.0 or later",
            ),
            (
                json!({ "name": "late", "type": "bridge", "ipam": { "type": "nowhere" } }),
                "no CNI plugin `nowhere`",
            ),
            (json!({ "name": "late", "type": "bridge", "prevResult": {} }), "it has `prevResult`"),
            (json!([]), "not a JSON object"),
        ] {
            lab.configure("late.conflist", &content);
            let message = fixture.error(request("late")).await;
            assert!(message.contains("late.conflist") && message.contains(why), "{why}: {message}");
        }
        // Others could have written it.
        lab.bridge("late", 55, json!({}));
        let file = lab.path("config/late.conflist");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let message = fixture.error(request("late")).await;
        assert!(message.contains("can be written by others"), "{message}");
        fs::remove_file(file).unwrap();
    });
}

#[test]
fn errors_have_the_words_of_the_cni_plugin() {
    lab(async |lab| {
        let fixture = lab.fixture().await;
        let message_of = async |network: &str| {
            let message = fixture.error(fixture.networked("web", &[named(network)], "true")).await;
            assert!(message.contains("`network/cni`") && message.contains(network), "{message}");
            message
        };
        // The reference plugin has words for it.
        lab.bridge("large", 88, json!({ "mtu": "large" }));
        let message = message_of("large").await;
        assert!(
            message.contains("cannot unmarshal") || message.contains("failed to load netconf"),
            "{message}"
        );
        lab.recorded("odd", 77);
        lab.set("garbage", true);
        let message = message_of("odd").await;
        assert!(message.contains("printed `not JSON` instead of a JSON object"), "{message}");
        lab.set("garbage", false);
        let message = fixture.error(fixture.networked("web", &[named("net"), named("net")], "true")).await;
        assert!(message.contains("`net` is requested twice"), "{message}");
        lab.list("bare", json!([lab.plugin("bridge", "bare", 67, json!({}))]));
        let message = fixture.error(fixture.networked("web", &[mapped("bare", 80, 80)], "true")).await;
        assert!(message.contains(r#"`"capabilities": {"portMappings": true}`"#), "{message}");
    });
}

#[test]
fn without_a_configuration_only_the_network_of_the_host_can_be_used() {
    lab(async |_| {
        let fixture = Fixture::start(vec![isolator("network/cni", json!({}))]).await;
        let own = format!("{}\n", fs::read_link("/proc/thread-self/ns/net").unwrap().display());
        let line = "busybox readlink /proc/self/ns/net";
        assert_eq!(fixture.run(fixture.networked("web", &[], line)).await, own);
        let message = fixture.error(fixture.networked("web", &[named("net")], line)).await;
        assert!(message.contains("set `network_cni_config_dir` and `network_cni_plugins_dir`"), "{message}");
        let nameless = [mapped("net", 80, 80)]
            .map(|network| cofferdam_core::model::NetworkRequest { name: None, ..network });
        let message = fixture.error(fixture.networked("web", &nameless, line)).await;
        assert!(message.contains("without the `name` of a network"), "{message}");
        // Nothing of this chain handles networks.
        let fixture = Fixture::start(Vec::new()).await;
        let launched = fixture.agent.launch(fixture.networked("web", &[named("net")], line)).await;
        assert!(describe(&launched.unwrap_err()).contains("`networks`"));
    });
}
