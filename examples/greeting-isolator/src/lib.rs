//! Sets the environment variable `GREETING` in every container, keeps its value, and reports it in the status.

use cofferdam_plugin_api::prelude::*;

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
        Prepared::new().environment("GREETING", &text).state(&State { text })
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        // From the state, because the configuration may have changed since the launch.
        Ok(Status::default().with("greeting", container.state::<State>()?.text.into()))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    #[test]
    fn the_greeting_is_set_and_kept() {
        let harness = PluginHarness::<Greeting>::isolator(json!({ "greeting": "good morning" })).unwrap();
        let launch = harness.prepare("web").unwrap().launch;
        assert_eq!(launch.environment["GREETING"], "good morning");
        assert_eq!(harness.state("web"), json!({ "text": "good morning" }));
        assert_eq!(harness.status("web").unwrap().0["greeting"], json!("good morning"));
    }

    #[test]
    fn the_greeting_has_a_default_and_other_keys_are_rejected() {
        let harness = PluginHarness::<Greeting>::isolator(json!({})).unwrap();
        assert_eq!(harness.prepare("web").unwrap().launch.environment["GREETING"], "hello there");
        let refused = PluginHarness::<Greeting>::isolator(json!({ "greetings": "hi" })).err().unwrap();
        assert!(refused.message.contains("unknown field `greetings`"), "{refused}");
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Greeting>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
