//! Appends a container's output to files in its sandbox.
//!
//! The container writes to the files directly, so its output does not depend on the agent or another process, and there
//! is nothing to flush or to recover.

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
        let harness = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        let container = harness.container("web");
        let (reply, descriptors) = harness.open(&container).unwrap();
        assert_eq!(reply.stdin, Stream::Null);
        assert_eq!(reply.stdout, Stream::Path { path: container.sandbox.join("stdout") });
        assert_eq!(reply.stderr, Stream::Path { path: container.sandbox.join("stderr") });
        assert!(descriptors.is_empty() && reply.state.is_none());
    }

    #[test]
    fn a_sandbox_that_is_not_absolute_is_an_error_that_names_the_container() {
        let harness = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        let mut container = harness.container("web");
        container.sandbox = "relative".into();
        let refused = harness.open(&container).unwrap_err();
        assert!(refused.message.contains("`web`") && refused.message.contains("`relative`"), "{refused}");
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Sandbox>::logger(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }

    #[test]
    fn settings_are_rejected() {
        let refused = PluginHarness::<Sandbox>::logger(json!({ "max_size": "1 MiB" })).err().unwrap();
        assert!(refused.message.contains("no settings, but its table contains `max_size`"), "{refused}");
    }
}
