//! What each isolator adds to a launch: the shipped chain with one more, or with one less.

use std::time::Duration;

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::world::World;

use crate::chain::optional;
use crate::embedded::{self, Embedded, Writes};
use crate::environment::Environment;
use crate::launch::{Subject, compare, one};
use crate::report::Report;
use crate::rounds::Rounds;
use crate::{Options, Outcome};

/// It has the root file system, without which a launch is not the same one.
const NEEDED: &str = "filesystem/linux";

/// Measures launches one after the other.
pub fn measure(environment: &Environment, options: &Options, seed: u32, report: &mut Report) -> Outcome<()> {
    const NAME: &str = "plugin-cost";
    if !options.wants(NAME) {
        return Ok(());
    }
    let mut subjects: Vec<Box<dyn Subject + '_>> =
        vec![Box::new(Embedded::shipped(environment, Writes::Overlay)?)];
    let mut add = |name: String, chain: Vec<PluginConfig>| -> Outcome<()> {
        if options.wants_subject(&name) {
            let mut world = World::shipped();
            world.config.isolators = chain;
            subjects.push(Box::new(Embedded::like_shipped(environment, &name, world)?));
        }
        Ok(())
    };
    let shipped = World::shipped().config.isolators.clone();
    for removed in shipped.iter().map(|isolator| &isolator.name).filter(|name| *name != NEEDED) {
        let others = shipped.iter().filter(|isolator| isolator.name != *removed);
        add(format!("without {removed}"), others.cloned().collect())?;
    }
    for added in optional()? {
        add(format!("with {}", added.name), shipped.iter().chain([&added]).cloned().collect())?;
    }
    let rounds = match options.quick {
        true => Rounds { warm_up: 0, most: 5, least: 3, budget: Duration::from_secs(10) },
        false => Rounds { warm_up: 4, most: 40, least: 20, budget: Duration::from_secs(60) },
    };
    let title = format!("The launch of `{}` with and without each isolator", embedded::SHIPPED);
    report.add(compare(environment, &subjects, seed, NAME, &title, rounds, &one)?);
    Ok(())
}
