//! The executors of this project: the command executor and the docker executor for single tasks, and the default executor for
//! task groups.
//!
//! ```text
//!  agent ◀── agent.rs (SUBSCRIBE, UPDATE) ──▶ run.rs ──▶ command.rs ──▶ process.rs: the task
//!               │                               │           └─ machine.rs
//!            session.rs, updates.rs             └──────▶ default.rs ──▶ the agent: nested containers
//!                                                           └─ machine.rs
//! ```
//!
//! One runs beside each task, in its container, so memory is what counts: one thread that waits in poll(2), no runtime,
//! and a static program. The state machines (`session`, `updates`, `kill`, `checks`, `command::machine`,
//! `default::machine`) are functions of events and times; the modules around them have the processes and connections.
//!
//! The task is hostile and may be root in the container. The executor has no more than the container: it is started with
//! the user and the privileges of the task, and its token is good for calls on its own containers only.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod agent;
mod checks;
mod command;
mod default;
mod entry;
mod environment;
mod exchange;
mod executor;
mod http;
mod kill;
mod memory;
mod message;
mod probe;
mod process;
mod record_io;
mod run;
mod session;
mod signals;
mod status;
mod updates;
mod wait_status;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use self::agent::Agent;
use self::command::CommandExecutor;
use self::default::DefaultExecutor;
use self::entry::Entry;
use self::environment::Environment;
use self::executor::{Host, log};
use self::signals::Signals;
use self::updates::Updates;

const USAGE: &str = "\
usage: cofferdam-executor command | default
       cofferdam-executor docker [--stop-signal SIGNAL] -- PROGRAM [ARGUMENT...]

Runs tasks for the agent, which starts this program in the container of an executor.

  command  runs one task as a child process
  default  runs groups of tasks in nested containers
  docker   runs one task that is the program of an image, in a container of an engine;
           it is asked to end with SIGNAL, a name or a number, by default SIGTERM

The agent is found through MESOS_DOMAIN_SOCKET or MESOS_AGENT_ENDPOINT; docs/operator.md has all variables.
";

/// Exit status of a command line that is not valid, as in sysexits.h.
const EX_USAGE: u8 = 64;

/// The program.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let kind = match arguments.split_first() {
        Some((mode, [])) if mode == "command" => Kind::Command,
        Some((mode, [])) if mode == "default" => Kind::Default,
        Some((mode, rest)) if mode == "docker" => match Entry::parse(rest) {
            Some(entry) => Kind::Docker(entry),
            None => return wrong_usage(),
        },
        Some((option, [])) if option == "--help" || option == "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some((option, [])) if option == "--version" => {
            println!("cofferdam-executor {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => return wrong_usage(),
    };
    match execute(kind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error);
            ExitCode::FAILURE
        }
    }
}

fn wrong_usage() -> ExitCode {
    eprint!("{USAGE}");
    ExitCode::from(EX_USAGE)
}

enum Kind {
    Command,
    Default,
    Docker(Entry),
}

fn execute(kind: Kind) -> Result<(), Box<dyn Error>> {
    let environment = Environment::read(|name| std::env::var_os(name))?;
    process::prepare()?;
    let signals = Signals::block()?;
    let mut agent = Agent::new(&environment, Instant::now());
    let mut host = Host {
        address: agent.address().clone(),
        executor_id: environment.executor_id,
        shutdown_grace: environment.shutdown_grace,
        environment: match kind {
            Kind::Docker(_) => process::image_environment(),
            Kind::Command | Kind::Default => process::task_environment(),
        },
        updates: Updates::default(),
    };
    match kind {
        Kind::Command => run::run(&mut CommandExecutor::new(&host), &mut host, &mut agent, &signals)?,
        Kind::Docker(entry) => {
            run::run(&mut CommandExecutor::of_image(&host, entry), &mut host, &mut agent, &signals)?;
        }
        Kind::Default => run::run(&mut DefaultExecutor::new(&host), &mut host, &mut agent, &signals)?,
    }
    Ok(())
}
