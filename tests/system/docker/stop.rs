//! A destroy takes effect in every phase of a launch, and while the container runs.

use std::net::TcpListener;

use cofferdam_core::agent::Agent;
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::model::{Ended, Phase, Reason, Request, Uri};
use cofferdam_tests::wait_for_text;
use cofferdam_tests::world::{id, with_agent};
use nix::sys::signal::Signal;

use crate::images::agent::Stalling;
use crate::images::registry::large;
use cofferdam_tests::engine::{Engine, IMAGE, cancelled, destroy, engine, shell, until_event, words};
use cofferdam_tests::registry::Registry;

/// Destroys a container while its launch is in a phase. Returns the error of the launch.
async fn stopped_in(agent: &Agent, request: Request, phase: Phase) -> LaunchError {
    let id = request.id.clone();
    let launching = tokio::spawn({
        let agent = agent.clone();
        async move { agent.launch(request).await }
    });
    let is_in = || agent.inspect(&id).is_some_and(|inspection| inspection.summary.phase == phase);
    until_event(agent, &format!("it is {phase}"), is_in).await;
    destroy(agent, &id).await;
    cancelled(launching).await
}

/// A server that accepts connections and never answers.
pub(crate) fn stalled_server() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A registry in the network of an engine that sends half of a layer.
pub(crate) fn stalling_registry(engine: &Engine) -> (Registry, Stalling) {
    engine.in_network(|| {
        let registry = Registry::start(false);
        registry.image("web", "1", &[large()], "amd64");
        let stalling = Stalling::new(&registry);
        (registry, stalling)
    })
}

#[test]
fn a_destroy_ends_a_fetch_and_a_pull_at_once() {
    let Some(engine) = engine() else { return };
    let world = engine.patient_world();
    with_agent(&world, async |agent| {
        let server = stalled_server();
        let mut request = shell("stop-launch-fetch", "true");
        request.uris = vec![Uri {
            value: format!("http://{}/file", server.local_addr().unwrap()),
            executable: false,
            extract: true,
            cache: false,
            output_file: None,
            sha256: None,
        }];
        let error = stopped_in(&agent, request, Phase::Fetching).await;
        assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Fetching, .. }), "{error}");

        let registry = engine.in_network(stalled_server);
        let mut request = shell("stop-launch-pull", "true");
        request.docker.as_mut().unwrap().image = format!("{}/stalled:1", registry.local_addr().unwrap());
        let error = stopped_in(&agent, request, Phase::Pulling).await;
        assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Pulling, .. }), "{error}");
        assert!(agent.containers().is_empty());
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("stop-launch-"), [""; 0]);
}

#[test]
fn a_destroy_ends_a_pull_in_the_middle_of_a_layer() {
    let Some(engine) = engine() else { return };
    let world = engine.patient_world();
    let (_registry, stalling) = stalling_registry(engine);
    with_agent(&world, async |agent| {
        let mut request = shell("stop-launch-layer", "true");
        request.docker.as_mut().unwrap().image = stalling.name();
        let launching = tokio::spawn({
            let agent = agent.clone();
            async move { agent.launch(request).await }
        });
        tokio::task::block_in_place(|| stalling.wait_half());
        destroy(&agent, &id("stop-launch-layer")).await;
        let error = cancelled(launching).await;
        assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Pulling, .. }), "{error}");
        assert!(agent.containers().is_empty());
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("stop-launch-layer"), [""; 0]);
}

#[test]
fn a_running_container_is_signalled_killed_and_destroyed() {
    let Some(engine) = engine() else { return };
    let world = engine.patient_world();
    with_agent(&world, async |agent| {
        let running = async |name: &str| {
            let line = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
            agent.launch(shell(name, line)).await.unwrap();
            let log = agent.inspect(&id(name)).unwrap().logs.stdout.unwrap();
            wait_for_text(&log, "ready");
            log
        };
        let log = running("stop-running-signal").await;
        assert!(agent.kill(&id("stop-running-signal"), Signal::SIGTERM as i32).await.unwrap());
        let termination = agent.wait(&id("stop-running-signal")).await.unwrap();
        assert_eq!((termination.ended(), termination.reason), (Some(Ended::Exited(3)), None));
        assert!(cofferdam_tests::text(&log).contains("got it"));
        assert!(!agent.kill(&id("stop-running-signal"), Signal::SIGTERM as i32).await.unwrap());

        running("stop-running-kill").await;
        assert!(agent.kill(&id("stop-running-kill"), Signal::SIGKILL as i32).await.unwrap());
        let termination = agent.wait(&id("stop-running-kill")).await.unwrap();
        assert_eq!(
            (termination.ended(), termination.reason),
            (Some(Ended::Signaled(9)), Some(Reason::Killed))
        );

        // Repeated, at the same time, and later.
        running("stop-running-destroy").await;
        // A container that is stopped ends all the same.
        engine.client(&["pause", "mesos-stop-running-destroy"]);
        let name = id("stop-running-destroy");
        let (one, other) = tokio::join!(destroy(&agent, &name), destroy(&agent, &name));
        assert_eq!(one.as_ref().unwrap().ended(), Some(Ended::Signaled(9)));
        assert_eq!((&one, destroy(&agent, &name).await), (&other, one.clone()));
        for name in ["stop-running-signal", "stop-running-kill", "stop-running-destroy"] {
            agent.remove(&id(name)).await.unwrap();
        }
    });
    assert_eq!(world.leftovers(), [""; 0]);
    assert_eq!(engine.names("stop-running-"), [""; 0]);
}

#[test]
fn nothing_is_left_of_an_attached_container_that_does_not_start() {
    let Some(engine) = engine() else { return };
    let world = engine.world();
    with_agent(&world, async |agent| {
        let mut request = words("stop-unstarted", IMAGE, &["/nonexistent"]);
        (request.interactive, request.attached) = (true, true);
        let error = agent.launch(request).await.unwrap_err();
        assert!(matches!(error, LaunchError::Engine { .. }), "{error}");
        // A slow engine may remove it later.
        until_event(&agent, "the agent forgets it", || agent.containers().is_empty()).await;
        assert_eq!(engine.names("stop-unstarted"), [""; 0]);
    });
    assert_eq!(world.leftovers(), [""; 0]);
}
