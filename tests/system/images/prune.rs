//! `PRUNE_IMAGES`, in both encodings.

use std::net::SocketAddr;
use std::process::Command;

use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::images::{Layer, busybox};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{TOKEN, id};
use serde_json::{Value as Json, json};

use super::{Fixture, request};
use crate::transports::{PYTHON, address, has_protobuf, script};

#[test]
fn images_are_pruned_except_those_that_are_used_or_excluded() {
    if !is_root("containers of images") || !has_protobuf() {
        return;
    }
    let fixture = Fixture::new();
    let image = |name: &str| {
        let layer = Layer::new().file("name", name.as_bytes());
        fixture.image(&format!("{name}:1"), &[busybox(), layer], json!({}));
    };
    let images = || {
        let listed: Json = serde_json::from_str(&fixture.images.run(&["ls", "--json"])).unwrap();
        let names =
            listed.as_array().unwrap().iter().map(|image| image["names"][0].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.map(|name| name.rsplit('/').next().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    ["configured", "kept", "other", "used"].iter().for_each(|name| image(name));
    let mut world = fixture.world();
    world.config.executors.endpoint = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    world.config.image_gc.excluded = vec!["configured:1".parse().unwrap()];
    let daemon = Daemon::start(&world);
    daemon.launch(&request("used", "used:1", "sleep 1000")).unwrap();
    let of = |name: &str| json!({ "type": "DOCKER", "docker": { "name": name } });
    let prune = |body: Json| daemon.call(&json!({ "type": "PRUNE_IMAGES", "prune_images": body }));

    // Nothing is removed by a call that is refused.
    for (image, expected) in [
        (json!({ "type": "APPC", "appc": { "name": "a" } }), "`prune_images.excluded_images[1].type`"),
        (of("Kept:1"), "prune_images.excluded_images[1]"),
        (json!({ "type": "DOCKER" }), "`prune_images.excluded_images[1].docker`"),
    ] {
        let refused = prune(json!({ "excluded_images": [of("kept:1"), image] }));
        assert!(
            matches!(&refused, Err(CallError::Status(400, text)) if text.contains(expected)),
            "{expected}: {refused:?}"
        );
    }
    assert_eq!(images(), ["configured:1", "kept:1", "other:1", "used:1"]);

    // In JSON.
    assert_eq!(prune(json!({ "keep_named": true })).unwrap()["layers"], 0);
    let pruned = prune(json!({ "excluded_images": [of("kept:1")] })).unwrap();
    assert_eq!(pruned["layers"], 1, "{pruned}");
    assert!(pruned["bytes"].as_u64() > Some(0) && pruned["names"][0].as_str().unwrap().ends_with("other:1"));
    assert_eq!(images(), ["configured:1", "kept:1", "used:1"]);

    // In protocol buffers, in which Mesos has no response.
    image("other");
    let call = |excluded: &[&str]| {
        let mut python = Command::new(PYTHON);
        python.arg("-B").arg(script("prune.py")).args([&address(&daemon), TOKEN]).args(excluded);
        let output = python.output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
    };
    call(&["kept:1"]);
    assert_eq!(images(), ["configured:1", "kept:1", "used:1"]);
    call(&[]);
    assert_eq!(images(), ["configured:1", "used:1"]);

    // All but what is configured, once no container uses it. A call without a body is one without exceptions.
    daemon.destroy(&id("used")).unwrap();
    daemon.call(&json!({ "type": "PRUNE_IMAGES" })).unwrap();
    assert_eq!(images(), ["configured:1"]);
    daemon.remove(&id("used")).unwrap();
    assert!(daemon.terminate().success());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
