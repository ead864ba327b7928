//! The same tests on kernels with other cgroup hierarchies: those of this binary, of the plugins that limit with cgroups, and of
//! containers that evade a kill or attack cgroups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Deserializer, Value};

use crate::guest::{self, Guest, Hierarchy, TestBinary};

/// The target of this binary.
const SYSTEM: &str = "system";

/// Tests of one target of the workspace.
struct Tests {
    target: &'static str,
    arguments: &'static [&'static str],
    /// How many of them at least pass.
    least: usize,
}

/// Of this binary, what depends on the hierarchy.
const OF_CGROUPS: Tests = Tests {
    target: SYSTEM,
    arguments: &[
        "calls::",
        "cgroups::",
        "embed::",
        "isolators::cgroup::",
        "isolators::perf_event::",
        "launch_info::namespaces::",
        "nested::",
        "posix::",
        "resources::",
    ],
    least: 40,
};

/// Of this binary, what the kernel has of the limits and the usage of an engine's containers.
const OF_ENGINE: Tests = Tests { target: SYSTEM, arguments: &["docker::kernel::"], least: 3 };

/// Of this binary, all but those of networks, volumes of drivers, all isolators together, loggers,
/// terminals, images, container engines, tasks, TCP, packages and the command line. Little of what they test depends on the
/// hierarchy; and they run so many programs that they take an emulated machine longer than all other tests together.
const ALL: Tests = Tests {
    target: SYSTEM,
    arguments: &[
        "--skip=commands::",
        "--skip=docker::",
        "--skip=exec::",
        "--skip=fetcher::",
        "--skip=full_logs::",
        "--skip=guests::",
        "--skip=images::",
        "--skip=journald::",
        "--skip=isolators::cni::",
        "--skip=isolators::docker_volume::",
        "--skip=isolators::together::",
        "--skip=job_control::",
        "--skip=loggers::",
        "--skip=packaging::",
        "--skip=readme::",
        "--skip=sessions::",
        "--skip=ssh::",
        "--skip=tasks::",
        "--skip=tee::",
        "--skip=terminals::",
        "--skip=transports::",
        "--skip=widths::",
    ],
    least: 120,
};

/// Containers that evade a kill, or attack cgroups. What starts very many processes or creates very many cgroups would take an
/// emulated machine too long; neither depends on the hierarchy.
const HOSTILE: Tests = Tests {
    target: "hostile",
    arguments: &[
        "evade::",
        "cgroups::",
        "--skip=more_processes_than_the_agent_has_descriptors",
        "--skip=a_container_with_many_and_deep_cgroups",
    ],
    least: 9,
};

/// What would take something from all processes of the machine.
const EXHAUSTION: Tests = Tests {
    target: "lifecycle",
    arguments: &["an_agent_whose_descriptors_the_kernel_does_not_watch"],
    least: 1,
};

/// What needs no cgroup is not repeated.
const NO_CGROUP: [&str; 3] =
    ["--skip=bad_", "--skip=cleanup_of_an_unknown", "--skip=a_host_without_the_controller"];

const fn plugin(target: &'static str, least: usize) -> Tests {
    Tests { target, arguments: &NO_CGROUP, least }
}

/// The plugins whose controllers both versions of cgroups have.
const PLUGINS: [Tests; 7] = [
    plugin("cofferdam_cgroups_blkio", 6),
    plugin("cofferdam_cgroups_cpu", 8),
    plugin("cofferdam_cgroups_cpuset", 8),
    plugin("cofferdam_cgroups_devices", 5),
    plugin("cofferdam_cgroups_hugetlb", 5),
    plugin("cofferdam_cgroups_mem", 20),
    plugin("cofferdam_cgroups_pids", 8),
];

/// One hierarchy with all controllers, as on current hosts. This kernel also has what that of the host may lack, such as
/// quotas of XFS.
#[test]
fn the_same_on_pure_cgroup_v2() {
    rerun(
        Hierarchy::V2,
        &[&ALL, &OF_ENGINE, &HOSTILE, &EXHAUSTION].into_iter().chain(&PLUGINS).collect::<Vec<_>>(),
    );
}

/// A hierarchy for each controller, as on older hosts; the launcher kills with the freezer.
#[test]
fn the_same_on_pure_cgroup_v1() {
    rerun(Hierarchy::V1, &[&OF_CGROUPS, &HOSTILE, &EXHAUSTION]);
}

fn rerun(hierarchy: Hierarchy, tests: &[&Tests]) {
    if guest::inside() {
        return;
    }
    let others: Vec<&str> =
        tests.iter().map(|tests| tests.target).filter(|target| *target != SYSTEM).collect();
    let others = executables(&others);
    let with_arguments = |tests: &&Tests| {
        let arguments = [&["--test-threads=2"], tests.arguments].concat();
        match others.get(tests.target) {
            Some((executable, directory)) => TestBinary {
                executable: executable.clone(),
                directory: directory.clone(),
                ..TestBinary::current(&arguments)
            },
            None => TestBinary::current(&arguments),
        }
    };
    let binaries: Vec<TestBinary> = tests.iter().map(with_arguments).collect();
    let guest = Guest { memory: 4096, limit: Duration::from_secs(3600), ..Guest::new(hierarchy) };
    let Some(passed) = guest.run_test_binaries(&binaries, &[("CI", "true")]).tests_passed() else { return };
    assert_eq!(passed.len(), tests.len(), "not all test binaries have a result: {passed:?}");
    for (Tests { target, least, .. }, passed) in tests.iter().zip(passed) {
        assert!(passed >= *least, "only {passed} tests of `{target}` ran in the guest");
    }
}

/// The test executables of targets, and the directories of their packages, by target. Cargo has built them with this
/// binary, unless only a part of the workspace was to be tested; then it builds them now.
fn executables(targets: &[&str]) -> BTreeMap<String, (PathBuf, PathBuf)> {
    if targets.is_empty() {
        return BTreeMap::new();
    }
    // This one is `target/PROFILE/deps/system-…`.
    let own = std::env::current_exe().expect("this program");
    let profile = own.ancestors().nth(2).expect("the directory of the profile");
    let mut cargo = Command::new(env!("CARGO"));
    // Not inherited from the `cargo test` around this: they describe one package.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"))
    {
        cargo.env_remove(name);
    }
    // Of the whole workspace, because the features of dependencies depend on what else is built.
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", profile.parent().expect("the target directory"))
        .args(["test", "--workspace", "--offline", "--quiet", "--no-run", "--message-format=json"])
        .args(["--lib", "--test", HOSTILE.target, "--test", EXHAUSTION.target]);
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => drop(cargo.args(["--profile", profile])),
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{cargo:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    let found: BTreeMap<String, (PathBuf, PathBuf)> = Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .filter_map(|message| executable(&message.expect("a message in JSON")))
        .collect();
    let missing: Vec<&&str> = targets.iter().filter(|target| !found.contains_key(**target)).collect();
    assert!(missing.is_empty(), "Cargo has built no tests of {missing:?}");
    found.into_iter().filter(|(target, _)| targets.contains(&&**target)).collect()
}

/// What a message of Cargo says about a test executable.
fn executable(message: &Value) -> Option<(String, (PathBuf, PathBuf))> {
    // Null for what is no program.
    let executable = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    // Older versions of Cargo have the name of the package here.
    let target = message["target"]["name"].as_str()?.replace('-', "_");
    Some((target, (executable.into(), directory.to_owned())))
}
