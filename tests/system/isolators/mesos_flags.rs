//! Keys with the names of Mesos's flags.

use std::fs;

use cofferdam_core::model::{Resources, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::id;
use serde_json::json;

use super::{Fixture, describe, isolator, world_with};

/// Refuses what `runtime/default` permits.
const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_have_the_names_that_flags_of_mesos_have() {
    if !is_root("cgroups") {
        return;
    }
    let world = world_with(|directory| {
        let profiles = directory.join("profiles");
        fs::create_dir(&profiles).unwrap();
        fs::write(profiles.join("open"), PROFILE).unwrap();
        let data = directory.join("data");
        fs::create_dir(&data).unwrap();
        let cpu = json!({ "cgroups_enable_cfs": false, "cgroups_cpu_enable_pids_and_tids_count": true });
        let seccomp = json!({ "seccomp_config_dir": profiles, "seccomp_profile_name": "open" });
        vec![
            isolator("cgroups/cpu", cpu),
            isolator("cgroups/mem", json!({ "cgroups_limit_swap": false })),
            isolator("cgroups/devices", json!({ "allowed_devices": [{ "path": "/dev/full" }] })),
            isolator("linux/seccomp", seccomp),
            isolator("volume/host_path", json!({ "host_path_volume_force_creation": [data] })),
        ]
    });
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let data = fixture.world.directory().join("data");
    let line = "busybox mkdir x 2>/dev/null || echo refused; ls /made";
    let mut request = fixture.request("web", "root", line);
    request.resources = Resources::default().with("cpus", 0.5);
    let source = VolumeSource::HostPath { path: data.join("new/below"), propagation: None };
    request.volumes = vec![Volume { container_path: "/made".into(), read_only: false, source }];
    fixture.launch(request).await;
    let output = cofferdam_tests::text(&fixture.agent.inspect(&id("web")).unwrap().logs.stdout.unwrap());
    assert!(output.starts_with("refused\n"), "{output}");
    assert!(data.join("new/below").exists());
    let usage = fixture.agent.usage(&id("web")).await.unwrap();
    assert_eq!((usage.number("cpus_limit"), usage.number("cpus_soft_limit")), (None, Some(0.5)), "{usage:?}");
    assert!(usage.number("processes") >= Some(1.0), "{usage:?}");
    fixture.destroy("web").await;
    drop(fixture);

    for (name, table, expected) in [
        ("cgroups/cpu", json!({ "cgroups_enable_cfs": "yes" }), "expected a boolean"),
        (
            "cgroups/mem",
            json!({ "limit_swap": true, "cgroups_limit_swap": true }),
            "duplicate field `limit_swap`",
        ),
    ] {
        let world = world_with(|_| vec![isolator(name, table)]);
        let message = describe(&world.start().await.err().unwrap());
        assert!(message.contains(&format!("`{name}`")) && message.contains(expected), "{message}");
    }
}
