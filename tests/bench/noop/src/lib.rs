//! An isolator that does nothing, to measure what calling one costs.

use cofferdam_plugin_api::prelude::*;

struct Noop;

#[cofferdam_plugin_api::isolator]
impl Isolator for Noop {
    const NAME: &'static str = "bench/noop";
    type Config = ();

    fn create((): (), _: Host) -> Result<Self> {
        Ok(Self)
    }

    fn usage(&self, _: &ContainerRef) -> Result<Usage> {
        Ok(Usage::default())
    }
}
