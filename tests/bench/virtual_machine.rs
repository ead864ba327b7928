//! Launches in a virtual machine whose only cgroup hierarchy is v2, with all controllers.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::{Options, Outcome};

#[path = "../guest/guest.rs"]
mod guest;

pub use guest::inside;

/// Measures launches there: runs this program in it, and prints what it prints.
pub fn measure(options: &Options) -> Outcome<()> {
    if inside() {
        return Err("a virtual machine cannot boot another one".into());
    }
    let mut command = vec![std::env::current_exe()?.into_os_string()];
    let only = match options.only.as_slice() {
        [] => &["launch-".to_owned()],
        only => only,
    };
    for (option, values) in [("--only", only), ("--subject", &options.subject)] {
        command.extend(values.iter().flat_map(|value| [option.into(), value.into()]));
    }
    for program in &options.runtime {
        // Two arguments: what the virtual machine shows of /tmp is what whole arguments name.
        command.extend(["--runtime".into(), program.into()]);
    }
    if let Some(seed) = options.seed {
        command.extend(["--seed".into(), seed.to_string().into()]);
    }
    for (option, given) in [("--quick", options.quick), ("--json", options.json)] {
        command.extend(given.then_some(option.into()));
    }

    let machine = guest::Guest {
        memory: 4096,
        limit: Duration::from_secs(2 * 60 * 60),
        ..guest::Guest::new(guest::Hierarchy::V2)
    };
    let mut child = machine.command(&command, &[])?.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("the virtual machine has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        // What the program writes to standard error arrives here as well.
        match options.json && !line.starts_with('{') {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }
    match child.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("the benchmark in the virtual machine ended with {status}").into()),
    }
}
