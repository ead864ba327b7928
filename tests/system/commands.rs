//! Commands of the command line, with a daemon.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{Request, Resources};
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::disk::Image;
use cofferdam_tests::mounts::in_own_namespace;
use cofferdam_tests::world::{World, id, shipped};
use cofferdam_tests::{is_root, wait_for_text};
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};

use crate::terminals::Site;

/// Runs a command with no input. Returns its exit status, its output, and its errors.
fn run(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    text(&site.piped(arguments, b""))
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn stop_lets_containers_finish_and_kills_those_that_do_not() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    for (name, line) in [
        ("polite", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"),
        ("stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done"),
    ] {
        let launched = run(&site, &["run", "-d", "--name", name, "--rootfs", &site.rootfs, "--shell", line]);
        assert_eq!(launched, (Some(0), format!("{name}\n"), String::new()));
        // It handles the signal now.
        while run(&site, &["logs", name]).1 != "up\n" {
            std::thread::yield_now();
        }
    }
    assert_eq!(run(&site, &["stop", "--time", "600", "polite"]), (Some(0), "polite\n".into(), String::new()));
    assert_eq!(run(&site, &["wait", "polite"]).0, Some(3));
    assert_eq!(run(&site, &["logs", "polite"]).1, "up\nbye\n");
    assert_eq!(
        run(&site, &["stop", "--time", "0", "stubborn"]),
        (Some(0), "stubborn\n".into(), String::new())
    );
    assert_eq!(run(&site, &["wait", "stubborn"]).0, Some(128 + 9));

    assert_eq!(run(&site, &["stop", "polite"]), (Some(0), "polite\n".into(), String::new()), "it has ended");
    let (status, _, error) = run(&site, &["stop", "nobody"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("nobody"), "{error}");
    let (status, list, _) = run(&site, &["ls", "-a"]);
    assert!(status == Some(0) && list.contains("polite") && list.contains("stubborn"), "{list}");
    for name in ["polite", "stubborn"] {
        assert_eq!(run(&site, &["rm", name]).0, Some(0));
    }
    site.finish();
}

#[test]
fn the_versions_of_both_sides_are_shown() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let json = |text: &str| serde_json::from_str::<Json>(text).expect("JSON");
    let (status, shown, _) = run(&site, &["version", "--json"]);
    let versions = json(&shown);
    assert_eq!((status, &versions["client"]), (Some(0), &versions["agent"]));
    let mut alone = Command::new(cofferdam_tests::paths::program());
    let alone =
        alone.args(["version", "--json", "--socket", "/nowhere/agent.sock"]).output().expect("it starts");
    let (status, shown, error) = text(&alone);
    let expected =
        json!({ "client": versions["client"], "plugin_api": versions["plugin_api"], "agent": null });
    assert_eq!((status, json(&shown)), (Some(0), expected), "{error}");
    site.finish();
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_launched() {
    let program = cofferdam_tests::paths::program();
    for (arguments, expected) in [
        (&["run", "--memory", "64", "--", "true"][..], "`64m` is 64 MiB"),
        (&["run", "--cpus", "5000", "--", "true"], "--cpus is more than this host has"),
        (&["run", "--memory-limit", "4000t", "--", "true"], "--memory-limit is more than this host has"),
        (
            &["run", "-p", "80:80", "--", "true"],
            "without, its ports are those of the host: leave --publish out",
        ),
        (&["restart", "web"], "`cofferdam run` another"),
        (&["inspcet", "web"], "did you mean `cofferdam inspect`?"),
    ] {
        let (status, output, error) =
            text(&Command::new(&program).args(arguments).output().expect("it starts"));
        assert!(status != Some(0) && output.is_empty() && error.contains(expected), "{arguments:?}: {error}");
    }
}

#[test]
fn networks_and_ports_that_cannot_be_had_are_explained_in_one_line() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let program = cofferdam_tests::paths::program();
    let alone = |arguments: &[&str]| {
        text(&Command::new(&program).args(arguments).stdin(Stdio::null()).output().expect("it starts"))
    };
    let hint = "hint: a network is a configuration of the plugin `network/cni`: add that to the chain of the agent, or leave \
                --network and --publish out for the network of the host";
    let of_docker = "hint: `bridge` and `none` are networks of docker";
    for (options, expected) in [
        (&["--network", "web"][..], hint),
        (&["--net=web", "-p", "8080:80"], hint),
        (&["--network", "bridge"], of_docker),
    ] {
        let (command, rootfs) = ([options, &["--", "true"]].concat(), ["--rootfs", &*site.rootfs]);
        for (status, output, error) in [
            alone(&[&["run"], &*command].concat()),
            run(&site, &[&["run"], &rootfs[..], &command].concat()),
            run(&site, &[&["run", "-d"], &rootfs[..], &command].concat()),
        ] {
            assert_eq!((status, &*output), (Some(125), ""), "{options:?}: {error}");
            let lines: Vec<&str> = error.lines().collect();
            assert!(
                lines.iter().any(|line| line.starts_with(expected)) && lines.len() <= 3,
                "{options:?}: {error}"
            );
        }
    }
    // Ports alone cannot be mapped, and the network of the host needs no plugin.
    let (status, _, error) = run(&site, &["run", "-p", "8080:80", "--rootfs", &site.rootfs, "--", "true"]);
    assert!(
        status == Some(125) && error.contains("leave --publish out") && error.lines().count() == 1,
        "{error}"
    );
    let host = ["run", "--rm", "--network", "host", "--rootfs", &site.rootfs, "--", "echo", "up"];
    assert_eq!(run(&site, &host), (Some(0), "up\n".to_owned(), String::new()));
    site.finish();
}

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// One JSON value per line.
fn lines(text: &str) -> Vec<Json> {
    text.lines().map(json).collect()
}

fn launch(site: &Site, name: &str, more: &[&str]) {
    let arguments = ["run", "-d", "--name", name, "--rootfs", &site.rootfs];
    let launched = run(site, &[&arguments[..], more].concat());
    assert_eq!(launched, (Some(0), format!("{name}\n"), String::new()));
}

#[test]
fn events_are_kept_for_those_who_come_later_and_streamed_to_those_who_wait() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let mut waiting = Command::new(cofferdam_tests::paths::program())
        .args(["events", "--json", "--since", "1h", "--filter", "container=web"])
        .env("COFFERDAM_SOCKET", site.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    launch(&site, "web", &["--memory", "32m", "--", "sleep", "1000"]);
    launch(&site, "other", &["--", "true"]);
    assert_eq!(run(&site, &["update", "web", "--memory", "64m"]).0, Some(0));
    assert_eq!(run(&site, &["kill", "web"]).0, Some(0));
    assert_eq!(run(&site, &["wait", "web"]).0, Some(137));
    assert_eq!(run(&site, &["rm", "web"]).0, Some(0));

    let mut streamed = BufReader::new(waiting.stdout.take().expect("a pipe")).lines();
    let mut seen: Vec<Json> = Vec::new();
    while seen.last().is_none_or(|event| event["type"] != "CONTAINER_REMOVED") {
        seen.push(json(&streamed.next().expect("more events").expect("text")));
    }
    waiting.kill().and_then(|()| waiting.wait()).expect("it ends");
    let states: Vec<&str> = seen.iter().filter_map(|event| event["container"]["state"].as_str()).collect();
    let expected =
        ["STARTING", "PROVISIONING", "PREPARING", "ISOLATING", "FETCHING", "RUNNING", "DESTROYING", "ENDED"];
    assert_eq!(states, expected);
    let find = |kind: &str, state: Option<&str>| {
        let found = seen.iter().position(|event| {
            event["type"] == kind && state.is_none_or(|state| event["container"]["state"] == state)
        });
        found.unwrap_or_else(|| panic!("no {kind}: {seen:?}"))
    };
    let running = find("CONTAINER_STATE_CHANGED", Some("RUNNING"));
    assert!(seen[running]["container"]["pid"].as_i64() > Some(1), "{:?}", seen[running]);
    assert!(running < find("CONTAINER_UPDATED", None) && find("CONTAINER_UPDATED", None) < seen.len() - 1);
    let ended = &seen[find("CONTAINER_STATE_CHANGED", Some("ENDED"))]["container"];
    assert_eq!(
        (&ended["previous_state"], &ended["termination"]["exit_status"]),
        (&json!("DESTROYING"), &json!(9))
    );
    let numbers: Vec<u64> = seen.iter().filter_map(|event| event["sequence"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.len() == seen.len(), "{numbers:?}");
    assert!(seen.iter().all(|event| event["container"]["container_id"]["value"] == "web"));

    let past = |filters: &[&str]| {
        let (status, output, error) =
            run(&site, &[&["events", "--since", "1h", "--until", "0s"], filters].concat());
        assert_eq!(status, Some(0), "{error}");
        // The agent has not run for an hour.
        assert!(error.starts_with("cofferdam: events before 20") && error.lines().count() == 1, "{error}");
        output
    };
    // Those of one container, again.
    let ended = past(&["--filter", "container=web", "--filter", "state=ended"]);
    assert!(
        ended.ends_with("container web  ENDED (killed by SIGKILL): the container was killed\n")
            && ended.lines().count() == 1,
        "{ended}"
    );
    let loaded = lines(&past(&["--json", "--filter", "type=plugin"]));
    assert!(loaded.iter().all(|event| event["type"] == "PLUGIN_LOADED"), "{loaded:?}");
    assert!(loaded.iter().any(|event| event["plugin"]["name"] == "cgroups/mem"), "{loaded:?}");
    assert!(past(&[]).contains("container other  RUNNING"));
    assert_eq!(run(&site, &["events", "--filter", "label=x"]).0, Some(2));
    assert_eq!(run(&site, &["rm", "other"]).0, Some(0));
    site.finish();
}

#[test]
fn a_new_agent_reports_the_containers_that_it_has_recovered() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    launch(&site, "web", &["--", "sleep", "1000"]);
    let site = site.restart();
    let (_, events, _) =
        run(&site, &["events", "--since", "1h", "--until", "0s", "--filter", "type=container"]);
    let [only] = &events.lines().collect::<Vec<_>>()[..] else { panic!("{events}") };
    assert!(only.contains("container web  RUNNING (pid ") && only.ends_with(") recovered"), "{only}");
    assert_eq!(run(&site, &["rm", "--force", "web"]).0, Some(0));
    site.finish();
}

#[test]
fn the_stream_of_events_begins_at_once_and_refuses_what_it_does_not_understand() {
    if !is_root("an agent with plugins") {
        return;
    }
    let site = Site::new();
    let exchange = |body: &str, until: &str| {
        let mut stream = UnixStream::connect(site.socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(cofferdam_tests::daemon::TIMEOUT)).expect("a timeout");
        let head = "POST /api/v1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length:";
        write!(stream, "{head} {}\r\n\r\n{body}", body.len()).expect("the daemon reads");
        let mut received = String::new();
        let mut buffer = [0; 4096];
        while !received.contains(until) {
            let read = stream.read(&mut buffer).expect("the daemon writes");
            assert!(read > 0, "{received}");
            received.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    exchange(
        r#"{"type": "SUBSCRIBE"}"#,
        r#"{"type":"SUBSCRIBED","subscribed":{"heartbeat_interval_seconds":30.0,"kept_since":{"nanoseconds":"#,
    );
    exchange(r#"{"type": "SUBSCRIBE", "subscribe": {"until": {"nanoseconds": 1}}}"#, "\r\n0\r\n\r\n");
    exchange(
        r#"{"type": "SUBSCRIBE", "subscribe": {"since": {"nanoseconds": -1}}}"#,
        "`subscribe.since` is before 1970",
    );
    site.finish();
}

#[test]
fn lists_are_filtered_and_laid_out_as_asked_for() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    launch(&site, "web-1", &["--", "sleep", "1000"]);
    launch(&site, "web-2", &["--", "sh", "-c", "exit 3"]);
    launch(&site, "db", &["--", "true"]);
    assert_eq!(run(&site, &["wait", "db", "web-2"]).0, Some(0));
    let listed = |arguments: &[&str]| {
        let (status, output, error) = run(&site, &[&["ps"], arguments].concat());
        assert_eq!((status, &*error), (Some(0), ""), "{arguments:?}");
        output
    };
    for (arguments, expected) in [
        (&["-q"][..], "web-1\n"),
        (&["-aq"], "db\nweb-1\nweb-2\n"),
        (&["-aq", "--filter", "name=web"], "web-1\nweb-2\n"),
        (&["-q", "--filter", "exited=3"], "web-2\n"),
        (&["-q", "--filter", "state=ended", "--filter", "name=d"], "db\n"),
        (
            &["-a", "--format", "{{.ID}}\\t{{.State}}: {{.Exit}}", "--filter", "name=2"],
            "web-2\tENDED: exited with 3\n",
        ),
    ] {
        assert_eq!(listed(arguments), expected, "{arguments:?}");
    }
    let (status, _, error) = run(&site, &["ps", "--format", "{{.Image}}"]);
    assert!(status == Some(2) && error.contains("there is no field `.Image`"), "{error}");

    // On a terminal of 40 columns, everything that is there fits.
    let mut terminal = site.at_terminal(&["ps", "-a"]);
    terminal.wait_for("web-2");
    terminal.wait().unwrap();
    let narrow = Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!("stty cols 40; {} ps -a", cofferdam_tests::paths::program().display()))
        .arg("/dev/null")
        .env("COFFERDAM_SOCKET", site.socket())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("script (package bsdutils) starts");
    let narrow = String::from_utf8_lossy(&narrow.stdout).replace('\r', "");
    assert!(narrow.contains("web-1") && narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
    assert!(!narrow.contains('\u{1b}'), "NO_COLOR is set: {narrow:?}");

    assert_eq!(
        run(&site, &["rm", "--force", "--json", "web-1", "web-2", "db"]).1,
        json_text(&["web-1", "web-2", "db"])
    );
    site.finish();
}

fn json_text(ids: &[&str]) -> String {
    format!("{}\n", serde_json::to_string_pretty(ids).expect("JSON"))
}

#[test]
fn a_wait_that_takes_too_long_ends_and_the_container_goes_on() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    launch(&site, "web", &["--", "sleep", "1000"]);
    let (status, output, error) = run(&site, &["wait", "--timeout", "10ms", "web"]);
    assert_eq!((status, &*output), (Some(124), ""));
    assert!(error.contains("container `web` has not ended within 10ms; it keeps running"), "{error}");
    let (status, _, error) = run(&site, &["wait", "--timeout", "0", "--json", "web"]);
    assert_eq!((status, json(&error)["exit_status"].as_u64()), (Some(124), Some(124)), "{error}");
    assert_eq!(run(&site, &["ps", "-q"]).1, "web\n");
    assert_eq!(run(&site, &["kill", "web"]).0, Some(0));
    assert_eq!(run(&site, &["wait", "--timeout", "600", "web"]).0, Some(137));
    // One that has ended already.
    assert_eq!(run(&site, &["wait", "--timeout", "0", "web"]).0, Some(137));
    let (status, _, error) = run(&site, &["kill", "web"]);
    assert!(status == Some(1) && error.contains("container `web` has ended"), "{error}");
    let (status, _, error) = run(&site, &["exec", "web", "true"]);
    assert!(status == Some(125) && error.contains("container `web` has ended: killed by SIGKILL"), "{error}");
    let (status, _, error) = run(&site, &["attach", "web"]);
    assert!(status == Some(1) && error.contains("container `web` has ended: killed by SIGKILL"), "{error}");
    assert_eq!(run(&site, &["rm", "web"]).0, Some(0));
    site.finish();
}

#[test]
fn a_second_launch_of_an_id_is_accepted_while_its_container_runs_and_refused_when_it_has_ended() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let request = Request::shell(id("web"), "sleep 1000");
    daemon.launch(&request).unwrap();
    let pid = daemon.inspect(&request.id).unwrap().pid;
    daemon.launch(&request).unwrap();
    assert_eq!(daemon.inspect(&request.id).unwrap().pid, pid);
    daemon.destroy(&request.id).unwrap();
    let refused = daemon.launch(&request);
    let Err(CallError::Status(409, message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("`web`") && message.contains("ended"), "{message}");
    daemon.remove(&request.id).unwrap();
    daemon.launch(&request).unwrap();
    daemon.destroy(&request.id).unwrap();
    daemon.remove(&request.id).unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn killing_all_does_not_wait_for_ever_for_an_agent_that_does_not_answer() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    daemon.launch(&Request::shell(id("web"), "sleep 1000")).unwrap();
    let kill_all = |timeout| {
        let mut command = Command::new(cofferdam_tests::paths::program());
        command.args(["kill", "--all", "--timeout", timeout]).env("COFFERDAM_SOCKET", world.socket());
        text(&command.output().expect("it starts"))
    };
    daemon.process().signal(Signal::SIGSTOP as i32).unwrap();
    let (status, output, error) = kill_all("10ms");
    assert_eq!((status, &*output), (Some(124), ""), "{error}");
    assert!(error.contains("the agent does not answer"), "{error}");
    daemon.process().signal(Signal::SIGCONT as i32).unwrap();
    assert_eq!(kill_all("600"), (Some(0), "web\n".to_owned(), String::new()));
    daemon.remove(&id("web")).unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn errors_are_json_for_those_who_ask_for_json() {
    let program = cofferdam_tests::paths::program();
    let nowhere = ["--socket", "/nowhere/agent.sock"];
    for (arguments, status, message) in [
        (&["ps", "--json"][..], 1, "no agent is running at `/nowhere/agent.sock`"),
        (&["stop", "--json", "web"], 1, "no agent is running"),
        (&["wait", "--json"], 2, "required arguments were not provided"),
        (&["ps", "--json", "--colour"], 2, "unexpected argument '--colour'"),
    ] {
        let mut command = Command::new(&program);
        let found = text(&command.args(arguments).args(nowhere).output().expect("it starts"));
        assert_eq!((found.0, &*found.1), (Some(status), ""), "{arguments:?}");
        let error = json(&found.2);
        assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        assert_eq!(error["exit_status"], status);
    }
    // What follows the dashes belongs to the container.
    let mut command = Command::new(&program);
    let (_, _, error) =
        text(&command.args(["run", "--frob", "--", "ls", "--json"]).output().expect("it starts"));
    assert!(error.starts_with("error: unexpected argument"), "{error}");
}

/// A chain that measures everything, and a container that uses everything.
#[test]
fn every_column_of_usage_has_a_value_for_a_busy_container() {
    if !is_root("cgroups") {
        return;
    }
    in_own_namespace(|| {
        let mut world = World::shipped();
        let image = world.directory().join("image");
        let disk = Image::mount(&image, "ext4", &world.config.work_dir).expect("every kernel has it");
        let blkio = PluginConfig { table: json!({ "devices": [disk.device()] }), ..shipped("cgroups/blkio") };
        let interval = json!({ "container_disk_watch_interval": "50ms" });
        let isolators = &mut world.config.isolators;
        let before = isolators.iter().position(|it| it.name == "namespaces/cgroup").expect("it is there");
        isolators.insert(before, blkio);
        isolators.push(PluginConfig { table: interval, ..shipped("disk/du") });
        let daemon = Daemon::start(&world);
        let line = "busybox dd if=/dev/zero of=/file bs=64k count=16 oflag=direct && \
                    busybox dd if=/file of=/dev/null bs=64k iflag=direct && echo ready; while :; do :; done";
        let mut request = Request::shell(id("busy"), line);
        request.rootfs = Some(world.rootfs());
        request.resources = Resources::default().with("cpus", 0.05).with("mem", 64.0).with("disk", 64.0);
        daemon.launch(&request).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
        wait_for_text(Path::new(&daemon.inspect(&request.id).unwrap().stdout.unwrap()), "ready");
        let stats = |arguments: &[&str]| {
            let mut command = Command::new(cofferdam_tests::paths::program());
            command.arg("--socket").arg(world.socket()).arg("stats").args(arguments).arg("busy");
            text(&command.output().expect("it starts")).1
        };
        let is_filled = |shown: &str| {
            let row = shown.lines().nth(1).unwrap_or_default();
            let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            // All but the plugins that have failed.
            cells.len() == 11 && !cells.iter().any(|cell| ["-", "0 B", "0.0 %"].contains(cell))
        };
        let is_counted = |usage: &Json| {
            let counters = [
                "cpus_nr_periods",
                "cpus_nr_throttled",
                "cpus_throttled_time_secs",
                "cpus_limit",
                "cpus_soft_limit",
                "mem_total_bytes",
                "mem_limit_bytes",
                "mem_soft_limit_bytes",
                "mem_rss_bytes",
                "processes",
                "threads",
                "disk_used_bytes",
                "disk_limit_bytes",
            ];
            counters.iter().all(|counter| usage[counter].as_f64().is_some_and(|value| value > 0.0))
        };
        // The disk is measured in a while, and the CPUs are used all the time.
        let deadline = Instant::now() + TIMEOUT;
        let shown = loop {
            let shown = stats(&[]);
            let json: Json = serde_json::from_str(&stats(&["--json"])).expect("JSON");
            let usage = &json[0]["resource_statistics"];
            if is_filled(&shown) && is_counted(usage) {
                break shown;
            }
            assert!(Instant::now() < deadline, "{shown}\n{usage}\n{}", daemon.log());
        };
        for expected in ["busy", "0.05", "64.0 MiB", "1.0 MiB"] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
        daemon.destroy(&request.id).expect("it runs");
        daemon.remove(&request.id).expect("it has ended");
        assert!(daemon.terminate().success());
    });
}

#[test]
fn usage_is_shown_once_or_again_and_again() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    launch(&site, "busy", &["--cpus", "0.5", "--memory", "32m", "--", "sh", "-c", "while :; do :; done"]);
    let (status, once, _) = run(&site, &["stats", "--no-stream", "busy"]);
    let [headings, row] = &once.lines().collect::<Vec<_>>()[..] else { panic!("{once}") };
    assert!(
        status == Some(0) && headings.contains("CPU") && row.contains(" %") && row.contains("32.0 MiB"),
        "{once}"
    );
    let mut watching = Command::new(cofferdam_tests::paths::program())
        .args(["stats", "--json", "--watch=500ms"])
        .env("COFFERDAM_SOCKET", site.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let samples = BufReader::new(watching.stdout.take().expect("a pipe")).lines().take(2);
    let times: Vec<f64> = samples
        .map(|sample| {
            json(&sample.expect("text"))[0]["resource_statistics"]["timestamp"].as_f64().expect("a time")
        })
        .collect();
    watching.kill().and_then(|()| watching.wait()).expect("it ends");
    assert!(times[1] > times[0], "{times:?}");

    let mut top = site.at_terminal(&["top", "--interval", "500ms"]);
    top.wait_for("\u{1b}[?1049h");
    top.wait_for("1 running container, by CPU");
    top.wait_for("busy");
    assert!(top.is_raw());
    top.type_keys("m");
    top.wait_for("by memory");
    top.resize(5, 40);
    top.wait_for("sort: c CPU, m memory, p processes, i I…");
    top.type_keys("q");
    top.wait_for("\u{1b}[?1049l");
    assert!(top.wait().unwrap().success() && !top.is_raw());

    // An agent that does not answer delays neither keys nor signals.
    let mut top = site.at_terminal(&["top", "--interval", "500ms"]);
    top.wait_for("busy");
    site.signal_daemon(Signal::SIGSTOP);
    top.type_keys("m");
    top.wait_for("by memory");
    top.type_keys("q");
    assert!(top.wait().unwrap().success());
    site.signal_daemon(Signal::SIGCONT);

    // However it ends, the terminal is as before.
    let mut top = site.at_terminal(&["top"]);
    top.wait_for("busy");
    let pid = nix::unistd::Pid::from_raw(top.pid());
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    top.wait().unwrap();
    top.wait_for("\u{1b}[?25h\u{1b}[?1049l");
    while top.is_raw() {
        std::thread::yield_now();
    }
    let (status, _, error) = run(&site, &["top"]);
    assert!(status == Some(1) && error.contains("`top` needs a terminal"), "{error}");
    assert_eq!(run(&site, &["rm", "--force", "busy"]).0, Some(0));
    site.finish();
}

#[test]
fn the_machine_and_the_agent_are_described_and_checked() {
    if !is_root("an agent with plugins") {
        return;
    }
    let site = Site::new();
    launch(&site, "web", &["--", "sleep", "1000"]);
    let (status, info, _) = run(&site, &["info", "--json"]);
    let info = json(&info);
    assert_eq!((status, &info["agent"]["containers"]), (Some(0), &json!({"RUNNING": 1})), "{info}");
    assert!(
        info["host"]["cpus"].as_u64() > Some(0) && info["agent"]["flags"]["launcher"] == "linux",
        "{info}"
    );
    let (_, text, _) = run(&site, &["info"]);
    assert!(text.contains("1 running") && text.contains("\nkernel"), "{text}");

    let config = site.config();
    let (status, report, _) = run(&site, &["doctor", "--json", "--config", &config]);
    let report = json(&report);
    let findings = report["findings"].as_array().expect("findings");
    let verdict = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}: {report}"))["verdict"].as_str().expect("a verdict")
    };
    for check in
        ["configuration", "kernel", "cgroups", "seccomp", "runtime_dir", "work_dir", "plugins", "agent"]
    {
        assert_ne!(verdict(check), "failure", "{report}");
    }
    for check in ["permissions", "user namespaces", "descriptors", "disk quotas", "overlay"] {
        verdict(check);
    }
    let failed = findings.iter().any(|finding| finding["verdict"] == "failure");
    assert_eq!(status, Some(i32::from(failed)));
    let with_advice = findings.iter().filter(|finding| finding["verdict"] != "ok");
    assert!(with_advice.into_iter().all(|finding| finding["advice"].is_string()), "{report}");
    let left: Vec<_> = fs::read_dir(site.work_dir())
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("doctor")), "{left:?}");

    let (status, report, _) = run(&site, &["doctor", "--plugin-dir", "/nowhere"]);
    assert!(status == Some(1) && report.contains("failure  configuration"), "{report}");
    assert!(report.contains("failure  plugins") && report.contains("→ install them"), "{report}");
    assert_eq!(run(&site, &["rm", "--force", "web"]).0, Some(0));
    site.finish();
}

#[test]
fn completions_and_man_pages_have_every_command() {
    let program = cofferdam_tests::paths::program();
    let output = |arguments: &[&str]| {
        let (status, output, error) =
            text(&Command::new(&program).args(arguments).output().expect("it starts"));
        assert_eq!((status, &*error), (Some(0), ""), "{arguments:?}");
        output
    };
    let help = output(&["--help"]);
    let commands =
        help.split("Commands:").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("commands");
    let first = |line: &str| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')).map(str::to_owned);
    let commands: Vec<String> = commands
        .lines()
        .filter_map(first)
        .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
        .collect();
    for known in ["run", "events", "top", "doctor", "image"] {
        assert!(commands.iter().any(|command| command == known), "{commands:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = output(&["completions", shell]);
        for command in &commands {
            assert!(script.contains(&**command), "the completions for {shell} have no `{command}`");
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    output(&["man-pages", directory.path().to_str().expect("text")]);
    for command in &commands {
        let page = fs::read_to_string(directory.path().join(format!("cofferdam-{command}.1")));
        let page = page.unwrap_or_else(|error| panic!("`{command}` has no man page: {error}"));
        assert!(page.contains(".TH") && page.contains("DESCRIPTION"), "{page}");
    }
    let names: Vec<String> = fs::read_dir(directory.path())
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().any(|name| name == "cofferdam-plugin-ls.1"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("fetch") || name.contains("restore")), "{names:?}");
}
