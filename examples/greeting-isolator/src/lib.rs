//! Greets every container, and remembers with which words.

use cofferdam_plugin_api::prelude::*;

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
    text: String,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Greeting {
    const NAME: &'static str = "example/greeting";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
        let text = self.0.greeting.clone().unwrap_or_else(|| "hello there".to_owned());
        Prepared::new().environment("GREETING", &text).state(&Kept { text })
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        // From what was kept, not from the configuration, which may have changed since.
        Ok(Status::default().with("greeting", container.state::<Kept>()?.text.into()))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    #[test]
    fn a_container_is_greeted_and_the_words_are_kept() {
        let bench = PluginHarness::<Greeting>::isolator(json!({ "greeting": "good morning" })).unwrap();
        let launch = bench.prepare("web").unwrap().launch;
        assert_eq!(launch.environment["GREETING"], "good morning");
        assert_eq!(bench.state("web"), json!({ "text": "good morning" }));
        assert_eq!(bench.status("web").unwrap().0["greeting"], json!("good morning"));
    }

    #[test]
    fn there_is_a_greeting_without_configuration_and_no_other_key() {
        let bench = PluginHarness::<Greeting>::isolator(json!({})).unwrap();
        assert_eq!(bench.prepare("web").unwrap().launch.environment["GREETING"], "hello there");
        let refused = PluginHarness::<Greeting>::isolator(json!({ "greetings": "hi" })).err().unwrap();
        assert!(refused.message.contains("unknown field `greetings`"), "{refused}");
    }

    #[test]
    fn cleaning_up_what_was_never_seen_succeeds_twice() {
        let bench = PluginHarness::<Greeting>::isolator(json!({})).unwrap();
        bench.cleanup("unknown").unwrap();
        bench.cleanup("unknown").unwrap();
    }
}
