//! Log lines of plugins are part of the agent's log.

use std::io;
use std::sync::{Arc, Mutex};

use cofferdam_core::error_chain::describe;
use serde_json::{Value as Json, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::fixture::{Fixture, assert_works, id, in_own_process, short, wait_until};

/// The destination of the log.
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
fn log_lines_of_a_plugin_have_their_target_fields_and_the_span_of_the_call() {
    if !in_own_process("log::log_lines_of_a_plugin_have_their_target_fields_and_the_span_of_the_call") {
        return;
    }
    let lines = listen("info");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "log", json!({}));
        let agent = fixture.world.start().await.unwrap();
        agent.launch(short("web")).await.unwrap();
        agent.wait(&id("web")).await.unwrap();
        assert_works(&agent).await;
    });
    let lines_of_plugin = lines.of("plugin::test/fault::test_fault");
    assert_eq!(lines_of_plugin.len(), 1, "{lines_of_plugin:?}");
    let line = &lines_of_plugin[0];
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["target"], "plugin::test/fault::test_fault::act");
    assert_eq!(line["fields"]["message"], "logged by the plugin");
    assert_eq!(line["fields"]["answer"], "42");
    assert_eq!(line["fields"]["container"], "web");
    let spans = line["spans"].as_array().unwrap();
    let last = &spans[spans.len() - 1];
    assert_eq!((&last["name"], &last["depth"]), (&json!("own_span"), &json!("7")), "{line}");
    let call = &spans[spans.len() - 2];
    assert_eq!(call["plugin"], "test/fault", "{line}");
    assert_eq!(call["method"], "prepare", "{line}");
    assert_eq!(call["container"], "web", "{line}");
}

#[test]
fn what_a_plugin_logs_and_returns_as_an_error_is_bounded() {
    if !in_own_process("log::what_a_plugin_logs_and_returns_as_an_error_is_bounded") {
        return;
    }
    let lines = listen("info");
    let error = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "log_too_much", json!({ "container": "web" }));
        let agent = fixture.world.start().await.unwrap();
        let error = describe(&agent.launch(short("web")).await.unwrap_err());
        assert_works(&agent).await;
        error
    });
    assert!(error.contains("long long") && error.contains("… (cut: 40000 bytes)"), "{error}");
    assert!(error.len() < 20_000, "{} bytes", error.len());
    let lines_of_plugin = lines.of("plugin::test/fault::");
    let [line] = lines_of_plugin.as_slice() else { panic!("{} lines", lines_of_plugin.len()) };
    let texts = ["message", "other"].map(|field| line["fields"][field].as_str().unwrap());
    assert!(texts.iter().all(|text| text.ends_with("… (cut: 40000 bytes)")), "{line}");
    assert!(texts.concat().len() < 20_000, "{line}");
    let spans: Vec<_> = line["spans"].as_array().unwrap().iter().map(|span| &span["name"]).collect();
    assert!(!spans.iter().any(|name| *name == "one_of_many"), "the last span is beyond the limit: {spans:?}");
}

#[test]
fn the_operators_filter_applies_to_plugins() {
    if !in_own_process("log::the_operators_filter_applies_to_plugins") {
        return;
    }
    let lines = listen("info,plugin::test=warn");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "log", json!({}));
        let agent = fixture.world.start().await.unwrap();
        agent.launch(short("web")).await.unwrap();
        agent.wait(&id("web")).await.unwrap();
    });
    assert_eq!(lines.of("plugin::"), Vec::<Json>::new());
    assert!(!lines.of("cofferdam").is_empty(), "the agent logs");
}

#[test]
fn a_panic_in_drop_is_logged_with_its_location() {
    if !in_own_process("log::a_panic_in_drop_is_logged_with_its_location") {
        return;
    }
    let lines = listen("info");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "panic", json!({}))
            .with_fault(json!({ "method": "drop", "act": "panic" }));
        let agent = fixture.world.start().await.unwrap();
        agent.launch(short("web")).await.unwrap_err();
        wait_until("the line", || !lines.of("plugin::test/fault::").is_empty()).await;
        assert_works(&agent).await;
    });
    let lines_of_plugin = lines.of("plugin::test/fault::");
    let line = lines_of_plugin.first().expect("a log line");
    assert_eq!(line["level"], "ERROR");
    let message = line["fields"]["message"].as_str().unwrap();
    assert!(message.contains("panicked while being dropped: deliberate"), "{line}");
    assert!(line["fields"]["location"].as_str().unwrap().contains("fault/src/act.rs:"), "{line}");
}
