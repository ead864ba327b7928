//! Keys with the names of Mesos's flags.

use std::fs;

use cofferdam_tests::is_root;
use serde_json::json;

use super::{Fixture, describe, isolator, world_with};

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_have_the_names_that_flags_of_mesos_have() {
    if !is_root("cgroups") {
        return;
    }
    let world = world_with(|directory| {
        let profiles = directory.join("profiles");
        fs::create_dir(&profiles).unwrap();
        fs::write(profiles.join("open"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        let data = directory.join("data");
        fs::create_dir(&data).unwrap();
        let cpu = json!({ "cgroups_enable_cfs": true, "cgroups_cpu_enable_pids_and_tids_count": true });
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
    let output = fixture.run(fixture.request("web", "root", "grep Seccomp: /proc/self/status")).await;
    assert_eq!(output, "Seccomp:\t2\n");
    drop(fixture);

    for (name, table, expected) in [
        ("cgroups/cpu", json!({ "cgroups_enable_cfs": "yes" }), "`cgroups_enable_cfs`"),
        ("cgroups/mem", json!({ "limit_swap": true, "cgroups_limit_swap": true }), "`limit_swap`"),
    ] {
        let world = world_with(|_| vec![isolator(name, table)]);
        let message = describe(&world.start().await.err().unwrap());
        assert!(message.contains(&format!("`{name}`")) && message.contains(expected), "{message}");
    }
}
