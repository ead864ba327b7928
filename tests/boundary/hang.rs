//! Plugins that do not return: the call times out, and the agent and the other plugins keep working.

use std::fs;
use std::time::Duration;

use cofferdam_core::error_chain::describe;
use cofferdam_core::model::Resources;
use cofferdam_core::model::view::{Report, WantedReports};
use cofferdam_plugin_model::Method;
use serde_json::json;

use crate::fixture::{
    Fixture, Pipe, assert_contains, assert_works, cleanup_errors, faulty, id, launch_error, long_running,
    raw, short, wait_until,
};

/// A fixture whose faulty plugin hangs in a method, and the pipe that it reads.
fn hanging(method: Method) -> (Fixture, Pipe) {
    let mut fixture = Fixture::new(method.name(), "hang", json!({})).with_short_timeout(method);
    let pipe = Pipe::new(fixture.at("pipe"));
    fixture.faulty().table["faults"][0]["until"] = pipe.path().display().to_string().into();
    (fixture, pipe)
}

/// The launch fails as soon as the call times out. The plugin is not called again before it has returned; until then,
/// the container is visible and its id is taken.
async fn fails_the_launch(method: Method) {
    let (fixture, pipe) = hanging(method);
    let agent = fixture.world.start().await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    let timed_out = format!("`test/fault` did not return from `{method}` within 300ms");
    assert_contains(&text, &["the plugin chain failed for container `web`", &timed_out]);
    assert_eq!(faulty(&agent).calls[method.name()].timeouts, 1);

    let busy = format!("`cleanup` of `test/fault` was not called: its `{method}` for this container");
    assert_contains(&cleanup_errors(&agent, "web"), &[&busy]);
    assert_contains(
        &launch_error(&agent, short("web")).await,
        &["taken by a container that is being cleaned up", &busy],
    );
    assert_works(&agent).await;
    assert!(!fixture.journal().contains(&"cleanup web".to_owned()), "{:?}", fixture.journal());

    drop(pipe);
    wait_until("its cleanup", || !agent.contains(&id("web"))).await;
    let calls = fixture.journal();
    assert_eq!(calls.iter().filter(|call| *call == "cleanup web").count(), 1, "{calls:?}");
    assert_works(&agent).await;
    assert_eq!(faulty(&agent).health, "ok");
}

/// The plugin is called only once while it hangs, so threads and calls do not accumulate.
#[tokio::test(flavor = "multi_thread")]
async fn calls_for_the_same_container_are_refused_until_a_hanging_call_returns() {
    let (fixture, pipe) = hanging(Method::Usage);
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let failed = agent.usage(&id("web")).await.unwrap().failed;
    assert_contains(&failed["test/fault"], &["did not return from `usage` within 300ms"]);
    for _ in 0..40 {
        let failed = agent.usage(&id("web")).await.unwrap().failed;
        assert_contains(
            &failed["test/fault"],
            &["`usage` of `test/fault` was not called: its `usage` for this container"],
        );
    }
    assert_eq!(fixture.journal().iter().filter(|call| *call == "usage web").count(), 1);
    drop(pipe);
    agent.destroy(&id("web")).await.unwrap();
    assert_works(&agent).await;
}

/// Who needs an answer in time gets what is known then.
#[tokio::test(flavor = "multi_thread")]
async fn reports_that_are_late_are_left_out() {
    let (mut fixture, pipe) = hanging(Method::Usage);
    fixture.faulty().timeouts.clear();
    let agent = fixture.world.start().await.unwrap();
    let ids = ["web", "other"].map(id);
    for name in ["web", "other"] {
        agent.launch(long_running(name)).await.unwrap();
    }
    let wanted = WantedReports { within: Some(Duration::from_secs(2)), ..WantedReports::USAGE };
    let reports = agent.reports(&ids, wanted).await;
    assert_eq!(reports.iter().map(|report| report.usage.is_some()).collect::<Vec<_>>(), [false, true]);
    drop(pipe);
    for id in &ids {
        agent.destroy(id).await.unwrap();
    }
}

/// Two clients that request the usage at the same time both get it.
#[tokio::test(flavor = "multi_thread")]
async fn calls_for_the_same_container_wait_for_a_call_in_progress() {
    let (mut fixture, pipe) = hanging(Method::Usage);
    fixture.faulty().timeouts.clear();
    let repaired = fixture.at("repaired");
    fixture.faulty().table["faults"][0]["unless"] = repaired.display().to_string().into();
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let web = id("web");
    let release = async {
        wait_until("the first call", || fixture.journal().contains(&"usage web".to_owned())).await;
        fs::write(&repaired, "").unwrap();
        drop(pipe);
    };
    let (one, other, ()) = tokio::join!(agent.usage(&web), agent.usage(&web), release);
    for usage in [one, other] {
        let failed = usage.unwrap().failed;
        assert!(failed.is_empty(), "{failed:?}");
    }
    agent.destroy(&web).await.unwrap();
    assert_works(&agent).await;
}

/// A job asks about many containers. When a call hangs, another one continues, and knows what the first has learned.
#[tokio::test(flavor = "multi_thread")]
async fn a_hang_for_one_container_leaves_the_reports_on_others_complete() {
    let (fixture, pipe) = hanging(Method::Usage);
    let agent = fixture.world.start().await.unwrap();
    let names = ["a", "b", "web", "x", "y"];
    for name in names {
        agent.launch(long_running(name)).await.unwrap();
    }
    let mut asked: Vec<_> = names.map(id).into();
    asked.push(id("unknown"));
    let reports = agent.reports(&asked, WantedReports::ALL).await;
    let failed = |report: &Report| report.usage.as_ref().unwrap().failed.clone();
    for (name, report) in names.iter().zip(&reports) {
        let status = report.status.as_ref().unwrap();
        assert_eq!(status.status["greeting"], json!("hello there"), "{name}");
        if *name == "web" {
            assert_contains(&failed(report)["test/fault"], &["did not return from `usage` within 300ms"]);
        } else {
            assert!(failed(report).is_empty(), "{name}: {report:?}");
            assert_eq!(report.usage.as_ref().unwrap().number("fault_count"), Some(1.0), "{name}");
        }
    }
    assert_eq!(reports[names.len()], Report::default());
    // Each was asked once, and the container with the hanging call is not locked.
    let journal = fixture.journal();
    for name in names {
        let call = format!("usage {name}");
        assert_eq!(journal.iter().filter(|line| **line == call).count(), 1, "{journal:?}");
    }
    drop(pipe);
    for name in names {
        agent.destroy(&id(name)).await.unwrap();
    }
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_prepare_fails_the_launch() {
    fails_the_launch(Method::Prepare).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_watch_fails_the_launch() {
    fails_the_launch(Method::Watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_isolate_fails_the_launch() {
    fails_the_launch(Method::Isolate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_usage_or_status_fails_only_that_plugin() {
    for method in [Method::Usage, Method::Status] {
        let (fixture, pipe) = hanging(method);
        let agent = fixture.world.start().await.unwrap();
        agent.launch(long_running("web")).await.unwrap();
        let failed = match method {
            Method::Usage => agent.usage(&id("web")).await.unwrap().failed,
            _ => {
                let status = agent.status(&id("web")).await.unwrap();
                assert_eq!(status.status["greeting"], json!("hello there"), "the other plugins are called");
                status.failed
            }
        };
        assert_contains(&failed["test/fault"], &[&format!("did not return from `{method}` within 300ms")]);
        assert_eq!(faulty(&agent).calls[method.name()].timeouts, 1);
        assert_works(&agent).await;
        drop(pipe);
        agent.destroy(&id("web")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_update_rolls_back_the_plugins_before_it() {
    let (mut fixture, pipe) = hanging(Method::Update);
    let before = fixture.at("before");
    fixture.world.config.isolators.insert(0, raw(json!({ "journal": before })));
    let agent = fixture.world.start().await.unwrap();
    let mut request = long_running("web");
    request.resources = Resources::default().with("cpus", 1.0);
    agent.launch(request).await.unwrap();
    let error = agent.update(&id("web"), Resources::default().with("cpus", 2.0)).await.unwrap_err();
    assert_contains(
        &describe(&error),
        &["the plugin chain refused the update", "`test/fault` did not return from `update` within 300ms"],
    );
    let journal: Vec<String> = fs::read_to_string(&before).unwrap().lines().map(str::to_owned).collect();
    let updates: Vec<&String> = journal.iter().filter(|line| line.starts_with("update")).collect();
    assert_eq!(updates.len(), 2, "{journal:?}");
    assert_contains(updates[0], &[r#""cpus":{"scalar":2.0}"#]);
    assert_contains(updates[1], &[r#""cpus":{"scalar":1.0}"#]);
    let kept = agent.inspect(&id("web")).unwrap().summary.resources;
    assert_eq!(kept, Resources::default().with("cpus", 1.0));
    assert_works(&agent).await;
    drop(pipe);
    agent.destroy(&id("web")).await.unwrap();
}

/// What a call applies after its timeout is rolled back when it has returned. Until then, the record says that either may be in force, and
/// only an update of what is uncertain is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_returns_after_its_timeout_is_rolled_back() {
    let (mut fixture, pipe) = hanging(Method::Update);
    let before = fixture.at("before");
    fixture.world.config.isolators.insert(0, raw(json!({ "journal": before })));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let cpus = |cpus| Resources::default().with("cpus", cpus);
    let error = describe(&agent.update(&id("web"), cpus(2.0)).await.unwrap_err());
    assert_contains(&error, &["rolling it back is not complete and will be repeated", "within 300ms"]);
    assert_eq!(fixture.world.record(&id("web")).updating, Some(cpus(2.0)));

    let error =
        describe(&agent.update(&id("web"), Resources::default().with("mem", 64.0)).await.unwrap_err());
    assert_contains(
        &error,
        &[
            "an earlier update failed and could not be rolled back yet",
            "all that the earlier one concerned: cpus",
        ],
    );
    let error = describe(&agent.update(&id("web"), cpus(3.0)).await.unwrap_err());
    assert_contains(
        &error,
        &["the plugin chain refused the update", "`update` of `test/fault` was not called"],
    );
    assert_eq!(fixture.world.record(&id("web")).updating, Some(cpus(3.0)));

    drop(pipe);
    wait_until("the roll back", || fixture.world.record(&id("web")).updating.is_none()).await;
    let updates = |path| -> Vec<String> {
        let journal = fs::read_to_string(path).unwrap();
        journal.lines().filter(|line| line.starts_with("update")).map(str::to_owned).collect()
    };
    assert_contains(updates(&before).last().unwrap(), &[r#""resources":{"requests":{},"limits":{}}"#]);
    assert_eq!(fixture.journal().iter().filter(|call| *call == "update web").count(), 2);
    assert_eq!(agent.inspect(&id("web")).unwrap().summary.resources, Resources::default());
    agent.update(&id("web"), cpus(4.0)).await.unwrap();
    assert_eq!(agent.inspect(&id("web")).unwrap().summary.resources, cpus(4.0));
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_limitation_delays_the_end_until_it_returns() {
    let (fixture, pipe) = hanging(Method::Limitation);
    let agent = fixture.world.start().await.unwrap();
    agent.launch(short("web")).await.unwrap();
    wait_until("the reason", || {
        cleanup_errors(&agent, "web").contains("did not return from `limitation` within 300ms")
    })
    .await;
    assert_eq!(faulty(&agent).calls["limitation"].timeouts, 1);
    assert_works(&agent).await;
    drop(pipe);
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_cleanup_keeps_the_container_visible_until_it_succeeds() {
    let (mut fixture, pipe) = hanging(Method::Cleanup);
    let repaired = fixture.at("repaired");
    fixture.faulty().table["faults"][0]["unless"] = repaired.display().to_string().into();
    let agent = fixture.world.start().await.unwrap();
    agent.launch(short("web")).await.unwrap();
    wait_until("the reason", || {
        cleanup_errors(&agent, "web").contains("did not return from `cleanup` within 300ms")
    })
    .await;
    assert!(faulty(&agent).calls["cleanup"].timeouts >= 1);
    fs::write(&repaired, "").unwrap();
    drop(pipe);
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_recover_takes_the_plugin_out_of_service() {
    let (fixture, pipe) = hanging(Method::Recover);
    let agent = fixture.world.start().await.unwrap();
    let view = faulty(&agent);
    assert_eq!(view.health, "out of service");
    assert_contains(
        &view.health_reason.unwrap(),
        &["it did not recover", "did not return from `recover` within 300ms"],
    );
    assert_eq!(view.calls["recover"].timeouts, 1);
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_drop_blocks_nothing() {
    let mut fixture = Fixture::new("prepare", "panic", json!({}));
    let pipe = Pipe::new(fixture.at("pipe"));
    let hangs = json!({ "method": "drop", "act": "hang", "until": pipe.path() });
    fixture = fixture.with_fault(hangs);
    let agent = fixture.world.start().await.unwrap();
    assert_contains(
        &launch_error(&agent, short("web")).await,
        &["panicked in `prepare`", "it was restarted"],
    );
    wait_until("the drop of the old instance", || fixture.journal().contains(&"drop".to_owned())).await;
    assert_works(&agent).await;
    // Nor does the agent's own drop, which drops the new instance.
    drop(agent);
    drop(pipe);
}

/// A caller can be dropped at any time, as when a client closes its connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_caller_is_dropped_is_completed_and_recorded() {
    let (mut fixture, pipe) = hanging(Method::Update);
    fixture.faulty().timeouts.clear();
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let wanted = Resources::default().with("cpus", 2.0);
    let (caller, resources) = (agent.clone(), wanted.clone());
    let update = tokio::spawn(async move { caller.update(&id("web"), resources).await });
    wait_until("the call", || fixture.journal().contains(&"update web".to_owned())).await;
    update.abort();
    assert!(update.await.unwrap_err().is_cancelled());
    drop(pipe);
    wait_until("the record", || {
        agent.inspect(&id("web")).is_some_and(|seen| seen.summary.resources == wanted)
    })
    .await;
    assert_works(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}
