use std::fs;
use std::os::unix::fs::symlink;

use cofferdam_plugin_api::testing::PluginHarness;

use super::*;

fn harness(config: Json) -> PluginHarness<Credentials> {
    PluginHarness::<Credentials>::hook(config).unwrap()
}

/// What the hook says to a sandbox.
fn run(harness: &PluginHarness<Credentials>, sandbox: &Path) -> String {
    let outcome = harness.post_fetch("web", sandbox, &PostFetch::default());
    outcome.err().map(|refused| refused.message).unwrap_or_default()
}

#[test]
fn credentials_are_removed_and_nothing_else() {
    let harness = harness(json!({}));
    let sandbox = harness.container("web").sandbox;
    fs::create_dir(sandbox.join(".docker")).unwrap();
    for file in [".dockercfg", ".docker/config.json", ".docker/other", "config.json"] {
        fs::write(sandbox.join(file), "{}").unwrap();
    }
    // It succeeds again when they are gone.
    for _ in 0..2 {
        assert_eq!(run(&harness, &sandbox), "");
        let left = [".docker/other", "config.json", ".dockercfg", ".docker/config.json"]
            .map(|file| sandbox.join(file).exists());
        assert_eq!(left, [true, true, false, false]);
    }
}

#[test]
fn links_are_removed_and_not_followed() {
    let harness = harness(json!({}));
    let sandbox = harness.container("web").sandbox;
    let outside = harness.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("config.json"), "kept").unwrap();
    symlink(outside.join("config.json"), sandbox.join(".dockercfg")).unwrap();
    symlink(&outside, sandbox.join(".docker")).unwrap();
    let error = run(&harness, &sandbox);
    assert!(error.contains("cannot remove `.docker/config.json` from the sandbox"), "{error}");
    assert!(error.contains("is a symbolic link"), "{error}");
    fs::remove_file(sandbox.join(".docker")).unwrap();
    assert_eq!(run(&harness, &sandbox), "");
    assert!(fs::symlink_metadata(sandbox.join(".dockercfg")).is_err());
    assert_eq!(fs::read_to_string(outside.join("config.json")).unwrap(), "kept");
}

#[test]
fn a_directory_in_the_place_of_a_file_is_refused() {
    let harness = harness(json!({}));
    let sandbox = harness.container("web").sandbox;
    fs::create_dir(sandbox.join(".dockercfg")).unwrap();
    let error = run(&harness, &sandbox);
    assert!(error.contains("cannot remove `.dockercfg`") && error.contains("it is a directory"), "{error}");
}

#[test]
fn other_files_can_be_chosen() {
    let harness = harness(json!({ "files": ["secrets/token"] }));
    let sandbox = harness.container("web").sandbox;
    fs::create_dir(sandbox.join("secrets")).unwrap();
    for file in [".dockercfg", "secrets/token"] {
        fs::write(sandbox.join(file), "").unwrap();
    }
    assert_eq!(run(&harness, &sandbox), "");
    assert!(sandbox.join(".dockercfg").exists() && !sandbox.join("secrets/token").exists());
    for path in ["/etc/passwd", "../other", "a/../b", ""] {
        let refused = PluginHarness::<Credentials>::hook(json!({ "files": [path] })).err().unwrap();
        assert!(refused.message.contains("is not a path relative to the sandbox"), "{path}: {refused}");
    }
}
