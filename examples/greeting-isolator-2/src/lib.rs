//! Greets every container, word by word; takes over containers that version 1 greeted.

use cofferdam_plugin_api::prelude::*;

const VERSION: &str = env!("CARGO_PKG_VERSION");

struct Greeting(Config);

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What `GREETING` is set to in every container.
    greeting: Option<String>,
}

/// What the agent keeps for us, for each container.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    words: Vec<String>,
    since_version: String,
}

/// What it kept for version 1.
#[derive(Deserialize)]
struct KeptBy1 {
    text: String,
}

fn keep(text: &str, since_version: String) -> Kept {
    Kept { words: text.split_whitespace().map(str::to_owned).collect(), since_version }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Greeting {
    const NAME: &'static str = "example/greeting";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        Recovery::upgrade(&request.containers, VERSION, |old: KeptBy1, by| {
            Ok(keep(&old.text, by.to_string()))
        })
    }

    fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
        let text = self.0.greeting.as_deref().unwrap_or("hello there");
        Prepared::new().environment("GREETING", text).state(&keep(text, VERSION.into()))
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        Ok(Status::default().with("greeting", json!(container.state::<Kept>()?)))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::{self, Verdict};
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    fn bench() -> PluginHarness<Greeting> {
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
    fn a_container_of_version_1_is_taken_over() {
        let bench = bench();
        let old = recovered("web", Some("1.4.2"), json!({ "text": "good  morning" }));
        bench.recover(vec![old], Vec::new()).unwrap();
        let kept = json!({ "words": ["good", "morning"], "since_version": "1.4.2" });
        assert_eq!(bench.state("web"), kept);
        assert_eq!(bench.status("web").unwrap().0["greeting"], kept);
    }

    #[test]
    fn what_a_newer_version_wrote_or_nobody_can_read_is_refused_by_name() {
        let newer = recovered("new", Some("3.0.0"), json!({ "tune": 440 }));
        let damaged = recovered("bad", Some("1.0.0"), json!({ "txt": "?" }));
        let verdicts = bench().recover(vec![newer, damaged], Vec::new()).unwrap().verdicts;
        let reason = |id: &str| match &verdicts[id] {
            Verdict::Refused { reason } => reason.clone(),
            other => panic!("{other:?}"),
        };
        assert!(reason("new").contains("version 3.0.0"), "{}", reason("new"));
        assert!(reason("bad").contains("missing field `text`"), "{}", reason("bad"));
    }

    #[test]
    fn its_own_states_and_containers_without_one_are_left_alone() {
        let own = recovered("own", Some("2.0.0"), json!({ "words": ["hi"], "since_version": "2.0.0" }));
        let verdicts = bench().recover(vec![own, recovered("none", None, Json::Null)], Vec::new()).unwrap();
        assert!(verdicts.verdicts.is_empty());
    }

    #[test]
    fn a_container_is_greeted_word_by_word() {
        let bench = bench();
        assert_eq!(bench.prepare("web").unwrap().launch.environment["GREETING"], "hello there");
        let kept = json!({ "words": ["hello", "there"], "since_version": "2.0.0" });
        assert_eq!(bench.state("web"), kept);
    }

    #[test]
    fn cleaning_up_what_was_never_seen_succeeds_twice() {
        bench().cleanup("unknown").unwrap();
        bench().cleanup("unknown").unwrap();
    }

    #[test]
    fn bad_configurations_are_refused() {
        let refused = PluginHarness::<Greeting>::isolator(json!({ "greeting": 3 })).err().unwrap();
        assert!(refused.message.contains("invalid type"), "{refused}");
    }
}
