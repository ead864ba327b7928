//! A plugin that is written without the source tree: on the packaged crates alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::world::entry;
use serde_json::json;

use crate::fixture::{assert_works, id, long_running, plain};

/// The crates that a plugin author depends on, directly or not, with their directories.
const CRATES: [(&str, &str); 5] = [
    ("cofferdam-linux", "plugin-api/linux"),
    ("cofferdam-plugin-abi", "plugin-api/abi"),
    ("cofferdam-plugin-api", "plugin-api"),
    ("cofferdam-plugin-macros", "plugin-api/macros"),
    ("cofferdam-plugin-model", "plugin-api/model"),
];

const SOURCE: &str = r#"
use cofferdam_plugin_api::prelude::*;

struct Building;

#[cofferdam_plugin_api::isolator]
impl Isolator for Building {
    const NAME: &'static str = "outside/building";
    const FEATURES: &'static [&'static str] = &["launch.seccomp"];
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
        Prepared::new().environment("BUILDING", "north").state(&"north")
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        Ok(Status::default().with("building", json!(container.state::<String>()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofferdam_plugin_api::testing::PluginHarness;

    #[test]
    fn the_variable_is_set() {
        let harness = PluginHarness::<Building>::isolator(json!({})).unwrap();
        assert_eq!(harness.prepare("web").unwrap().launch.environment["BUILDING"], "north");
        harness.cleanup("web").unwrap();
    }
}
"#;

/// A hook of containers of an engine, on the same crates.
const HOOK: &str = r#"
use cofferdam_plugin_api::model::{DockerLaunch, DockerLaunchReply};
use cofferdam_plugin_api::prelude::*;

struct Policy;

#[cofferdam_plugin_api::hook]
impl Hook for Policy {
    const NAME: &'static str = "outside/policy";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn pre_launch_docker(&self, call: &HookCall<'_, DockerLaunch>) -> Result<DockerLaunchReply> {
        if call.privileged {
            return Err(Error::new(format!("`{}` may not be privileged", call.container())));
        }
        let team = call.labels.get("team").cloned().unwrap_or_default();
        let task_environment = [("TEAM".to_owned(), team)].into();
        Ok(DockerLaunchReply { task_environment, ..DockerLaunchReply::default() })
    }
}
"#;

fn run(command: &mut Command) {
    // Not inherited from the `cargo test` around this: they describe another package.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn cargo(directory: &Path, target: &Path) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(directory).env("CARGO_TARGET_DIR", target).args(["--offline", "--quiet"]);
    cargo
}

/// Packages the crates, and unpacks them outside of the workspace.
fn package(workspace: &Path, target: &Path, into: &Path) {
    let mut cargo = cargo(workspace, target);
    cargo.args(["package", "--allow-dirty", "--no-verify"]);
    for (name, _) in CRATES {
        cargo.args(["--package", name]);
    }
    run(&mut cargo);
    for (name, directory) in CRATES {
        let manifest = fs::read_to_string(workspace.join(directory).join("Cargo.toml")).unwrap();
        let version = manifest.lines().find_map(|line| line.strip_prefix("version = ")).unwrap();
        let archive = target.join(format!("package/{name}-{}.crate", version.trim_matches('"')));
        let unpacked = into.join(name);
        fs::create_dir_all(&unpacked).unwrap();
        run(Command::new("tar")
            .arg("-xzf")
            .arg(archive)
            .arg("--strip-components=1")
            .arg("-C")
            .arg(&unpacked));
        for file in ["LICENSE", "README.md", "Cargo.toml", "src/lib.rs"] {
            assert!(unpacked.join(file).is_file(), "`{file}` is missing in the package of `{name}`");
        }
    }
}

/// Builds and tests an isolator and a hook on the packaged crates, and returns their libraries.
fn build(directory: &Path) -> [PathBuf; 2] {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    // Kept between runs, so that the dependencies are compiled once.
    let target = workspace.join("target/outside");
    package(workspace, &target, &directory.join("crates"));
    let plugin = directory.join("building");
    for (file, source) in [("src/lib.rs", SOURCE), ("examples/policy.rs", HOOK)] {
        fs::create_dir_all(plugin.join(file).parent().unwrap()).unwrap();
        fs::write(plugin.join(file), source).unwrap();
    }
    // The versions that were downloaded for the workspace.
    fs::copy(workspace.join("Cargo.lock"), plugin.join("Cargo.lock")).unwrap();
    let patches: String =
        CRATES.iter().map(|(name, _)| format!("{name} = {{ path = \"../crates/{name}\" }}\n")).collect();
    let manifest = format!(
        "[package]\nname = \"building\"\nversion = \"1.0.0\"\ndescription = \"Sets a variable\"\n\
         edition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
         [[example]]\nname = \"policy\"\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\ncofferdam-plugin-api = \"1\"\n[patch.crates-io]\n{patches}"
    );
    fs::write(plugin.join("Cargo.toml"), manifest).unwrap();
    run(cargo(&plugin, &target).args(["build", "--lib", "--examples"]));
    run(cargo(&plugin, &target).args(["test"]));
    ["libbuilding.so", "examples/libpolicy.so"].map(|file| {
        let built = target.join("debug").join(file);
        let library = directory.join(built.file_name().unwrap());
        fs::copy(built, &library).unwrap();
        library
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_built_on_the_packaged_crates_works() {
    let mut world = plain();
    let directory = world.directory().join("outside");
    let [isolator, hook] = build(&directory);
    world.config.isolators =
        vec![PluginConfig { path: Some(isolator), ..entry("outside/building", json!({})) }];
    world.config.hooks = vec![PluginConfig { path: Some(hook), ..entry("outside/policy", json!({})) }];
    let agent = world.start().await.unwrap();
    let loaded = agent.plugins().pop().unwrap();
    assert_eq!(
        (loaded.kind.as_str(), loaded.methods.join(" ")),
        ("hook", "create pre_launch_docker".to_owned())
    );
    agent.launch(long_running("web")).await.unwrap();
    assert_eq!(agent.status(&id("web")).await.unwrap().status["building"], json!("north"));
    agent.destroy(&id("web")).await.unwrap();
    assert_works(&agent).await;
}
