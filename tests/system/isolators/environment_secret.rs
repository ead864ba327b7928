//! `environment_secret`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use cofferdam_core::model::{ContainerClass, Request, Secret};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world_with};

fn secrets() -> Arc<World> {
    world_with(|directory| {
        let secrets = directory.join("secrets");
        fs::create_dir(&secrets).unwrap();
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(secrets.join("token"), "hunter2").unwrap();
        vec![isolator("environment_secret", json!({ "secret_dir": secrets }))]
    })
}

/// The files below a directory that contain a text, except those of some names.
fn found(directory: &Path, wanted: &str, except: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().unwrap();
        if except.iter().any(|except| name == **except) {
            continue;
        }
        let contains = |bytes: Vec<u8>| bytes.windows(wanted.len()).any(|part| part == wanted.as_bytes());
        if kind.is_dir() {
            found.extend(self::found(&path, wanted, except));
        } else if kind.is_file() && fs::read(&path).is_ok_and(contains) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Checks that nothing of the agent records or shows a value.
pub(super) fn assert_hidden(fixture: &Fixture, name: &str, values: &[&str]) {
    let inspected = format!("{:?}", fixture.agent.inspect(&id(name)).unwrap());
    let record = serde_json::to_string(&fixture.world.record(&id(name))).unwrap();
    for value in values {
        assert!(!inspected.contains(value), "{inspected}");
        assert!(!record.contains(value), "{record}");
        let directory = fixture.world.directory();
        assert_eq!(found(directory, value, &["secrets", "stdout"]), Vec::<String>::new());
    }
}

impl Fixture {
    fn with_secrets(&self, name: &str, user: &str) -> Request {
        let mut request = self.request(name, user, "echo $TOKEN $VALUE");
        let reference = Secret::Reference { name: "token".into(), key: None };
        let value = Secret::Value("hunter1".into());
        request.command.secrets = [("TOKEN".to_owned(), reference), ("VALUE".to_owned(), value)].into();
        request
    }
}

#[test]
fn a_container_has_secrets_that_nothing_shows_or_records() {
    if !is_root("root file systems") {
        return;
    }
    across_restart(
        &secrets(),
        async |fixture| {
            for user in ["root", "web"] {
                assert_eq!(fixture.run(fixture.with_secrets("web", user)).await, "hunter2 hunter1\n");
            }
            fixture.launch(fixture.with_secrets("pod", "web")).await;
            assert_hidden(fixture, "pod", &["hunter1", "hunter2"]);
        },
        async |fixture| {
            assert_hidden(fixture, "pod", &["hunter1", "hunter2"]);
            // Those of a parent are not passed on.
            let line = "echo \"$TOKEN$VALUE.\"";
            let nested = fixture.request("pod.nested", "web", line);
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            for request in [nested, debug] {
                assert_eq!(run(&fixture.agent, request).await, ".\n");
            }
            assert_eq!(
                run(&fixture.agent, fixture.with_secrets("pod.own", "web")).await,
                "hunter2 hunter1\n"
            );
            fixture.destroy("pod").await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_resolved_is_refused_without_its_value() {
    if !is_root("root file systems") {
        return;
    }
    let world = secrets();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let mut request = fixture.with_secrets("web", "web");
    let lost = Secret::Reference { name: "lost".into(), key: None };
    request.command.secrets.insert("LOST".into(), lost);
    let message = fixture.error(request).await;
    assert!(message.contains("`environment_secret`") && message.contains("`LOST`"), "{message}");
    assert!(!message.contains("hunter"), "{message}");
}
