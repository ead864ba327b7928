//! `docker/volume`, with a driver in a process of its own, and real mounts.

mod crash;
mod engine;
mod failure;
pub(super) mod lab;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::world::{id, run};
use serde_json::json;

use self::lab::{DRIVER, Lab, records, volume, with_options};
use super::{across_restart, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_volume_whose_content_outlives_it() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    let options = [("size", "1"), ("o", "a,b")];
    let write = fixture.with_docker_volumes(
        "web",
        "echo of web > /data/file; echo of web > inner/file",
        &[with_options("db", "/data", &options), volume("host/other one", "inner")],
    );
    fixture.run(write).await;
    assert_eq!(lab.log(), ["Mount db", "Mount host/other one", "Unmount db", "Unmount host/other one"]);
    lab.assert_nothing_left(&fixture.world);
    assert_eq!(fs::read_to_string(lab.content("db", "file")).unwrap(), "of web\n");
    assert_eq!(fs::read_to_string(lab.content("host_other one", "file")).unwrap(), "of web\n");
    let created = fs::read_to_string(lab.path("data/db.options")).unwrap();
    assert_eq!(created, json!({ "o": "a,b", "size": "1" }).to_string());

    // Read-only, and with what the driver has mounted there.
    let line = "cat /data/file; (echo x > /data/file) 2>/dev/null || echo read-only";
    let mut read = fixture.with_docker_volumes("web", line, &[volume("db", "/data")]);
    read.volumes[0].read_only = true;
    assert_eq!(fixture.run(read).await, "of web\nread-only\n");
    let tmpfs = fixture.with_docker_volumes(
        "web",
        "grep ' /data ' /proc/mounts | cut -d ' ' -f 3",
        &[with_options("memory", "/data", &[("type", "tmpfs")])],
    );
    assert_eq!(fixture.run(tmpfs).await, "tmpfs\n");
    lab.assert_nothing_left(&fixture.world);
}

#[test]
fn a_volume_is_mounted_for_the_first_container_and_unmounted_after_the_last_also_across_restarts() {
    let Some(lab) = Lab::new() else { return };
    across_restart(
        &world(lab.isolators(json!({}))),
        async |fixture| {
            for name in ["one", "two"] {
                let line = format!("echo {name} >> /data/file");
                fixture.launch(fixture.with_docker_volumes(name, &line, &[volume("db", "/data")])).await;
            }
            assert_eq!(lab.log(), ["Mount db"]);
        },
        async |fixture| {
            let three = fixture.with_docker_volumes("three", "cat /data/file", &[volume("db", "/data")]);
            assert_eq!(run(&fixture.agent, three).await, "one\ntwo\n");
            fixture.agent.destroy(&id("one")).await.unwrap();
            assert_eq!(lab.log(), ["Mount db"]);
            assert_eq!(lab.mounts().len(), 1);
            fixture.agent.destroy(&id("two")).await.unwrap();
            assert_eq!(lab.log(), ["Mount db", "Unmount db"]);
            for name in ["one", "two", "three"] {
                fixture.agent.remove(&id(name)).await.unwrap();
            }
            fixture.assert_nothing_left("all");
            lab.assert_nothing_left(&fixture.world);
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_start_and_end_together_mount_a_volume_once_at_a_time() {
    let Some(lab) = Lab::new() else { return };
    let fixture = Arc::new(lab.fixture(json!({})).await);
    for _ in 0..3 {
        let start = |number: u32| {
            let fixture = Arc::clone(&fixture);
            let name = format!("web{number}");
            let request =
                fixture.with_docker_volumes(&name, "echo x >> /data/file", &[volume("db", "/data")]);
            tokio::spawn(async move {
                run(&fixture.agent, request).await;
                assert!(fixture.agent.remove(&id(&name)).await.unwrap());
            })
        };
        let started: Vec<_> = (0..8).map(start).collect();
        for task in started {
            task.await.unwrap();
        }
        fixture.assert_nothing_left("all");
        lab.assert_nothing_left(&fixture.world);
    }
    assert_eq!(fs::read_to_string(lab.content("db", "file")).unwrap(), "x\n".repeat(24));
    // Mount, Unmount, Mount, Unmount: never two of one kind in a row.
    let log = lab.log();
    assert!(log.iter().step_by(2).all(|call| call == "Mount db"), "{log:?}");
    assert!(log.iter().skip(1).step_by(2).all(|call| call == "Unmount db"), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_containers_have_volumes_of_their_own_and_debug_containers_none() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    fixture
        .launch(fixture.with_docker_volumes("pod", "echo pod > /data/file", &[volume("db", "/data")]))
        .await;
    let nested = fixture.with_docker_volumes(
        "pod.web",
        "cat /mine/file /data/file 2>/dev/null; echo $?",
        &[volume("db", "/mine")],
    );
    assert_eq!(run(&fixture.agent, nested).await, "pod\n1\n");
    assert_eq!(lab.log(), ["Mount db"]);
    let mut debug = Request::shell(id("pod.debug"), "cat /data/file");
    debug.class = ContainerClass::Debug;
    assert_eq!(run(&fixture.agent, debug.clone()).await, "pod\n");
    debug.id = id("pod.other");
    debug.volumes = vec![volume("db", "/mine")];
    let message = super::launch_error(&fixture.agent, debug).await;
    assert!(message.contains("debug container"), "{message}");
    fixture.destroy("pod").await;
    assert_eq!(lab.log(), ["Mount db", "Unmount db"]);
    lab.assert_nothing_left(&fixture.world);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_a_volume_belongs_to_the_containers_user_only_if_that_is_configured() {
    let Some(lab) = Lab::new() else { return };
    for (is_configured, expected) in [(false, "refused\n"), (true, "mine\n")] {
        let fixture = lab.fixture(json!({ "docker_volume_chown": is_configured })).await;
        let line = "(echo mine > /data/file) 2>/dev/null && cat /data/file || echo refused";
        let mut request = fixture.with_docker_volumes("web", line, &[volume("db", "/data")]);
        request.command.user = Some("web".into());
        assert_eq!(fixture.run(request).await, expected);
        let owner = fs::metadata(lab.path("data/db")).unwrap().uid();
        assert_eq!(owner, if is_configured { 1234 } else { 0 });
        lab.assert_nothing_left(&fixture.world);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_is_found_by_files_with_its_address() {
    let Some(lab) = Lab::new() else { return };
    let fixture = lab.fixture(json!({})).await;
    let specs = lab.path("specs");
    let other = lab.path("elsewhere");
    fs::rename(lab.socket(), &other).unwrap();
    let address = format!("unix://{}", other.display());
    fs::create_dir(specs.join(DRIVER)).unwrap();
    for (file, content) in [
        (format!("{DRIVER}.spec"), format!("{address}\n")),
        (format!("{DRIVER}/{DRIVER}.json"), json!({ "Name": DRIVER, "Addr": address }).to_string()),
    ] {
        let request = || fixture.with_docker_volumes("web", "echo found", &[volume("db", "/data")]);
        let message = fixture.error(request()).await;
        assert!(message.contains("no driver `lab` was found") && message.contains("specs"), "{message}");
        fs::write(specs.join(&file), content).unwrap();
        assert_eq!(fixture.run(request()).await, "found\n");
        fs::write(specs.join(&file), file.replace(DRIVER, "https://192.0.2.1")).unwrap();
        let message = fixture.error(request()).await;
        assert!(message.contains(&file), "{message}");
        fs::remove_file(specs.join(&file)).unwrap();
    }
    assert_eq!(records(&fixture.world), Vec::<std::path::PathBuf>::new());
    lab.assert_nothing_left(&fixture.world);
}
