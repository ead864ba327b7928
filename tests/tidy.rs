//! Rules of the house that no compiler knows: who may import whom, and where `unsafe` may live.
//!
//! They are read off manifests and `use` lines, and each failure names the rule and the file.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file below a folder of the workspace.
fn sources(directory: &str) -> Vec<PathBuf> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found);
    assert!(!found.is_empty(), "there are no sources in {directory}");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a readable file")
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).expect("a file of the workspace").display().to_string()
}

/// The files of a folder in which any of the words occurs outside of comments.
fn users(directory: &str, words: &[&str]) -> Vec<String> {
    let uses = |path: &PathBuf| {
        text(path).lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            words.iter().any(|word| code.contains(word))
        })
    };
    sources(directory).into_iter().filter(uses).map(|path| name(&path)).collect()
}

fn assert_only(rule: &str, found: Vec<String>, allowed: &[&str]) {
    let strays: Vec<_> =
        found.into_iter().filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect();
    assert!(strays.is_empty(), "{rule}; but: {strays:#?}");
}

#[test]
fn abi_stable_is_fenced_in() {
    let rule = "abi_stable is known to the boundary crate, the bridge and the loader only";
    for directory in ["host/src", "host/core", "host/init", "plugin-api", "plugins", "examples"] {
        let allowed = [
            "plugin-api/abi/",
            "plugin-api/src/bridge.rs",
            "plugin-api/src/lib.rs",
            "plugin-api/src/log.rs",
            "plugin-api/src/testing",
            "host/core/src/plugin/load.rs",
            "host/core/src/plugin/log.rs",
            "host/core/src/plugin/placement/in_process.rs",
            "host/core/src/plugin/preflight.rs",
        ];
        assert_only(rule, users(directory, &["abi_stable::"]), &allowed);
    }
}

#[test]
fn tokio_stops_at_the_host() {
    let rule = "tokio is known to the host and to programs that embed it";
    for directory in ["plugin-api", "plugins", "examples", "host/init"] {
        assert_only(rule, users(directory, &["tokio::"]), &["examples/embed/"]);
    }
}

/// The crates of a directory whose manifests satisfy a condition, with their manifests.
fn manifests(directory: &str, condition: impl Fn(&str) -> bool) -> Vec<(PathBuf, String)> {
    let crates = fs::read_dir(root().join(directory)).expect("a directory").flatten();
    let paths = crates.map(|entry| entry.path().join("Cargo.toml")).filter(|path| path.exists());
    let found: Vec<_> =
        paths.map(|path| (path.clone(), text(&path))).filter(|(_, text)| condition(text)).collect();
    assert!(!found.is_empty(), "there are no such crates in {directory}");
    found
}

fn is_plugin(manifest: &str) -> bool {
    manifest.contains("crate-type = [\"cdylib\"")
}

fn assert_dependencies(path: &Path, manifest: &str, allowed: &[&str]) {
    let start = manifest.find("\n[dependencies]").expect("dependencies") + 1;
    let dependencies = manifest[start..].lines().skip(1).take_while(|line| !line.starts_with('['));
    for line in dependencies.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let dependency = line.split(['=', '.', ' ']).next().unwrap_or_default();
        assert!(allowed.contains(&dependency), "{} depends on `{dependency}`", name(path));
    }
}

#[test]
fn plugins_know_the_plugin_api_only() {
    let allowed = ["cofferdam-plugin-api", "serde", "serde_json"];
    for (path, manifest) in manifests("plugins", |_| true) {
        assert!(is_plugin(&manifest), "{} is not a plugin", name(&path));
        assert_dependencies(&path, &manifest, &allowed);
    }
    for (path, manifest) in manifests("examples", is_plugin) {
        assert_dependencies(&path, &manifest, &allowed);
    }
}

#[test]
fn programs_that_embed_the_agent_know_its_core_only() {
    for (path, manifest) in manifests("examples", |manifest| !is_plugin(manifest)) {
        assert_dependencies(&path, &manifest, &["cofferdam-core", "tempfile", "tokio"]);
    }
}

#[test]
fn the_host_names_no_plugin() {
    let shipped: Vec<String> = fs::read_dir(root().join("plugins"))
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().replacen('-', "/", 1))
        .collect();
    for path in sources("host/src").into_iter().chain(sources("host/core")) {
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

/// Imports of `host/core` go downwards: a module imports only those in its row.
#[test]
fn modules_of_the_core_import_downwards_only() {
    let allowed: [(&str, &[&str]); 13] = [
        ("model/", &[]),
        ("error_chain.rs", &[]),
        ("readiness.rs", &[]),
        ("stats.rs", &[]),
        ("config.rs", &["agent"]),
        ("blocking/", &[]),
        ("ledger/", &["model"]),
        ("launcher/", &[]),
        ("fetcher/", &["model", "error_chain"]),
        ("plugin/", &["blocking", "config", "model", "error_chain"]),
        ("chain/", &["blocking", "config", "model", "plugin"]),
        (
            "containerizer/",
            &[
                "blocking",
                "chain",
                "error_chain",
                "fetcher",
                "launcher",
                "ledger",
                "model",
                "plugin",
                "readiness",
            ],
        ),
        (
            "agent.rs",
            &[
                "blocking",
                "chain",
                "config",
                "containerizer",
                "fetcher",
                "launcher",
                "ledger",
                "model",
                "plugin",
                "stats",
            ],
        ),
    ];
    for path in sources("host/core/src") {
        let file = name(&path);
        let file = file.strip_prefix("host/core/src/").expect("a file of the core");
        if file == "lib.rs" {
            continue;
        }
        let (module, allowed) =
            allowed.iter().find(|(module, _)| file.starts_with(module)).expect("a row for every module");
        let own = module.trim_end_matches(['/']).trim_end_matches(".rs");
        for imported in imports(&text(&path)) {
            assert!(
                imported == own || allowed.contains(&imported.as_str()),
                "host/core/src/{file} imports `crate::{imported}`"
            );
        }
    }
}

/// The top-level modules that a file refers to as `crate::…`, outside of comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn the_core_has_no_http_command_line_or_configuration_files() {
    let manifest = text(&root().join("host/core/Cargo.toml"));
    for dependency in ["axum", "clap", "hyper", "toml", "ureq"] {
        assert!(!manifest.contains(&format!("\n{dependency} ")), "host/core depends on `{dependency}`");
    }
}

/// Each file that opens with `#![allow(unsafe_code)]` is a room of its own; so is a function that says why.
#[test]
fn unsafe_lives_in_rooms() {
    for directory in ["host/src", "host/core", "plugin-api", "plugins", "examples"] {
        for path in sources(directory) {
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
