//! The same tests on kernels with other cgroup hierarchies.

use std::time::Duration;

use crate::guest::{self, Guest, Hierarchy};

/// One hierarchy with all controllers, as on current hosts.
#[test]
fn the_same_on_pure_cgroup_v2() {
    rerun(Hierarchy::V2);
}

/// A hierarchy for each controller, as on older hosts; the launcher kills with the freezer.
#[test]
fn the_same_on_pure_cgroup_v1() {
    rerun(Hierarchy::V1);
}

fn rerun(hierarchy: Hierarchy) {
    if guest::inside() {
        return;
    }
    let guest = Guest { memory: 2048, limit: Duration::from_secs(1800), ..Guest::new(hierarchy) };
    // What those of networks test does not depend on the hierarchy, and they run so many programs that they take an emulated
    // machine longer than all other tests together.
    let tests = ["--test-threads=2", "--skip=guests::", "--skip=isolators::cni::"];
    if let Some(passed) = guest.rerun_this_test_binary(&tests, &[("CI", "true")]).tests_passed() {
        assert!(passed >= 60, "only {passed} tests ran in the guest");
    }
}
