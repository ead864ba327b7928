//! Appends a container's output to files in its sandbox whose names begin with a configured prefix.

use cofferdam_plugin_api::prelude::*;

struct Tagged(Config);

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Prefix of file names: `app-` results in `app-stdout` and `app-stderr`.
    prefix: String,
}

#[cofferdam_plugin_api::logger]
impl Logger for Tagged {
    const NAME: &'static str = "example/tagged-logger";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        // With a slash, the path could leave the sandbox.
        if config.prefix.contains('/') {
            return Err(Error::new(format!("`prefix` is `{}`; it must not contain a slash", config.prefix)));
        }
        Ok(Self(config))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        let file = |name| Output::Path(container.sandbox.join(format!("{}{name}", self.0.prefix)));
        Ok(Streams::new(file("stdout"), file("stderr")))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::Stream;
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    #[test]
    fn output_goes_to_files_with_the_prefix() {
        let harness = PluginHarness::<Tagged>::logger(json!({ "prefix": "app-" })).unwrap();
        let container = harness.container("web");
        let (reply, _) = harness.open(&container).unwrap();
        assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("app-stdout") });
        assert_eq!(reply.stderr, Stream::Path { path: container.sandbox.join("app-stderr") });
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        for (config, expected) in [
            (json!({ "prefix": "../" }), "`prefix` is `../`; it must not contain a slash"),
            (json!({}), "missing field `prefix`"),
            (json!({ "prefix": "a", "suffix": "b" }), "unknown field `suffix`"),
        ] {
            let refused = PluginHarness::<Tagged>::logger(config.clone()).err().unwrap();
            assert!(refused.message.contains(expected), "{config} gave: {refused}");
        }
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Tagged>::logger(json!({ "prefix": "app-" })).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
