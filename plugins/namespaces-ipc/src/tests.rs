use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use cofferdam_plugin_api::mount;
use cofferdam_plugin_api::testing::{PluginHarness, Refused, skip};

use super::*;

#[derive(Clone, Copy, Default)]
struct Case {
    mode: Option<IpcMode>,
    size: Option<u64>,
    rootfs: bool,
    debug: bool,
}

/// What a container gets as `/dev/shm`.
#[derive(Debug, PartialEq, Eq)]
enum Mounted {
    Nothing,
    OfHost,
    /// With its device number.
    Own(u64),
}

/// Entered namespaces, new namespaces, `/dev/shm`.
type Outcome = (BTreeSet<Namespace>, BTreeSet<Namespace>, Mounted);

fn prepare(harness: &PluginHarness<Ipc>, id: &str, case: Case) -> Result<Outcome, Refused> {
    let mut container = harness.container(id);
    container.linux.ipc_mode = case.mode;
    container.linux.shm_size = case.size;
    container.rootfs = case.rootfs.then(|| "/image".into());
    if case.debug {
        container.class = ContainerClass::Debug;
    }
    let (reply, descriptors) = harness.prepare_with_descriptors(&container)?;
    let launch = reply.launch;
    let mounted = match &launch.operations[..] {
        [] => Mounted::Nothing,
        [Operation::Bind { source, target, .. }] if source == directory() && target == directory() => {
            Mounted::OfHost
        }
        [Operation::BindDescriptor { index, target, .. }] if target == directory() => {
            Mounted::Own(mount::device(descriptors[*index].as_fd()).unwrap())
        }
        other => panic!("{other:?}"),
    };
    Ok((launch.enter_namespaces, launch.clone_namespaces, mounted))
}

fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        skip("only root can mount");
    }
    root
}

const PRIVATE: Option<IpcMode> = Some(IpcMode::Private);
const SHARE: Option<IpcMode> = Some(IpcMode::ShareParent);

#[test]
fn namespaces_and_shared_memory_are_as_requested() {
    if !is_root() {
        return;
    }
    let harness = PluginHarness::<Ipc>::isolator(json!({})).unwrap();
    let (none, ipc) = (BTreeSet::new, || BTreeSet::from([Namespace::Ipc]));
    let case = |mode, rootfs| Case { mode, rootfs, ..Case::default() };
    let is_own = |mounted: &Mounted| matches!(mounted, Mounted::Own(_));
    // Container, entered, new, whether it gets its own.
    for (id, case, entered, new, own) in [
        ("pod", case(None, false), none(), ipc(), false),
        ("pod", case(None, true), none(), ipc(), true),
        ("pod", case(PRIVATE, false), none(), ipc(), true),
        ("pod", case(PRIVATE, true), none(), ipc(), true),
        ("pod.web", case(None, false), ipc(), none(), false),
        ("pod.web", case(None, true), ipc(), none(), true),
        ("pod.web", case(PRIVATE, true), none(), ipc(), true),
    ] {
        let outcome = prepare(&harness, id, case).unwrap();
        let Case { mode, rootfs, .. } = case;
        assert_eq!((&outcome.0, &outcome.1), (&entered, &new), "{id}: {mode:?}, {rootfs}");
        assert_eq!(is_own(&outcome.2), own, "{id}: {mode:?}, {rootfs}: {:?}", outcome.2);
    }
    assert_eq!(prepare(&harness, "pod", case(SHARE, false)).unwrap(), (none(), none(), Mounted::Nothing));
    assert_eq!(prepare(&harness, "pod", case(SHARE, true)).unwrap(), (none(), none(), Mounted::OfHost));
    // Now the parent has that of the host.
    assert_eq!(prepare(&harness, "pod.web", case(SHARE, true)).unwrap(), (ipc(), none(), Mounted::OfHost));
    let debug = Case { debug: true, ..Case::default() };
    assert_eq!(prepare(&harness, "pod.shell", debug).unwrap(), (ipc(), none(), Mounted::Nothing));
    let debug = Case { mode: SHARE, ..debug };
    assert_eq!(prepare(&harness, "pod.shell", debug).unwrap(), (ipc(), none(), Mounted::Nothing));
}

#[test]
fn two_containers_have_different_file_systems() {
    if !is_root() {
        return;
    }
    let harness = PluginHarness::<Ipc>::isolator(json!({})).unwrap();
    let case = Case { mode: PRIVATE, size: Some(4096), ..Case::default() };
    let mut container = harness.container("a");
    container.linux.ipc_mode = PRIVATE;
    let (_, held) = harness.prepare_with_descriptors(&container).unwrap();
    let Mounted::Own(second) = prepare(&harness, "b", case).unwrap().2 else { panic!("none") };
    assert_ne!(mount::device(held[0].as_fd()).unwrap(), second);
}

#[test]
fn a_request_that_contradicts_itself_is_refused() {
    let config = json!({ "disallow_sharing_agent_ipc_namespace": true });
    let harness = PluginHarness::<Ipc>::isolator(config).unwrap();
    let case = |mode, size, debug| Case { mode, size, debug, rootfs: false };
    for (id, case, expected) in [
        ("pod", case(SHARE, None, false), "`disallow_sharing_agent_ipc_namespace` forbids"),
        ("pod", case(None, Some(1 << 20), false), "without the IPC mode PRIVATE"),
        ("pod", case(SHARE, Some(1), false), "without the IPC mode PRIVATE"),
        ("pod", case(PRIVATE, Some(0), false), "size 0"),
        ("pod", case(Some(IpcMode::Unknown), None, false), "does not know"),
        ("pod.web", case(SHARE, None, false), "without `namespaces/ipc`"),
        ("pod.web", case(PRIVATE, None, true), "debug container"),
    ] {
        let refused = prepare(&harness, id, case).unwrap_err();
        assert!(refused.message.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "default_container_shm_size": "0" }), "`default_container_shm_size` is 0"),
        (json!({ "default_container_shm_size": "large" }), "`large` is not a size"),
        (json!({ "disallow": true }), "unknown field `disallow`"),
    ] {
        let refused = PluginHarness::<Ipc>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Ipc>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
