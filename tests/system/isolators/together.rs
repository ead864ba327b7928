//! All isolators in one chain, as an operator would configure them for containers that are not trusted.

use std::fs;

use cofferdam_core::model::{ContainerClass, Request, Secret, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run, shipped};
use serde_json::json;

use super::{FOURTEEN, Fixture, isolator, value};

#[tokio::test(flavor = "multi_thread")]
async fn all_isolators_work_in_one_chain() {
    if !is_root("root file systems") {
        return;
    }
    let fixture = Fixture::start(vec![
        shipped("cgroups/cpu"),
        shipped("cgroups/mem"),
        shipped("namespaces/ipc"),
        shipped("namespaces/uts"),
        shipped("namespaces/cgroup"),
        isolator("linux/devices", json!({ "allowed_devices": [{ "path": "/dev/full" }] })),
        shipped("volume/host_path"),
        shipped("volume/sandbox_path"),
        shipped("volume/image"),
        shipped("volume/secret"),
        shipped("environment_secret"),
        isolator("posix/rlimits", json!({ "defaults": { "CORE": { "soft": 0, "hard": 0 } } })),
        isolator("linux/capabilities", json!({ "bounding_capabilities": FOURTEEN })),
        shipped("linux/nnp"),
        shipped("linux/seccomp"),
    ])
    .await;
    let data = fixture.world.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "of the host\n").unwrap();
    let volume = |source, target: &str| Volume { container_path: target.into(), read_only: true, source };
    let line = "busybox hostname; cat /data/file /run/key; echo \" $TOKEN\"; ulimit -c; ls /own | wc -l; \
                busybox mount -t tmpfs none /data 2>/dev/null || echo refused; \
                probe status CapEff NoNewPrivs Seccomp; for ns in cgroup ipc mnt pid uts; do \
                busybox readlink /proc/self/ns/$ns; done";
    let mut request = fixture.request("web", "root", line);
    request.volumes = vec![
        volume(VolumeSource::HostPath { path: data.clone(), propagation: None }, "/data"),
        volume(VolumeSource::SandboxPath { parent: false, path: "own".into() }, "/own"),
        volume(VolumeSource::Secret { secret: Secret::Value("key".into()) }, "/run/key"),
    ];
    request.command.secrets.insert("TOKEN".into(), Secret::Value("token".into()));
    let output = fixture.run(request.clone()).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..6], ["web", "of the host", "key token", "0", "0", "refused"], "{output}");
    assert_eq!(value(&output, "CapEff"), "00000000a80425fb");
    assert_eq!((value(&output, "NoNewPrivs"), value(&output, "Seccomp")), ("1", "2"));
    for namespace in ["cgroup", "ipc", "mnt", "pid", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert!(!output.contains(own.to_str().unwrap()), "{namespace}: {output}");
    }

    request.id = id("pod");
    request.command.value = Some("true".into());
    fixture.launch(request).await;
    let line = "cat /data/file /run/key; probe status CapEff NoNewPrivs Seccomp; busybox hostname";
    let mut debug = Request::shell(id("pod.debug"), line);
    debug.class = ContainerClass::Debug;
    let output = run(&fixture.agent, debug).await;
    assert!(output.starts_with("of the host\nkey") && output.ends_with("\npod\n"), "{output}");
    assert_eq!((value(&output, "NoNewPrivs"), value(&output, "Seccomp")), ("1", "2"));
    fixture.destroy("pod").await;
}
