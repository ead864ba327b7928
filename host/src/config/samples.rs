//! Whole files, good and bad: `samples/valid` must resolve, and what is wrong with each file of
//! `samples/invalid` must read as the text beside it says. `BLESS=1` writes those texts anew.

use cofferdam_core::config::{FailPolicy, LauncherKind};
use cofferdam_plugin_model::Method;

use super::*;

/// Plugins as JSON manifests, since what they are is not the matter here.
struct Manifests;

impl PluginIndex for Manifests {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| (file.clone(), self.at(&file).map(|(manifest, _)| manifest))).collect()
    }

    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable> {
        Ok((serde_json::from_slice(&fs::read(file)?)?, "ab".repeat(32)))
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/samples").join(name)
}

fn environment(uid: u32) -> Environment {
    Environment {
        uid,
        cwd: directory("valid"),
        run: PathBuf::from("/run/cofferdam"),
        state: PathBuf::from("/var/lib/cofferdam"),
        plugins: directory("plugins"),
        usual_file: PathBuf::from("/nowhere"),
    }
}

fn files(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn load(file: &Path) -> Result<Config, ConfigError> {
    let uid = if file.file_stem().unwrap().to_str().unwrap().starts_with("user-") { 1000 } else { 0 };
    Config::load(file, &Overrides::default(), &environment(uid), &Manifests)
}

#[test]
fn good_files_resolve() {
    for file in files("valid") {
        if let Err(error) = load(&file) {
            panic!("{}:\n{error}", file.display());
        }
    }
}

#[test]
fn what_is_wrong_is_shown_as_written_down() {
    for file in files("invalid") {
        let here = directory("invalid");
        let shown = load(&file).expect_err(&format!("{} resolved", file.display())).to_string();
        let shown = shown
            .replace(&format!("{}/", here.display()), "")
            .replace(&directory("").display().to_string(), "samples/")
            + "\n";
        let expected = file.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(shown, expected, "{} reads otherwise; BLESS=1 accepts it", file.display());
    }
}

#[test]
fn a_file_is_resolved_to_what_was_meant() {
    let config = load(&directory("valid/everything.toml")).unwrap();
    assert_eq!(config.agent.runtime_dir, directory("valid/run"));
    assert_eq!(config.agent.work_dir, PathBuf::from("/srv/cofferdam"));
    assert_eq!(config.socket, directory("valid/run/api.sock"));
    assert_eq!(config.agent.plugin_dir, directory("plugins"));
    assert_eq!(config.agent.launcher, LauncherKind::Linux);
    assert_eq!((config.api.body, config.api.idle), (64 << 10, Duration::from_secs(5)));
    let names: Vec<&str> = config.agent.isolators.iter().map(|plugin| plugin.name.as_str()).collect();
    assert_eq!(names, ["filesystem/linux", "cgroups/mem"]);
    let mem = &config.agent.isolators[1];
    assert_eq!(mem.policy, FailPolicy::Optional);
    assert_eq!(mem.timeout(Method::Prepare), Duration::from_secs(10));
    assert_eq!(mem.timeout(Method::Isolate), Duration::from_secs(7));
    assert_eq!(mem.timeout(Method::Usage), Duration::from_secs(5));
    assert_eq!(mem.table, serde_json::json!({"limit_swap": true, "reserve": "64 MiB", "kinds": ["a", "b"]}));
    assert!(mem.origin.ends_with("everything.toml:26"), "{}", mem.origin);
    assert_eq!(config.agent.logger.unwrap().name, "sandbox");
}

#[test]
fn a_flag_overrides_the_key_of_its_name_and_what_follows_from_it() {
    let overrides =
        Overrides { runtime_dir: Some("/r".into()), log: Some("debug".into()), ..Overrides::default() };
    let config =
        Config::load(&directory("valid/empty.toml"), &overrides, &environment(0), &Manifests).unwrap();
    assert_eq!(config.socket, PathBuf::from("/r/agent.sock"));
    assert_eq!(config.agent.work_dir, PathBuf::from("/var/lib/cofferdam"));
    assert_eq!(config.log, "debug");
    assert!(config.agent.isolators.is_empty() && config.agent.logger.is_none());

    let overrides =
        Overrides { socket: Some("x".repeat(200).into()), log: Some("a=b=c".into()), ..overrides };
    let error =
        Config::load(&directory("valid/empty.toml"), &overrides, &environment(0), &Manifests).unwrap_err();
    let ConfigError::Findings(findings) = error else { panic!("{error}") };
    assert_eq!(findings.findings().len(), 2, "{findings}");
}

#[test]
fn without_a_file_the_usual_plugins_are_used_as_far_as_they_are_there() {
    let config = Config::embedded(&Overrides::default(), &environment(0), &Manifests).unwrap();
    let names: Vec<&str> = config.agent.isolators.iter().map(|plugin| plugin.name.as_str()).collect();
    assert_eq!(names, CHAIN_OF_ROOT);
    assert_eq!(config.agent.logger.unwrap().name, "sandbox");

    let config = Config::embedded(&Overrides::default(), &environment(1000), &Manifests).unwrap();
    assert_eq!(config.agent.launcher, LauncherKind::Posix);
    assert_eq!(config.agent.isolators.len(), CHAIN_OF_OTHERS.len());

    let empty = tempfile::tempdir().unwrap();
    let overrides = Overrides { plugin_dir: Some(empty.path().to_owned()), ..Overrides::default() };
    let error = Config::embedded(&overrides, &environment(0), &Manifests).unwrap_err().to_string();
    assert!(error.contains("there is no plugin `sandbox`"), "{error}");
}

#[test]
fn the_examples_resolve() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let overrides = Overrides { plugin_dir: Some(directory("plugins")), ..Overrides::default() };
    for (file, uid, plugins) in [("agent.toml", 0, 7), ("user.toml", 1000, 2)] {
        match Config::load(&examples.join(file), &overrides, &environment(uid), &Manifests) {
            Ok(config) => {
                assert_eq!((config.agent.isolators.len(), config.agent.logger.is_some()), (plugins, true))
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/nowhere/agent.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file `/nowhere/agent.toml`");
}
