//! The operator's binary.

use std::io::Write;

use anyhow::Context;
use clap::Parser;
use tokenbudget::cli::{Cli, Command};
use tokenbudget::{api, app, ops};

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crd => {
            let yaml = api::crd_yaml().context("the CustomResourceDefinition cannot be written")?;
            std::io::stdout().write_all(yaml.as_bytes())?;
            Ok(())
        }
        Command::Run(options) => {
            ops::init(options.log.as_deref())?;
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::run(*options))?;
            Ok(())
        }
    }
}
