//! The same tests where the kernel has other control groups.

use crate::object::{self, Hierarchy, PluginObject};

/// Hosts of today: one hierarchy, all controllers.
#[test]
fn the_same_on_pure_cgroup_v2() {
    rerun(Hierarchy::V2);
}

/// Hosts of yesterday: a hierarchy for each controller, and the freezer to kill with.
#[test]
fn the_same_on_pure_cgroup_v1() {
    rerun(Hierarchy::V1);
}

fn rerun(hierarchy: Hierarchy) {
    if object::inside() {
        return;
    }
    let object = PluginObject { memory: 2048, ..PluginObject::new(hierarchy) };
    let tests = ["--test-threads=2", "--skip=guests::"];
    if let Some(passed) = object.rerun_this_test_binary(&tests, &[("CI", "true")]).tests_passed() {
        assert!(passed >= 10, "only {passed} tests ran in the guest");
    }
}
