//! The operator's binary, and kubectl's plugin.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use tokenbudget::cli::{Cli, Command, is_plugin};
use tokenbudget::output::Format;
use tokenbudget::{api, app, ops, uninstall};

/// glibc keeps an arena for each thread that allocates, and what is freed in one is of no use to the others: with 100
/// TokenBudgets of 20 pods each the operator had 67 MB so, and has 47 (docs/architecture.md, decision 56).
#[cfg(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<ExitCode> {
    match run() {
        // `kubectl tokenbudget top --once | head` ends when head has read enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let out = || std::io::stdout().lock();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match Cli::from_command_line().command {
        Command::Crd => {
            let yaml = api::crd_yaml().context("the CustomResourceDefinition cannot be written")?;
            out().write_all(yaml.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(options) => {
            let met = options.run(&mut out())?;
            Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Top(options) => {
            runtime()?.block_on(options.run())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Attach(options) => {
            let text = runtime()?.block_on(options.run())?;
            out().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => Ok(options.run(&mut out(), &mut std::io::stderr().lock())?.into()),
        Command::Completion(options) => {
            let plugin = is_plugin(std::env::args_os().next().as_deref());
            out().write_all(&options.script(plugin))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Detach(options) => {
            ops::init(options.log.as_deref())?;
            let output = options.output;
            let answer = runtime()?.block_on(uninstall::run(*options))?;
            if output == Format::Json {
                writeln!(out(), "{}", serde_json::to_string_pretty(&answer)?)?;
            }
            answer.outcome()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(options) => {
            let filter = ops::init(options.log.as_deref())?;
            runtime()?.block_on(app::run(*options, filter))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
