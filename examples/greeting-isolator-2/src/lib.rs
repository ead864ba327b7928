//! As version 1, but keeps the words of the greeting. Migrates the states of version 1 on recovery.

use cofferdam_plugin_api::prelude::*;

const VERSION: &str = env!("CARGO_PKG_VERSION");

struct Greeting(Config);

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Value of `GREETING` in every container.
    greeting: Option<String>,
}

/// State of the plugin for one container, which the agent keeps.
#[derive(Default, Serialize, Deserialize)]
struct State {
    words: Vec<String>,
    since_version: String,
}

/// State of version 1.
#[derive(Deserialize)]
struct StateV1 {
    text: String,
}

fn state(text: &str, since_version: String) -> State {
    State { words: text.split_whitespace().map(str::to_owned).collect(), since_version }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Greeting {
    const NAME: &'static str = "example/greeting";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        Recovery::upgrade(&request.containers, VERSION, |old: StateV1, by| {
            Ok(state(&old.text, by.to_string()))
        })
    }

    fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
        let text = self.0.greeting.as_deref().unwrap_or("hello there");
        Prepared::new().environment("GREETING", text).state(&state(text, VERSION.into()))
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        Ok(Status::default().with("greeting", json!(container.state::<State>()?)))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::{self, Verdict};
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    fn harness() -> PluginHarness<Greeting> {
        PluginHarness::isolator(json!({})).unwrap()
    }

    fn recovered(id: &str, written_by: Option<&str>, state: Json) -> Recovered {
        Recovered {
            id: id.parse().unwrap(),
            details: model::ContainerDetails { state, ..model::ContainerDetails::default() },
            written_by: written_by.map(|version| Version::parse(version).unwrap()),
        }
    }

    #[test]
    fn a_state_of_version_1_is_migrated() {
        let harness = harness();
        let old = recovered("web", Some("1.4.2"), json!({ "text": "good  morning" }));
        harness.recover(vec![old], Vec::new()).unwrap();
        let kept = json!({ "words": ["good", "morning"], "since_version": "1.4.2" });
        assert_eq!(harness.state("web"), kept);
        assert_eq!(harness.status("web").unwrap().0["greeting"], kept);
    }

    #[test]
    fn a_newer_or_damaged_state_is_refused_with_a_reason() {
        let newer = recovered("new", Some("3.0.0"), json!({ "tune": 440 }));
        let damaged = recovered("bad", Some("1.0.0"), json!({ "txt": "?" }));
        let verdicts = harness().recover(vec![newer, damaged], Vec::new()).unwrap().verdicts;
        let reason = |id: &str| match &verdicts[id] {
            Verdict::Refused { reason } => reason.clone(),
            other => panic!("{other:?}"),
        };
        assert!(reason("new").contains("version 3.0.0"), "{}", reason("new"));
        assert!(reason("bad").contains("missing field `text`"), "{}", reason("bad"));
    }

    #[test]
    fn states_of_this_version_and_missing_states_need_no_verdict() {
        let own = recovered("own", Some("2.0.0"), json!({ "words": ["hi"], "since_version": "2.0.0" }));
        let verdicts = harness().recover(vec![own, recovered("none", None, Json::Null)], Vec::new()).unwrap();
        assert!(verdicts.verdicts.is_empty());
    }

    #[test]
    fn the_greeting_is_set_and_its_words_are_kept() {
        let harness = harness();
        assert_eq!(harness.prepare("web").unwrap().launch.environment["GREETING"], "hello there");
        let kept = json!({ "words": ["hello", "there"], "since_version": "2.0.0" });
        assert_eq!(harness.state("web"), kept);
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        harness().cleanup("unknown").unwrap();
        harness().cleanup("unknown").unwrap();
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        let refused = PluginHarness::<Greeting>::isolator(json!({ "greeting": 3 })).err().unwrap();
        assert!(refused.message.contains("invalid type"), "{refused}");
    }
}
