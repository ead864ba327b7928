//! Requests, and what the engine is asked for.

use super::*;
use crate::engine::ImageConfig;
use crate::model::{Command, DockerParameter, NetworkRequest, Secret, Tty, Volume};

fn request() -> Request {
    let command = Command { shell: false, ..Command::default() };
    let docker = DockerOptions { image: "busybox".into(), ..DockerOptions::default() };
    Request { docker: Some(docker), ..Request::new(ContainerId::parse("web").unwrap(), command) }
}

fn spec(request: &Request) -> Result<Spec, String> {
    let spec = Spec::of(request, Path::new("/work/web"), Path::new("/mnt/mesos/sandbox"));
    spec.map_err(|error| error.to_string())
}

fn body(request: &Request) -> Json {
    spec(request).unwrap().body
}

fn image(config: ImageConfig) -> Image {
    Image { id: "sha256:0f".to_owned(), config }
}

/// A launch with variables of the logger.
fn launch<'l>(environment: &[&str], image: &'l Image) -> Launch<'l> {
    let pairs = environment.iter().filter_map(|variable| variable.split_once('='));
    let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (hooked, fixed) = (BTreeMap::new(), BTreeMap::new());
    Launch { agent: "one", number: 7, environment, hooked, fixed, image }
}

fn docker(request: &mut Request) -> &mut DockerOptions {
    request.docker.as_mut().unwrap()
}

fn volume(container_path: &str, source: VolumeSource) -> Volume {
    Volume { container_path: container_path.into(), read_only: false, source }
}

fn host_path(path: &str) -> VolumeSource {
    VolumeSource::HostPath { path: path.into(), propagation: None }
}

#[test]
fn entry_point_and_command_are_those_of_the_image_unless_replaced() {
    let with = |shell: bool, value: Option<&str>, arguments: &[&str]| {
        let mut request = request();
        request.command.shell = shell;
        request.command.value = value.map(str::to_owned);
        request.command.arguments = arguments.iter().map(|it| (*it).to_owned()).collect();
        spec(&request).map(|spec| (spec.body["Entrypoint"].clone(), spec.body["Cmd"].clone()))
    };
    let null = Json::Null;
    assert_eq!(with(false, None, &[]).unwrap(), (null.clone(), null.clone()));
    assert_eq!(with(false, Some("a"), &[]).unwrap(), (null.clone(), json!(["a"])));
    assert_eq!(with(false, None, &["b"]).unwrap(), (null.clone(), json!(["b"])));
    assert_eq!(with(false, Some("a"), &["b", "c"]).unwrap(), (null, json!(["a", "b", "c"])));
    assert_eq!(with(true, Some("a"), &["b"]).unwrap(), (json!(["/bin/sh"]), json!(["-c", "a"])));
    assert!(with(true, None, &[]).unwrap_err().contains("`command.value` of container `web` is invalid"));
}

#[test]
fn resources_become_shares_quota_memory_and_reservation() {
    let mut request = request();
    let host = |request: &Request| body(request)["HostConfig"].clone();
    request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    let config = host(&request);
    assert_eq!((&config["CpuShares"], &config["CpuQuota"]), (&json!(512), &Json::Null));
    assert_eq!((&config["Memory"], &config["MemoryReservation"]), (&json!(64 << 20), &Json::Null));
    assert_eq!(config["OomScoreAdj"], Json::Null);
    assert_eq!(config["Privileged"], false);
    docker(&mut request).privileged = true;
    assert_eq!(host(&request)["Privileged"], true);

    request.resources =
        request.resources.with_limit("cpus", Limit::At(1.5)).with_limit("mem", Limit::At(128.0));
    let config = host(&request);
    assert_eq!((&config["CpuQuota"], &config["CpuPeriod"]), (&json!(150_000), &json!(100_000)));
    assert_eq!((&config["Memory"], &config["MemoryReservation"]), (&json!(128 << 20), &json!(64 << 20)));
    assert!((1..=1000).contains(&config["OomScoreAdj"].as_i64().unwrap()));

    request.resources =
        request.resources.with_limit("mem", Limit::Unlimited).with_limit("cpus", Limit::Unlimited);
    let config = host(&request);
    assert_eq!((&config["Memory"], &config["CpuQuota"]), (&Json::Null, &Json::Null));
    assert_eq!(config["MemoryReservation"], 64 << 20);

    request.resources = Resources::default().with("cpus", 0.001).with("mem", 1.0);
    let config = host(&request);
    assert_eq!((&config["CpuShares"], &config["Memory"]), (&json!(2), &json!(32 << 20)));
}

#[test]
fn an_update_names_what_is_unlimited_again() {
    let limited = Resources::default().with("cpus", 1.0).with("mem", 64.0);
    assert_eq!(limits(&limited)["CpuQuota"], -1);
    let unlimited = limited.with_limit("mem", Limit::Unlimited);
    assert_eq!(limits(&unlimited)["Memory"], UNLIMITED_MEMORY);
}

#[test]
fn volumes_are_mounted_and_the_sandbox_is_the_last() {
    let mut request = request();
    request.volumes = vec![
        Volume { read_only: true, ..volume("/data", host_path("/srv/data")) },
        volume("logs", host_path("/srv/logs")),
        volume("/cache", host_path("cache/a")),
        volume("/own", VolumeSource::SandboxPath { parent: false, path: "own".into() }),
        volume("/shared", VolumeSource::HostPath { path: "/srv".into(), propagation: Some("slave".into()) }),
    ];
    let spec = spec(&request).unwrap();
    let binds = ["/srv/data:/data:ro", "/srv/logs:/mnt/mesos/sandbox/logs:rw", "/srv:/shared:rw,rslave"];
    assert_eq!(spec.body["HostConfig"]["Binds"], json!(binds));
    // What is in the sandbox has to exist.
    let mount = |source: &str, target: &str| json!({ "Type": "bind", "Source": source, "Target": target, "ReadOnly": false });
    let mounts = [
        mount("/work/web/cache/a", "/cache"),
        mount("/work/web/own", "/own"),
        mount("/work/web", "/mnt/mesos/sandbox"),
    ];
    assert_eq!(spec.body["HostConfig"]["Mounts"], json!(mounts));
    assert_eq!(spec.directories, [PathBuf::from("cache/a"), "own".into()]);
}

#[test]
fn named_volumes_have_one_driver() {
    let named = |driver: &str, name: &str| VolumeSource::DockerVolume {
        driver: driver.into(),
        name: name.into(),
        options: BTreeMap::new(),
    };
    let mut request = request();
    request.volumes = vec![volume("/a", named("nfs", "db")), volume("/b", named("nfs", "log"))];
    let config = &body(&request)["HostConfig"];
    assert_eq!((&config["VolumeDriver"], &config["Binds"][0]), (&json!("nfs"), &json!("db:/a:rw")));

    request.volumes[1].source = named("cifs", "log");
    assert!(spec(&request).unwrap_err().contains("not both `nfs` and `cifs`"));
    request.volumes.pop();
    docker(&mut request).volume_driver = Some("cifs".into());
    assert!(spec(&request).unwrap_err().contains("not both `cifs` and `nfs`"));
    // A relative path of the host is the name of a volume then.
    request.volumes = vec![volume("/a", host_path("db"))];
    assert_eq!(body(&request)["HostConfig"]["Binds"][0], "db:/a:rw");
}

#[test]
fn ports_are_those_that_were_offered() {
    let mut request = request();
    let mapping = |host_port| PortMapping { host_port, container_port: 80, protocol: Some("TCP".into()) };
    docker(&mut request).port_mappings = vec![mapping(31000)];
    assert!(spec(&request).unwrap_err().contains("network `host` has no ports"));
    docker(&mut request).network = DockerNetwork::Bridge;
    assert!(spec(&request).unwrap_err().contains("no `ports` are among the resources"));
    request.resources.requests.insert("ports".into(), Value::Ranges(vec![(31001, 31002)]));
    assert!(spec(&request).unwrap_err().contains("port 31000 is not among"));
    docker(&mut request).port_mappings = vec![mapping(31002)];
    let config = body(&request);
    assert_eq!(config["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"], "31002");
    assert_eq!(config["ExposedPorts"]["80/tcp"], json!({}));
}

#[test]
fn a_network_of_the_user_is_named_once() {
    let mut request = request();
    assert_eq!(body(&request)["HostConfig"]["NetworkMode"], "host");
    docker(&mut request).network = DockerNetwork::User;
    assert!(spec(&request).unwrap_err().contains("needs exactly one, not 0"));
    let network =
        |name: Option<&str>| NetworkRequest { name: name.map(str::to_owned), ..NetworkRequest::default() };
    request.networks = vec![network(None)];
    assert!(spec(&request).unwrap_err().contains("`container.network_infos[0].name` of container"));
    request.networks = vec![network(Some("backbone"))];
    let spec_ = spec(&request).unwrap();
    assert_eq!(spec_.network.as_deref(), Some("backbone"));
    assert_eq!(spec_.body["HostConfig"]["NetworkMode"], "backbone");
    docker(&mut request).parameters = vec![DockerParameter { key: "net".into(), value: "none".into() }];
    assert_eq!(spec(&request).unwrap().network, None);
    assert_eq!(body(&request)["HostConfig"]["NetworkMode"], "none");
    // A second one is not passed on.
    let second = DockerParameter { key: "network".into(), value: "host".into() };
    docker(&mut request).parameters.push(second);
    assert!(spec(&request).unwrap_err().contains("give it once"));
}

#[test]
fn parameters_replace_what_the_agent_sets_but_not_its_labels() {
    let mut request = request();
    let parameter = |key: &str, value: &str| DockerParameter { key: key.into(), value: value.into() };
    request.resources = Resources::default().with("mem", 64.0);
    docker(&mut request).parameters = vec![
        parameter("memory", "128m"),
        parameter("label", "tier=web"),
        parameter("platform", "linux/amd64"),
    ];
    let spec_ = spec(&request).unwrap();
    assert_eq!(spec_.body["HostConfig"]["Memory"], 128 << 20);
    assert_eq!(spec_.platform.as_deref(), Some("linux/amd64"));
    let complete =
        spec_.body(&request.id, &launch(&["A=logger", "B=logger"], &image(ImageConfig::default()))).unwrap();
    assert_eq!(
        complete["Labels"],
        json!({ "tier": "web", AGENT_LABEL: "one", CONTAINER_LABEL: "web", LAUNCH_LABEL: "7" })
    );
    assert!(complete["Env"].as_array().unwrap().contains(&json!("A=logger")));
    docker(&mut request).parameters = vec![parameter("label", "org.cofferdam.agent=other")];
    assert!(spec(&request).unwrap_err().contains("is set by the agent"));
}

#[test]
fn variables_of_hooks_precede_those_of_the_request_and_these_those_of_the_logger() {
    let mut request = request();
    for name in ["A", "H"] {
        request.command.environment.insert(name.into(), "request".into());
    }
    let image = image(ImageConfig::default());
    let mut launch = launch(&["A=logger", "L=logger", "MESOS_SANDBOX=logger"], &image);
    launch.hooked = BTreeMap::from([("H".into(), "hook".into())]);
    let complete = spec(&request).unwrap().body(&request.id, &launch).unwrap();
    assert_eq!(
        complete["Env"],
        json!([
            "A=request",
            "MESOS_CONTAINER_NAME=mesos-web",
            "MESOS_SANDBOX=/mnt/mesos/sandbox",
            "H=hook",
            "L=logger",
        ])
    );
}

#[test]
fn an_executor_runs_what_the_container_would_run() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let config = |entrypoint: &[&str], cmd: &[&str]| ImageConfig {
        entrypoint: words(entrypoint),
        cmd: words(cmd),
        stop_signal: String::new(),
    };
    let run = |change: &dyn Fn(&mut Request), config: &ImageConfig| {
        let image = image(config.clone());
        let mut request = request();
        request.docker_executor = Some("/bin/executor".into());
        change(&mut request);
        let body = spec(&request).unwrap().body(&request.id, &launch(&[], &image));
        body.map(|body| {
            assert_eq!(body["Entrypoint"], json!(["/bin/executor"]));
            assert_eq!(body["StopSignal"], "SIGTERM");
            assert_eq!(
                (&body["Image"], &body["Healthcheck"]["Test"]),
                (&json!("sha256:0f"), &json!(["NONE"]))
            );
            body["Cmd"].clone()
        })
    };
    let nothing = |_: &mut Request| {};
    let value = |request: &mut Request| request.command.value = Some("v".into());
    let arguments = |request: &mut Request| request.command.arguments = vec!["v".into(), "w".into()];
    let line = |request: &mut Request| {
        (request.command.shell, request.command.value) = (true, Some("l".into()));
    };
    let (both, cmd) = (config(&["e", "f"], &["c"]), config(&[], &["c", "d"]));
    assert_eq!(run(&nothing, &both).unwrap(), json!(["docker", "--", "e", "f", "c"]));
    assert_eq!(run(&value, &both).unwrap(), json!(["docker", "--", "e", "f", "v"]));
    assert_eq!(run(&arguments, &both).unwrap(), json!(["docker", "--", "e", "f", "v", "w"]));
    assert_eq!(run(&line, &both).unwrap(), json!(["docker", "--", "/bin/sh", "-c", "l"]));
    assert_eq!(run(&nothing, &cmd).unwrap(), json!(["docker", "--", "c", "d"]));
    assert_eq!(run(&value, &cmd).unwrap(), json!(["docker", "--", "v"]));
    assert_eq!(run(&nothing, &config(&["e"], &[])).unwrap(), json!(["docker", "--", "e"]));
    let replaced = |entrypoint: &str| {
        let parameter = DockerParameter { key: "entrypoint".into(), value: entrypoint.into() };
        move |request: &mut Request| {
            request.command.arguments = vec!["a".into()];
            docker(request).parameters = vec![parameter.clone()];
        }
    };
    assert_eq!(run(&replaced("x"), &both).unwrap(), json!(["docker", "--", "x", "a"]));
    assert_eq!(run(&replaced(""), &both).unwrap(), json!(["docker", "--", "a"]));
    let error = run(&nothing, &config(&[], &[])).unwrap_err();
    assert!(error.to_string().contains("neither an entry point nor a command"), "{error}");

    let stopped = ImageConfig { stop_signal: "SIGQUIT".into(), ..cmd };
    let expected = json!(["docker", "--stop-signal", "SIGQUIT", "--", "c", "d"]);
    assert_eq!(run(&nothing, &stopped).unwrap(), expected);
    let parameter = DockerParameter { key: "stop-signal".into(), value: "SIGINT".into() };
    let checked = DockerParameter { key: "health-interval".into(), value: "1s".into() };
    let mut refused = request();
    refused.docker_executor = Some("/bin/executor".into());
    docker(&mut refused).parameters = vec![checked];
    let error = spec(&refused).unwrap_err();
    assert!(error.contains("use `health_check` of the task"), "{error}");
    let changed = move |request: &mut Request| docker(request).parameters = vec![parameter.clone()];
    let expected = json!(["docker", "--stop-signal", "SIGINT", "--", "c", "d"]);
    assert_eq!(run(&changed, &stopped).unwrap(), expected);
}

#[test]
fn what_identifies_an_executor_is_replaced_by_nothing() {
    let mut request = request();
    request.command.environment.insert("TOKEN".into(), "forged".into());
    docker(&mut request).parameters =
        vec![DockerParameter { key: "env".into(), value: "TOKEN=forged".into() }];
    let image = image(ImageConfig::default());
    let mut launch = launch(&["TOKEN=forged"], &image);
    launch.fixed.insert("TOKEN".into(), "own".into());
    let body = spec(&request).unwrap().body(&request.id, &launch).unwrap();
    let variables = body["Env"].as_array().unwrap();
    let tokens: Vec<_> = variables.iter().filter(|it| it.as_str().unwrap().starts_with("TOKEN")).collect();
    assert_eq!(tokens, ["TOKEN=own"]);
}

#[test]
fn directories_of_the_agent_are_read_only_and_custom_executors_have_a_suffix() {
    let mut request = request();
    let directory =
        crate::model::HostDirectory { source: "/run/socket".into(), target: "/mnt/socket".into() };
    request.host_directories = vec![directory];
    let mounts = body(&request)["HostConfig"]["Mounts"].clone();
    let mount = |index: usize, field: &str| mounts[index][field].clone();
    assert_eq!((mount(0, "Source"), mount(0, "Target")), (json!("/run/socket"), json!("/mnt/socket")));
    assert_eq!((mount(0, "ReadOnly"), mount(1, "Source")), (json!(true), json!("/work/web")));
    assert_eq!(name_of(&request), "mesos-web.executor");
    assert!(
        body(&request)["Env"].as_array().unwrap().contains(&json!("MESOS_CONTAINER_NAME=mesos-web.executor"))
    );
    request.docker_executor = Some("/bin/executor".into());
    assert_eq!(name_of(&request), "mesos-web");
    request.host_directories[0].source = "/run:socket".into();
    assert_eq!(body(&request)["HostConfig"]["Mounts"][0]["Source"], "/run:socket");
    request.host_directories[0].source = "/run/../socket".into();
    assert!(spec(&request).unwrap_err().contains("contains `..`"));
}

#[test]
fn what_the_engine_cannot_do_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Request), expected: &str| {
        let mut request = request();
        change(&mut request);
        let error = spec(&request).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|request| request.id = ContainerId::parse("pod.web").unwrap(), "cannot be nested");
    refused(&|request| request.id = ContainerId::parse("größe").unwrap(), "`container_id`");
    refused(&|request| docker(request).image.clear(), "`container.docker.image`");
    refused(&|request| request.rootfs = Some("/".into()), "`container.mesos`");
    refused(&|request| request.linux.share_pid_namespace = true, "`container.linux_info`");
    refused(&|request| request.tty = Some(Tty::default()), "`container.tty_info`");
    refused(
        &|request| {
            request.rlimits.insert("CORE".into(), Default::default());
        },
        "`container.rlimit_info`",
    );
    let secret = Secret::Value("hunter2".into());
    refused(
        &move |request| drop(request.command.secrets.insert("A".into(), secret.clone())),
        "values of secrets",
    );
    refused(&|request| request.linux.hostname = Some("web".into()), "`container.hostname`");
    refused(&|request| request.volumes.push(volume("/a", host_path("/a:b"))), "has a `:`");
    refused(&|request| request.volumes.push(volume("a:b", host_path("/a"))), "has a `:`");
    refused(&|request| request.volumes.push(volume("/a", host_path("../a"))), "contains `..`");
    refused(&|request| request.volumes.push(volume("a", host_path("b"))), "both of its paths are relative");
    let device = VolumeSource::Device { path: "/dev/sda".into() };
    refused(&move |request| request.volumes.push(volume("/a", device.clone())), "is not supported");
    refused(&|request| request.networks.push(NetworkRequest::default()), "needs `docker.network` `USER`");
}
