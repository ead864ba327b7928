//! Sets `no_new_privs` for a container: set-user-id bits, set-group-id bits and file capabilities have no effect in it.

use cofferdam_plugin_api::prelude::*;

struct NoNewPrivileges;

#[cofferdam_plugin_api::isolator]
impl Isolator for NoNewPrivileges {
    const NAME: &'static str = "linux/nnp";
    const NESTING: bool = true;
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn prepare(&self, _: &NewContainer) -> Result<Prepared> {
        Ok(Prepared::new().no_new_privileges(true))
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::{ContainerClass, LaunchInfo};
    use cofferdam_plugin_api::testing::PluginHarness;

    use super::*;

    #[test]
    fn every_container_has_it_and_nothing_else() {
        let harness = PluginHarness::<NoNewPrivileges>::isolator(json!({})).unwrap();
        for (id, class) in [
            ("pod", ContainerClass::Default),
            ("pod.web", ContainerClass::Default),
            ("pod.shell", ContainerClass::Debug),
        ] {
            let mut container = harness.container(id);
            container.class = class;
            let launch = harness.prepare_container(&container).unwrap().launch;
            assert_eq!(launch, LaunchInfo { no_new_privileges: Some(true), ..LaunchInfo::default() }, "{id}");
        }
    }

    #[test]
    fn cleanup_of_an_unknown_container_succeeds_twice() {
        let harness = PluginHarness::<NoNewPrivileges>::isolator(json!({})).unwrap();
        harness.cleanup("unknown").unwrap();
        harness.cleanup("unknown").unwrap();
    }
}
