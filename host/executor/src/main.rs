//! `cofferdam-executor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cofferdam_executor::main(std::env::args_os().skip(1))
}
