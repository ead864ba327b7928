//! The docker containerizer, on an engine of the tests' own.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod deadlines;
mod hooks;
mod kernel;
mod killed;
mod outage;
mod podman;
pub mod proxy;
mod recovery;
pub mod stop;

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use cofferdam_core::config::ContainerizerConfig;
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::events::{EventKind, Received};
use cofferdam_core::model::view::WantedReports;
use cofferdam_core::model::{
    DockerNetwork, DockerParameter, Ended, Limit, NetworkRequest, Phase, PortMapping, Reason, Request,
    Resources, Value, Volume, VolumeSource,
};
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::engine::{IMAGE, combinations, destroy, engine, shell, words};
use cofferdam_tests::world::{World, id, launch_error, run, with_agent};
use cofferdam_tests::{assert_contains, text, wait_for_text};
use serde_json::json;

fn parameter(key: &str, value: &str) -> DockerParameter {
    DockerParameter { key: key.into(), value: value.into() }
}

#[test]
fn containers_of_both_kinds_run_beside_each_other_and_leave_nothing() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let line = "echo out; echo err >&2; echo $MESOS_CONTAINER_NAME > $MESOS_SANDBOX/file; exit 7";
        let of_engine = shell("both-docker", line);
        let mut of_processes = Request::shell(id("both-native"), "echo native");
        of_processes.rootfs = Some(world.rootfs());
        let (one, other) = tokio::join!(agent.launch(of_engine), agent.launch(of_processes));
        one.unwrap();
        assert!(other.unwrap() > 0);
        let termination = agent.wait(&id("both-docker")).await.unwrap();
        assert_eq!((termination.ended(), termination.reason), (Some(Ended::Exited(7)), None));
        let inspection = agent.inspect(&id("both-docker")).unwrap();
        assert_eq!(text(inspection.logs.stdout.as_ref().unwrap()), "out\n");
        assert_eq!(text(inspection.logs.stderr.as_ref().unwrap()), "err\n");
        assert_eq!(text(&inspection.sandbox.join("file")), "mesos-both-docker\n");
        agent.wait(&id("both-native")).await.unwrap();
        assert_eq!(text(&agent.inspect(&id("both-native")).unwrap().logs.stdout.unwrap()), "native\n");

        let ids: Vec<_> = agent.containers().into_iter().map(|it| it.id.to_string()).collect();
        assert_eq!(ids, ["both-docker", "both-native"]);
        // It is there until it is removed, and its id is taken.
        assert_eq!(engine.names("both-docker"), ["mesos-both-docker"]);
        let taken = agent.launch(shell("both-docker", "true")).await.unwrap_err();
        assert!(matches!(taken, LaunchError::Ended { .. }));
        let taken = agent.launch(shell("both-native", "true")).await.unwrap_err();
        assert!(matches!(taken, LaunchError::Ended { .. }));
        for name in ["both-docker", "both-native"] {
            assert!(agent.remove(&id(name)).await.unwrap());
            assert!(!agent.remove(&id(name)).await.unwrap());
        }
        assert_eq!(engine.names("both-docker"), [""; 0]);
        assert_eq!(agent.wait(&id("both-docker")).await, None);
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(fs::read_dir(world.config.work_dir.join("docker")).unwrap().next().is_none());
}

#[test]
fn an_agent_without_the_containerizer_says_so() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    world.config.containerizers = vec![ContainerizerConfig::Mesos];
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, shell("web", "true")).await;
        assert_contains(&error, &["no configured containerizer can launch container `web`"]);
    });
    world.config.containerizers = vec![ContainerizerConfig::Docker(engine.config())];
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, Request::shell(id("web"), "true")).await;
        assert_contains(&error, &["no configured containerizer can launch container `web`"]);
        assert_eq!(run(&agent, shell("only-docker", "echo here")).await, "here\n");
        agent.remove(&id("only-docker")).await.unwrap();
    });
}

#[test]
fn entry_point_and_command_combine_as_in_docker() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        for (number, it) in combinations().into_iter().enumerate() {
            let mut request = words(&format!("entry-{number}"), it.image, it.arguments);
            request.command.shell = it.shell;
            request.command.value = it.value.map(str::to_owned);
            let entrypoint = it.entrypoint.map(|entrypoint| parameter("entrypoint", entrypoint));
            request.docker.as_mut().unwrap().parameters.extend(entrypoint);
            let Some(expected) = it.output else {
                let error = launch_error(&agent, request).await;
                assert_contains(&error, &["create the container", "No command specified"]);
                continue;
            };
            let name = request.id.clone();
            let shown = format!("{} {:?} {:?} {:?}", it.image, it.value, it.arguments, it.entrypoint);
            assert_eq!(run(&agent, request).await, expected, "{shown}");
            agent.remove(&name).await.unwrap();
        }
        // As in a shell, it has no name of its own.
        assert_eq!(run(&agent, shell("entry-line", "echo $0")).await, "/bin/sh\n");
        agent.remove(&id("entry-line")).await.unwrap();
    });
}

#[test]
fn options_reach_the_container() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    let data = world.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from the host").unwrap();
    with_agent(&world, async |agent| {
        let line = "hostname; id -u; echo $GREETING; cat /data/file; echo > /data/x || echo read-only; \
                    echo cached > /cache/file; ls /dev/null; sleep 1000";
        let mut request = shell("options", line);
        request.command.environment.insert("GREETING".into(), "hello world".into());
        request.linux.hostname = Some("lighthouse".into());
        request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
        request.resources =
            request.resources.with_limit("cpus", Limit::At(1.0)).with_limit("mem", Limit::At(96.0));
        request.resources.requests.insert("ports".into(), Value::Ranges(vec![(31000, 31005)]));
        request.labels = BTreeMap::from([("tier".into(), "web".into())]);
        let volume = |container_path: &str, read_only, path: &std::path::Path| Volume {
            container_path: container_path.into(),
            read_only,
            source: VolumeSource::HostPath { path: path.into(), propagation: None },
        };
        request.volumes = vec![volume("/data", true, &data), volume("/cache", false, "cache".as_ref())];
        let docker = request.docker.as_mut().unwrap();
        docker.network = DockerNetwork::Bridge;
        docker.port_mappings = vec![PortMapping { host_port: 31001, container_port: 80, protocol: None }];
        docker.parameters =
            vec![parameter("user", "web"), parameter("label", "own=1"), parameter("pids-limit", "50")];
        // The sandbox, and what is below it, belong to this user.
        request.command.user = Some("1234:1234".into());
        let pid = agent.launch(request).await.unwrap();
        let inspection = agent.inspect(&id("options")).unwrap();
        cofferdam_tests::wait_for_text(inspection.logs.stdout.as_ref().unwrap(), "/dev/null\n");
        let stdout = text(inspection.logs.stdout.as_ref().unwrap());
        assert_eq!(stdout, "lighthouse\n1234\nhello world\nfrom the hostread-only\n/dev/null\n");
        assert_eq!(text(&inspection.sandbox.join("cache/file")), "cached\n");

        let found = engine.inspect("mesos-options");
        let host = &found["HostConfig"];
        assert_eq!((host["CpuShares"].as_i64(), host["CpuQuota"].as_i64()), (Some(512), Some(100_000)));
        assert_eq!(
            (host["Memory"].as_i64(), host["MemoryReservation"].as_i64()),
            (Some(96 << 20), Some(64 << 20))
        );
        assert_eq!(
            (host["PidsLimit"].as_i64(), host["LogConfig"]["Type"].as_str()),
            (Some(50), Some("none"))
        );
        assert_eq!(host["PortBindings"]["80/tcp"][0]["HostPort"], "31001");
        assert_eq!(found["State"]["Pid"].as_i64(), Some(pid.into()));
        assert_eq!(found["Config"]["Labels"]["own"], "1");
        assert_eq!(found["Config"]["Labels"]["org.cofferdam.container"], "options");

        let report = agent.reports(&[id("options")], WantedReports::ALL).await.remove(0);
        let status = report.status.unwrap().status;
        assert_eq!(status["executor_pid"], pid);
        assert_eq!(status["network_infos"][0]["name"], "bridge");
        let address = status["network_infos"][0]["ip_addresses"][0]["ip_address"].as_str().unwrap();
        assert!(address.starts_with("10.213.0."), "{address}");
        let usage = report.usage.unwrap();
        assert!(usage.failed.is_empty(), "{:?}", usage.failed);
        for name in
            ["cpus_user_time_secs", "mem_total_bytes", "mem_rss_bytes", "net_rx_bytes", "blkio_statistics"]
        {
            assert!(usage.statistics.contains_key(name), "{name}: {:?}", usage.statistics.keys());
        }
        assert_eq!(usage.number("mem_limit_bytes"), Some(f64::from(96 << 20)));
        destroy(&agent, &id("options")).await.unwrap();
        agent.remove(&id("options")).await.unwrap();
    });
}

#[test]
fn a_container_is_seen_in_each_state() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut events = agent.events().subscribe(None);
        let mut request = shell("states", "exec sleep 1000");
        // With more memory than it requests, it is killed before others.
        request.resources = Resources::default().with("mem", 64.0).with_limit("mem", Limit::At(128.0));
        let pid = agent.launch(request).await.unwrap();
        let adjusted: i64 = text(format!("/proc/{pid}/oom_score_adj").as_ref()).trim().parse().unwrap();
        assert!((1..=1000).contains(&adjusted), "{adjusted}");
        destroy(&agent, &id("states")).await.unwrap();
        agent.remove(&id("states")).await.unwrap();
        let mut phases = Vec::new();
        while let Some(received) = events.try_next() {
            if let Received::Event(event) = received
                && let EventKind::PhaseChanged { container, phase, .. } = &event.kind
                && *container == id("states")
            {
                phases.push(*phase);
            }
        }
        let of_launch = [Phase::Starting, Phase::Fetching, Phase::Pulling, Phase::Mounting];
        let rest = [Phase::Running, Phase::Destroying, Phase::Ended];
        assert_eq!(phases, [&of_launch[..], &rest[..]].concat());
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn networks_volumes_and_devices_of_the_engine_reach_the_container() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    engine.client(&["network", "create", "--subnet", "10.214.0.0/24", "reach-network"]);
    engine.client(&["create", "--name", "reach-server", "--network", "reach-network", IMAGE, "true"]);
    with_agent(&world, async |agent| {
        let line = "echo kept > /volume/file; cat /etc/resolv.conf; echo written > /dev/sink && echo sink; \
                    cat /proc/self/oom_score_adj; ls /sys/class/net; busybox ping -c 3 10.214.0.1 >/dev/null; \
                    dd if=/volume/file of=/dev/null 2>/dev/null; echo ready; sleep 1000";
        let mut request = shell("reach-all", line);
        request.resources = Resources::default().with("mem", 64.0);
        request.networks =
            vec![NetworkRequest { name: Some("reach-network".into()), ..NetworkRequest::default() }];
        request.volumes = vec![Volume {
            container_path: "/volume".into(),
            read_only: false,
            source: VolumeSource::DockerVolume {
                driver: "local".into(),
                name: "reach-volume".into(),
                options: BTreeMap::new(),
            },
        }];
        let docker = request.docker.as_mut().unwrap();
        docker.network = DockerNetwork::User;
        docker.parameters = vec![
            parameter("dns", "192.0.2.53"),
            parameter("dns-search", "example.test"),
            parameter("dns-option", "ndots:3"),
            parameter("device", "/dev/null:/dev/sink:rw"),
            parameter("memory-swap", "96m"),
            parameter("oom-score-adj", "900"),
            parameter("add-host", "lighthouse=192.0.2.1"),
            parameter("link", "reach-server:database"),
            parameter("security-opt", "systempaths=unconfined"),
        ];
        agent.launch(request).await.unwrap();
        let stdout = agent.inspect(&id("reach-all")).unwrap().logs.stdout.unwrap();
        cofferdam_tests::wait_for_text(&stdout, "ready\n");
        assert_contains(&text(&stdout), &["example.test", "ndots:3", "sink\n", "900\n", "eth0\n"]);
        let found = engine.inspect("mesos-reach-all");
        let host = &found["HostConfig"];
        assert_eq!(host["NetworkMode"], "reach-network");
        assert_eq!((&host["Dns"], &host["VolumeDriver"]), (&json!(["192.0.2.53"]), &json!("local")));
        assert_eq!(host["MemorySwap"].as_i64(), Some(96 << 20));
        assert_eq!(host["ExtraHosts"], json!(["lighthouse:192.0.2.1"]));
        assert_eq!((&host["MaskedPaths"], &host["ReadonlyPaths"]), (&json!([]), &json!([])));
        let endpoint = &found["NetworkSettings"]["Networks"]["reach-network"];
        assert_eq!(endpoint["Links"], json!(["reach-server:database"]));
        // Its own traffic and no other: it has sent three requests, and got three replies.
        let report = agent.reports(&[id("reach-all")], WantedReports::ALL).await.remove(0);
        let usage = report.usage.unwrap();
        assert!(usage.failed.is_empty(), "{:?}", usage.failed);
        for name in ["net_tx_packets", "net_rx_packets"] {
            assert!(
                usage.number(name).is_some_and(|packets| packets >= 3.0),
                "{name}: {:?}",
                usage.statistics
            );
        }
        let address = report.status.unwrap().status["network_infos"][0]["ip_addresses"][0].clone();
        assert!(address["ip_address"].as_str().is_some_and(|it| it.starts_with("10.214.0.")), "{address}");
        destroy(&agent, &id("reach-all")).await.unwrap();
        agent.remove(&id("reach-all")).await.unwrap();

        // What is in a volume with a name outlives the container.
        let mut next = shell("reach-next", "cat /volume/file");
        next.volumes = vec![Volume {
            container_path: "/volume".into(),
            read_only: true,
            source: VolumeSource::DockerVolume {
                driver: "local".into(),
                name: "reach-volume".into(),
                options: BTreeMap::new(),
            },
        }];
        assert_eq!(run(&agent, next).await, "kept\n");
        agent.remove(&id("reach-next")).await.unwrap();
    });
    engine.client(&["rm", "reach-server"]);
    engine.client(&["network", "rm", "reach-network"]);
    engine.client(&["volume", "rm", "reach-volume"]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn an_option_that_the_engine_is_too_old_for_is_refused() {
    let Some(engine) = engine() else { return };
    let version = engine.client(&["version", "--format", "{{.Server.APIVersion}}"]);
    let minor: u32 = version.strip_prefix("1.").and_then(|minor| minor.parse().ok()).expect("a version");
    let world = engine.world();
    with_agent(&world, async |agent| {
        for (name, parameter, since) in [
            ("since-cgroupns", parameter("cgroupns", "private"), 41),
            ("since-annotation", parameter("annotation", "tier=web"), 43),
            ("since-interval", parameter("health-start-interval", "2s"), 44),
        ] {
            let mut request = shell(name, "true");
            request.docker.as_mut().unwrap().parameters = vec![parameter.clone()];
            if minor < since {
                let error = agent.launch(request).await.unwrap_err();
                assert!(error.is_invalid(), "{error}");
                let field = format!("`container.docker.parameters.{}`", parameter.key);
                let needed = format!("needs version 1.{since} of the engine's API");
                assert_contains(&error.to_string(), &[&field, &needed, &version, "update the engine"]);
                assert_eq!(engine.names(name), [""; 0]);
                assert!(!agent.contains(&id(name)));
                continue;
            }
            run(&agent, request).await;
            let found = engine.inspect(&format!("mesos-{name}"));
            let host = &found["HostConfig"];
            match since {
                41 => assert_eq!(host["CgroupnsMode"], "private"),
                43 => assert_eq!(host["Annotations"]["tier"], "web"),
                _ => assert_eq!(found["Config"]["Healthcheck"]["StartInterval"], 2_000_000_000_i64),
            }
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Whether a text is in the command line of a process.
fn is_shown(text: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(text))
}

#[test]
fn values_of_the_environment_are_in_no_process_list() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    let (value, argument) = ("hidden-3c1f8a", "shown-3c1f8a");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let looking = std::thread::spawn(move || {
        // Ends with the other end, however the test ends.
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            if is_shown(value) {
                return true;
            }
        }
        false
    });
    with_agent(&world, async |agent| {
        let mut request =
            shell("environment", &format!("echo {argument} ready; while :; do sleep 0.1; done"));
        request.command.environment.insert("VALUE".into(), value.into());
        request.docker.as_mut().unwrap().parameters = vec![parameter("env", &format!("OPTION={value}"))];
        agent.launch(request).await.unwrap();
        wait_for_text(&agent.inspect(&id("environment")).unwrap().logs.stdout.unwrap(), "ready");
        // What is on a command line would have been found.
        assert!(is_shown(argument));
        destroy(&agent, &id("environment")).await.unwrap();
        agent.remove(&id("environment")).await.unwrap();
    });
    drop(stop);
    assert!(!looking.join().unwrap());
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_container_that_exceeds_its_memory_is_killed() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request =
            words("memory", IMAGE, &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
        request.resources = Resources::default().with("mem", 32.0);
        request.docker.as_mut().unwrap().parameters = vec![parameter("memory-swap", "32m")];
        agent.launch(request).await.unwrap();
        let termination = agent.wait(&id("memory")).await.unwrap();
        assert_eq!(termination.ended(), Some(Ended::Signaled(9)));
        // Not every engine notices that on every kernel.
        let noticed = engine.inspect("mesos-memory")["State"]["OOMKilled"].as_bool().unwrap();
        let limitation = Reason::Limitation("REASON_CONTAINER_LIMITATION_MEMORY".into());
        assert_eq!(termination.reason, noticed.then_some(limitation));
        agent.remove(&id("memory")).await.unwrap();
    });
}

#[test]
fn clients_attach_and_write_to_the_input() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request = shell("attach", "cat; echo end >&2; exit 5");
        (request.interactive, request.attached) = (true, true);
        agent.launch(request).await.unwrap();
        let attachment = agent.attach_first(&id("attach")).unwrap();
        let (mut output, mut input) = (attachment.output, attachment.input);
        let long = "x".repeat(300_000);
        let write = async {
            input.write(long.as_bytes()).await.unwrap();
            input.end().await.unwrap();
        };
        let read = async {
            let mut found = 0;
            while let Some(next) = output.next().await.unwrap() {
                found += next.data.len();
            }
            found
        };
        let ((), found) = tokio::join!(write, read);
        assert_eq!(found, long.len() + "end\n".len());
        assert_eq!(agent.wait(&id("attach")).await.unwrap().ended(), Some(Ended::Exited(5)));
        let logs = agent.inspect(&id("attach")).unwrap().logs;
        assert_eq!(text(&logs.stdout.unwrap()).len(), long.len());
        assert_eq!(text(&logs.stderr.unwrap()), "end\n");
        agent.remove(&id("attach")).await.unwrap();
    });
}

#[test]
fn what_is_invalid_fails_before_anything_is_started() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let refused = async |change: &dyn Fn(&mut Request), expected: &str| {
            let mut request = shell("invalid", "true");
            request.resources.requests.insert("ports".into(), Value::Ranges(vec![(31000, 31005)]));
            change(&mut request);
            let error = agent.launch(request).await.unwrap_err();
            assert!(error.is_invalid(), "{error}");
            assert_contains(&error.to_string(), &[expected]);
            assert_eq!(engine.names("invalid"), [""; 0]);
            assert_eq!(world.leftovers(), [""; 0]);
            assert!(!agent.contains(&id("invalid")));
        };
        let volume = |container_path: &str, path: &str| Volume {
            container_path: container_path.into(),
            read_only: false,
            source: VolumeSource::HostPath { path: path.into(), propagation: None },
        };
        let named = |driver: &str| Volume {
            container_path: format!("/{driver}").into(),
            read_only: false,
            source: VolumeSource::DockerVolume {
                driver: driver.into(),
                name: "v".into(),
                options: BTreeMap::new(),
            },
        };
        refused(
            &|request| {
                request.docker.as_mut().unwrap().network = DockerNetwork::User;
                request
                    .networks
                    .push(NetworkRequest { name: Some("nowhere".into()), ..NetworkRequest::default() });
            },
            "the engine has no network `nowhere`",
        )
        .await;
        refused(
            &|request| {
                let docker = request.docker.as_mut().unwrap();
                docker.network = DockerNetwork::Bridge;
                docker.port_mappings =
                    vec![PortMapping { host_port: 80, container_port: 80, protocol: None }];
            },
            "port 80 is not among the `ports`",
        )
        .await;
        refused(&|request| request.volumes = vec![named("nfs"), named("cifs")], "not both `nfs` and `cifs`")
            .await;
        refused(&|request| request.volumes = vec![volume("/a", "/a:b")], "has a `:`").await;
        refused(&|request| request.volumes = vec![volume("a", "b")], "both of its paths are relative").await;
        refused(
            &|request| request.docker.as_mut().unwrap().parameters = vec![parameter("rm", "true")],
            "removes the container itself",
        )
        .await;
        refused(&|request| request.id = id("invalid.nested"), "cannot be nested: there is no container")
            .await;
    });
}

#[test]
fn a_failed_launch_is_told_in_the_words_of_the_engine_and_leaves_nothing() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let error = launch_error(&agent, words("failed", IMAGE, &["/no/such/program"])).await;
        assert_contains(
            &error,
            &[
                "container `failed` failed while MOUNTING",
                "start the container",
                "/no/such/program",
                "check that the program is in the image",
            ],
        );
        let mut request = shell("failed", "true");
        request.docker.as_mut().unwrap().image = "127.0.0.1:1/no/image".into();
        let error = launch_error(&agent, request).await;
        assert_contains(
            &error,
            &[
                "failed while PULLING",
                "pull image `127.0.0.1:1/no/image`",
                "connection refused",
                "can reach the registry",
            ],
        );
        let mut request = shell("failed", "true");
        request.docker.as_mut().unwrap().parameters = vec![parameter("runtime", "none-such")];
        assert_contains(
            &launch_error(&agent, request).await,
            &["create the container", "none-such", "the runtimes that `docker info` lists"],
        );
        // A container of another user keeps its name.
        engine.client(&["create", "--name", "mesos-failed", IMAGE, "true"]);
        let error = launch_error(&agent, shell("failed", "true")).await;
        assert_contains(&error, &["create the container", "already in use", "choose another container id"]);
        assert_eq!(engine.names("mesos-failed"), ["mesos-failed"]);
        engine.client(&["rm", "mesos-failed"]);
        assert_eq!(run(&agent, shell("failed", "echo now")).await, "now\n");
        agent.remove(&id("failed")).await.unwrap();
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("failed"), [""; 0]);
}

#[test]
fn what_has_ended_is_removed_from_the_engine_after_a_delay_also_by_the_next_agent() {
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let set_delay = |world: &mut World, delay| {
        let mut config = engine.config();
        config.remove_delay = delay;
        world.config.containerizers = vec![ContainerizerConfig::Docker(config)];
    };
    set_delay(&mut world, Duration::from_secs(3600));
    with_agent(&world, async |agent| {
        run(&agent, shell("delay", "true")).await;
        assert_eq!(engine.names("delay"), ["mesos-delay"]);
    });
    set_delay(&mut world, Duration::ZERO);
    with_agent(&world, async |agent| {
        engine.wait_until_gone("delay");
        // The record and the sandbox stay.
        assert_eq!(agent.inspect(&id("delay")).unwrap().summary.phase, Phase::Ended);
        assert!(agent.remove(&id("delay")).await.unwrap());
    });
}

#[test]
fn a_delay_that_elapses_ends_in_the_removal_by_this_agent_and_by_the_next_one() {
    const DELAY: Duration = Duration::from_secs(3);
    let Some(engine) = engine() else { return };
    let mut world = engine.world();
    let mut config = engine.config();
    config.remove_delay = DELAY;
    world.config.containerizers = vec![ContainerizerConfig::Docker(config)];
    let begun = Instant::now();
    with_agent(&world, async |agent| {
        run(&agent, shell("elapsed-same", "true")).await;
        engine.wait_until_gone("elapsed-same");
        assert!(begun.elapsed() >= DELAY, "it was removed before its delay had passed");
    });
    let begun = Instant::now();
    with_agent(&world, async |agent| {
        run(&agent, shell("elapsed-next", "true")).await;
    });
    with_agent(&world, async |agent| {
        engine.wait_until_gone("elapsed-next");
        assert!(begun.elapsed() >= DELAY, "it was removed before its delay had passed");
        for name in ["elapsed-same", "elapsed-next"] {
            assert_eq!(agent.inspect(&id(name)).unwrap().summary.phase, Phase::Ended);
            assert!(agent.remove(&id(name)).await.unwrap());
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_container_of_the_engine_is_launched_over_the_api() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    let daemon = Daemon::start(&world);
    let mut request = words("api", IMAGE, &["echo", "by the API"]);
    let docker = request.docker.as_mut().unwrap();
    docker.network = DockerNetwork::None;
    docker.parameters = vec![parameter("label", "a=b")];
    daemon.launch(&request).unwrap();
    daemon.wait(&id("api")).unwrap();
    let inspected = daemon.inspect(&id("api")).unwrap();
    assert_eq!(text(inspected.stdout.unwrap().as_ref()), "by the API\n");
    assert_eq!(inspected.request.container.unwrap().docker.unwrap().image, IMAGE);
    assert_eq!(engine.inspect("mesos-api")["Config"]["Labels"]["a"], "b");
    daemon.remove(&id("api")).unwrap();
}
