//! What Cofferdam costs, beside its peers and beside what the kernel alone takes.
//!
//! ```text
//! cargo build --release --workspace && cargo bench -p cofferdam-tests -- --help
//! ```
//!
//! Nothing is asserted: a number of one machine says nothing on another. What can be compared is measured in one run,
//! turn by turn, so that what else the machine does meanwhile falls on all alike; the ratios are what counts.

mod call;
mod cli;
mod engine;
mod fleet;
mod floor;
mod launch;
mod minion;
mod ours;
mod report;
mod sample;
mod scene;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use report::Report;
use scene::Scene;

/// What goes wrong is only ever shown.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures launches, memory, recovery and calls, beside peers and beside the bare kernel.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// Fewer rounds and smaller fleets: a look, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Print one JSON document instead of tables.
    #[arg(long)]
    json: bool,
    /// Only benchmarks whose name begins so; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Of what is launched side by side, only what begins so, as `cofferdam, empty`; for profilers.
    #[arg(long, value_name = "SUBJECT")]
    subject: Vec<String>,
    /// Be an agent that obeys; see `minion.rs`.
    #[arg(long, hide = true, num_args = 3)]
    minion: Vec<PathBuf>,
    /// Given by cargo, and without meaning.
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
    let outcome = match options.minion.as_slice() {
        [runtime_dir, work_dir, rootfs] => {
            minion::serve(runtime_dir.clone(), work_dir.clone(), rootfs.clone())
        }
        _ => run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let scene = Scene::set()?;
    let mut report = Report::new(!options.json);
    launch::measure(&scene, options, &mut report)?;
    fleet::measure(&scene, options, &mut report)?;
    call::measure(&scene, options, &mut report)?;
    if options.json {
        println!("{}", report.json());
    }
    Ok(())
}
