use std::fs;
use std::path::Path;

use cofferdam_plugin_api::model::{Container, Seccomp, SeccompRequest};
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

const ALLOW_ALL: &str = r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#;
const NO_MKDIR: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]
}"#;

fn directory() -> tempfile_directory::Directory {
    let directory = tempfile_directory::Directory::new();
    fs::write(directory.path().join("all.json"), ALLOW_ALL).unwrap();
    fs::write(directory.path().join("no-mkdir.json"), NO_MKDIR).unwrap();
    directory
}

/// A directory that is removed at the end of a test.
mod tempfile_directory {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU32, Ordering};

    pub struct Directory(PathBuf);

    impl Directory {
        pub fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("cofferdam-seccomp-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = cofferdam_plugin_api::tree::remove(&self.0);
        }
    }
}

fn harness(directory: &Path, more: Json) -> PluginHarness<Filters> {
    let mut config = json!({ "config_dir": directory });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    PluginHarness::isolator(config).unwrap()
}

fn prepare(
    harness: &PluginHarness<Filters>,
    request: Option<SeccompRequest>,
    change: impl FnOnce(&mut Container),
) -> Result<Option<Seccomp>, Refused> {
    let mut container = harness.container("web");
    container.linux.seccomp = request;
    change(&mut container);
    Ok(harness.prepare_container(&container)?.launch.seccomp)
}

fn named(name: &str) -> Option<SeccompRequest> {
    Some(SeccompRequest { profile: Some(name.to_owned()), unconfined: false })
}

fn unconfined() -> Option<SeccompRequest> {
    Some(SeccompRequest { profile: None, unconfined: true })
}

#[test]
fn a_container_has_the_profile_that_it_requests_or_else_the_default() {
    let directory = directory();
    let harness = harness(directory.path(), json!({ "profile_name": "no-mkdir.json" }));
    let of = |request| prepare(&harness, request, |_| {}).unwrap();
    let default = of(None).unwrap();
    assert_eq!(Some(&default), of(named("no-mkdir.json")).as_ref());
    assert_eq!(Some(&default), of(Some(SeccompRequest::default())).as_ref());
    assert_ne!(Some(&default), of(named("all.json")).as_ref());
    let standard = of(named("runtime/default")).unwrap();
    assert!((250..4096).contains(&standard.program.len()), "{}", standard.program.len());
    assert_eq!(of(unconfined()), None);
}

#[test]
fn the_profile_that_is_part_of_the_plugin_is_the_default() {
    let harness = PluginHarness::<Filters>::isolator(json!({})).unwrap();
    assert!(prepare(&harness, None, |_| {}).unwrap().is_some());
    let harness = PluginHarness::<Filters>::isolator(json!({ "profile_name": "unconfined" })).unwrap();
    assert_eq!(prepare(&harness, None, |_| {}).unwrap(), None);
    assert!(prepare(&harness, named("runtime/default"), |_| {}).unwrap().is_some());
}

#[test]
fn rules_depend_on_the_bounding_set_that_plugins_request() {
    let harness = PluginHarness::<Filters>::isolator(json!({})).unwrap();
    let with = |names: &[&str]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        prepare(&harness, None, |container| container.bounding_capabilities = Some(names)).unwrap()
    };
    assert_ne!(with(&[]), with(&["SYS_ADMIN"]));
    assert_eq!(with(&[]), with(&["CHOWN"]));
}

#[test]
fn a_changed_file_is_compiled_again() {
    let directory = directory();
    let harness = harness(directory.path(), json!({}));
    let of = |name| prepare(&harness, named(name), |_| {}).unwrap();
    let before = of("all.json");
    fs::write(directory.path().join("all.json"), NO_MKDIR).unwrap();
    assert_ne!(of("all.json"), before);
    assert_eq!(of("all.json"), of("no-mkdir.json"));
}

#[test]
fn invalid_requests_are_refused() {
    let directory = directory();
    fs::write(directory.path().join("broken.json"), "{\n \"defaultAction\": \"SCMP_ACT_FLY\" }").unwrap();
    fs::write(directory.path().join("contradiction.json"), r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["read"], "action": "SCMP_ACT_ALLOW" }, { "names": ["write", "read"], "action": "SCMP_ACT_KILL" } ] }"#).unwrap();
    fs::write(directory.path().join("large.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(directory.path().join("sub/all.json"), ALLOW_ALL).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", directory.path().join("outside")).unwrap();
    let both = Some(SeccompRequest { profile: Some("all.json".into()), unconfined: true });
    let harness = harness(directory.path(), json!({ "disallow_unconfined": true }));
    for (request, expected) in [
        (unconfined(), "`disallow_unconfined` forbids"),
        (both, "request one of them"),
        (named("unconfined"), "set `unconfined`"),
        (named("missing.json"), "missing.json`"),
        (named("../all.json"), "is not the name of a profile"),
        (named("sub/all.json"), "is not the name of a profile"),
        (named("/etc/passwd"), "is not the name of a profile"),
        (named(""), "is not the name of a profile"),
        (named("directory"), "not a regular file"),
        (named("outside"), "leads out of the directory"),
        (named("large.json"), "larger than"),
        (named("broken.json"), "`defaultAction`: unknown variant `SCMP_ACT_FLY`"),
        (named("contradiction.json"), "`syscalls[0]` and `syscalls[1]` set different actions for `read`"),
    ] {
        let refused = prepare(&harness, request.clone(), |_| {}).unwrap_err();
        assert!(refused.message.contains(expected), "{request:?} gave: {refused}");
    }
    let harness = PluginHarness::<Filters>::isolator(json!({})).unwrap();
    let refused = prepare(&harness, named("all.json"), |_| {}).unwrap_err();
    assert!(refused.message.contains("`config_dir` is not set"), "{refused}");
}

#[test]
fn a_debug_container_has_the_filter_of_its_parent() {
    let directory = directory();
    let harness = harness(directory.path(), json!({}));
    let of = |id: &str, class, request| {
        let mut container = harness.container(id);
        container.class = class;
        container.linux.seccomp = request;
        harness.prepare_container(&container).unwrap().launch.seccomp
    };
    let pod = of("pod", ContainerClass::Default, named("no-mkdir.json"));
    assert_eq!(of("pod.shell", ContainerClass::Debug, None), pod);
    assert_ne!(of("pod.web", ContainerClass::Default, None), pod);
    assert_eq!(of("pod.trace", ContainerClass::Debug, unconfined()), None);
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (
            json!({ "config_dir": "/no/such/directory", "profile_name": "x.json" }),
            "/no/such/directory/x.json",
        ),
        (json!({ "profile_name": "x.json" }), "`config_dir` is not set"),
        (json!({ "profile": "x" }), "unknown field `profile`"),
    ] {
        let refused = PluginHarness::<Filters>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Filters>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
