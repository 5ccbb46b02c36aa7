//! `levee`: the one binary. Serves a node, starts a small cluster for development, sends dead letters back, and, under
//! the name `nats-server`, stands in for that server.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod dev;
mod logging;
mod redrive;
mod serve;
mod tuning;

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use levee_broker::config::{LEVEE_VERSION, NATS_VERSION};

// Buffers of many sizes come and go on many threads; the system's allocator keeps what it once had.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A clustered stream broker that speaks NATS.
#[derive(Debug, Parser)]
#[command(name = "levee", disable_version_flag = true, arg_required_else_help = true)]
struct Arguments {
    /// Print what this is.
    #[arg(short = 'v', short_alias = 'V', long)]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node. Takes nats-server's flags: see `levee serve --help`.
    #[command(disable_help_flag = true)]
    Serve {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        flags: Vec<String>,
    },
    /// Run three nodes on this machine, their logs side by side, until Ctrl-C.
    Dev(dev::Dev),
    /// Publish dead letters back to the subjects they came from.
    Redrive(redrive::Redrive),
}

/// Runs what a command does, on this thread, and says how it failed if it did.
fn run(command: &str, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("can not start").and_then(|runtime| runtime.block_on(work)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("levee {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let program =
        Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or("levee").to_owned();
    if program == "nats-server" {
        return serve::run(serve::Name::NatsServer, &program, arguments);
    }
    // Before clap, which does not know `-x=v` and one-dash words.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve::run(serve::Name::Levee, &program, arguments.skip(1));
    }
    let arguments = Arguments::parse();
    if arguments.version {
        println!("levee {LEVEE_VERSION} (speaks NATS as nats-server {NATS_VERSION})");
        return ExitCode::SUCCESS;
    }
    match arguments.command {
        Some(Command::Dev(dev)) => dev.run(),
        Some(Command::Redrive(redrive)) => redrive.run(),
        Some(Command::Serve { flags }) => serve::run(serve::Name::Levee, &program, flags.into_iter()),
        None => ExitCode::SUCCESS,
    }
}
