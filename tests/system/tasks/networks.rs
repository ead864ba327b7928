//! Tasks in a network of their own.

use cofferdam_tests::daemon::Daemon;

use super::programs::{STARTED, command_task, run_task};
use super::*;
use crate::isolators::cni::lab::lab_without_agent;

#[test]
fn a_command_is_checked_in_its_network_and_its_status_has_its_address() {
    lab_without_agent(|lab| {
        lab.bridge("net", 88, json!({}));
        let mut world = lab.world(json!({}));
        world.config.executors.max_completed_executors = 0;
        let daemon = Daemon::start(&world);
        let container = json!({
            "type": "MESOS", "mesos": {"rootfs": world.rootfs()}, "network_infos": [{"name": "net"}],
        });
        // The port is open on the loopback interface of the container only, which that of the host is not.
        let served = "mkdir /www; echo > /www/index.html; exec busybox httpd -f -p 127.0.0.1:8080 -h /www";
        for (id, check, field, expected) in [
            ("tcp", json!({"type": "TCP", "tcp": {"port": 8080}}), "tcp", json!({"succeeded": true})),
            (
                "http",
                json!({"type": "HTTP", "http": {"port": 8080, "path": "/index.html"}}),
                "http",
                json!({"status_code": 200}),
            ),
            (
                "command",
                json!({"type": "COMMAND", "command": {"command": {"value": "test -e /www && exit 5"}}}),
                "command",
                json!({"exit_code": 5}),
            ),
        ] {
            let mut task = command_task(id, served);
            task["container"] = container.clone();
            task["check"] = check;
            (task["check"]["delay_seconds"], task["check"]["interval_seconds"]) = (json!(0), json!(0.05));
            run_task(&daemon, &task, true);
            let mut received = Received::default();
            received.until(&daemon, &mut daemon.updates(), |received| {
                let mut statuses = received.statuses.get(id).into_iter().flatten();
                statuses.any(|status| status["check_status"][field] == expected)
            });
            assert_eq!(received.states(id)[..2], STARTED);
            let status = &received.last(id)["container_status"];
            let address = &status["network_infos"][0]["ip_addresses"][0]["ip_address"];
            assert!(address.as_str().is_some_and(|address| address.starts_with("10.88.0.")), "{status}");
            kill(&daemon, id).unwrap();
            received.until(&daemon, &mut daemon.updates(), |received| received.has_ended(id));
            assert_eq!(received.last(id)["state"], "TASK_KILLED");
            assert_nothing_left(&world, &daemon);
        }
    });
}
