//! The plugin API through the ABI, as the agent calls it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use model::{Namespace, Operation, Value};
use serde_json::json;

use super::*;
use crate::prelude::{Applied, ContainerRef, Error, Event, Host, NewContainer, Output, Prepared, Streams};
use crate::{RecoverRequest, Recovery, event};

type Result<T> = crate::Result<T>;

/// Uses every part of the plugin API that is not plain data.
struct Everything {
    host: Host,
    event: Event,
}

impl Isolator for Everything {
    const NAME: &'static str = "test/everything";
    type Config = ();

    fn create((): (), host: Host) -> Result<Self> {
        Ok(Self { host, event: Event::new()? })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        assert!(!request.deadline().has_passed());
        Ok(Recovery::new())
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let number = self.host.leases().acquire("numbers", 7..=8, container)?;
        self.host.put_state(container, &json!({ "put": number }))?;
        if container.labels.contains_key("fail") {
            return Err(Error::new("as requested").with_state(&json!({ "failed after": number })));
        }
        if container.labels.contains_key("vanish") {
            panic!("after the state was put");
        }
        let prepared = Prepared::new()
            .environment("PARENT", json!(container.parent_state::<Json>()?).to_string())
            .environment("TIME", container.deadline().remaining().as_secs().to_string())
            .enter_by_descriptor(Namespace::Network, File::open("/proc/self/ns/net")?.into())
            .bind_descriptor(File::open("/")?.into(), "/host", ["ro"]);
        prepared.state(&json!({ "prepared": number }))
    }

    fn isolate(&self, container: &ContainerRef) -> Result<Applied> {
        assert!(container.descriptor(0).is_some());
        Applied::new().state(&json!({ "isolated": container.pid()? }))
    }

    fn watch(&self, _: &ContainerRef) -> Result<Option<OwnedFd>> {
        Ok(Some(self.event.descriptor()?))
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let Some(watched) = container.descriptor(0) else { return Ok(None) };
        if !event::drain(watched)? {
            return Ok(None);
        }
        Ok(Some(Limitation {
            reason: "REASON_CONTAINER_LIMITATION".into(),
            message: "the child exceeded a limit".into(),
            resources: [("ports".to_owned(), Value::Ranges(vec![(1, 2)]))].into(),
            container: Some(ContainerId::parse(&format!("{}.child", container.id()))?),
        }))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        let before = container.details()?.resources.cpus();
        Applied::new().state(&json!({ "before": before, "after": resources.cpus() }))
    }

    fn usage(&self, _: &ContainerRef) -> Result<Usage> {
        self.event.signal()?;
        Ok(Usage::default().with("disk_statistics", json!([{ "used_bytes": 1 }])))
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        Ok(Status::default().with("processes", json!(container.processes()?.len())))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let details = container.details()?;
        let status = details.termination.as_ref().and_then(|termination| termination.status);
        Err(Error::new(format!("{status:?} {:?} {}", details.class, details.shares_cgroups)).retryable())
    }

    fn removed(&self, container: &ContainerRef) -> Result<()> {
        let leases = self.host.leases();
        leases
            .list("numbers")?
            .iter()
            .filter(|lease| lease.container.as_str() == container.id())
            .try_for_each(|lease| {
                assert_eq!(lease.plugin, Self::NAME);
                leases.release("numbers", lease.number)
            })
    }
}

fn harness() -> PluginHarness<Everything> {
    PluginHarness::isolator(json!({})).unwrap().with_timeout(Duration::from_secs(100))
}

fn labelled(harness: &PluginHarness<Everything>, id: &str, label: &str) -> Container {
    let mut container = harness.container(id);
    container.labels.insert(label.to_owned(), String::new());
    container
}

#[test]
fn descriptors_of_prepare_arrive_in_the_order_of_their_indexes() {
    let harness = harness();
    let (reply, descriptors) = harness.prepare_with_descriptors(&harness.container("web")).unwrap();
    let index = reply.launch.enter_descriptors[&Namespace::Network];
    let same = |path: &str, descriptor: &OwnedFd| {
        let (expected, found) = (rustix::fs::stat(path).unwrap(), rustix::fs::fstat(descriptor).unwrap());
        (expected.st_dev, expected.st_ino) == (found.st_dev, found.st_ino)
    };
    assert!(same("/proc/self/ns/net", &descriptors[index]));
    let Operation::BindDescriptor { index, .. } = reply.launch.operations[0] else { panic!("{reply:?}") };
    assert!(same("/", &descriptors[index]));
    assert_eq!(descriptors.len(), 2);
}

#[test]
fn calls_have_the_deadline_of_the_harness() {
    let seconds = |harness: PluginHarness<Everything>| -> u64 {
        let reply = harness.prepare("web").unwrap();
        reply.launch.environment["TIME"].parse().unwrap()
    };
    assert!((50..=100).contains(&seconds(harness())));
    let never = PluginHarness::<Everything>::isolator(json!({})).unwrap();
    assert_eq!(seconds(never), Duration::MAX.as_secs());
    harness().recover(Vec::new(), Vec::new()).unwrap();
}

#[test]
fn processes_of_a_container_are_found_only_while_it_is_running() {
    let harness = harness();
    harness.prepare("web").unwrap();
    let processes = || harness.status("web").unwrap().0["processes"].clone();
    assert_eq!(processes(), 0, "it has not been started");
    let shell = Shell::spawn("(echo ready; read end); true");
    harness.started("web", shell.pid());
    assert_eq!(processes(), 2);
    shell.end();
    assert_eq!(processes(), 0, "it has exited, but the agent has not noticed yet");
    harness.ended("web");
    assert_eq!(processes(), 0);
}

#[test]
fn states_in_replies_and_errors_are_kept() {
    let harness = harness();
    harness.prepare("web").unwrap();
    assert_eq!(harness.state("web"), json!({ "prepared": 7 }));
    harness.isolate("web", 42, File::open("/").unwrap().as_fd()).unwrap();
    assert_eq!(harness.state("web"), json!({ "isolated": 42 }));
    harness.update("web", Resources::default().with("cpus", 2.0)).unwrap();
    assert_eq!(harness.state("web"), json!({ "before": null, "after": 2.0 }));
    harness.update("web", Resources::default().with("cpus", 3.0)).unwrap();
    assert_eq!(harness.state("web"), json!({ "before": 2.0, "after": 3.0 }));

    let refused = harness.prepare_container(&labelled(&harness, "failing", "fail")).unwrap_err();
    assert_eq!(refused.message, "as requested");
    assert_eq!(harness.state("failing"), json!({ "failed after": 8 }));
}

#[test]
fn state_that_was_put_survives_a_panic() {
    let harness = harness();
    let refused = harness.prepare_container(&labelled(&harness, "web", "vanish")).unwrap_err();
    assert!(refused.location.is_some(), "{refused:?}");
    assert_eq!(harness.state("web"), json!({ "put": 7 }));
}

#[test]
fn prepare_of_a_nested_container_gets_the_state_of_its_parent() {
    let harness = harness();
    let parent = harness.prepare("pod").unwrap();
    assert_eq!(parent.launch.environment["PARENT"], "null");
    let nested = harness.prepare("pod.web").unwrap();
    assert_eq!(nested.launch.environment["PARENT"], json!({ "prepared": 7 }).to_string());
}

#[test]
fn leases_are_unique_until_they_are_released() {
    let harness = harness();
    harness.prepare("one").unwrap();
    harness.prepare("two").unwrap();
    let refused = harness.prepare("three").unwrap_err();
    assert!(refused.retryable && !refused.invalid && refused.message.contains("7 to 8"), "{refused:?}");
    harness.removed("one").unwrap();
    harness.prepare("three").unwrap();
    assert_eq!(harness.state("three"), json!({ "prepared": 7 }));
}

#[test]
fn an_event_leads_to_a_limitation_of_another_container() {
    let harness = harness();
    let watched = harness.watch("web").unwrap().unwrap();
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None);
    let usage = harness.usage("web").unwrap();
    assert_eq!(usage.0["disk_statistics"][0]["used_bytes"], 1);
    let limitation = harness.limitation("web", Some(watched.as_fd())).unwrap().unwrap();
    assert_eq!(limitation.container.unwrap().as_str(), "web.child");
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None);
}

#[test]
fn cleanup_gets_class_and_termination_of_the_container() {
    let harness = harness();
    let mut container = harness.container("pod.probe");
    container.class = model::ContainerClass::Debug;
    harness.prepare_container(&container).unwrap();
    harness
        .terminated("pod.probe", TerminationDetails { status: Some(256), ..TerminationDetails::default() });
    let refused = harness.cleanup("pod.probe").unwrap_err();
    assert_eq!(refused.message, "Some(256) Debug true");
    assert!(refused.retryable);
}

#[test]
fn the_error_for_a_missing_service_names_the_version_of_the_agent() {
    struct Old(Host);

    impl Isolator for Old {
        const NAME: &'static str = "test/old";
        type Config = ();

        fn create((): (), host: Host) -> Result<Self> {
            Ok(Self(host))
        }

        fn usage(&self, _: &ContainerRef) -> Result<Usage> {
            assert!(!self.0.supports("service.future") && self.0.agent().launcher == "posix");
            self.0.request::<()>("future", &json!({}))?;
            Ok(Usage::default())
        }
    }

    let agent = AgentInfo { version: "1.2.3".into(), launcher: "posix".into(), ..AgentInfo::default() };
    let harness = PluginHarness::<Old>::isolator_in(agent, json!({})).unwrap();
    let refused = harness.usage("web").unwrap_err();
    assert_eq!(refused.message, "agent 1.2.3 does not provide the service `future`; upgrade the agent");
}

#[test]
fn a_logger_sets_files_variables_and_state() {
    struct Piped;

    impl Logger for Piped {
        const NAME: &'static str = "test/piped";
        type Config = ();

        fn create((): (), _: Host) -> Result<Self> {
            Ok(Self)
        }

        fn prepare(&self, container: &NewContainer) -> Result<Streams> {
            assert!(!container.deadline().has_passed());
            let pipe = || File::open("/dev/null").map(|file| Output::Descriptor(file.into()));
            Streams::new(pipe()?, pipe()?)
                .files(container.sandbox.join("out"), container.sandbox.join("err"))
                .environment("LOG", "pipe")
                .state(&7)
        }

        fn removed(&self, container: &ContainerRef) -> Result<()> {
            assert_eq!(container.state::<u32>()?, 7);
            Ok(())
        }
    }

    let harness = PluginHarness::<Piped>::logger(json!({})).unwrap();
    let container = harness.container("web");
    let (reply, descriptors) = harness.open(&container).unwrap();
    assert_eq!(reply.files.unwrap().stderr.unwrap(), container.sandbox.join("err"));
    assert_eq!(reply.environment["LOG"], "pipe");
    let index = |stream| match stream {
        model::Stream::Descriptor { index } => index,
        other => panic!("{other:?}"),
    };
    assert_eq!((index(reply.stdout), index(reply.stderr), descriptors.len()), (0, 1, 2));
    harness.removed("web").unwrap();
}

#[test]
fn a_hook_gets_typed_requests_and_a_descriptor_and_its_other_methods_do_nothing() {
    use std::collections::BTreeMap;

    use model::{
        DockerLaunch, DockerLaunchReply, ExecutorEnvironment, PostFetch, TaskStatus, TaskStatusReply,
    };

    use crate::HookCall;

    struct Everywhere;

    impl Hook for Everywhere {
        const NAME: &'static str = "test/everywhere";
        type Config = ();

        fn create((): (), _: Host) -> Result<Self> {
            Ok(Self)
        }

        fn executor_environment(
            &self,
            call: &HookCall<'_, ExecutorEnvironment>,
        ) -> Result<Option<BTreeMap<String, String>>> {
            let mut environment = call.environment.clone();
            environment.insert("EXECUTOR".into(), call.executor.id.clone());
            Ok(Some(environment))
        }

        fn pre_launch_docker(&self, call: &HookCall<'_, DockerLaunch>) -> Result<DockerLaunchReply> {
            if call.privileged {
                return Err(Error::new(format!("`{}` may not be privileged", call.container())).retryable());
            }
            let task_environment = [("IMAGE".to_owned(), call.image.clone())].into();
            Ok(DockerLaunchReply { task_environment, ..DockerLaunchReply::default() })
        }

        fn post_fetch(&self, call: &HookCall<'_, PostFetch>) -> Result<()> {
            assert!(!call.deadline().has_passed());
            let found = crate::foreign::remove_file(call.sandbox()?, Path::new("secret"))?;
            if found { Ok(()) } else { Err(Error::new("there is no secret")) }
        }

        fn task_status(&self, call: &HookCall<'_, TaskStatus>) -> Result<TaskStatusReply> {
            assert_ne!(call.state, "TASK_LOST", "a panic");
            let labels = Some([("state".to_owned(), call.state.clone())].into());
            Ok(TaskStatusReply { labels, ..TaskStatusReply::default() })
        }
    }

    let harness = PluginHarness::<Everywhere>::hook(json!({})).unwrap();
    let mut request = ExecutorEnvironment::default();
    request.executor.id = "one".into();
    request.environment.insert("A".into(), "1".into());
    let environment = harness.executor_environment("web", &request).unwrap();
    assert_eq!(environment, BTreeMap::from([("A".into(), "1".into()), ("EXECUTOR".into(), "one".into())]));

    let mut launch = DockerLaunch { image: "busybox".into(), ..DockerLaunch::default() };
    assert_eq!(harness.pre_launch_docker("web", &launch).unwrap().task_environment["IMAGE"], "busybox");
    launch.privileged = true;
    let refused = harness.pre_launch_docker("web", &launch).unwrap_err();
    assert_eq!((refused.message.as_str(), refused.retryable), ("`web` may not be privileged", true));

    let sandbox = harness.container("web").sandbox;
    std::fs::write(sandbox.join("secret"), "").unwrap();
    harness.post_fetch("web", &sandbox, &PostFetch::default()).unwrap();
    assert!(!sandbox.join("secret").exists());
    let refused = harness.post_fetch("web", &sandbox, &PostFetch::default()).unwrap_err();
    assert_eq!(refused.message, "there is no secret");

    // Not in the `impl` block.
    harness.remove_executor("web", &model::ExecutorDetails::default()).unwrap();

    let status = |state: &str| TaskStatus { state: state.into(), ..TaskStatus::default() };
    let reply = harness.task_status("web", &status("TASK_RUNNING")).unwrap();
    assert_eq!(reply.labels.unwrap()["state"], "TASK_RUNNING");
    let refused = harness.task_status("web", &status("TASK_LOST")).unwrap_err();
    assert!(refused.message.contains("panicked in `task_status`"), "{refused}");
    assert!(refused.location.unwrap().contains("tests.rs"));
    // The instance is not called again; the agent replaces it.
    let poisoned = harness.task_status("web", &status("TASK_RUNNING")).unwrap_err();
    assert!(poisoned.message.contains("an earlier call panicked"), "{poisoned}");
}
