//! Commands of the command line, with a daemon.

use std::process::{Command, Output};

use cofferdam_tests::is_root;
use serde_json::{Value as Json, json};

use crate::terminals::Site;

/// Runs a command with no input. Returns its exit status, its output, and its errors.
fn run(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    text(&site.piped(arguments, b""))
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn stop_lets_containers_finish_and_kills_those_that_do_not() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    for (name, line) in [
        ("polite", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"),
        ("stubborn", "trap '' TERM; echo up; while :; do sleep 0.05; done"),
    ] {
        let launched = run(&site, &["run", "-d", "--name", name, "--rootfs", &site.rootfs, "--shell", line]);
        assert_eq!(launched, (Some(0), format!("{name}\n"), String::new()));
        // It handles the signal now.
        while run(&site, &["logs", name]).1 != "up\n" {
            std::thread::yield_now();
        }
    }
    assert_eq!(run(&site, &["stop", "--time", "600", "polite"]), (Some(0), "polite\n".into(), String::new()));
    assert_eq!(run(&site, &["wait", "polite"]).0, Some(3));
    assert_eq!(run(&site, &["logs", "polite"]).1, "up\nbye\n");
    assert_eq!(
        run(&site, &["stop", "--time", "0", "stubborn"]),
        (Some(0), "stubborn\n".into(), String::new())
    );
    assert_eq!(run(&site, &["wait", "stubborn"]).0, Some(128 + 9));

    assert_eq!(run(&site, &["stop", "polite"]), (Some(0), "polite\n".into(), String::new()), "it has ended");
    let (status, _, error) = run(&site, &["stop", "nobody"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("nobody"), "{error}");
    let (status, list, _) = run(&site, &["ls", "-a"]);
    assert!(status == Some(0) && list.contains("polite") && list.contains("stubborn"), "{list}");
    for name in ["polite", "stubborn"] {
        assert_eq!(run(&site, &["rm", name]).0, Some(0));
    }
    site.finish();
}

#[test]
fn the_versions_of_both_sides_are_shown() {
    if !is_root("a root file system") {
        return;
    }
    let site = Site::new();
    let json = |text: &str| serde_json::from_str::<Json>(text).expect("JSON");
    let (status, shown, _) = run(&site, &["version", "--json"]);
    let versions = json(&shown);
    assert_eq!((status, &versions["client"]), (Some(0), &versions["agent"]));
    let mut alone = Command::new(cofferdam_tests::paths::program());
    let alone =
        alone.args(["version", "--json", "--socket", "/nowhere/agent.sock"]).output().expect("it starts");
    let (status, shown, error) = text(&alone);
    let expected =
        json!({ "client": versions["client"], "plugin_api": versions["plugin_api"], "agent": null });
    assert_eq!((status, json(&shown)), (Some(0), expected), "{error}");
    site.finish();
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_launched() {
    let program = cofferdam_tests::paths::program();
    for (arguments, expected) in [
        (&["run", "--memory", "64", "--", "true"][..], "`64m` is 64 MiB"),
        (&["run", "--cpus", "5000", "--", "true"], "--cpus is more than this host has"),
        (&["run", "--memory-limit", "4000t", "--", "true"], "--memory-limit is more than this host has"),
        (&["restart", "web"], "`cofferdam run` another"),
        (&["inspcet", "web"], "did you mean `cofferdam inspect`?"),
    ] {
        let (status, output, error) =
            text(&Command::new(&program).args(arguments).output().expect("it starts"));
        assert!(status != Some(0) && output.is_empty() && error.contains(expected), "{arguments:?}: {error}");
    }
}
