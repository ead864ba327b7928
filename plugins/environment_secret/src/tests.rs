use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use cofferdam_plugin_api::model::{PrepareReply, Secret};
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

/// A harness whose directory of secrets is in the harness's own.
fn harness() -> (PluginHarness<Secrets>, PluginHarness<Secrets>) {
    let owner = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    let secrets = owner.directory().join("secrets");
    fs::create_dir(&secrets).unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(secrets.join("token"), "hunter2\n").unwrap();
    fs::create_dir(secrets.join("database")).unwrap();
    fs::write(secrets.join("database/password"), "hunter3").unwrap();
    fs::write(secrets.join("binary"), [0xff, 0]).unwrap();
    fs::write(secrets.join("large"), vec![b'x'; (512 << 10) + 1]).unwrap();
    symlink("/etc/passwd", secrets.join("outside")).unwrap();
    symlink("token", secrets.join("inside")).unwrap();
    let harness = PluginHarness::isolator(json!({ "secret_dir": secrets })).unwrap();
    (owner, harness)
}

fn reference(name: &str, key: Option<&str>) -> Secret {
    Secret::Reference { name: name.to_owned(), key: key.map(str::to_owned) }
}

fn prepare(harness: &PluginHarness<Secrets>, secret: Secret) -> Result<PrepareReply, Refused> {
    let mut container = harness.container("web");
    container.command.secrets.insert("TOKEN".into(), secret);
    harness.prepare_container(&container)
}

#[test]
fn values_and_references_are_resolved_as_secrets() {
    let (_owner, harness) = harness();
    for (secret, expected) in [
        (Secret::Value("hunter1".into()), "hunter1"),
        (Secret::Value(String::new()), ""),
        (reference("token", None), "hunter2\n"),
        (reference("inside", None), "hunter2\n"),
        (reference("database", Some("password")), "hunter3"),
    ] {
        let reply = prepare(&harness, secret).unwrap();
        assert_eq!(reply.launch.secret_environment["TOKEN"], expected);
        assert!(reply.launch.environment.is_empty() && reply.state.is_none());
    }
    assert!(harness.prepare("other").unwrap().launch.secret_environment.is_empty());
}

#[test]
fn errors_name_the_variable_and_the_secret_and_never_its_value() {
    let (_owner, harness) = harness();
    for (secret, expected) in [
        (reference("missing", None), "missing`"),
        (reference("database", None), "not a regular file"),
        (reference("outside", None), "leads out of the directory"),
        (reference("../token", None), "expected names of files"),
        (reference("database", Some("../token")), "expected names of files"),
        (reference("", None), "expected names of files"),
        (reference("binary", None), "not UTF-8 text"),
        (reference("large", None), "larger than"),
        (Secret::Value("hunter1\0".into()), "not UTF-8 text without NUL"),
        (Secret::Value("x".repeat((512 << 10) + 1)), "larger than"),
        (Secret::Unknown, "does not know"),
    ] {
        let refused = prepare(&harness, secret).unwrap_err();
        assert!(
            refused.message.contains(expected) && refused.message.contains("`TOKEN`"),
            "{expected}: {refused}"
        );
        assert!(!refused.message.contains("hunter"), "{refused}");
    }
    let without = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    let refused = prepare(&without, reference("token", None)).unwrap_err();
    assert!(refused.message.contains("`secret_dir` is not set"), "{refused}");
    let mut container = harness.container("web");
    container.command.secrets.insert("TOKEN".into(), Secret::Value("hunter1".into()));
    container.command.environment.insert("TOKEN".into(), "plain".into());
    let refused = harness.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("to a value and to a secret"), "{refused}");
    assert!(harness.logged().iter().all(|event| !event.to_string().contains("hunter")));
}

#[test]
fn invalid_configurations_are_rejected() {
    let (owner, _harness) = harness();
    let open = owner.directory().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for (directory, expected) in [
        (Path::new("/no/such/directory"), "No such file"),
        (Path::new("/etc/passwd"), "absolute path of a directory"),
        (&open, "can write to"),
    ] {
        let refused = PluginHarness::<Secrets>::isolator(json!({ "secret_dir": directory })).err().unwrap();
        assert!(refused.message.contains(expected) && refused.message.contains("`secret_dir`"), "{refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Secrets>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
