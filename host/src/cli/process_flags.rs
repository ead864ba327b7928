//! Flags for the process of a command, shared by `run` and `exec`.

use std::env;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use cofferdam_core::model::Command;

/// Flags for the process of a command.
#[derive(Debug, clap::Args)]
pub(super) struct ProcessFlags {
    /// Environment variable; without `=VALUE`, that of this process
    #[arg(long, short, value_name = "KEY[=VALUE]", value_parser = variable)]
    env: Vec<(String, Option<String>)>,
    /// User to run as, by name or number
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory: an absolute path in the container
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<PathBuf>,
}

impl ProcessFlags {
    /// Adds what the flags say to a command.
    pub(super) fn apply(self, command: Command) -> Command {
        let environment = self.env.into_iter().filter_map(|(name, value)| {
            let value = value.or_else(|| env::var(&name).ok())?;
            Some((name, value))
        });
        Command {
            environment: environment.collect(),
            user: self.user,
            working_directory: self.workdir,
            ..command
        }
    }
}

/// A command that is executed as it is, without a shell.
pub(super) fn executed(arguments: Vec<String>) -> Command {
    Command { shell: false, value: arguments.first().cloned(), arguments, ..Command::default() }
}

/// A name that no other container has.
pub(super) fn random_name(prefix: &str) -> String {
    // The standard library seeds each hasher with random data of the kernel.
    format!("{prefix}-{:010x}", RandomState::new().build_hasher().finish() >> 24)
}

fn variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        Err("the name of the variable is missing".to_owned())
    } else {
        Ok((name.to_owned(), value))
    }
}
