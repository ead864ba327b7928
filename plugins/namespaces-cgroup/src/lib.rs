//! Gives a container a cgroup namespace, and shows it its cgroups in `/sys/fs/cgroup`.

use std::collections::BTreeMap;
use std::path::Path;

use cofferdam_plugin_api::cgroup;
use cofferdam_plugin_api::model::{Cgroups, ContainerClass};
use cofferdam_plugin_api::prelude::*;

/// Where hierarchies are mounted in a container.
const DIRECTORY: &str = "/sys/fs/cgroup";

struct Namespaces {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Whether containers with a root file system see their own cgroups, read-only, in `/sys/fs/cgroup`.
    mount: bool,
    /// Whether the user of a container, if it is not root, can create cgroups of v2 below its own there, and move its processes
    /// into them.
    writable: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { mount: true, writable: false }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Namespaces {
    const NAME: &'static str = "namespaces/cgroup";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launcher.linux"];
    // They mount the directory, and create the cgroups that are shown.
    const AFTER: &'static [&'static str] = &[
        "filesystem/linux",
        "cgroups/blkio",
        "cgroups/cpu",
        "cgroups/cpuset",
        "cgroups/devices",
        "cgroups/hugetlb",
        "cgroups/mem",
        "cgroups/net_cls",
        "cgroups/net_prio",
        "cgroups/pids",
    ];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        if config.writable {
            if !config.mount {
                return Err(Error::new("`writable` needs `mount`"));
            }
            check_delegation(cgroup::are_namespaces_boundaries().context("cannot read the mount table")?)?;
        }
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        if container.class == ContainerClass::Debug {
            return Ok(Prepared::new().enter_namespace(Namespace::Cgroup));
        }
        let mut prepared = Prepared::new().clone_namespace(Namespace::Cgroup);
        if self.config.mount && container.rootfs.is_some() {
            let writable = self.config.writable && container.uid != 0 && !container.shares_cgroups();
            if writable {
                cgroup::delegate_processes(&container.cgroups, container.uid, container.gid)?;
            }
            prepared.launch().operations = mounts(&container.cgroups, writable, Path::is_dir);
        }
        Ok(prepared)
    }
}

/// Checks whether the kernel keeps processes that can write to their cgroup in it, and from its limits.
fn check_delegation(are_boundaries: Option<bool>) -> Result<()> {
    match are_boundaries {
        Some(true) => Ok(()),
        Some(false) => Err(Error::new(
            "`writable` needs the mount option `nsdelegate` of cgroup v2, without which a process that becomes root in a \
             container could change its limits; run `mount -o remount,nsdelegate` on the hierarchy, or leave `writable` out",
        )),
        None => Err(Error::new(
            "`writable` needs cgroup v2, which is not mounted on this host; leave `writable` out: on v1 nothing limits how \
             many cgroups a container creates",
        )),
    }
}

/// Mounts the hierarchies in which the container has a cgroup of its own. In any other, the root of its namespace would be
/// that of the host, and the container would see all cgroups.
fn mounts(cgroups: &Cgroups, writable: bool, exists: impl Fn(&Path) -> bool) -> Vec<Operation> {
    let mut hierarchies: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    for (controller, mount) in &cgroups.v1 {
        if exists(&mount.join(&cgroups.path)) {
            hierarchies.entry(mount).or_default().push(controller);
        }
    }
    let mut operations = Vec::new();
    if cgroups.v2.is_some() {
        // As on the host: below the hierarchies of v1, or instead of them.
        let below = if cgroups.v1.is_empty() { "" } else { "unified" };
        operations.push(mount("cgroup2", &Path::new(DIRECTORY).join(below), &[], writable));
    }
    for (path, controllers) in hierarchies {
        let Some(name) = path.file_name() else { continue };
        operations.push(mount("cgroup", &Path::new(DIRECTORY).join(name), &controllers, false));
    }
    operations
}

fn mount(fstype: &str, target: &Path, controllers: &[&str], writable: bool) -> Operation {
    let flags = ["nodev", "noexec", "nosuid"].into_iter().chain((!writable).then_some("ro"));
    Operation::Mount {
        fstype: fstype.to_owned(),
        target: target.to_owned(),
        flags: flags.map(str::to_owned).collect(),
        options: controllers.iter().map(|&controller| controller.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cofferdam_plugin_api::model::LaunchInfo;
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    fn cgroups(v1: &[(&str, &str)], v2: Option<&str>) -> Cgroups {
        Cgroups {
            v1: v1.iter().map(|&(name, mount)| (name.to_owned(), mount.into())).collect(),
            v2: v2.map(PathBuf::from),
            v2_controllers: Vec::new(),
            path: "cofferdam/1/web.container".into(),
        }
    }

    /// Type, target and options of each mount, of which those of v1 are controllers.
    fn shown(operations: &[Operation]) -> Vec<(String, String, String)> {
        let show = |operation: &Operation| {
            let Operation::Mount { fstype, target, options, flags } = operation else {
                panic!("{operation:?}")
            };
            assert!(flags.is_superset(&["nodev", "noexec", "nosuid"].map(str::to_owned).into()));
            let options = if flags.contains("ro") { options.join(",") } else { "writable".to_owned() };
            (fstype.clone(), target.display().to_string(), options)
        };
        operations.iter().map(show).collect()
    }

    #[test]
    fn hierarchies_are_mounted_in_which_the_container_has_a_cgroup() {
        let row = |fstype: &str, target: &str, options: &str| {
            (fstype.to_owned(), target.to_owned(), options.to_owned())
        };
        let only_v2 = cgroups(&[], Some("/sys/fs/cgroup"));
        assert_eq!(shown(&mounts(&only_v2, false, |_| false)), [row("cgroup2", "/sys/fs/cgroup/", "")]);
        let hybrid = cgroups(
            &[
                ("cpu", "/c/cpu,cpuacct"),
                ("cpuacct", "/c/cpu,cpuacct"),
                ("memory", "/c/memory"),
                ("pids", "/c/pids"),
            ],
            Some("/c/unified"),
        );
        let exists =
            |path: &Path| !path.starts_with("/c/pids") && path.ends_with("cofferdam/1/web.container");
        for (writable, options) in [(false, ""), (true, "writable")] {
            assert_eq!(
                shown(&mounts(&hybrid, writable, exists)),
                [
                    row("cgroup2", "/sys/fs/cgroup/unified", options),
                    row("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
                    row("cgroup", "/sys/fs/cgroup/memory", "memory"),
                ]
            );
        }
        assert_eq!(mounts(&cgroups(&[("pids", "/c/pids")], None), true, |_| false), []);
        assert_eq!(mounts(&Cgroups::default(), true, |_| true), []);
    }

    #[test]
    fn cgroups_are_writable_only_where_the_kernel_keeps_containers_from_their_limits() {
        check_delegation(Some(true)).unwrap();
        for (found, complaint) in [(Some(false), "`nsdelegate`"), (None, "needs cgroup v2")] {
            let refused = check_delegation(found).unwrap_err().to_string();
            assert!(refused.contains(complaint), "{refused}");
        }
        let config = json!({ "mount": false, "writable": true });
        let refused = PluginHarness::<Namespaces>::isolator(config).err().unwrap();
        assert!(refused.message.contains("`writable` needs `mount`"), "{refused}");
    }

    #[test]
    fn a_container_has_a_namespace_of_its_own_and_a_debug_container_that_of_its_parent() {
        let launch = |config: Json, id: &str, class, rootfs: bool| {
            let harness = PluginHarness::<Namespaces>::isolator(config).unwrap();
            let mut container = harness.container(id);
            container.class = class;
            container.rootfs = rootfs.then(|| "/image".into());
            container.cgroups = cgroups(&[], Some("/sys/fs/cgroup"));
            harness.prepare_container(&container).unwrap().launch
        };
        let own = LaunchInfo { clone_namespaces: [Namespace::Cgroup].into(), ..LaunchInfo::default() };
        let (default, debug) = (ContainerClass::Default, ContainerClass::Debug);
        assert_eq!(launch(json!({}), "pod", default, false), own);
        assert_eq!(launch(json!({}), "pod.web", default, false), own);
        assert_eq!(launch(json!({ "mount": false }), "pod", default, true), own);
        assert_eq!(launch(json!({}), "pod", default, true).operations.len(), 1);
        let entered = LaunchInfo { enter_namespaces: [Namespace::Cgroup].into(), ..LaunchInfo::default() };
        assert_eq!(launch(json!({}), "pod.shell", debug, false), entered);
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        let refused = PluginHarness::<Namespaces>::isolator(json!({ "mounts": true })).err().unwrap();
        assert!(refused.message.contains("unknown field `mounts`"), "{refused}");
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Namespaces>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
