//! Rules of the house that no compiler knows: who may import whom, and where `unsafe` may live.
//!
//! They are read off manifests and `use` lines, and each failure names the rule and the file.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file below a folder of the workspace.
fn sources(folder: &str) -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "there are no sources in {folder}");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a readable file")
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).expect("a file of the workspace").display().to_string()
}

/// The files of a folder in which any of the words occurs outside of comments.
fn users(folder: &str, words: &[&str]) -> Vec<String> {
    let uses = |path: &PathBuf| {
        text(path).lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            words.iter().any(|word| code.contains(word))
        })
    };
    sources(folder).into_iter().filter(uses).map(|path| name(&path)).collect()
}

fn assert_only(rule: &str, found: Vec<String>, allowed: &[&str]) {
    let strays: Vec<_> =
        found.into_iter().filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect();
    assert!(strays.is_empty(), "{rule}; but: {strays:#?}");
}

#[test]
fn abi_stable_is_fenced_in() {
    let rule = "abi_stable is known to the boundary crate, the bridge and the loader only";
    for folder in ["host/src", "host/init", "plugin-api", "plugins", "examples"] {
        let allowed = [
            "plugin-api/abi/",
            "plugin-api/src/bridge.rs",
            "plugin-api/src/lib.rs",
            "plugin-api/src/log.rs",
            "plugin-api/src/testing",
            "host/src/plugin/",
        ];
        assert_only(rule, users(folder, &["abi_stable::"]), &allowed);
    }
}

#[test]
fn tokio_stops_at_the_host() {
    for folder in ["plugin-api", "plugins", "examples", "host/init"] {
        assert_only("tokio is known to the host only", users(folder, &["tokio::"]), &[]);
    }
}

#[test]
fn plugins_know_the_plugin_api_only() {
    for folder in ["plugins", "examples"] {
        for manifest in fs::read_dir(root().join(folder)).expect("a folder").flatten() {
            let path = manifest.path().join("Cargo.toml");
            if !path.exists() {
                continue;
            }
            let manifest = text(&path);
            let start = manifest.find("\n[dependencies]").expect("dependencies") + 1;
            let dependencies = manifest[start..].lines().skip(1).take_while(|line| !line.starts_with('['));
            for line in dependencies {
                let dependency = line.split(['=', '.', ' ']).next().unwrap_or_default();
                let allowed = ["", "cofferdam-plugin-api", "serde", "serde_json", "#"];
                assert!(allowed.contains(&dependency), "{} depends on `{dependency}`", name(&path));
            }
        }
    }
}

#[test]
fn the_host_names_no_plugin() {
    let shipped: Vec<String> = fs::read_dir(root().join("plugins"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().replacen('-', "/", 1))
        .collect();
    for path in sources("host/src") {
        // A default chain has to say which plugins it is made of, and help which to add.
        let speaks_to_people = ["config/", "cli/", "containerizer/error.rs"];
        if speaks_to_people.iter().any(|part| name(&path).contains(part)) {
            continue;
        }
        let code = text(&path);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            for plugin in &shipped {
                assert!(!line.contains(&format!("\"{plugin}\"")), "{} names {plugin}: {line}", name(&path));
            }
        }
    }
}

/// `container` is plain data; `api` and `cli` translate; nothing below calls upwards.
#[test]
fn modules_import_downwards_only() {
    let forbidden: [(&str, &[&str]); 7] = [
        ("host/src/container/", &["crate::"]),
        ("host/src/plugin/", &["crate::chain", "crate::containerizer", "crate::agent", "crate::api"]),
        ("host/src/chain/", &["crate::containerizer", "crate::launcher", "crate::ledger", "crate::agent"]),
        (
            "host/src/launcher/",
            &["crate::chain", "crate::plugin", "crate::containerizer", "crate::ledger", "crate::agent"],
        ),
        ("host/src/ledger/", &["crate::containerizer", "crate::launcher", "crate::agent"]),
        (
            "host/src/fetcher/",
            &["crate::chain", "crate::plugin", "crate::containerizer", "crate::launcher", "crate::agent"],
        ),
        ("host/src/containerizer/", &["crate::agent", "crate::api", "crate::cli", "crate::config"]),
    ];
    for (folder, words) in forbidden {
        assert_only(&format!("{folder} does not import {words:?}"), users(folder, words), &[]);
    }
}

/// Each file that opens with `#![allow(unsafe_code)]` is a room of its own; so is a function that says why.
#[test]
fn unsafe_lives_in_rooms() {
    for folder in ["host/src", "plugin-api", "plugins", "examples"] {
        for path in sources(folder) {
            let code = text(&path);
            let is_unsafe = code.lines().any(|line| {
                let line = line.split("//").next().unwrap_or_default();
                line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
            });
            if is_unsafe && !name(&path).contains("tests") {
                assert!(
                    code.contains("allow(unsafe_code"),
                    "{} has `unsafe` and is not a room for it",
                    name(&path)
                );
            }
        }
    }
}

#[test]
fn every_dependency_is_argued_for() {
    let manifest = text(&root().join("Cargo.toml"));
    let start = manifest.find("[workspace.dependencies]").expect("a table");
    let argued = text(&root().join("docs/dependencies.md"));
    for line in manifest[start..].lines().skip(1).take_while(|line| !line.starts_with('[')) {
        let Some((dependency, _)) = line.split_once(" = ") else { continue };
        if dependency.starts_with("cofferdam") {
            continue;
        }
        assert!(
            argued.contains(&format!("`{dependency}`")),
            "docs/dependencies.md does not argue for `{dependency}`"
        );
    }
}
