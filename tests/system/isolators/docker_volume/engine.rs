//! A driver that serves the Docker engine as well.

use std::os::unix::fs::symlink;

use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::engine::{IMAGE, engine};
use cofferdam_tests::mounts::in_namespace_of;
use cofferdam_tests::watch;
use cofferdam_tests::world::with_agent;
use serde_json::json;

use super::super::{Fixture, world};
use super::lab::{DRIVER, Lab, volume};

/// Name of the container of the engine.
const ONE: &str = "cofferdam-volume-one";

#[test]
fn an_agent_and_the_engine_use_a_volume_at_the_same_time() {
    let Some(engine) = engine() else { return };
    in_namespace_of(engine.pid(), || {
        let Some(lab) = Lab::new() else { return };
        symlink(lab.socket(), engine.plugins().join(format!("{DRIVER}.sock"))).unwrap();
        engine.client(&["volume", "create", "-d", DRIVER, "shared"]);
        let line = "echo of the engine > /data/file; while ! [ -e /data/go ]; do sleep 0.1; done; cat /data/own > /data/read; \
                    sleep 1000";
        engine.client(&[
            "run",
            "-d",
            "--name",
            ONE,
            "--network",
            "none",
            "-v",
            "shared:/data",
            IMAGE,
            "sh",
            "-c",
            line,
        ]);
        watch::content(&lab.content("shared", "file"), TIMEOUT, |text| text == "of the engine\n");
        assert_eq!(lab.log(), ["Mount shared"]);

        let world = world(lab.isolators(json!({})));
        with_agent(&world, async |agent| {
            let fixture = Fixture { world: std::sync::Arc::clone(&world), agent };
            let line = "cat /data/file; echo of the agent > /data/own; busybox touch /data/go";
            let request = fixture.with_docker_volumes("two", line, &[volume("shared", "/data")]);
            assert_eq!(fixture.run(request).await, "of the engine\n");
        });
        // It has another id, and the volume stays mounted for the engine.
        assert_eq!(lab.log(), ["Mount shared", "Mount shared", "Unmount shared"]);
        assert_eq!(lab.mounts().len(), 1, "{:?}", lab.mounts());
        watch::content(&lab.content("shared", "read"), TIMEOUT, |text| text == "of the agent\n");
        engine.client(&["rm", "-f", ONE]);
        engine.client(&["volume", "rm", "shared"]);
        assert_eq!((lab.count("Mount"), lab.count("Unmount")), (2, 2));
        lab.assert_nothing_left(&world);
    });
}
