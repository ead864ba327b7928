//! Hooks of containers of an engine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_core::config::{ContainerizerConfig, FailPolicy, PluginConfig};
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::model::{Phase, Request, Uri};
use cofferdam_plugin_model::Method;
use cofferdam_tests::assert_contains;
use cofferdam_tests::images::{Layer, busybox, gzip};
use cofferdam_tests::pipe::Pipe;
use cofferdam_tests::plugin_file::{modified_copy, patch};
use cofferdam_tests::registry::{AUTH, Registry, write_login};
use cofferdam_tests::world::{World, id, launch_error, object, run, shipped, with_agent};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value as Json, json};

use cofferdam_tests::engine::{engine, shell, until};

/// A hook that records its calls in a world.
fn recorder(world: &World, mut table: Json) -> PluginConfig {
    table["journal"] = json!(world.directory().join("journal"));
    object("test/hook", "libtest_hook.so", table)
}

fn journal(world: &World) -> Vec<Json> {
    let journal = fs::read_to_string(world.directory().join("journal")).unwrap_or_default();
    journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A file of the host, to be fetched to a path in the sandbox.
fn file(from: &Path, to: &str) -> Uri {
    Uri {
        value: from.display().to_string(),
        executable: false,
        extract: false,
        cache: false,
        output_file: Some(to.into()),
        sha256: None,
    }
}

#[test]
fn hooks_set_the_environment_before_the_fetch_and_are_called_again_after_the_pull() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let hook = recorder(
        &world,
        json!({
            "executor_environment": {"E": "1", "BOTH": "executor", "GREETING": "of the hook"},
            "task_environment": {"BOTH": "task", "HIDDEN": "unrecorded-value", "MESOS_SANDBOX": "/forged"},
        }),
    );
    world.config.hooks.push(hook);
    let fetched = world.directory().join("fetched");
    fs::write(&fetched, "").unwrap();
    with_agent(&world, async |agent| {
        let mut request = shell("hooks-both", "echo $E $BOTH $GREETING $HIDDEN $MESOS_SANDBOX $OWN");
        request.command.environment.insert("GREETING".into(), "of the request".into());
        request.command.environment.insert("OWN".into(), "own".into());
        request.labels.insert("tier".into(), "web".into());
        request.uris = vec![file(&fetched, "fetched")];
        let expected = "1 task of the hook unrecorded-value /mnt/mesos/sandbox own\n";
        assert_eq!(run(&agent, request).await, expected);
        assert!(world.files_with("unrecorded-value").iter().all(|path| path.ends_with("stdout")));
        agent.remove(&id("hooks-both")).await.unwrap();
    });
    let calls = journal(&world);
    let methods: Vec<_> = calls.iter().map(|call| call["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["pre_launch_docker", "post_fetch"]);
    assert!(calls.iter().all(|call| call["container"] == "hooks-both"));
    let before = &calls[0]["request"];
    assert_eq!(
        (&before["name"], &before["image"], &before["network"], &before["labels"]),
        (&json!("mesos-hooks-both"), &json!(super::IMAGE), &json!("host"), &json!({"tier": "web"}))
    );
    assert_eq!(before["command"]["environment"]["OWN"], "own");
    assert_eq!((&before["sandbox_path"], &before["executor"]), (&json!("/mnt/mesos/sandbox"), &Json::Null));
    let after = &calls[1]["request"];
    assert_eq!(after["docker"], true);
    assert!(after["files"].as_array().unwrap().contains(&json!("fetched")), "{after}");
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_hook_that_fails_fails_the_launch_and_leaves_nothing_in_the_engine() {
    let Some(engine) = engine() else { return };
    for (method, phase) in [("pre_launch_docker", "STARTING"), ("post_fetch", "PULLING")] {
        let mut world = engine.world();
        let hook = recorder(&world, json!({"faults": [{"method": method, "act": "error"}]}));
        world.config.hooks.push(hook);
        with_agent(&world, async |agent| {
            let error = launch_error(&agent, shell("hooks-fail", "true")).await;
            let reason = format!("`test/hook` failed in `{method}`: deliberate error");
            let launch = format!("a hook failed the launch of container `hooks-fail` while {phase}");
            assert_contains(&error, &[&launch, &reason]);
            assert!(agent.containers().is_empty());
        });
        assert_eq!(world.leftovers(), [""; 0]);
        assert_eq!(engine.names("hooks-fail"), [""; 0]);
    }
    let mut world = engine.world();
    let mut hook = recorder(&world, json!({"task_environment": {"A=B": "a-secret"}}));
    world.config.hooks.push(hook.clone());
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, shell("hooks-fail", "true")).await;
        assert_contains(&error, &["invalid payload of `pre_launch_docker`", "`A=B` is not a valid name"]);
        assert!(!error.contains("a-secret"), "{error}");
    });
    hook.policy = FailPolicy::Optional;
    world.config.hooks = vec![hook];
    with_agent(&world, async |agent| {
        assert_eq!(run(&agent, shell("hooks-fail", "echo without")).await, "without\n");
        agent.remove(&id("hooks-fail")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A second recorder, with a name of its own.
fn second(world: &World, mut table: Json) -> PluginConfig {
    table["journal"] = json!(world.directory().join("journal"));
    table["hook"] = json!("second");
    let path = modified_copy(world, "libtest_hook.so", |bytes| patch(bytes, "test/hook", "test/hoot"));
    PluginConfig { path: Some(path), table, ..PluginConfig::new("test/hoot") }
}

#[test]
fn hooks_are_called_in_order_and_their_variables_are_merged_unless_they_contradict_each_other() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let first = json!({"hook": "first", "task_environment": {"FIRST": "1", "SAME": "s"}});
    let (first, second) =
        (recorder(&world, first), second(&world, json!({"task_environment": {"SECOND": "2", "SAME": "s"}})));
    // The order of the configuration, whatever that of the names is.
    world.config.hooks = vec![second.clone(), first.clone()];
    with_agent(&world, async |agent| {
        assert_eq!(run(&agent, shell("hooks-two", "echo $FIRST $SECOND $SAME")).await, "1 2 s\n");
        agent.remove(&id("hooks-two")).await.unwrap();
    });
    let calls = journal(&world);
    let order: Vec<_> =
        calls.iter().map(|call| (call["hook"].as_str().unwrap(), call["method"].as_str().unwrap())).collect();
    assert_eq!(
        order,
        [
            ("second", "pre_launch_docker"),
            ("first", "pre_launch_docker"),
            ("second", "post_fetch"),
            ("first", "post_fetch")
        ]
    );
    world.config.hooks[0].table["task_environment"]["SAME"] = json!("another-secret");
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, shell("hooks-two", "true")).await;
        let both =
            "the hooks `test/hoot` and `test/hook` set the environment variable `SAME` to different values";
        assert_contains(&error, &[both]);
        assert!(!error.contains("another-secret"), "{error}");
        assert!(agent.containers().is_empty());
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("hooks-two"), [""; 0]);
}

#[test]
fn a_hook_that_hangs_fails_the_launch_when_its_time_is_over() {
    let Some(engine) = engine() else { return };
    for method in [Method::PreLaunchDocker, Method::PostFetch] {
        let mut world = engine.world();
        let pipe = Pipe::new(world.directory().join("pipe"));
        let faults = json!({"faults": [{"method": method.name(), "act": "hang", "until": pipe.path()}]});
        let mut hook = recorder(&world, faults);
        hook.timeouts.insert(method, Duration::from_millis(300));
        world.config.hooks.push(hook);
        with_agent(&world, async |agent| {
            let error = launch_error(&agent, shell("hooks-late", "true")).await;
            assert_contains(&error, &[&format!("`test/hook` did not return from `{method}` within 300ms")]);
            assert!(agent.containers().is_empty());
            drop(pipe);
        });
        assert_eq!(world.leftovers(), [""; 0]);
        assert_eq!(engine.names("hooks-late"), [""; 0]);
    }
}

#[test]
fn a_destroy_does_not_wait_for_a_hook_that_hangs() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let pipe = Pipe::new(world.directory().join("pipe"));
    let faults = json!({"faults": [{"method": "pre_launch_docker", "act": "hang", "until": pipe.path()}]});
    let hook = recorder(&world, faults);
    world.config.hooks.push(hook);
    with_agent(&world, async |agent| {
        let launching = tokio::spawn({
            let agent = agent.clone();
            async move { agent.launch(shell("hooks-hang", "true")).await }
        });
        until("the hook is called", || !journal(&world).is_empty()).await;
        agent.destroy(&id("hooks-hang")).await.unwrap();
        let error = launching.await.unwrap().unwrap_err();
        assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Starting, .. }), "{error}");
        assert!(agent.containers().is_empty());
        drop(pipe);
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A registry with a password in the network of the engine, with a busybox of its own.
fn private_registry(namespace: PathBuf) -> Registry {
    let start = move || {
        // Of this thread alone, which ends, and of the registry.
        setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let registry = Registry::start(true);
        let layer = busybox();
        registry.image("private", "1", &[(layer.bytes(), gzip(&layer.bytes()))], "amd64");
        registry
    };
    std::thread::spawn(start).join().unwrap()
}

#[test]
fn credentials_are_used_for_the_pull_and_removed_from_the_sandbox_before_the_command_runs() {
    let Some(engine) = engine() else { return };
    let registry = private_registry(engine.network_namespace());
    let image = format!("{}:1", registry.name("private"));
    let mut world = engine.world();
    let (old, new) = (world.directory().join("dockercfg"), world.directory().join("config.json"));
    let host = registry.address.to_string();
    fs::write(&old, json!({host.clone(): {"auth": AUTH, "email": "a@b"}}).to_string()).unwrap();
    fs::write(&new, json!({"auths": {host: {"auth": AUTH}}}).to_string()).unwrap();
    let request = |name: &str, files: &[(&Path, &str)]| -> Request {
        let line = "cd $MESOS_SANDBOX; for file in .dockercfg .docker/config.json; do \
                    test -e $file && echo $file; done; echo end";
        let mut request = shell(name, line);
        let docker = request.docker.as_mut().unwrap();
        (docker.image, docker.force_pull_image) = (image.clone(), true);
        request.uris = files.iter().map(|(from, to)| file(from, to)).collect();
        request
    };
    let both: [(&Path, &str); 2] = [(&old, ".dockercfg"), (&new, ".docker/config.json")];
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, request("hooks-anonymous", &[])).await;
        assert_contains(&error, &["failed while PULLING"]);
        let left = run(&agent, request("hooks-without", &both)).await;
        assert_eq!(left, ".dockercfg\n.docker/config.json\nend\n");
        agent.remove(&id("hooks-without")).await.unwrap();
    });
    world.config.hooks.push(shipped("docker/credentials"));
    with_agent(&world, async |agent| {
        for (name, files) in
            [("hooks-both-files", &both[..]), ("hooks-old", &both[..1]), ("hooks-new", &both[1..])]
        {
            assert_eq!(run(&agent, request(name, files)).await, "end\n", "{name}");
            let sandbox = agent.inspect(&id(name)).unwrap().sandbox;
            assert!(!sandbox.join(".dockercfg").exists() && !sandbox.join(".docker/config.json").exists());
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_image_is_pulled_with_the_credentials_of_the_configuration_and_again_if_that_is_forced() {
    let Some(engine) = engine() else { return };
    let registry = private_registry(engine.network_namespace());
    let image = format!("{}:1", registry.name("private"));
    let mut world = engine.world();
    let file = world.directory().join("config.json");
    write_login(&file, &registry.address.to_string());
    let mut config = engine.config();
    config.credentials = Some(file);
    world.config.containerizers = vec![ContainerizerConfig::Docker(config)];
    let publish = |version: &'static str| {
        let namespace = File::open(engine.network_namespace()).unwrap();
        std::thread::scope(|scope| {
            let push = || {
                // Of this thread alone, which ends.
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let layers = [busybox(), Layer::new().file("version", version.as_bytes())];
                let layers = layers.map(|layer| (layer.bytes(), gzip(&layer.bytes())));
                registry.image("private", "1", &layers, "amd64");
            };
            scope.spawn(push).join().unwrap();
        });
    };
    with_agent(&world, async |agent| {
        let version = async |name: &str, force: bool| {
            let mut request = shell(name, "cat /version");
            let docker = request.docker.as_mut().unwrap();
            (docker.image, docker.force_pull_image) = (image.clone(), force);
            let output = run(&agent, request).await;
            agent.remove(&id(name)).await.unwrap();
            output
        };
        publish("old");
        assert_eq!(version("pull-first", false).await, "old");
        publish("new");
        assert_eq!(version("pull-present", false).await, "old");
        assert_eq!(version("pull-forced", true).await, "new");
        assert_eq!(version("pull-newest", false).await, "new");
    });
    assert_eq!(world.leftovers(), [""; 0]);
}
