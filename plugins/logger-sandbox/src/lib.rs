//! Appends a container's output to files in its sandbox.
//!
//! The container holds the files itself, so its output does not depend on the agent, or on anything else,
//! being alive; and there is nothing to flush or to recover.

use cofferdam_plugin_api::prelude::*;

struct Sandbox;

#[cofferdam_plugin_api::logger]
impl Logger for Sandbox {
    const NAME: &'static str = "sandbox";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        if !container.sandbox.is_absolute() {
            return Err(Error::new(format!(
                "the sandbox of container `{}` is `{}`, which is not an absolute path",
                container.id,
                container.sandbox.display()
            )));
        }
        let file = |name| Output::Path(container.sandbox.join(name));
        Ok(Streams::new(file("stdout"), file("stderr")))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::Stream;
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    #[test]
    fn output_goes_to_the_sandbox() {
        let bench = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        let container = bench.container("web");
        let (reply, descriptors) = bench.open(&container).unwrap();
        assert_eq!(reply.stdin, Stream::Null);
        assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("stdout") });
        assert_eq!(reply.stderr, Stream::Path { path: container.sandbox.join("stderr") });
        assert!(descriptors.is_empty() && reply.state.is_none());
    }

    #[test]
    fn a_container_without_a_sandbox_is_named() {
        let bench = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        let mut container = bench.container("web");
        container.sandbox = "relative".into();
        let refused = bench.open(&container).unwrap_err();
        assert!(refused.message.contains("`web`") && refused.message.contains("`relative`"), "{refused}");
    }

    #[test]
    fn cleaning_up_what_was_never_seen_succeeds_twice() {
        let bench = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        bench.cleanup("unknown").unwrap();
        bench.cleanup("unknown").unwrap();
    }

    #[test]
    fn there_is_nothing_to_configure() {
        let refused = PluginHarness::<Sandbox>::logger(json!({ "max_size": "1 MiB" })).err().unwrap();
        assert!(refused.message.contains("no settings, but its table contains `max_size`"), "{refused}");
    }
}
