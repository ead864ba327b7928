//! The command, its environment and its working directory.

use std::path::PathBuf;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, shipped};
use serde_json::json;

use super::{Fixture, request, world};

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_that_of_the_plugins_and_the_command_takes_precedence() {
    if !is_root("a root filesystem") {
        return;
    }
    let launch = json!({ "environment": { "A": "plugin", "B": "plugin", "LINES": "x=y\n z" } });
    let fixture = Fixture::start().await;
    let mut request = fixture.request(&json!({ "launch": launch }), "echo $A $B $C; echo \"$LINES\"");
    request.command.environment =
        [("B", "command"), ("C", "command")].map(|(name, value)| (name.into(), value.into())).into();
    assert_eq!(fixture.run(request).await, "plugin command command\nx=y\n z\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_put_before_and_after_those_of_plugins_and_command() {
    if !is_root("a root filesystem") {
        return;
    }
    let launch = json!({
        "environment": { "OF_PLUGIN": "b" },
        "environment_prepend": { "PATH": ["/first", "/second"], "OF_PLUGIN": ["a"] },
        "environment_append": { "PATH": ["/last"], "OF_PLUGIN": ["c"], "UNSET": ["only"] },
    });
    let fixture = Fixture::start().await;
    let mut request = fixture.request(&json!({ "launch": launch }), "echo $PATH $OF_PLUGIN $UNSET");
    request.command.environment = [("PATH".into(), "/bin:/sbin".into())].into();
    let expected = "/first:/second:/bin:/sbin:/last a:b:c only\n";
    assert_eq!(fixture.run(request).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_containers_have_once_what_plugins_put_before_and_after_values_of_their_container() {
    if !is_root("a root filesystem") {
        return;
    }
    let table = json!({ "launch": {
        "environment": { "OF_PLUGIN": "b" },
        "environment_prepend": { "PATH": ["/first", "/second"], "OF_PLUGIN": ["a"] },
        "environment_append": { "PATH": ["/last"], "OF_PLUGIN": ["c"], "UNSET": ["only"] },
    }});
    let shown = "echo $PATH $OF_PLUGIN $UNSET $MESOS_SANDBOX";
    // For every container, and for the first one only.
    for (of_all, of_first) in [(table.clone(), None), (json!({}), Some(&table))] {
        let world = world(vec![shipped("filesystem/linux"), request(of_all)]);
        let agent = world.start().await.unwrap();
        let launch = async |name: &str, line: &str| {
            let mut request = Request::shell(id(name), line);
            match name {
                "web" => {
                    request.rootfs = Some(world.rootfs());
                    request.labels.extend(of_first.map(|table| ("request".to_owned(), table.to_string())));
                }
                _ => request.class = ContainerClass::Debug,
            }
            agent.launch(request).await.unwrap();
            let stdout = agent.inspect(&id(name)).unwrap().logs.stdout.unwrap();
            cofferdam_tests::wait_for_text(&stdout, "\n");
            cofferdam_tests::text(&stdout)
        };
        let own = launch("web", &format!("{shown}; exec sleep 1000000")).await;
        assert!(
            own.starts_with("/first:/second:/usr/local/sbin:") && own.contains(":/last a:b:c only /mnt/")
        );
        assert_eq!(launch("web.first", &format!("{shown}; exec sleep 1000000")).await, own);
        assert_eq!(launch("web.first.second", shown).await, own);
        agent.destroy(&id("web")).await.unwrap();
        agent.remove(&id("web")).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_variable_is_known_to_the_command_only() {
    if !is_root("a root filesystem") {
        return;
    }
    let launch = json!({
        "environment": { "PLAIN": "5b0c-plain-value" },
        "secret_environment": { "TOKEN": "5b0c-secret-value" },
    });
    // In the configuration, as a label of the request is recorded.
    let world = world(vec![shipped("filesystem/linux"), request(json!({ "launch": launch }))]);
    let agent = world.start().await.unwrap();
    // The command shows only part of it, as its output is one of the files that are searched.
    let line = "test $TOKEN = 5b0c-secret-'v'alue && echo known; exec sleep 1000";
    let mut request = Request::shell(id("web"), line);
    request.rootfs = Some(world.rootfs());
    agent.launch(request).await.unwrap();
    let inspection = agent.inspect(&id("web")).unwrap();
    cofferdam_tests::wait_for_text(inspection.logs.stdout.as_ref().unwrap(), "known");

    let shown = serde_json::to_string(&inspection).unwrap();
    assert!(shown.contains("5b0c-plain-value") && !shown.contains("5b0c-secret-value"), "{shown}");
    let entry = inspection.plan.iter().find(|entry| entry.field == "environment.TOKEN").unwrap();
    assert_eq!((entry.value.as_str(), entry.owner.as_str()), ("<secret>", "test/request"));
    assert_ne!(world.files_with("5b0c-plain-value"), Vec::<PathBuf>::new());
    assert_eq!(world.files_with("5b0c-secret-value"), Vec::<PathBuf>::new());

    agent.destroy(&id("web")).await.unwrap();
    assert_eq!(world.files_with("5b0c-secret-value"), Vec::<PathBuf>::new());
    agent.remove(&id("web")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_rewritten() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start().await;
    // The launch requests are a program and a shell line.
    for (shell, rewrite, expected) in [
        (false, json!({ "shell": true, "value": "echo line $((1 + 1))" }), "line 2\n"),
        (false, json!({ "value": "/bin/true", "arguments": ["echo", "a  b", "$PATH"] }), "a  b $PATH\n"),
        (false, json!({ "arguments": ["echo", "other"] }), "other\n"),
        (true, json!({ "value": "echo line $((1 + 1))" }), "line 2\n"),
        (true, json!({ "shell": false, "value": "/bin/true", "arguments": ["echo", "*"] }), "*\n"),
    ] {
        let table = json!({ "launch": { "command": rewrite } });
        let mut request = fixture.request(&table, "echo original");
        if !shell {
            request.command.shell = false;
            request.command.value = Some("/bin/busybox".into());
            request.command.arguments = ["echo", "original"].map(str::to_owned).into();
        }
        assert_eq!(fixture.run(request).await, expected, "{rewrite} of {shell}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_created_for_the_user() {
    if !is_root("a root filesystem") {
        return;
    }
    let fixture = Fixture::start_with(Vec::new(), Vec::new()).await;
    let launch = json!({ "working_directory": "/srv/data" });
    let mut request = fixture.request_with_root(&launch, "pwd; touch mine && echo created");
    request.command.user = Some("web".into());
    assert_eq!(fixture.run(request).await, "/srv/data\ncreated\n");
}
