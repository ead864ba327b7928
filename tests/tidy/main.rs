//! Rules of this repository that the compiler does not check: imports, dependencies, places of `unsafe`, vocabulary.
//!
//! Each failure names the rule, the file, and what to do.

mod import_cycles;
mod imports;
mod words;
mod workspace;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use workspace::{files, name, root, sources, text};

/// The files of a directory in which any of the words occurs outside of comments.
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
    assert!(strays.is_empty(), "{rule}; these do as well: {strays:#?}");
}

#[test]
fn abi_stable_is_used_by_the_boundary_only() {
    let rule = "only the boundary crate, the bridge and the loader use abi_stable";
    for directory in ["host/src", "host/core", "host/init", "plugin-api", "plugins", "examples"] {
        let allowed = [
            "plugin-api/abi/",
            "plugin-api/src/bridge.rs",
            "plugin-api/src/host.rs",
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
fn only_the_host_uses_tokio() {
    let rule = "only the host and programs that embed it use tokio";
    for directory in ["plugin-api", "plugins", "examples", "host/executor", "host/init"] {
        assert_only(rule, users(directory, &["tokio::"]), &["examples/embed/"]);
    }
}

#[test]
fn nothing_needs_a_thread_that_may_not_be_created() {
    let rule = "`tokio::task::spawn_blocking` and what uses it panics, and `std::thread::spawn` too, when the kernel creates \
                no more threads; use `blocking::WorkPool`, or `std::thread::Builder`";
    let words = ["spawn_blocking", "tokio::fs", "lookup_host", "thread::spawn", "scope.spawn("];
    for directory in ["host/src", "host/core/src", "plugin-api", "plugins"] {
        let uses = |path: &PathBuf| {
            let code = text(path);
            let code = code.split("#[cfg(test)]").next().unwrap_or_default();
            let is_test =
                path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
            let mut lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
            !is_test && lines.any(|line| words.iter().any(|word| line.contains(word)))
        };
        let found = sources(directory).into_iter().filter(uses).map(|path| name(&path)).collect();
        // A program of its own.
        assert_only(rule, found, &["host/src/image/pull/"]);
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
fn plugins_depend_on_the_plugin_api_only() {
    let allowed = ["cofferdam-plugin-api", "serde", "serde_json"];
    // The format of profiles, with the position of an error, and the numbers of system calls.
    let of_seccomp = ["serde_path_to_error", "syscalls"];
    // The answers of drivers, and connections to them with a timeout.
    let of_docker_volume = ["httparse", "rustix"];
    // Compression, and moving bytes from a pipe to a file.
    let of_logrotate = ["flate2", "rustix"];
    // Moving bytes from a pipe to a file, and sending them.
    let of_journald = ["rustix"];
    let of_tee = ["rustix"];
    for (path, manifest) in manifests("plugins", |_| true) {
        assert!(is_plugin(&manifest), "{} is not a plugin", name(&path));
        let more: &[&str] = match name(&path) {
            path if path.contains("linux-seccomp") => &of_seccomp,
            path if path.contains("docker-volume") => &of_docker_volume,
            path if path.contains("logger-logrotate") => &of_logrotate,
            path if path.contains("logger-journald") => &of_journald,
            path if path.contains("logger-tee") => &of_tee,
            _ => &[],
        };
        assert_dependencies(&path, &manifest, &[&allowed, more].concat());
    }
    for (path, manifest) in manifests("examples", is_plugin) {
        assert_dependencies(&path, &manifest, &allowed);
    }
}

#[test]
fn programs_that_embed_the_agent_depend_on_its_core_only() {
    for (path, manifest) in manifests("examples", |manifest| !is_plugin(manifest)) {
        assert_dependencies(&path, &manifest, &["cofferdam-core", "tempfile", "tokio"]);
    }
}

#[test]
fn the_host_does_not_depend_on_single_plugins() {
    let shipped: Vec<String> = fs::read_dir(root().join("plugins"))
        .expect("a directory")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().replacen('-', "/", 1))
        .collect();
    for path in sources("host/src").into_iter().chain(sources("host/core")) {
        // A default chain names its plugins, and hints name plugins to add.
        let may_name_plugins = ["config/", "cli/", "containerizer/error.rs"];
        if may_name_plugins.iter().any(|part| name(&path).contains(part)) {
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

/// A plugin may be in another process than the agent.
#[test]
fn plugins_know_of_the_agent_what_it_tells_them() {
    const WORDS: [&str; 8] = [
        "OwnSets",
        "own_hard_limits",
        "/proc/self/status",
        "/proc/self/limits",
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        "env::",
        "current_dir",
    ];
    for path in sources("plugins").into_iter().filter(|path| !path.ends_with("tests.rs")) {
        let code = text(&path);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in WORDS {
                assert!(
                    !line.contains(word),
                    "{} uses its own process, not `Host::agent`: {line}",
                    name(&path)
                );
            }
        }
    }
}

/// A plugin is mapped and relocated at every start.
#[test]
fn every_plugin_is_optimised_for_size() {
    let workspace = text(&root().join("Cargo.toml"));
    for (path, manifest) in manifests("plugins", |_| true) {
        let package = manifest.split("name = \"").nth(1).and_then(|rest| rest.split('"').next());
        let package = package.unwrap_or_else(|| panic!("{} has no name", name(&path)));
        let profile = format!("[profile.release.package.{package}]\nopt-level = \"s\"\n");
        assert!(
            workspace.contains(&profile),
            "`{package}` has no release profile like that of other plugins"
        );
    }
}

#[test]
fn the_tables_of_plugins_have_all_of_them() {
    let name_of = |(path, _): (PathBuf, String)| {
        let directory =
            path.parent().and_then(Path::file_name).expect("a directory").to_string_lossy().into_owned();
        match directory.strip_prefix("logger-") {
            Some(logger) => logger.to_owned(),
            None => directory.replacen('-', "/", 1).replace('-', "_"),
        }
    };
    let plugins: BTreeSet<String> = manifests("plugins", is_plugin).into_iter().map(name_of).collect();
    let readme = text(&root().join("README.md"));
    let table = readme.split("## What is isolated").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = table.expect("a section").lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.split('|').nth(2)).flat_map(|cell| cell.split(','));
    let mut listed: Vec<&str> =
        cells.filter_map(|name| name.trim().strip_prefix('`')?.strip_suffix('`')).collect();
    listed.sort_unstable();
    assert_eq!(listed, plugins.iter().collect::<Vec<_>>(), "README.md");

    let predefined = text(&root().join("host/src/config/isolation/docker.toml"));
    let guide = text(&root().join("docs/operator.md"));
    for plugin in plugins.iter().filter(|plugin| *plugin != "sandbox") {
        let link = format!("| [`{plugin}`](../plugins/");
        let rows: Vec<&str> = guide.lines().filter(|line| line.starts_with(&link)).collect();
        let [row] = rows[..] else { panic!("docs/operator.md has {} rows for {plugin}", rows.len()) };
        let is_predefined = predefined.contains(&format!("name = \"{plugin}\""));
        assert_eq!(row.contains(" • |"), is_predefined, "docs/operator.md: {row}");
    }
}

#[test]
fn the_core_has_no_http_command_line_or_configuration_files() {
    let manifest = text(&root().join("host/core/Cargo.toml"));
    for dependency in ["axum", "clap", "hyper", "toml", "ureq"] {
        assert!(!manifest.contains(&format!("\n{dependency} ")), "host/core depends on `{dependency}`");
    }
}

/// What a container has written is removed by `cofferdam_linux::tree` alone.
#[test]
fn only_one_routine_removes_directory_trees() {
    for directory in
        ["host/src", "host/core", "host/executor/src", "host/init/src", "plugin-api", "plugins", "examples"]
    {
        for path in sources(directory).into_iter().filter(|path| !name(path).contains("tests")) {
            let code = text(&path);
            let code = code.split("#[cfg(test)]").next().unwrap_or_default();
            assert!(
                !code.contains("remove_dir_all"),
                "{} uses `remove_dir_all`, which recurses and removes what is mounted; use `tree::remove`",
                name(&path)
            );
        }
    }
}

/// `unsafe` needs a module with `#![allow(unsafe_code)]`, or a function with that attribute and a reason.
#[test]
fn unsafe_is_confined_to_modules_made_for_it() {
    for directory in ["host/src", "host/core", "host/executor", "plugin-api", "plugins", "examples"] {
        for path in sources(directory) {
            let code = text(&path);
            let is_unsafe = code.lines().any(|line| {
                let line = line.split("//").next().unwrap_or_default();
                line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
            });
            if is_unsafe && !name(&path).contains("tests") {
                assert!(
                    code.contains("allow(unsafe_code"),
                    "{} has `unsafe` without `allow(unsafe_code)`; move it into a module made for it",
                    name(&path)
                );
            }
        }
    }
}

#[test]
fn every_dependency_is_justified() {
    let manifest = text(&root().join("Cargo.toml"));
    let start = manifest.find("[workspace.dependencies]").expect("a table");
    let documented = text(&root().join("docs/dependencies.md"));
    for line in manifest[start..].lines().skip(1).take_while(|line| !line.starts_with('[')) {
        let Some((dependency, _)) = line.split_once(" = ") else { continue };
        if dependency.starts_with("cofferdam") {
            continue;
        }
        assert!(
            documented.contains(&format!("`{dependency}`")),
            "docs/dependencies.md has no line for `{dependency}`; add why it is used"
        );
    }
}

/// A decision is referred to by its number.
#[test]
fn decisions_have_numbers_of_their_own() {
    let mut numbers = BTreeSet::new();
    for path in files("docs/adr") {
        let file = name(&path);
        let number = file.trim_start_matches("docs/adr/").split('-').next().unwrap_or_default().to_owned();
        let title = format!("# {}. ", number.trim_start_matches('0'));
        assert!(text(&path).starts_with(&title), "{file} does not begin with `{title}`");
        assert!(numbers.insert(number), "{file} has the number of another one");
    }
    // A row that stands twice was left by a merge.
    for file in
        ["docs/dependencies.md", "docs/operator.md", "docs/differences.md", "docs/api.md", "CHANGELOG.md"]
    {
        let mut rows = BTreeSet::new();
        for line in text(&root().join(file)).lines().filter(|line| line.len() > 60 && !line.starts_with('{'))
        {
            assert!(rows.insert(line.to_owned()), "{file} has twice: {line}");
        }
    }
    let mut crates = BTreeSet::new();
    for row in text(&root().join("docs/dependencies.md")).lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap_or_default().trim();
        for name in cell.split(", ") {
            assert!(crates.insert(name.to_owned()), "docs/dependencies.md has two rows for {name}");
        }
    }
}
