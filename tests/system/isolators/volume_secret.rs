//! `volume/secret`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use cofferdam_core::model::{ContainerClass, Request, Secret, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run};
use serde_json::json;

use super::environment_secret::assert_hidden;
use super::{Fixture, across_restart, isolator, world_with};

fn secrets() -> Arc<World> {
    world_with(|directory| {
        let secrets = directory.join("secrets");
        fs::create_dir_all(secrets.join("database")).unwrap();
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(secrets.join("database/password"), "hunter2").unwrap();
        vec![isolator("volume/secret", json!({ "secret_dir": secrets }))]
    })
}

impl Fixture {
    fn with_secret_files(&self, name: &str, user: &str, line: &str) -> Request {
        let volume = |secret, target: &str| Volume {
            container_path: target.into(),
            read_only: false,
            source: VolumeSource::Secret { secret },
        };
        let reference = Secret::Reference { name: "database".into(), key: Some("password".into()) };
        let volumes = vec![
            volume(reference, "/run/secrets/password"),
            volume(Secret::Value("hunter1".into()), "own/token"),
        ];
        Request { volumes, ..self.request(name, user, line) }
    }
}

const READ: &str = "cat /run/secrets/password own/token; echo";

/// The mounts of the host in the directories of a test. Other tests mount elsewhere at the same time.
fn mounts(fixture: &Fixture) -> Vec<String> {
    let directory = fixture.world.directory().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(&directory)).map(str::to_owned).collect()
}

#[test]
fn a_container_has_secret_files_that_nothing_shows_or_records() {
    if !is_root("mounts") {
        return;
    }
    across_restart(
        &secrets(),
        async |fixture| {
            let line = format!(
                "{READ}; busybox stat -c '%a %u' own/token /run/secrets/password; (echo x > own/token) 2>/dev/null || echo read-only; \
                 (echo x > /run/secrets/password) 2>/dev/null || echo read-only"
            );
            for (user, uid) in [("root", 0), ("web", 1234)] {
                let output = fixture.run(fixture.with_secret_files("web", user, &line)).await;
                let expected = format!("hunter2hunter1\n400 {uid}\n400 {uid}\nread-only\nread-only\n");
                assert_eq!(output, expected);
            }
            let mounts = mounts(fixture);
            fixture.launch(fixture.with_secret_files("pod", "web", "true")).await;
            assert_eq!(self::mounts(fixture), mounts);
            let sandbox = fixture.agent.inspect(&id("pod")).unwrap().sandbox;
            assert_eq!(fs::read(sandbox.join("own/token")).unwrap(), b"");
            assert_hidden(fixture, "pod", &["hunter1", "hunter2"]);
        },
        async |fixture| {
            assert_hidden(fixture, "pod", &["hunter1", "hunter2"]);
            let line = "cat /run/secrets/password || echo none";
            let nested = fixture.request("pod.nested", "web", line);
            assert_eq!(run(&fixture.agent, nested).await, "none\n");
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug).await, "hunter2");
            let own = fixture.with_secret_files("pod.own", "web", READ);
            assert_eq!(run(&fixture.agent, own).await, "hunter2hunter1\n");
            fixture.destroy("pod").await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_without_a_value_is_refused_and_another_user_cannot_read_one() {
    if !is_root("mounts") {
        return;
    }
    let world = secrets();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let mut request = fixture.with_secret_files("web", "web", READ);
    let lost = VolumeSource::Secret { secret: Secret::Reference { name: "lost".into(), key: None } };
    request.volumes.push(Volume { container_path: "/lost".into(), read_only: true, source: lost });
    let message = fixture.error(request).await;
    assert!(message.contains("`volume/secret`") && message.contains("`/lost`"), "{message}");
    assert!(!message.contains("hunter"), "{message}");
    // Root in the container without capabilities of root is another user.
    let line = "(busybox setuidgid 5:5 cat own/token) 2>/dev/null || echo refused";
    let output = fixture.run(fixture.with_secret_files("web", "root", line)).await;
    assert_eq!(output, "refused\n");
}
