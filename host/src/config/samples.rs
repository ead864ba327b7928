//! Sample files: each file in `samples/valid` must be accepted, and the diagnostics of each file in `samples/invalid`
//! must match the text file next to it. `BLESS=1` updates these text files.

use std::collections::BTreeMap;
use std::sync::Arc;

use cofferdam_core::config::{
    ContainerizerConfig, DEFAULT_CGROUP_MAX_DEPTH, DEFAULT_CGROUP_MAX_DESCENDANTS, DockerConfig,
    ExecutorConfig, FailPolicy, LauncherKind, RegistryConfig,
};
use cofferdam_core::engine::Timeouts;
use cofferdam_plugin_model::{Manifest, Method};

use super::*;
use cofferdam_core::provisioner::Backend;

/// An index of files that contain a manifest as JSON.
struct Manifests;

impl PluginIndex for Manifests {
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| (file.clone(), self.manifest(&file))).collect()
    }

    fn manifest(&self, file: &Path) -> Result<Manifest, Unusable> {
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }

    fn sha256(&self, _: &Path) -> Result<String, Unusable> {
        Ok("ab".repeat(32))
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/samples").join(name)
}

fn environment(uid: u32) -> Environment {
    Environment {
        uid,
        cwd: directory("valid"),
        runtime_dir: PathBuf::from("/run/cofferdam"),
        work_dir: PathBuf::from("/var/lib/cofferdam"),
        plugin_dir: directory("plugins"),
        launcher_dir: PathBuf::from("/programs"),
        config_file: PathBuf::from("/nowhere"),
        credentials: Vec::new(),
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
fn valid_files_are_accepted() {
    for file in files("valid") {
        if let Err(error) = load(&file) {
            panic!("{}:\n{error}", file.display());
        }
    }
}

#[test]
fn diagnostics_of_invalid_files_match_the_expected_text() {
    for file in files("invalid") {
        let here = directory("invalid");
        let shown = load(&file).expect_err(&format!("{} was accepted", file.display())).to_string();
        let shown = shown
            .replace(&format!("{}/", here.display()), "")
            .replace(&directory("").display().to_string(), "samples/")
            + "\n";
        let expected = file.with_extension("txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(shown, expected, "{} has other diagnostics; BLESS=1 updates them", file.display());
    }
}

#[test]
fn all_settings_are_resolved() {
    let config = load(&directory("valid/everything.toml")).unwrap();
    assert_eq!(config.agent.runtime_dir, directory("valid/run"));
    assert_eq!(config.agent.work_dir, PathBuf::from("/srv/cofferdam"));
    assert_eq!(config.socket, directory("valid/run/api.sock"));
    assert_eq!(config.agent.plugin_dir, directory("plugins"));
    assert_eq!(config.agent.launcher, LauncherKind::Linux);
    let (launch_timeout, destroy_timeout) = (config.agent.launch_timeout, config.agent.destroy_timeout);
    assert_eq!((launch_timeout, destroy_timeout), (Duration::from_secs(30), Duration::from_secs(90)));
    assert_eq!((config.agent.cgroup_max_descendants, config.agent.cgroup_max_depth), (200, 8));
    assert_eq!(config.agent.scratch_memory, Some(2 << 30));
    let [ContainerizerConfig::Docker(docker), ContainerizerConfig::Mesos] = &config.agent.containerizers[..]
    else {
        panic!("{:?}", config.agent.containerizers)
    };
    assert_eq!(docker.engine.socket(), directory("valid/engine.sock"));
    assert_eq!(docker.sandbox_directory, PathBuf::from("/sandbox"));
    assert_eq!(docker.credentials, Some(directory("valid/docker.json")));
    assert_eq!(docker.mesos_image.as_deref(), Some("cofferdam:1.0"));
    assert_eq!((docker.remove_delay, docker.kill_orphans), (Duration::ZERO, false));
    let seconds = |seconds| Duration::from_secs(seconds);
    let timeouts = Timeouts { call: seconds(5), launch: seconds(10), pull_stall: seconds(60) };
    assert_eq!(docker.timeouts, timeouts);
    assert_eq!(config.agent.image_store.as_deref(), Some(Path::new("/srv/images")));
    assert_eq!(config.agent.image_backend, Backend::Copy);
    let local = [directory("valid/images"), PathBuf::from("/srv/archives")];
    assert_eq!(config.agent.local_images, local);
    assert_eq!(config.socket_access, SocketAccess { mode: 0o660, group: Some(0) });
    let tcp = TcpConfig { address: "[::1]:5051".parse().unwrap(), token_file: directory("valid/token") };
    assert_eq!(config.tcp, Some(tcp));
    assert_eq!((config.api.max_body, config.api.idle_timeout), (64 << 10, Duration::from_secs(5)));
    let executors = &config.agent.executors;
    assert_eq!(executors.launcher_dir.as_deref(), Some(Path::new("/usr/libexec/cofferdam")));
    assert_eq!(
        (executors.registration_timeout, executors.reregistration_timeout),
        (seconds(120), seconds(3))
    );
    assert_eq!((executors.shutdown_grace_period, executors.recovery_timeout), (seconds(7), seconds(3600)));
    assert_eq!((executors.switch_user, executors.max_completed_executors), (false, 3));
    assert_eq!(executors.environment_variables["LANG"], "C.UTF-8");
    assert_eq!(config.default_container_info.as_ref().unwrap()["hostname"], "task");
    let fetch = &config.agent.fetch;
    assert_eq!((fetch.bytes, fetch.files, fetch.ratio, fetch.redirects), (2 << 30, 10, 50, 0));
    assert_eq!(config.agent.fetch_credentials, Some(directory("valid/netrc")));
    let cache = config.agent.fetch_cache.as_ref().unwrap();
    assert_eq!((cache.directory.as_path(), cache.size), (Path::new("/srv/fetched"), 5 << 30));
    assert_eq!(fetch.hosts, ["example.com", "*.example.com", "10.0.0.1", "2001:db8::1"]);
    let mirrors = ["mirror.example", "mirror.example:5000"].map(str::to_owned);
    let registry = RegistryConfig {
        mirrors: BTreeMap::from([("docker.io".to_owned(), mirrors.to_vec())]),
        insecure: vec!["registry.example:5000".to_owned()],
        redirect_hosts: vec!["*.example.com".to_owned()],
        credentials: Some(directory("valid/registry.json")),
        stall: Duration::from_secs(15),
    };
    assert_eq!(config.agent.registry, registry);
    let gc = &config.agent.image_gc;
    assert_eq!((gc.headroom_percent, gc.check_interval), (15, Duration::from_secs(600)));
    assert_eq!(gc.excluded, ["busybox:1.36".parse().unwrap()]);
    assert_eq!(names(&config), ["filesystem/linux", "cgroups/mem"]);
    let mem = &config.agent.isolators[1];
    assert_eq!(mem.policy, FailPolicy::Optional);
    assert_eq!(mem.timeout(Method::Prepare), Duration::from_secs(10));
    assert_eq!(mem.timeout(Method::Isolate), Duration::from_secs(7));
    assert_eq!(mem.timeout(Method::Usage), Duration::from_secs(5));
    assert_eq!(mem.table, serde_json::json!({"limit_swap": true, "reserve": "64 MiB", "kinds": ["a", "b"]}));
    assert!(mem.origin.ends_with("everything.toml:84"), "{}", mem.origin);
    assert_eq!(config.agent.logger.unwrap().name, "sandbox");
    let [early, late] = &config.agent.hooks[..] else { panic!("{:?}", config.agent.hooks) };
    assert_eq!((early.name.as_str(), early.policy), ("example/early", FailPolicy::Required));
    assert_eq!((late.name.as_str(), late.policy), ("example/late", FailPolicy::Optional));
    assert_eq!(late.timeout(Method::TaskStatus), seconds(1));
    assert_eq!(late.timeout(Method::PostFetch), seconds(30));
    assert_eq!(late.table, serde_json::json!({"label": "rack"}));
}

#[test]
fn the_default_limits_are_those_of_the_library() {
    let config = load(&directory("valid/empty.toml")).unwrap();
    let launcher_dir = Some(environment(0).launcher_dir);
    assert_eq!(config.agent.executors, ExecutorConfig { launcher_dir, ..ExecutorConfig::default() });
    let limits = (config.agent.cgroup_max_descendants, config.agent.cgroup_max_depth);
    assert_eq!(limits, (DEFAULT_CGROUP_MAX_DESCENDANTS, DEFAULT_CGROUP_MAX_DEPTH));
    assert_eq!(config.agent.fetch, cofferdam_core::config::FetchLimits::default());
    let cache = config.agent.fetch_cache.as_ref().unwrap();
    assert_eq!(cache.directory, config.agent.work_dir.join("fetch-cache"));
    assert_eq!(cache.size, 2 << 30);
    assert_eq!(config.agent.registry, RegistryConfig::default());
    assert_eq!(config.agent.image_gc, cofferdam_core::config::ImageGcConfig::default());
    assert!(config.agent.images, "the chain decides");
    assert!(matches!(config.agent.containerizers[..], [ContainerizerConfig::Mesos]));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "containerizers = [\"docker\"]").unwrap();
    let config = load(file.path()).unwrap();
    let [ContainerizerConfig::Docker(docker)] = &config.agent.containerizers[..] else { panic!("one") };
    let default = DockerConfig::new(Arc::clone(&docker.engine));
    assert_eq!(docker.engine.socket(), Path::new("/var/run/docker.sock"));
    assert_eq!(docker.timeouts, default.timeouts);
    assert_eq!(docker.sandbox_directory, default.sandbox_directory);
    let options =
        |docker: &DockerConfig| (docker.remove_delay, docker.kill_orphans, docker.credentials.clone());
    assert_eq!(options(docker), options(&default));
}

#[test]
fn overrides_take_precedence_over_the_file() {
    let overrides =
        Overrides { runtime_dir: Some("/r".into()), log: Some("debug".into()), ..Overrides::default() };
    let config =
        Config::load(&directory("valid/empty.toml"), &overrides, &environment(0), &Manifests).unwrap();
    assert_eq!(config.socket, PathBuf::from("/r/agent.sock"));
    assert_eq!(config.agent.work_dir, PathBuf::from("/var/lib/cofferdam"));
    assert_eq!(config.log, "debug");

    let overrides = Overrides { isolation: Some(Isolation::Mesos), ..overrides };
    let config =
        Config::load(&directory("valid/empty.toml"), &overrides, &environment(0), &Manifests).unwrap();
    assert_eq!(names(&config), MESOS);

    let overrides =
        Overrides { socket: Some("x".repeat(200).into()), log: Some("a=b=c".into()), ..overrides };
    let error =
        Config::load(&directory("valid/empty.toml"), &overrides, &environment(0), &Manifests).unwrap_err();
    let ConfigError::Invalid(diagnostics) = error else { panic!("{error}") };
    assert_eq!(diagnostics.iter().len(), 2, "{diagnostics}");
}

fn names(config: &Config) -> Vec<&str> {
    config.agent.isolators.iter().map(|plugin| plugin.name.as_str()).collect()
}

const MESOS: [&str; 7] = [
    "docker/runtime",
    "filesystem/linux",
    "namespaces/pid",
    "cgroups/cpu",
    "cgroups/mem",
    "posix/cpu",
    "posix/mem",
];

#[test]
fn without_isolators_the_predefined_chain_is_used() {
    let embedded = |isolation, uid| {
        let overrides = Overrides { isolation, ..Overrides::default() };
        Config::embedded(&overrides, &environment(uid), &Manifests)
    };
    for (config, is_from) in [
        (load(&directory("valid/empty.toml")), "a file"),
        (embedded(None, 0), "no file"),
        (embedded(Some(Isolation::Docker), 0), "a flag"),
    ] {
        let config = config.unwrap();
        assert_eq!(names(&config).len(), 16, "{is_from}");
        let seccomp = config.agent.isolators.iter().find(|plugin| plugin.name == "linux/seccomp").unwrap();
        assert_eq!((seccomp.policy, seccomp.origin.as_str()), (FailPolicy::Required, "isolation `docker`"));
        assert_eq!(config.agent.logger.unwrap().name, "sandbox", "{is_from}");
    }
    let config = load(&directory("valid/own-logger.toml")).unwrap();
    assert_eq!(names(&config), MESOS);
    assert_eq!(config.agent.logger.unwrap().table, serde_json::json!({"max_size": "1 MiB"}));
    let config = load(&directory("valid/two-loggers.toml")).unwrap().agent;
    let [first, second] = &config.log_targets[..] else { panic!("{:?}", config.log_targets) };
    assert_eq!((config.logger.unwrap().name.as_str(), first.name.as_str()), ("tee", "sandbox"));
    assert_eq!((first.policy, second.policy), (FailPolicy::Optional, FailPolicy::Required));
    assert_eq!(second.table, serde_json::json!({"address": "loghost:514"}));

    let config = embedded(None, 1000).unwrap();
    assert_eq!(config.agent.launcher, LauncherKind::Posix);
    assert_eq!(names(&config), ["posix/cpu", "posix/mem", "posix/rlimits"]);

    let config = embedded(Some(Isolation::None), 0).unwrap();
    assert!(config.agent.isolators.is_empty() && config.agent.logger.is_none());
}

#[test]
fn a_plugin_of_the_predefined_chain_that_is_missing_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    let overrides = Overrides { plugin_dir: Some(empty.path().to_owned()), ..Overrides::default() };
    let error = Config::embedded(&overrides, &environment(0), &Manifests).unwrap_err().to_string();
    for part in
        ["there is no isolator `linux/seccomp`", "part of isolation `docker`", "there is no logger `sandbox`"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_isolation_by_flag_does_not_replace_the_chain_of_a_file() {
    let overrides = Overrides { isolation: Some(Isolation::None), ..Overrides::default() };
    let file = directory("valid/everything.toml");
    let error = Config::load(&file, &overrides, &environment(0), &Manifests).unwrap_err().to_string();
    assert!(error.contains("isolation `none` is chosen, but the file has `isolator`"), "{error}");
}

#[test]
fn the_examples_are_accepted() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let overrides = Overrides { plugin_dir: Some(directory("plugins")), ..Overrides::default() };
    for (file, uid, plugins) in [("agent.toml", 0, 19), ("user.toml", 1000, 3)] {
        match Config::load(&examples.join(file), &overrides, &environment(uid), &Manifests) {
            Ok(config) => {
                assert_eq!((config.agent.isolators.len(), config.agent.logger.is_some()), (plugins, true));
                if uid == 0 {
                    let default = Config::embedded(&overrides, &environment(uid), &Manifests).unwrap();
                    let default = default.agent.isolators;
                    for (plugin, expected) in config.agent.isolators.iter().zip(&default) {
                        assert_eq!((&plugin.name, &plugin.table), (&expected.name, &expected.table));
                    }
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_first_byte_that_is_not_text_is_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"log = \"info\"\nwork_dir = \"/srv/caf\xe9\"\n").unwrap();
    let error = Config::load(file.path(), &Overrides::default(), &environment(0), &Manifests).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("byte 34 of the file, 0xe9, is not UTF-8"), "{error}");
    assert!(error.contains(":2:21\n") && error.contains("save the file in UTF-8"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nowhere/agent.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file `/nowhere/agent.toml`");
}

#[test]
fn any_file_is_resolved_or_explained() {
    let mut samples: Vec<Vec<u8>> = vec![default_text(&environment(0)).into_bytes()];
    samples.extend(files("valid").iter().chain(&files("invalid")).map(|file| fs::read(file).unwrap()));
    let words = [
        "[[isolator]]\n",
        "[fetch]\n",
        "[",
        "{",
        "\"\"\"",
        "'",
        "\u{e4}",
        "99999999999999999999",
        "\n\n",
        "= ",
        ".",
    ];
    let path = directory("valid").join("fuzz.toml");
    cofferdam_fuzz::fuzz_bytes(&samples, &words, |text| {
        let text = String::from_utf8_lossy(text);
        for uid in [0, 1000] {
            let resolved =
                resolve::resolve(Some(&path), &text, &Overrides::default(), &environment(uid), &Manifests);
            match resolved {
                Ok(config) => assert!(config.agent.runtime_dir.is_absolute(), "{config:?}"),
                // With the lines of the file.
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    });
}
