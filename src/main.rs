//! The operator's binary.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokenbudget::cli::{Cli, Command};
use tokenbudget::{api, app, ops};

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Crd => {
            let yaml = api::crd_yaml().context("the CustomResourceDefinition cannot be written")?;
            std::io::stdout().write_all(yaml.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(options) => {
            let met = options.run(&mut std::io::stdout().lock())?;
            Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Run(options) => {
            ops::init(options.log.as_deref())?;
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::run(*options))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
