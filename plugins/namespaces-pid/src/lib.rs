//! Creates a pid namespace for a container, or enters that of its parent.

use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

struct Pids {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whether to reject containers that request to share the agent's pid namespace.
    #[serde(default)]
    disallow_sharing_agent_pid_namespace: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Pids {
    const NAME: &'static str = "namespaces/pid";
    const NESTING: bool = true;
    // That plugin creates the mount namespace, and its mounts must come before `/proc`, or they would hide it.
    const REQUIRES: &'static [&'static str] = &["filesystem/linux"];
    const AFTER: &'static [&'static str] = &["filesystem/linux"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let shares = container.linux.share_pid_namespace;
        if !container.id.is_nested() {
            return match (shares, self.config.disallow_sharing_agent_pid_namespace) {
                (false, _) => Ok(mount_proc(Prepared::new().clone_namespace(Namespace::Pid), container)),
                (true, false) => Ok(Prepared::new()),
                (true, true) => Err(Error::invalid(
                    "the container requests to share the agent's pid namespace, which \
                     `disallow_sharing_agent_pid_namespace` forbids",
                )),
            };
        }
        let share = || Prepared::new().enter_namespace(Namespace::Pid);
        if container.class == ContainerClass::Debug {
            // It shares the mounts of its parent, including `/proc`.
            return Ok(share());
        }
        // The agent creates a namespace of its own beside that of the parent, which cannot see its processes.
        let prepared = if shares { share() } else { Prepared::new().clone_namespace(Namespace::Pid) };
        // A container that shares needs its own `/proc` too: its mounts are copies of the agent's, whose `/proc` shows
        // another namespace.
        Ok(mount_proc(prepared, container))
    }
}

/// Mounts `/proc` for the pid namespace of the container. Not needed with a root file system, where `filesystem/linux`
/// mounts it.
fn mount_proc(prepared: Prepared, container: &Container) -> Prepared {
    if container.rootfs.is_some() {
        return prepared;
    }
    prepared.operation(Operation::Mount {
        fstype: "proc".into(),
        target: "/proc".into(),
        flags: ["nodev", "noexec", "nosuid"].map(str::to_owned).into(),
        options: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cofferdam_plugin_api::testing::{PluginHarness, Refused};

    use super::*;

    /// The entered namespaces, the new namespaces, the number of mounts of `/proc`.
    type Outcome = (BTreeSet<Namespace>, BTreeSet<Namespace>, usize);

    #[derive(Clone, Copy, Default)]
    struct Case {
        shares: bool,
        debug: bool,
        rootfs: bool,
    }

    fn prepare(config: Json, id: &str, case: Case) -> Result<Outcome, Refused> {
        let harness = PluginHarness::<Pids>::isolator(config).unwrap();
        let mut container = harness.container(id);
        container.linux.share_pid_namespace = case.shares;
        container.rootfs = case.rootfs.then(|| "/image".into());
        if case.debug {
            container.class = ContainerClass::Debug;
        }
        let launch = harness.prepare_container(&container)?.launch;
        let proc = |operation: &&Operation| {
            matches!(operation, Operation::Mount { fstype, target, .. }
                if fstype == "proc" && target.as_os_str() == "/proc")
        };
        let mounts = launch.operations.iter().filter(proc).count();
        assert_eq!(mounts, launch.operations.len(), "it mounts nothing else");
        Ok((launch.enter_namespaces, launch.clone_namespaces, mounts))
    }

    #[test]
    fn namespaces_and_mounts_of_proc_are_as_requested() {
        let (none, pid) = (BTreeSet::new, || BTreeSet::from([Namespace::Pid]));
        let own = Case::default();
        let shares = Case { shares: true, ..own };
        let debug = Case { debug: true, ..own };
        let rootfs = |case| Case { rootfs: true, ..case };
        for (id, case, expected) in [
            ("pod", own, (none(), pid(), 1)),
            ("pod", rootfs(own), (none(), pid(), 0)),
            ("pod", shares, (none(), none(), 0)),
            ("pod.web", own, (none(), pid(), 1)),
            ("pod.web", rootfs(own), (none(), pid(), 0)),
            ("pod.web", shares, (pid(), none(), 1)),
            ("pod.web", rootfs(shares), (pid(), none(), 0)),
            ("pod.web", debug, (pid(), none(), 0)),
            ("pod.web", Case { shares: true, ..debug }, (pid(), none(), 0)),
        ] {
            let Case { shares, debug, rootfs } = case;
            let outcome = prepare(json!({}), id, case).unwrap();
            assert_eq!(outcome, expected, "{id}: shares {shares}, debug {debug}, rootfs {rootfs}");
        }
    }

    #[test]
    fn only_sharing_with_the_agent_can_be_forbidden() {
        let config = json!({ "disallow_sharing_agent_pid_namespace": true });
        let shares = Case { shares: true, ..Case::default() };
        let refused = prepare(config.clone(), "pod", shares).unwrap_err();
        assert!(refused.message.contains("disallow_sharing_agent_pid_namespace"), "{refused}");
        assert!(prepare(config.clone(), "pod", Case::default()).is_ok());
        assert!(prepare(config, "pod.web", shares).is_ok());
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        for (config, expected) in [
            (json!({ "disallow_sharing_agent_pid_namespace": "no" }), "invalid type"),
            (json!({ "disallow": true }), "unknown field `disallow`"),
        ] {
            let refused = PluginHarness::<Pids>::isolator(config.clone()).err().unwrap();
            assert!(refused.message.contains(expected), "{config} gave: {refused}");
        }
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Pids>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
