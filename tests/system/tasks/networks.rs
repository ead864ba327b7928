//! Tasks in a network of their own.

use cofferdam_tests::daemon::Daemon;

use super::programs::{STARTED, command_task};
use super::*;
use crate::isolators::cni::lab::lab_without_agent;

#[test]
fn a_command_is_checked_in_its_network_and_its_status_has_its_address() {
    lab_without_agent(|lab| {
        lab.bridge("net", 88, json!({}));
        let mut world = lab.world(json!({}));
        world.config.executors.max_completed_executors = 0;
        let daemon = Daemon::start(&world);
        let task = |id: &str| {
            let mut task = command_task(id, checks::SERVE);
            task["container"] = json!({
                "type": "MESOS", "mesos": {"rootfs": world.rootfs()}, "network_infos": [{"name": "net"}],
            });
            task
        };
        let has_address = |id: &str, received: &Received| {
            assert_eq!(received.states(id)[..2], STARTED);
            let status = &received.last(id)["container_status"];
            let address = &status["network_infos"][0]["ip_addresses"][0]["ip_address"];
            assert!(address.as_str().is_some_and(|address| address.starts_with("10.88.0.")), "{status}");
        };
        checks::assert_made(&daemon, task, has_address, || assert_nothing_left(&world, &daemon));
    });
}
