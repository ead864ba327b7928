//! Guests that do not answer: the call is given up, the agent and everybody else go on.

use std::fs;

use cofferdam_core::error_chain::describe;
use cofferdam_core::model::Resources;
use cofferdam_plugin_model::Method;
use serde_json::json;

use crate::scene::{Rope, Scene, brief, id, lasting, lives, raw, refusal, rude, says, stuck, until};

/// A scene whose rude guest hangs in a method, and the rope it hangs on.
fn hanging(method: Method) -> (Scene, Rope) {
    let mut scene = Scene::new(method.name(), "hang", json!({})).hurried(method);
    let rope = Rope::new(scene.at("rope"));
    scene.rude().table["faults"][0]["until"] = rope.path().display().to_string().into();
    (scene, rope)
}

async fn fails_the_launch(method: Method) {
    let (scene, rope) = hanging(method);
    let agent = scene.world.start().await.unwrap();
    let text = refusal(&agent, brief("web")).await;
    let late = format!("`rude/fault` did not return from `{method}` within 300ms");
    says(&text, &["the plugin chain failed for container `web`", &late]);
    assert_eq!(rude(&agent).calls[method.name()].timeouts, 1);
    assert!(scene.journal().contains(&"cleanup web".to_owned()), "what it did is undone all the same");
    lives(&agent).await;
    drop(rope);
    lives(&agent).await;
    assert_eq!(rude(&agent).health, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_prepare() {
    fails_the_launch(Method::Prepare).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_watch() {
    fails_the_launch(Method::Watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_isolate() {
    fails_the_launch(Method::Isolate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_usage_and_status() {
    for method in [Method::Usage, Method::Status] {
        let (scene, rope) = hanging(method);
        let agent = scene.world.start().await.unwrap();
        agent.launch(lasting("web")).await.unwrap();
        let failed = match method {
            Method::Usage => agent.usage(&id("web")).await.unwrap().failed,
            _ => {
                let status = agent.status(&id("web")).await.unwrap();
                assert_eq!(status.status["greeting"], json!("hello there"), "the others are served");
                status.failed
            }
        };
        says(&failed["rude/fault"], &[&format!("did not return from `{method}` within 300ms")]);
        assert_eq!(rude(&agent).calls[method.name()].timeouts, 1);
        lives(&agent).await;
        agent.destroy(&id("web")).await.unwrap();
        drop(rope);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_update_those_before_it_go_back() {
    let (mut scene, rope) = hanging(Method::Update);
    let before = scene.at("before");
    scene.world.config.isolators.insert(0, raw(json!({ "journal": before })));
    let agent = scene.world.start().await.unwrap();
    let mut request = lasting("web");
    request.resources = Resources::default().with("cpus", 1.0);
    agent.launch(request).await.unwrap();
    let error = agent.update(&id("web"), Resources::default().with("cpus", 2.0)).await.unwrap_err();
    says(
        &describe(&error),
        &["the plugin chain refused the update", "`rude/fault` did not return from `update` within 300ms"],
    );
    let told: Vec<String> = fs::read_to_string(&before).unwrap().lines().map(str::to_owned).collect();
    let updates: Vec<&String> = told.iter().filter(|line| line.starts_with("update")).collect();
    assert_eq!(updates.len(), 2, "{told:?}");
    says(updates[0], &[r#""cpus":{"scalar":2.0}"#]);
    says(updates[1], &[r#""cpus":{"scalar":1.0}"#]);
    let kept = agent.inspect(&id("web")).unwrap().summary.resources;
    assert_eq!(kept, Resources::default().with("cpus", 1.0));
    lives(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
    drop(rope);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_limitation_the_end_is_reported_all_the_same() {
    let (scene, rope) = hanging(Method::Limitation);
    let agent = scene.world.start().await.unwrap();
    agent.launch(brief("web")).await.unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_eq!(rude(&agent).calls["limitation"].timeouts, 1);
    lives(&agent).await;
    drop(rope);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_cleanup_the_container_stays_visible_until_it_succeeds() {
    let (mut scene, rope) = hanging(Method::Cleanup);
    let healed = scene.at("healed");
    scene.rude().table["faults"][0]["unless"] = healed.display().to_string().into();
    let agent = scene.world.start().await.unwrap();
    agent.launch(brief("web")).await.unwrap();
    until("the reason", || stuck(&agent, "web").contains("did not return from `cleanup` within 300ms")).await;
    assert!(rude(&agent).calls["cleanup"].timeouts >= 1);
    fs::write(&healed, "").unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    lives(&agent).await;
    drop(rope);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_recover_the_plugin_is_out_of_service() {
    let (scene, rope) = hanging(Method::Recover);
    let agent = scene.world.start().await.unwrap();
    let view = rude(&agent);
    assert_eq!(view.health, "out of service");
    says(&view.health_reason.unwrap(), &["it did not recover", "did not return from `recover` within 300ms"]);
    assert_eq!(view.calls["recover"].timeouts, 1);
    drop(rope);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_drop_nobody_waits() {
    let mut scene = Scene::new("prepare", "panic", json!({}));
    let rope = Rope::new(scene.at("rope"));
    let hangs = json!({ "method": "drop", "act": "hang", "until": rope.path() });
    scene = scene.also(hangs);
    let agent = scene.world.start().await.unwrap();
    says(&refusal(&agent, brief("web")).await, &["panicked in `prepare`", "it was restarted"]);
    until("the old instance's end", || scene.journal().contains(&"drop".to_owned())).await;
    lives(&agent).await;
    // Nor does the end of the agent, with the new instance.
    drop(agent);
    drop(rope);
}

/// Whoever asks may go away at any time, as a client that closes its connection does.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_asker_goes_away_is_done_and_put_on_record() {
    let (mut scene, rope) = hanging(Method::Update);
    scene.rude().timeouts.clear();
    let agent = scene.world.start().await.unwrap();
    agent.launch(lasting("web")).await.unwrap();
    let wanted = Resources::default().with("cpus", 2.0);
    let (asker, resources) = (agent.clone(), wanted.clone());
    let question = tokio::spawn(async move { asker.update(&id("web"), resources).await });
    until("the call", || scene.journal().contains(&"update web".to_owned())).await;
    question.abort();
    assert!(question.await.unwrap_err().is_cancelled());
    drop(rope);
    until("the record", || agent.inspect(&id("web")).is_some_and(|seen| seen.summary.resources == wanted))
        .await;
    lives(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}
