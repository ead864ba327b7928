//! The calls of clients: what they show, and what they refuse.

use cofferdam_tests::daemon::{CallError, Daemon};

use super::*;

/// What makes a launch invalid.
type Change<'a> = &'a dyn Fn(&mut Json);

fn refused(daemon: &Daemon, call: &Json) -> (u16, String) {
    match daemon.call(call) {
        Err(CallError::Status(status, text)) => (status, text),
        other => panic!("{call}: {other:?}"),
    }
}

#[test]
fn what_is_wrong_with_a_launch_is_said_by_name() {
    let world = world();
    let daemon = Daemon::start(&world);
    let with = |change: &dyn Fn(&mut Json)| {
        let mut call = launch_call(&executor("one", ""), &task("a", "finish"), true);
        change(&mut call["launch_task"]);
        call
    };
    let cases: [(Change<'_>, &str); 10] = [
        (&|call| call["framework_info"]["id"] = Json::Null, "`framework_info.id`"),
        (&|call| call["framework_info"]["id"]["value"] = json!("a/b"), "`framework_info.id`"),
        (&|call| call["framework_info"]["name"] = json!(7), "`framework_info.name`"),
        (&|call| call["task_info"]["task_id"] = json!({}), "`task_info.task_id`"),
        (&|call| call["task_info"]["task_id"]["value"] = json!(".."), "`task_info.task_id`"),
        (
            &|call| call["task_info"]["resources"][0]["scalar"]["value"] = json!(-1),
            "`task_info.resources.cpus.scalar`",
        ),
        (&|call| call["task_info"]["command"] = json!({"value": "true"}), "`task_info.command`"),
        (&|call| call["task_info"]["executor"] = executor("x", ""), "`executor_info`"),
        (&|call| call["executor_info"]["command"] = Json::Null, "`executor_info.command`"),
        (&|call| call["executor_info"]["type"] = json!("OTHER"), "`executor_info.type`"),
    ];
    for (change, field) in cases {
        let call = with(change);
        let (status, text) = refused(&daemon, &call);
        assert!(status == 400 && text.contains(field), "{field}: {status} {text}");
    }
    let alone = with(&|call| {
        call["executor_info"] = Json::Null;
    });
    let (status, text) = refused(&daemon, &alone);
    assert!(status == 400 && text.contains("`task_info.command`"), "{text}");
    assert_nothing_left(&world, &daemon);
}

#[test]
fn a_task_and_an_executor_exist_once() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    let (status, text) = refused(&daemon, &launch_call(&executor("two", ""), &task("a", "run"), true));
    assert_eq!(status, 409, "{text}");
    let (status, text) =
        refused(&daemon, &launch_call(&executor("one", "stubborn"), &task("b", "run"), true));
    assert_eq!(status, 409, "{text}");
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    assert!(kill(&daemon, "b").unwrap_err().is_unknown());
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert!(shut_down(&daemon, "one").unwrap_err().is_unknown());
    assert_nothing_left(&world, &daemon);
}

#[test]
fn lists_have_the_shapes_of_mesos() {
    let world = world();
    let daemon = Daemon::start(&world);
    launch(&daemon, &executor("one", ""), &task("a", "run"));
    drop(until_state(&daemon, "a", "TASK_RUNNING"));
    let tasks = daemon.call(&json!({"type": "GET_TASKS"})).unwrap();
    let shown = &tasks["launched_tasks"][0];
    assert_eq!((&shown["state"], &shown["name"]), (&json!("TASK_RUNNING"), &json!("run")));
    assert_eq!(shown["framework_id"]["value"], "tests");
    assert_eq!(shown["executor_id"]["value"], "one");
    assert_eq!(shown["resources"][0]["name"], "cpus");
    assert_eq!(shown["statuses"][0]["state"], "TASK_RUNNING");
    let executors = daemon.call(&json!({"type": "GET_EXECUTORS"})).unwrap();
    assert_eq!(executors["executors"][0]["executor_info"]["framework_id"]["value"], "tests");
    let frameworks = daemon.call(&json!({"type": "GET_FRAMEWORKS"})).unwrap();
    assert_eq!(frameworks["frameworks"][0]["framework_info"]["name"], "tests");
    let state = daemon.call(&json!({"type": "GET_STATE"})).unwrap();
    assert_eq!(state["get_tasks"], tasks);
    let containers =
        daemon.call(&json!({"type": "GET_CONTAINERS", "get_containers": {"show_standalone": true}}));
    let containers = containers.unwrap();
    let shown = &containers["containers"][0];
    assert_eq!(
        (&shown["executor_id"]["value"], &shown["executor_name"]),
        (&json!("one"), &json!("for tests"))
    );
    assert_eq!(shown["framework_id"]["value"], "tests");
    let statistics = daemon.get("/monitor/statistics");
    assert_eq!(
        (&statistics[0]["executor_id"], &statistics[0]["framework_id"]),
        (&json!("one"), &json!("tests"))
    );
    let state = daemon.get("/state");
    let shown = &state["frameworks"][0]["executors"][0];
    assert_eq!((&shown["id"], &shown["tasks"][0]["state"]), (&json!("one"), &json!("TASK_RUNNING")));
    assert!(Path::new(shown["directory"].as_str().unwrap()).is_dir(), "{state}");
    let task = &shown["tasks"][0];
    assert_eq!(task["slave_id"], state["id"]);
    let status = &task["statuses"][0];
    assert_eq!(status["state"], "TASK_RUNNING");
    let container = &containers["containers"][0]["container_id"];
    assert_eq!(status["container_status"]["container_id"], *container, "{status}");
    let metrics = daemon.get("/metrics/snapshot");
    for (name, value) in [
        ("frameworks_active", 1.0),
        ("executors_running", 1.0),
        ("tasks_running", 1.0),
        ("tasks_finished", 0.0),
        ("invalid_status_updates", 0.0),
    ] {
        assert_eq!(metrics[format!("slave/{name}")], json!(value), "{name} in {metrics}");
    }
    let listed = daemon.get("/containers");
    assert_eq!(
        (&listed[0]["executor_id"], &listed[0]["executor_name"]),
        (&json!("one"), &json!("for tests"))
    );
    shut_down(&daemon, "one").unwrap();
    drop(until_ended(&daemon, "a"));
    assert_nothing_left(&world, &daemon);
}
