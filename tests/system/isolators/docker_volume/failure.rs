//! Drivers that fail.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use cofferdam_core::model::Volume;
use cofferdam_tests::wait_for_text;
use cofferdam_tests::world::id;
use serde_json::json;

use super::super::Fixture;
use super::lab::{Lab, records, volume, with_options};

/// The message of a launch with a volume that fails. Nothing is left of it.
async fn error(lab: &Lab, fixture: &Fixture) -> String {
    let request = fixture.with_docker_volumes("web", "true", &[volume("db", "/data")]);
    let message = fixture.error(request).await;
    assert!(message.contains("`docker/volume`") && message.contains("`db`"), "{message}");
    lab.assert_nothing_left(&fixture.world);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_answers_rubbish_too_much_or_too_slowly_fails_the_launch_only() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({ "docker_volume_timeout": "700ms" })).await;
    let http = |body: &str| format!("say HTTP/1.1 200 OK\\r\\n\\r\\n{body}");
    for method in ["Activate", "Get", "Mount"] {
        for (fault, expected) in [
            ("say nonsense\\r\\n\\r\\n".to_owned(), "not HTTP"),
            ("say ".to_owned(), "closed the connection"),
            (http("{"), "not the JSON of a volume driver"),
            (http("[1, 2]"), "not the JSON of a volume driver"),
            (http("{\"Err\": 7}"), "not the JSON of a volume driver"),
            (http(&"[".repeat(100_000)), "not the JSON of a volume driver"),
            ("flood".to_owned(), "longer than"),
            ("trickle".to_owned(), ""),
            ("hang".to_owned(), "did not answer in time"),
        ] {
            lab.fault(method, &fault);
            let message = error(&lab, &fixture).await;
            assert!(message.contains(expected) && message.contains(method), "{fault}: {message}");
        }
        lab.no_fault(method);
    }
    // What the driver itself says.
    for (method, fault, expected) in [
        ("Activate", http("{\"Implements\": [\"NetworkDriver\"]}"), "not a volume driver"),
        ("Create", "error the quota is used up".to_owned(), "the quota is used up"),
        ("Mount", "error the disk is broken\u{1b}[31m".to_owned(), "the disk is broken\\u{1b}[31m"),
        ("Mount", "say HTTP/1.1 500 Oh\\r\\n\\r\\nno JSON".to_owned(), "500"),
    ] {
        lab.fault(method, &fault);
        let removed = lab.path("data/db");
        drop(std::fs::remove_dir(&removed));
        lab.forget_log();
        let message = {
            let request = fixture.with_docker_volumes("web", "true", &[volume("db", "/data")]);
            fixture.error(request).await
        };
        assert!(message.contains(expected), "{message}");
        // A Mount that the driver refused is not undone. Without its message, something in between may have answered.
        assert_eq!(lab.count("Unmount"), usize::from(fault.contains("no JSON")), "{fault}");
        assert!(records(&fixture.world).is_empty());
        lab.no_fault(method);
    }
    // Without Capabilities, as drivers of the first version.
    lab.fault("Capabilities", "say HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n");
    lab.forget_log();
    let request = fixture.with_docker_volumes("web", "echo works", &[volume("db", "/data")]);
    assert_eq!(fixture.run(request).await, "works\n");
    lab.assert_nothing_left(&fixture.world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_point_that_is_no_directory_is_refused_and_unmounted() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    symlink("/proc/self/cwd", lab.path("link")).unwrap();
    let file = lab.path("fault-Mount").display().to_string();
    let missing = lab.path("missing").display().to_string();
    let link = lab.path("link").display().to_string();
    for (answer, expected) in [
        ("relative/path", "absolute path"),
        ("/", "absolute path"),
        ("/tmp/../etc", "without `..`"),
        (&*missing, "No such file"),
        (&*file, "not a directory"),
        (&*link, "symbolic link"),
    ] {
        lab.fault("Mount", &format!("mountpoint {answer}"));
        let message = error(&lab, &fixture).await;
        assert!(message.contains(expected), "{answer}: {message}");
        assert_eq!(lab.log(), ["Mount db", "Unmount db"]);
        lab.forget_log();
    }
    // Without one in the answer, Path is asked.
    lab.fault("Mount", "mountpoint ");
    let request = fixture.with_docker_volumes("web", "echo works", &[volume("db", "/data")]);
    assert_eq!(fixture.run(request).await, "works\n");
    lab.assert_nothing_left(&fixture.world);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_options_than_those_of_a_running_container_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    let with = |options: &[(&str, &str)]| with_options("db", "/data", options);
    fixture.launch(fixture.with_docker_volumes("one", "true", &[with(&[("size", "1"), ("o", "x")])])).await;
    let other = fixture.with_docker_volumes("two", "true", &[with(&[("size", "2"), ("o", "x")])]);
    let message = super::super::launch_error(&fixture.agent, other.clone()).await;
    assert!(message.contains("container `one` uses it with another value of `size`;"), "{message}");
    fixture.destroy("one").await;
    fixture.run(other).await;
    lab.assert_nothing_left(&fixture.world);
    assert_eq!(lab.log(), ["Mount db", "Unmount db", "Mount db", "Unmount db"]);
    let twice = [volume("db", "/a"), Volume { read_only: true, ..volume("db", "/b") }];
    let message = fixture.error(fixture.with_docker_volumes("web", "true", &twice)).await;
    assert!(message.contains("twice"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_mount_was_lost_is_not_given_to_further_containers() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    let tmpfs = with_options("db", "/data", &[("type", "tmpfs")]);
    fixture
        .launch(fixture.with_docker_volumes("one", "echo x > /data/file", std::slice::from_ref(&tmpfs)))
        .await;
    rustix::mount::unmount(lab.path("mnt/db"), rustix::mount::UnmountFlags::empty()).unwrap();
    let request = fixture.with_docker_volumes("two", "cat /data/file", &[tmpfs]);
    let message = super::super::launch_error(&fixture.agent, request).await;
    assert!(message.contains("not there any more") && message.contains("`one`"), "{message}");
    // The driver refuses to unmount what is not mounted; the kernel says so as well.
    fixture.destroy("one").await;
    assert!(records(&fixture.world).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_destroyed_while_the_driver_mounts_ends_after_it() {
    let Some(lab) = Lab::new() else { return };
    let fixture = Arc::new(lab.fixture(json!({ "docker_volume_timeout": "2s" })).await);
    for fault in ["hang", "forget"] {
        lab.fault("Mount", fault);
        lab.forget_log();
        let request = fixture.with_docker_volumes("web", "true", &[volume("db", "/data")]);
        let launch = tokio::spawn({
            let fixture = Arc::clone(&fixture);
            async move { fixture.agent.launch(request).await.is_err() }
        });
        wait_for_text(&lab.path("log"), if fault == "hang" { "Mount db" } else { "done: Mount" });
        drop(fixture.agent.destroy(&id("web")).await);
        assert!(launch.await.unwrap());
        drop(fixture.agent.remove(&id("web")).await);
        fixture.assert_nothing_left(fault);
        assert_eq!(lab.log(), ["Mount db", "Unmount db"]);
        lab.assert_nothing_left(&fixture.world);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_hangs_for_one_volume_does_not_delay_containers_with_others() {
    let Some(lab) = Lab::new() else { return };
    let fixture = Arc::new(lab.fixture(json!({ "docker_volume_timeout": "60s" })).await);
    let fifo = lab.fifo("go");
    lab.fault("Mount", &format!("wait {}", fifo.display()));
    let slow = fixture.with_docker_volumes("slow", "echo slow", &[volume("slow", "/data")]);
    let launch = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { cofferdam_tests::world::run(&fixture.agent, slow).await }
    });
    wait_for_text(&lab.path("log"), "Mount slow");
    lab.no_fault("Mount");
    let quick = fixture.with_docker_volumes("quick", "echo quick", &[volume("quick", "/data")]);
    assert_eq!(cofferdam_tests::world::run(&fixture.agent, quick).await, "quick\n");
    assert_eq!(lab.log(), ["Mount slow", "Mount quick", "Unmount quick"]);
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(launch.await.unwrap(), "slow\n");
    for name in ["slow", "quick"] {
        assert!(fixture.agent.remove(&id(name)).await.unwrap());
    }
    fixture.assert_nothing_left("all");
    lab.assert_nothing_left(&fixture.world);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_container_waits_for_a_driver_that_does_not_unmount() {
    let Some(lab) = Lab::new() else { return };
    let fixture = Arc::new(lab.fixture(json!({ "docker_volume_timeout": "1s" })).await);
    for fault in ["error it is busy", "hang", "say nonsense\\r\\n\\r\\n"] {
        lab.forget_log();
        fixture.launch(fixture.with_docker_volumes("web", "true", &[volume("db", "/data")])).await;
        lab.fault("Unmount", fault);
        let destroy = tokio::spawn({
            let fixture = Arc::clone(&fixture);
            async move { fixture.agent.destroy(&id("web")).await.is_some() }
        });
        wait_for_text(&lab.path("log"), "Unmount db");
        assert_eq!(lab.mounts().len(), 1);
        lab.no_fault("Unmount");
        assert!(destroy.await.unwrap());
        fixture.agent.remove(&id("web")).await.unwrap();
        fixture.assert_nothing_left(fault);
        lab.assert_nothing_left(&fixture.world);
        assert!(lab.count("Unmount") > 1, "{:?}", lab.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_its_driver_refuses_to_unmount_can_be_used_by_the_next_container() {
    let Some(lab) = Lab::new() else { return };
    let fixture = Arc::new(lab.fixture(json!({})).await);
    let with = |name| fixture.with_docker_volumes(name, "true", &[volume("db", "/data")]);
    fixture.launch(with("one")).await;
    lab.fault("Unmount", "error it is busy");
    let destroy = tokio::spawn({
        let fixture = Arc::clone(&fixture);
        async move { fixture.agent.destroy(&id("one")).await.is_some() }
    });
    wait_for_text(&lab.path("log"), "Unmount db");
    fixture.launch(with("two")).await;
    // Its end does not depend on the driver any more.
    assert!(destroy.await.unwrap());
    lab.no_fault("Unmount");
    fixture.agent.remove(&id("one")).await.unwrap();
    fixture.destroy("two").await;
    assert_eq!(lab.count("Mount"), 1);
    lab.assert_nothing_left(&fixture.world);
}
