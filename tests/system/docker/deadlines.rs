//! Every call of an engine has a deadline, and ends the request when it is cancelled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam::engine::EngineSocket;
use cofferdam_core::engine::{Client, EngineError, Timeouts};
use cofferdam_tests::engine::{Engine, IMAGE, engine, has_engine};
use serde_json::json;

use super::proxy::Proxy;

/// Recognized by the errors of calls.
const TIMEOUTS: Timeouts = Timeouts {
    call: Duration::from_secs(1),
    launch: Duration::from_secs(2),
    pull_stall: Duration::from_secs(3),
};

/// For calls that are cancelled before.
const LONG: Timeouts = Timeouts {
    call: Duration::from_secs(3600),
    launch: Duration::from_secs(3600),
    pull_stall: Duration::from_secs(3600),
};

/// All calls, and their deadlines.
const CALLS: [(&str, Option<Duration>); 15] = [
    ("version", Some(TIMEOUTS.call)),
    ("image", Some(TIMEOUTS.call)),
    ("pull", Some(TIMEOUTS.pull_stall)),
    ("network", Some(TIMEOUTS.call)),
    ("create", Some(TIMEOUTS.launch)),
    ("attach", Some(TIMEOUTS.call)),
    ("start", Some(TIMEOUTS.launch)),
    ("container", Some(TIMEOUTS.call)),
    // Whoever waits for the end of a container waits for that of its process, or for a deadline, at the same time.
    ("wait", None),
    ("wait_removed", Some(TIMEOUTS.call)),
    ("kill", Some(TIMEOUTS.call)),
    ("update", Some(TIMEOUTS.call)),
    ("remove", Some(TIMEOUTS.call)),
    ("containers", Some(TIMEOUTS.call)),
    ("containers_named", Some(TIMEOUTS.call)),
];

async fn call(client: &Client, name: &str) -> Result<(), EngineError> {
    let (container, body) = ("deadlines", json!({}));
    match name {
        "version" => client.version().await.map(drop),
        "image" => client.image(IMAGE).await.map(drop),
        "pull" => client.pull(IMAGE, None, None).await,
        "network" => client.network("bridge").await.map(drop),
        "create" => client.create(container, None, &body).await.map(drop),
        "attach" => client.attach(container, false).await.map(drop),
        "start" => client.start(container).await,
        "container" => client.container(container).await.map(drop),
        "wait" => client.wait(container).await,
        "wait_removed" => client.wait_removed(container).await,
        "kill" => client.kill(container, 9).await.map(drop),
        "update" => client.update(container, &body).await,
        "remove" => client.remove(container).await,
        "containers" => client.containers("deadlines").await.map(drop),
        "containers_named" => client.containers_named(container).await.map(drop),
        other => panic!("there is no call {other}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

#[test]
fn the_table_has_every_call_of_the_client() {
    let source = include_str!("../../../host/core/src/engine/client.rs");
    let defined: BTreeSet<&str> =
        source.split("pub async fn ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    let mut listed: BTreeSet<&str> = CALLS.into_iter().map(|(name, _)| name).collect();
    // It is that of `version`, made once.
    listed.insert("api_version");
    assert_eq!(defined, listed);
}

#[test]
fn a_call_of_an_engine_that_is_stopped_fails_after_its_deadline() {
    if !has_engine() {
        return;
    }
    let engine = Engine::start();
    let client = |timeouts| Client::new(Arc::new(EngineSocket::new(engine.socket())), timeouts);
    runtime().block_on(async {
        // Of two clients, one has asked for the version of the engine before.
        let (known, unknown) = (client(TIMEOUTS), client(TIMEOUTS));
        while known.api_version().await.is_err() {}
        engine.stop().await;
        let calls = |client: &Client| {
            let spawn = |(name, deadline)| {
                let client = client.clone();
                (name, deadline, tokio::spawn(async move { call(&client, name).await }))
            };
            CALLS.into_iter().map(spawn).collect::<Vec<_>>()
        };
        let (known, unknown) = (calls(&known), calls(&unknown));
        let mut endless = Vec::new();
        for (name, deadline, calling) in known {
            let Some(expected) = deadline else {
                endless.push((name, calling));
                continue;
            };
            assert_timed_out(name, calling.await.unwrap(), expected);
        }
        for (name, calling) in endless {
            assert!(!calling.is_finished(), "{name}");
            calling.abort();
        }
        // That of the version is the first that is not answered.
        for (name, _, calling) in unknown {
            assert_timed_out(name, calling.await.unwrap(), TIMEOUTS.call);
        }
    });
    engine.resume();
}

fn assert_timed_out(name: &str, answer: Result<(), EngineError>, expected: Duration) {
    match answer {
        Err(EngineError::TimedOut { timeout, .. }) => assert_eq!(timeout, expected, "{name}"),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_call_that_is_cancelled_ends_its_request() {
    let Some(engine) = engine() else { return };
    let proxy = Proxy::to(engine.socket());
    let client = Client::new(Arc::new(EngineSocket::new(proxy.socket())), LONG);
    runtime().block_on(async {
        client.api_version().await.expect("an answer");
        for (name, _) in CALLS {
            let swallowed = proxy.swallow();
            let calling = tokio::spawn({
                let client = client.clone();
                async move { call(&client, name).await }
            });
            let request = swallowed.request();
            assert!(!calling.is_finished(), "{name}: {request}");
            calling.abort();
            assert!(calling.await.expect_err("it is cancelled").is_cancelled(), "{name}");
            swallowed.wait_until_closed();
        }
    });
}
