//! The same tests on kernels with other cgroup hierarchies.

use std::time::Duration;

use crate::guest::{self, Guest, Hierarchy};

/// What depends on the hierarchy, and the number of its tests that at least run.
const OF_CGROUPS: (&[&str], usize) = (
    &[
        "calls::",
        "cgroups::",
        "embed::",
        "isolators::cgroup::",
        "isolators::perf_event::",
        "isolators::together::",
        "launch_info::namespaces::",
        "nested::",
        "posix::",
        "resources::",
    ],
    40,
);

/// All but those of networks, volumes of drivers, loggers, terminals, images, container engines, tasks, TCP, packages and the
/// command line. What they test does not depend on the hierarchy, and they run so many programs that they take an emulated
/// machine longer than all other tests together.
const ALL: (&[&str], usize) = (
    &[
        "--skip=commands::",
        "--skip=docker::",
        "--skip=guests::",
        "--skip=images::",
        "--skip=journald::",
        "--skip=isolators::cni::",
        "--skip=isolators::docker_volume::",
        "--skip=loggers::",
        "--skip=packaging::",
        "--skip=readme::",
        "--skip=tasks::",
        "--skip=tee::",
        "--skip=terminals::",
        "--skip=transports::",
    ],
    120,
);

/// One hierarchy with all controllers, as on current hosts. This kernel also has what that of the host may lack, such as
/// quotas of XFS.
#[test]
fn the_same_on_pure_cgroup_v2() {
    rerun(Hierarchy::V2, ALL);
}

/// A hierarchy for each controller, as on older hosts; the launcher kills with the freezer.
#[test]
fn the_same_on_pure_cgroup_v1() {
    rerun(Hierarchy::V1, OF_CGROUPS);
}

fn rerun(hierarchy: Hierarchy, (tests, expected): (&[&str], usize)) {
    if guest::inside() {
        return;
    }
    let guest = Guest { memory: 4096, limit: Duration::from_secs(1800), ..Guest::new(hierarchy) };
    let arguments = [&["--test-threads=2"], tests].concat();
    if let Some(passed) = guest.rerun_this_test_binary(&arguments, &[("CI", "true")]).tests_passed() {
        assert!(passed >= expected, "only {passed} tests ran in the guest");
    }
}
