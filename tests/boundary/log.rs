//! What a guest logs arrives in the agent's own log.

use std::io;
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::scene::{Scene, alone, brief, id, lives, until};

/// Where the log goes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn of(&self, target: &str) -> Vec<Json> {
        let bytes = self.0.lock().unwrap().clone();
        let lines = String::from_utf8(bytes).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        lines.filter(|line| line["target"].as_str().is_some_and(|found| found.starts_with(target))).collect()
    }
}

fn listen(filter: &str) -> Lines {
    let lines = Lines::default();
    tracing_subscriber::fmt()
        .json()
        .with_writer(lines.clone())
        .with_env_filter(EnvFilter::new(filter))
        .init();
    lines
}

#[test]
fn a_plugins_lines_arrive_with_target_fields_and_the_span_of_the_call() {
    if !alone("log::a_plugins_lines_arrive_with_target_fields_and_the_span_of_the_call") {
        return;
    }
    let lines = listen("info");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let scene = Scene::new("prepare", "log", json!({}));
        let agent = scene.world.start().await.unwrap();
        agent.launch(brief("web")).await.unwrap();
        agent.wait(&id("web")).await.unwrap();
        lives(&agent).await;
    });
    let said = lines.of("plugin::rude/fault::rude_fault");
    assert_eq!(said.len(), 1, "{said:?}");
    let line = &said[0];
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["target"], "plugin::rude/fault::rude_fault::act");
    assert_eq!(line["fields"]["message"], "said by the rude one");
    assert_eq!(line["fields"]["answer"], "42");
    assert_eq!(line["fields"]["container"], "web");
    let spans = line["spans"].as_array().unwrap();
    let last = &spans[spans.len() - 1];
    assert_eq!((&last["name"], &last["depth"]), (&json!("own_span"), &json!("7")), "{line}");
    let call = &spans[spans.len() - 2];
    assert_eq!(call["plugin"], "rude/fault", "{line}");
    assert_eq!(call["method"], "prepare", "{line}");
    assert_eq!(call["container"], "web", "{line}");
}

#[test]
fn the_operators_filter_reaches_into_a_plugin() {
    if !alone("log::the_operators_filter_reaches_into_a_plugin") {
        return;
    }
    let lines = listen("info,plugin::rude=warn");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let scene = Scene::new("prepare", "log", json!({}));
        let agent = scene.world.start().await.unwrap();
        agent.launch(brief("web")).await.unwrap();
        agent.wait(&id("web")).await.unwrap();
    });
    assert_eq!(lines.of("plugin::"), Vec::<Json>::new());
    assert!(!lines.of("cofferdam").is_empty(), "somebody listened");
}

#[test]
fn a_panic_while_being_dropped_is_logged_with_its_place() {
    if !alone("log::a_panic_while_being_dropped_is_logged_with_its_place") {
        return;
    }
    let lines = listen("info");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let scene =
            Scene::new("prepare", "panic", json!({})).also(json!({ "method": "drop", "act": "panic" }));
        let agent = scene.world.start().await.unwrap();
        agent.launch(brief("web")).await.unwrap_err();
        until("the line", || !lines.of("plugin::rude/fault::").is_empty()).await;
        lives(&agent).await;
    });
    let said = lines.of("plugin::rude/fault::");
    let line = said.first().expect("it is told");
    assert_eq!(line["level"], "ERROR");
    let message = line["fields"]["message"].as_str().unwrap();
    assert!(message.contains("panicked while being dropped: deliberate"), "{line}");
    assert!(line["fields"]["location"].as_str().unwrap().contains("fault/src/act.rs:"), "{line}");
}
