//! The process: arguments, environment and standard input in, exit status out. All else is `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(onesdm::cli::main(std::env::args_os().collect(), std::env::vars_os()))
}
