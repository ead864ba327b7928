use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

/// A driver in this process, which answers every Mount with one directory, and tells its calls.
struct Fake {
    calls: Receiver<String>,
}

impl Fake {
    fn start(directory: &Path) -> Self {
        fs::create_dir_all(directory.join("mnt")).unwrap();
        let listener = UnixListener::bind(directory.join("fake.sock")).unwrap();
        let (sender, calls) = channel();
        let answer = json!({
            "Implements": ["VolumeDriver"],
            "Capabilities": { "Scope": "global" },
            "Volume": { "Name": "db" },
            "Mountpoint": directory.join("mnt"),
        });
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (method, name, id) = serve(connection.unwrap(), &answer);
                // Others do not matter, and the test may be over.
                if method.contains("ount ") {
                    let _ = sender.send(format!("{method}{name} {}", id.len()));
                }
            }
        });
        Self { calls }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.try_iter().collect()
    }
}

fn serve(connection: UnixStream, answer: &Json) -> (String, String, String) {
    let mut reader = BufReader::new(&connection);
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| line != "\r\n") {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        lines.push(line);
    }
    let length = lines.iter().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.trim().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let request: Json = serde_json::from_slice(&body).unwrap();
    let method = lines[0].split(['.', ' ']).nth(2).unwrap().to_owned() + " ";
    let body = answer.to_string();
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    (&connection).write_all(response.as_bytes()).unwrap();
    let text = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
    (method, text("Name"), text("ID"))
}

fn config(directory: &Path) -> Json {
    json!({ "docker_plugin_sockets": directory, "docker_plugin_specs": [] })
}

fn volume(driver: &str, name: &str, options: &[(&str, &str)]) -> Requested {
    let options: BTreeMap<String, String> =
        options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let source = VolumeSource::DockerVolume { driver: driver.into(), name: name.into(), options };
    Requested { container_path: "/data".into(), read_only: false, source }
}

/// The number of descriptors, and the first one's path.
fn prepare(
    harness: &PluginHarness<DockerVolumes>,
    id: &str,
    volumes: Vec<Requested>,
) -> Result<(usize, PathBuf), Refused> {
    let mut container = harness.container(id);
    container.rootfs = Some("/image".into());
    container.volumes = volumes;
    let (reply, descriptors) = harness.prepare_with_descriptors(&container)?;
    assert_eq!(reply.launch.operations.len(), 2 * descriptors.len());
    let path = descriptors
        .first()
        .map(|descriptor| fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).unwrap());
    Ok((descriptors.len(), path.unwrap_or_default()))
}

#[test]
fn a_volume_is_mounted_once_for_all_of_its_users_also_across_restarts() {
    let base = PluginHarness::<DockerVolumes>::isolator(json!({})).unwrap();
    let directory = base.directory().to_owned();
    let fake = Fake::start(&directory);
    let harness = PluginHarness::<DockerVolumes>::isolator(config(&directory)).unwrap();
    let db = || vec![volume("fake", "db", &[])];
    let mnt = directory.join("mnt");
    assert_eq!(prepare(&harness, "web", Vec::new()).unwrap(), (0, PathBuf::new()));
    assert_eq!(prepare(&harness, "one", db()).unwrap(), (1, mnt.clone()));
    assert_eq!(prepare(&harness, "two", db()).unwrap(), (1, mnt));
    let options = vec![volume("fake", "db", &[("size", "1")])];
    assert!(prepare(&harness, "three", options).unwrap_err().message.contains("`one`"));
    harness.cleanup("three").unwrap();
    assert_eq!(fake.calls(), ["Mount db 64"]);
    let next = harness.restart(config(&directory), &["one"], &["two"]).unwrap();
    for id in ["one", "one", "unknown"] {
        next.cleanup(id).unwrap();
    }
    assert!(fake.calls().is_empty());
    // An unknown user is none.
    let last = next.restart(config(&directory), &["one"], &[]).unwrap();
    assert_eq!(fake.calls(), ["Unmount db 64"]);
    assert_eq!(fs::read_dir(harness.directory().join("work/volumes")).unwrap().count(), 0);
    drop(last);
}

#[test]
fn other_requests_are_refused() {
    let base = PluginHarness::<DockerVolumes>::isolator(json!({})).unwrap();
    let mut table = config(base.directory());
    table["allowed_drivers"] = json!(["fake"]);
    let harness = PluginHarness::<DockerVolumes>::isolator(table).unwrap();
    for (volumes, expected) in [
        (vec![volume("local", "db", &[])], "`local` is the driver inside of the Docker engine"),
        (vec![volume("other", "db", &[])], "not in `allowed_drivers`"),
        (vec![volume("fake", "", &[])], "its name is empty"),
        (vec![volume("fake", "db", &[]), volume("fake", "db", &[("a", "b")])], "twice"),
        (vec![volume("fake", "db", &[])], "no driver `fake` was found"),
    ] {
        let refused = prepare(&harness, "web", volumes).unwrap_err();
        assert!(refused.message.contains(expected), "{refused}");
        harness.cleanup("web").unwrap();
    }
    let mut container = harness.container("pod.shell");
    container.class = ContainerClass::Debug;
    container.volumes.push(volume("fake", "db", &[]));
    assert!(harness.prepare_container(&container).unwrap_err().message.contains("debug container"));
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "docker_volume_timeout": "0s" }), "`docker_volume_timeout` is 0"),
        (json!({ "docker_plugin_sockets": "run" }), "`docker_plugin_sockets` has `run`"),
        (json!({ "docker_plugin_specs": ["/etc", "x"] }), "`docker_plugin_specs` has `x`"),
        (json!({ "allowed_drivers": ["a/b"] }), "`a/b` is not the name of a driver"),
        (json!({ "driver": "nfs" }), "unknown field `driver`"),
    ] {
        let refused = PluginHarness::<DockerVolumes>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<DockerVolumes>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
