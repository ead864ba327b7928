//! `docker/runtime`: the command of a request and that of an image, in all combinations, and the rest of its configuration.

use std::process::Command;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::images::{Layer, Member, busybox};
use cofferdam_tests::world::{id, run};
use cofferdam_tests::{assert_contains, is_root, paths, wait_for_text};
use serde_json::{Value as Json, json};
use tar::EntryType;

use super::{Fixture, own};

/// Prints its argument vector.
const ARGUMENTS: &[u8] = b"#!/bin/sh\necho \"$0\" \"$@\"\n";

/// An outcome: what is printed, or a part of the error.
type Outcome = Result<&'static str, &'static str>;

/// A row of the table: shell, value, arguments, and the outcomes for images with neither, a command, an entry point, and both.
type Row = (bool, Option<&'static str>, &'static [&'static str], [Outcome; 4]);

/// The table of the reference. Programs are scripts, so `argv[0]` is what the kernel finds them by.
const TABLE: [Row; 8] = [
    (false, None, &[], [Err("there is no command"), Ok("/cmd c1"), Ok("/ent e1"), Ok("/ent e1 /cmd c1")]),
    (
        false,
        None,
        &["a1", "a2"],
        [Err("no program"), Ok("/cmd a1 a2"), Ok("/ent e1 a1 a2"), Ok("/ent e1 a1 a2")],
    ),
    (false, Some("/val"), &[], [Ok("/val"), Ok("/val"), Ok("/val"), Ok("/val")]),
    (false, Some("/val"), &["x", "a1"], [Ok("/val a1"), Ok("/val a1"), Ok("/val a1"), Ok("/val a1")]),
    (true, None, &[], [Err("without a line"); 4]),
    (true, None, &["a1"], [Err("without a line"); 4]),
    (true, Some("/val s1 && echo $0"), &[], [Ok("/val s1\nsh"); 4]),
    (true, Some("/val s1 && echo $0"), &["a1"], [Ok("/val s1\nsh"); 4]),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_that_of_the_table_in_all_32_combinations() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let layer = busybox().file("cmd", ARGUMENTS).file("ent", ARGUMENTS).file("val", ARGUMENTS);
    let (entrypoint, cmd) = (json!(["/ent", "e1"]), json!(["/cmd", "c1"]));
    let images: [(&str, Json); 4] = [
        ("neither:1", json!({})),
        ("cmd:1", json!({ "Cmd": cmd })),
        ("entrypoint:1", json!({ "Entrypoint": entrypoint })),
        ("both:1", json!({ "Entrypoint": entrypoint, "Cmd": cmd })),
    ];
    for (name, config) in &images {
        fixture.image(name, std::slice::from_ref(&layer), config.clone());
    }
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let mut cells = 0;
    for (shell, value, arguments, outcomes) in TABLE {
        for ((image, _), expected) in images.iter().zip(outcomes) {
            let mut web: Request = own("web", image);
            web.command.shell = shell;
            web.command.value = value.map(str::to_owned);
            web.command.arguments = arguments.iter().map(ToString::to_string).collect();
            let cell = format!("shell {shell}, value {value:?}, arguments {arguments:?}, {image}");
            match expected {
                Ok(output) => {
                    assert_eq!(run(&agent, web).await, format!("{output}\n"), "{cell}");
                    agent.remove(&id("web")).await.unwrap();
                }
                Err(part) => {
                    let error = cofferdam_tests::world::launch_error(&agent, web).await;
                    assert!(error.contains(part) && error.contains("docker/runtime"), "{cell}: {error}");
                }
            }
            cells += 1;
        }
    }
    assert_eq!(cells, 32);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_working_directory_are_those_of_the_image_unless_requested() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let config = json!({
        "Env": ["COLOUR=red", "PATH=/tools:/bin", "A=b=c", "without"], "WorkingDir": "/srv/made",
        "Cmd": ["sh", "-c", "echo $COLOUR $A $PATH $MESOS_SANDBOX; pwd; tool"],
    });
    let tool = Layer::new().file("tools/tool", b"#!/bin/sh\necho found\n");
    fixture.image("web:1", &[busybox(), tool], config);
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let output = run(&agent, own("web", "web:1")).await;
    assert_eq!(output, "red b=c /tools:/bin /mnt/mesos/sandbox\n/srv/made\nfound\n");
    let mut other = own("other", "web:1");
    other.command.environment = [("COLOUR".into(), "blue".into())].into();
    other.command.working_directory = Some("/tools".into());
    let output = run(&agent, other).await;
    assert_eq!(output, "blue b=c /tools:/bin /mnt/mesos/sandbox\n/tools\nfound\n");
    let plan = agent.inspect(&id("web")).unwrap().plan;
    let entry = plan.iter().find(|entry| entry.field == "environment.COLOUR").unwrap();
    assert_eq!((entry.value.as_str(), entry.owner.as_str()), ("red", "docker/runtime"));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_volumes_are_those_of_the_image_unless_requested() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let config = json!({
        "Labels": { "tier": "front", "team": "web" }, "Volumes": { "/data": {}, "/made/here": {} },
        "User": "web", "Cmd": ["sh", "-c", "touch /data/x /y 2>&1; ls /data; stat -c '%a %u' /made/here"],
    });
    let owned =
        Member { kind: EntryType::Directory, path: b"data", owner: (1234, 1235), ..Member::default() };
    let layer = busybox().directory("mnt").directory("mnt/mesos").directory("mnt/mesos/sandbox");
    let layer =
        layer.directory("proc").directory("sys").directory("dev").directory("made").directory("made/here");
    fixture.image("web:1", &[layer.with(&owned)], config);
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let mut web = own("web", "web:1");
    web.labels = [("tier".to_owned(), "back".to_owned())].into();
    assert_eq!(run(&agent, web).await, "touch: /y: Permission denied\nx\n755 0\n");
    let plan = agent.inspect(&id("web")).unwrap().plan;
    let labels: Vec<&str> =
        plan.iter().map(|entry| entry.field.as_str()).filter(|it| it.starts_with("labels")).collect();
    assert_eq!(labels, ["labels.team"], "the other one is that of the request");
    // In a read-only root file system, volumes can be written to all the same.
    let mut read_only = own("read-only", "web:1");
    read_only.linux.read_only_root = true;
    assert_eq!(run(&agent, read_only).await, "touch: /y: Read-only file system\nx\n755 0\n");
    for name in ["web", "read-only"] {
        agent.remove(&id(name)).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn images_are_run_from_the_command_line_as_with_docker() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let layer = busybox().file("ent", ARGUMENTS).file("bin/ls2", ARGUMENTS).directory("data");
    fixture.image(
        "entry:1",
        std::slice::from_ref(&layer),
        json!({ "Entrypoint": ["/ent", "e1"], "Cmd": ["c1"] }),
    );
    fixture.image("busybox:latest", &[layer], json!({ "Cmd": ["sh", "-c", "echo default"] }));
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    let shared = fixture.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "shared\n").unwrap();
    let volume = format!("{}:/data:ro", shared.display());
    let rows: [(&[&str], &str); 9] = [
        (&["entry:1"], "/ent e1 c1\n"),
        (&["entry:1", "x", "-y", "--z"], "/ent e1 x -y --z\n"),
        (&["--entrypoint", "/bin/ls2", "entry:1", "x"], "/bin/ls2 x\n"),
        (&["--entrypoint", "", "entry:1", "echo", "only"], "only\n"),
        (&["--image", "entry:1", "--", "echo", "only"], "only\n"),
        (&["busybox:latest"], "default\n"),
        (&["busybox:latest", "echo", "replaced"], "replaced\n"),
        (
            &[
                "-e",
                "A=1",
                "-w",
                "/data",
                "-u",
                "web",
                "-v",
                &volume,
                "busybox:latest",
                "sh",
                "-c",
                "echo $A; pwd; id -u; cat file",
            ],
            "1\n/data\n1234\nshared\n",
        ),
        (
            &[
                "--read-only",
                "busybox:latest",
                "sh",
                "-c",
                "touch /x 2>&1; touch $MESOS_SANDBOX/y && echo sandbox",
            ],
            "touch: /x: Read-only file system\nsandbox\n",
        ),
    ];
    for by_daemon in [false, true] {
        for (arguments, expected) in rows {
            let mut command = Command::new(paths::program());
            command.arg("run").stdin(std::process::Stdio::null());
            match by_daemon {
                true => command.arg("--socket").arg(world.socket()).arg("--rm"),
                false => command.args(["--pull", "never", "--image-store"]).arg(&fixture.images.store),
            };
            let output = command.args(arguments).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                expected,
                "{by_daemon} {arguments:?}: {error}"
            );
            assert!(output.status.success(), "{arguments:?}: {error}");
        }
    }
    // What may be a command is not taken for an image.
    for (word, expected) in [("/bin/ls", "is a path, not an image"), ("sh", "cofferdam run -- sh")] {
        let mut command = Command::new(paths::program());
        let output =
            command.args(["run", "--image-store"]).arg(&fixture.images.store).arg(word).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert_contains(&String::from_utf8_lossy(&output.stderr), &[expected]);
    }
    let _ = daemon.terminate();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_signal_is_that_of_the_image_and_a_wrong_one_is_an_error() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let config = |signal: &str| json!({ "StopSignal": signal, "Cmd": ["sleep", "1000"] });
    fixture.image("web:1", &[busybox()], config("SIGQUIT"));
    fixture.image("wrong:1", &[busybox()], config("SIGNONE"));
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    agent.launch(own("web", "web:1")).await.unwrap();
    let plan = agent.inspect(&id("web")).unwrap().plan;
    let entry = plan.iter().find(|entry| entry.field == "stop_signal").unwrap();
    assert_eq!((entry.value.as_str(), entry.owner.as_str()), ("3", "docker/runtime"));
    agent.destroy(&id("web")).await.unwrap();
    agent.remove(&id("web")).await.unwrap();
    let error = cofferdam_tests::world::launch_error(&agent, own("wrong", "wrong:1")).await;
    assert_contains(&error, &["`SIGNONE`", "docker/runtime"]);
}

#[test]
fn containers_are_stopped_with_the_signal_of_their_image_and_killed_if_they_ignore_it() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let line = "trap 'echo told; exit 7' USR1; trap '' TERM; echo up; while :; do sleep 1; done";
    fixture.image("usr1:1", &[busybox()], json!({ "StopSignal": "SIGUSR1", "Cmd": ["sh", "-c", line] }));
    fixture.image("term:1", &[busybox()], json!({ "Cmd": ["sh", "-c", line] }));
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    let stop = |name: &str, seconds: &str| {
        daemon.launch(&own(name, &format!("{name}:1"))).unwrap();
        wait_for_text(&world.config.work_dir.join("containers").join(name).join("stdout"), "up");
        let output = Command::new(paths::program())
            .arg("--socket")
            .arg(world.socket())
            .args(["stop", "--time", seconds, name])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        daemon.wait(&id(name)).unwrap().exit_status
    };
    assert_eq!(stop("usr1", "60"), Some(7 << 8));
    assert_eq!(stop("term", "0"), Some(libc::SIGKILL));
}
