//! The overhead of a plugin call.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use cofferdam_core::blocking::{BlockingPool, Job, MaxThreads};
use cofferdam_core::plugin::{LoadedPlugin, Plugin, PluginEnv, Store};
use cofferdam_plugin_model::{ContainerDetails, Kind, Method, Usage};
use cofferdam_tests::paths;
use cofferdam_tests::world::entry;
use serde_json::json;

use crate::environment::Environment;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::{Options, Outcome};

const NAME: &str = "call";

/// Rows of the table.
const CLOCK: &str = "reading the clock twice";
const BARE: &str = "call, on this thread";
const TYPED: &str = "call with container details and a usage, on this thread";
const JOB: &str = "job without a call";
const CALL_WITH_TIMEOUT: &str = "call, with a deadline";

/// Measures calls of a plugin that does nothing.
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
    if !options.wants(NAME) {
        return Ok(());
    }
    let plugin = admit(environment)?;
    let pool = BlockingPool::new(MaxThreads {
        jobs: NonZeroUsize::MIN.saturating_add(3),
        removals: NonZeroUsize::MIN,
    })?;
    let subject = serde_json::to_vec(&ContainerDetails::default())?;
    let (rounds, calls) = if options.quick { (20, 50) } else { (200, 100) };

    let mut clock = Samples::default();
    let mut bare = Samples::default();
    let mut typed = Samples::default();
    let (mut empty, mut job) = (Samples::default(), Samples::default());
    let unwatched = Job::unwatched();
    // The thread that calls is a worker of the runtime, as in the agent.
    environment.runtime.block_on(async {
        for _ in 0..rounds {
            environment.check_interrupted()?;
            for _ in 0..calls {
                let started = Instant::now();
                clock.0.push(micros(started));

                let started = Instant::now();
                plugin.call_encoded(&unwatched, &(), Method::Usage, "bench", &subject, &[])?;
                bare.0.push(micros(started));

                let started = Instant::now();
                let _: Usage =
                    plugin.call(&unwatched, &(), Method::Usage, "bench", &ContainerDetails::default())?;
                typed.0.push(micros(started));
            }
            for _ in 0..calls {
                let started = Instant::now();
                pool.run(plugin.timeout(Method::Usage), |_| ()).await?;
                empty.0.push(micros(started));

                let started = Instant::now();
                let (object, request) = (plugin.clone(), subject.clone());
                pool.run(plugin.timeout(Method::Usage), move |job| {
                    object.call_encoded(job, &(), Method::Usage, "bench", &request, &[])
                })
                .await??;
                job.0.push(micros(started));
            }
        }
        Outcome::Ok(())
    })?;

    let mut group = Group::new(NAME, "Calls of `usage` of a plugin that does nothing", "µs");
    for (name, samples) in
        [(CLOCK, clock), (BARE, bare), (TYPED, typed), (JOB, empty), (CALL_WITH_TIMEOUT, job)]
    {
        group.row(name, samples);
    }
    report.add(group);
    Ok(())
}

fn micros(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e6
}

/// Loads the plugin as an agent does.
fn admit(environment: &Environment) -> Outcome<std::sync::Arc<Plugin>> {
    const FILE: &str = "libbench_noop.so";
    let file = paths::build().join(FILE);
    if !file.exists() {
        return Err(format!("`{FILE}` is not built; run `cargo build --release --workspace`").into());
    }
    let directory = environment.directory().join("call");
    std::fs::create_dir(&directory)?;
    let env = PluginEnv {
        runtime_dir: &directory,
        work_dir: &directory,
        agent: Default::default(),
        events: Default::default(),
    };
    let services = Default::default();
    let entry = entry("bench/noop", json!({}));
    let loaded =
        LoadedPlugin::load(&entry, Kind::Isolator, Path::new(&file), &Store::open(&directory), &services)?;
    Ok(std::sync::Arc::new(loaded.create(&cofferdam_core::blocking::Job::unwatched(), &env)?))
}
