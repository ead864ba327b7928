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
        // A slash would lead out of the sandbox.
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
        let bench = PluginHarness::<Tagged>::logger(json!({ "prefix": "app-" })).unwrap();
        let container = bench.container("web");
        let (reply, _) = bench.open(&container).unwrap();
        assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("app-stdout") });
        assert_eq!(reply.stderr, Stream::Path { path: container.sandbox.join("app-stderr") });
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, complaint) in [
            (json!({ "prefix": "../" }), "`prefix` is `../`; it must not contain a slash"),
            (json!({}), "missing field `prefix`"),
            (json!({ "prefix": "a", "suffix": "b" }), "unknown field `suffix`"),
        ] {
            let refused = PluginHarness::<Tagged>::logger(config.clone()).err().unwrap();
            assert!(refused.message.contains(complaint), "{config} gave: {refused}");
        }
    }

    #[test]
    fn cleaning_up_what_was_never_seen_succeeds_twice() {
        let bench = PluginHarness::<Tagged>::logger(json!({ "prefix": "app-" })).unwrap();
        bench.cleanup("unknown").unwrap();
        bench.cleanup("unknown").unwrap();
    }
}
