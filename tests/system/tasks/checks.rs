//! Checks of each kind, which only succeed in the container of their task and in its network.

use cofferdam_tests::daemon::Daemon;

use super::programs::run_task;
use super::*;

/// Serves a page at a port that is open on the loopback interface of the container only, which that of the host is not.
pub(super) const SERVE: &str =
    "mkdir /www; echo > /www/index.html; exec busybox httpd -f -p 127.0.0.1:8080 -h /www";

/// The kinds, each with a check and the status of one that succeeds.
fn kinds() -> [(&'static str, Json, Json); 3] {
    [
        ("tcp", json!({"type": "TCP", "tcp": {"port": 8080}}), json!({"succeeded": true})),
        (
            "http",
            json!({"type": "HTTP", "http": {"port": 8080, "path": "/index.html"}}),
            json!({"status_code": 200}),
        ),
        (
            "command",
            json!({"type": "COMMAND", "command": {"command": {"value": "test -e /www && exit 5"}}}),
            json!({"exit_code": 5}),
        ),
    ]
}

/// A check, or health check, that is made at once and often.
pub(super) fn often(mut check: Json) -> Json {
    (check["delay_seconds"], check["interval_seconds"]) = (json!(0), json!(0.05));
    check
}

/// Launches a task that serves, with a check of each kind, waits for its status, and kills the task. `task` makes it of an id,
/// `checked` gets what has been received by then, and `ended` is called when the task has ended.
pub(super) fn assert_made(
    daemon: &Daemon,
    task: impl Fn(&str) -> Json,
    checked: impl Fn(&str, &Received),
    ended: impl Fn(),
) {
    for (kind, check, expected) in kinds() {
        let mut task = task(kind);
        task["check"] = often(check);
        run_task(daemon, &task, true);
        let mut received = Received::default();
        received.until(daemon, &mut daemon.updates(), |received| {
            let mut statuses = received.statuses.get(kind).into_iter().flatten();
            statuses.any(|status| status["check_status"][kind] == expected)
        });
        checked(kind, &received);
        kill(daemon, kind).expect("it is running");
        received.until(daemon, &mut daemon.updates(), |received| received.has_ended(kind));
        assert_eq!(received.last(kind)["state"], "TASK_KILLED");
        ended();
    }
}
