//! Benchmarks of Cofferdam, of other runtimes, and of the kernel alone.
//!
//! ```text
//! cargo build --release --workspace && cargo bench -p cofferdam-tests -- --help
//! ```
//!
//! Nothing is asserted: absolute numbers depend on the machine. Subjects that are compared are measured in one run, in
//! turns, so that other load affects all of them alike; their ratios are comparable.

mod agent_process;
mod call;
mod chain;
mod cli;
mod commands;
mod disk;
mod embedded;
mod engine;
mod engines;
mod environment;
mod fleet;
mod floor;
mod images;
mod launch;
mod loggers;
mod mount_namespace;
mod ours;
mod plugins;
mod report;
mod rounds;
mod sample;
mod sweep_floor;
mod tasks;
mod terminals;
mod virtual_machine;

use std::iter;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use cofferdam_tests::paths;

use environment::Environment;
use report::Report;

/// Errors are only printed.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures launches, memory, recovery, plugin calls and images, compared with other runtimes and the bare kernel.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// Fewer iterations and containers: a quick check, not a measurement.
    #[arg(long)]
    quick: bool,
    /// How many containers run at a time in the benchmarks of memory, recovery, usage and ends [default: 1000, or 100
    /// with `--quick`].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(100..=20_000))]
    containers: Option<u32>,
    /// Measure launches in a virtual machine, whose only cgroup hierarchy is v2, instead of on this machine.
    #[arg(long)]
    virtual_machine: bool,
    /// Print one JSON document instead of tables.
    #[arg(long)]
    json: bool,
    /// Run only benchmarks whose name starts with NAME; can be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Compare only subjects whose name starts with SUBJECT, such as `cofferdam, empty`; can be repeated.
    #[arg(long, value_name = "SUBJECT")]
    subject: Vec<String>,
    /// Compare with this OCI runtime, a name or an absolute path, instead of the installed `crun` and `runc`; can be
    /// repeated, also with other versions of one runtime.
    #[arg(long, value_name = "PROGRAM")]
    runtime: Vec<PathBuf>,
    /// Draw the orders of subjects from this number, which the report names, instead of a random one.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u32>,
    /// Run as an agent that reads commands; see `agent_process.rs`.
    #[arg(long, hide = true, num_args = 4)]
    agent_process: Vec<PathBuf>,
    /// Passed by cargo, ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| name.starts_with(wanted.as_str()))
    }

    fn wants_subject(&self, name: &str) -> bool {
        self.subject.is_empty() || self.subject.iter().any(|wanted| name.starts_with(wanted.as_str()))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match options.agent_process.as_slice() {
        [chain, runtime_dir, work_dir, rootfs] => {
            agent_process::serve(chain, runtime_dir.clone(), work_dir.clone(), rootfs)
        }
        _ if options.virtual_machine => virtual_machine::measure(&options),
        _ => run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("bench: {error}");
            for cause in iter::successors(error.source(), |&error| error.source()) {
                eprint!(": {cause}");
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let environment = Environment::set_up()?;
    let mut report = Report::new(!options.json);
    let cofferdam = paths::program();
    report.fact(engine::name_and_version(&cofferdam)?, cofferdam.display().to_string());
    environment.describe(&mut report)?;
    let seed = options.seed.unwrap_or_else(rounds::seed);
    report.fact("seed", seed.to_string());
    launch::measure(&environment, options, seed, &mut report)?;
    plugins::measure(&environment, options, seed, &mut report)?;
    fleet::measure(&environment, options, &mut report)?;
    call::measure(&environment, options, &mut report)?;
    disk::measure(&environment, options, &mut report)?;
    tasks::measure(&environment, options, &mut report)?;
    images::measure(&environment, options, seed, &mut report)?;
    engines::measure(&environment, options, seed, &mut report)?;
    if options.json {
        println!("{}", report.json());
    }
    Ok(())
}
