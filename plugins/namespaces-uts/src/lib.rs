//! Gives a container a host name in a UTS namespace of its own, or shares that of its parent or of the host.

use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

/// The kernel's limit for a host name in bytes.
const MAX_LENGTH: usize = 64;

struct Names {
    config: Config,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whether top-level containers that request no host name share the namespace and the host name of the agent.
    #[serde(default)]
    share_agent_uts_namespace: bool,
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Names {
    const NAME: &'static str = "namespaces/uts";
    const NESTING: bool = true;
    const FEATURES: &'static [&'static str] = &["launch.hostname", "launcher.linux"];
    const HANDLES: &'static [&'static str] = &["hostname"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self { config })
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let own = |name: &str| Ok(Prepared::new().clone_namespace(Namespace::Uts).hostname(name));
        let requested = container.linux.hostname.as_deref();
        if container.class == ContainerClass::Debug {
            return match requested {
                None => Ok(Prepared::new().enter_namespace(Namespace::Uts)),
                Some(_) => Err(Error::invalid(
                    "a debug container enters the UTS namespace of its parent, and cannot have a host name of its own",
                )),
            };
        }
        match requested {
            Some(name) => {
                check(name)?;
                own(name)
            }
            None if container.id.is_nested() => Ok(Prepared::new().enter_namespace(Namespace::Uts)),
            None if self.config.share_agent_uts_namespace => Ok(Prepared::new()),
            None => own(default(container.id.value())),
        }
    }
}

fn check(name: &str) -> Result<()> {
    let is_valid =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_');
    if name.is_empty() || name.len() > MAX_LENGTH || !name.chars().all(is_valid) {
        return Err(Error::invalid(format!(
            "the container requests the host name `{}`; expected 1 to {MAX_LENGTH} letters, digits, dots, hyphens and \
             underscores",
            name.escape_debug()
        )));
    }
    Ok(())
}

/// The last value of a container's id, as far as it fits.
fn default(value: &str) -> &str {
    value.get(..MAX_LENGTH).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::LaunchInfo;
    use cofferdam_plugin_api::testing::{PluginHarness, Refused};

    use super::*;

    fn prepare(
        config: Json,
        id: &str,
        class: ContainerClass,
        name: Option<&str>,
    ) -> Result<LaunchInfo, Refused> {
        let harness = PluginHarness::<Names>::isolator(config).unwrap();
        let mut container = harness.container(id);
        container.class = class;
        container.linux.hostname = name.map(str::to_owned);
        Ok(harness.prepare_container(&container)?.launch)
    }

    #[test]
    fn a_container_has_a_name_of_its_own_or_shares_that_of_its_parent() {
        let shared = LaunchInfo { enter_namespaces: [Namespace::Uts].into(), ..LaunchInfo::default() };
        let own = |name: &str| LaunchInfo {
            clone_namespaces: [Namespace::Uts].into(),
            hostname: Some(name.to_owned()),
            ..LaunchInfo::default()
        };
        let share = || json!({ "share_agent_uts_namespace": true });
        let (default, debug) = (ContainerClass::Default, ContainerClass::Debug);
        let long = "a".repeat(200);
        for (config, id, class, name, expected) in [
            (json!({}), "pod", default, None, own("pod")),
            (json!({}), "pod", default, Some("web-1.example"), own("web-1.example")),
            (share(), "pod", default, None, LaunchInfo::default()),
            (share(), "pod", default, Some("web"), own("web")),
            (json!({}), "pod.web", default, None, shared.clone()),
            (share(), "pod.web", default, Some("inner"), own("inner")),
            (json!({}), "pod.shell", debug, None, shared.clone()),
            (json!({}), &long, default, None, own(&long[..64])),
        ] {
            assert_eq!(prepare(config.clone(), id, class, name).unwrap(), expected, "{config} {id} {name:?}");
        }
    }

    #[test]
    fn an_invalid_name_is_refused() {
        let long = "a".repeat(65);
        for name in ["", "a b", "a\n", "a/b", "ü", &long] {
            let refused = prepare(json!({}), "pod", ContainerClass::Default, Some(name)).unwrap_err();
            assert!(refused.message.contains("expected 1 to 64"), "{refused}");
        }
        let refused = prepare(json!({}), "pod.shell", ContainerClass::Debug, Some("web")).unwrap_err();
        assert!(refused.message.contains("debug container"), "{refused}");
    }

    #[test]
    fn invalid_configurations_are_rejected() {
        let refused = PluginHarness::<Names>::isolator(json!({ "share": true })).err().unwrap();
        assert!(refused.message.contains("unknown field `share`"), "{refused}");
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<Names>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
