//! Processes of the agent that end with it.

use std::io::{self, Read};
use std::thread;

/// Exits the process when `input` is closed, as it is when the agent dies or is done with the process. Nothing else is sent.
pub(crate) fn exit_when_closed(mut input: impl Read + Send + 'static) -> io::Result<()> {
    let wait = move || {
        // Returns at the end of the input.
        drop(io::copy(&mut input, &mut io::sink()));
        std::process::exit(1);
    };
    thread::Builder::new().name("agent-watch".into()).spawn(wait).map(drop)
}
