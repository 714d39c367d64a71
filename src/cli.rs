//! The command line: one file a subcommand.
//!
//! Data goes to standard output, logs and errors to standard error. An error is
//! one line, and a second with what mends it where that is known.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime;

use crate::admin::client::{AskError, ask, put};
use crate::config::{ADMIN_SOCKET, Settings};

mod capture;
mod check;
mod demo;
mod explain;
mod generate;
mod init;
mod list;
mod log_level;
mod ready;
mod run;
mod top;

/// A Kubernetes service proxy in userspace: no kernel module, no netfilter, no eBPF.
#[derive(Debug, Parser)]
#[command(name = "kube-tun-proxy", version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done; 1 failed at run time; 2 wrong usage or \
    configuration; 3 the node lacks something";

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry the traffic of services on this node
    Run(Settings),
    /// List the virtual servers, or the flows, of the proxy that runs here
    List(list::ListArgs),
    /// Tell what becomes of a new flow and why: service, policies, every endpoint, who is next
    Explain(explain::ExplainArgs),
    /// Tell or change what the proxy that runs here logs
    LogLevel(log_level::LogLevelArgs),
    /// Record packets of chosen flows, from client and to real server, as pcapng
    ///
    /// Each packet has a comment that names service, real server, client and virtual
    /// server. The client's side is recorded on the TUN device, or on the interface
    /// where a client reaches an address of this node; the real server's side where it
    /// leaves and enters this node. Needs CAP_NET_RAW and the proxy's admin socket.
    ///
    /// The proxy is asked for its flows every second, and sooner when a client opens one;
    /// a packet waits up to 2.5 s to be known. A TCP flow that was over before the proxy
    /// listed it is put together from the order of its packets, and its real server marked
    /// "(by time)".
    ///
    /// What can be missing: the real server's side of such a flow if several opened at
    /// once, or with --real-server (then its client's side too); real servers tried in
    /// vain; all but the first fragment of a datagram; and what the kernel dropped for want
    /// of room in the ring of 128 MiB that it shares with this process, or the buffer of 32
    /// MiB for waiting packets, which is told at the end. --snaplen 128 makes both go far.
    Capture(capture::CaptureArgs),
    /// Tell what this node has and lacks: a line for each thing, with what mends it
    ///
    /// Takes the options of run, and holds them against the node; nothing is changed.
    /// The status is 3 if a line says failure.
    Check(Box<check::CheckArgs>),
    /// Make the device and its routes for a user, so that run needs no privilege
    ///
    /// Needs CAP_NET_ADMIN itself. The device stays until init --remove or a reboot; it
    /// takes as many queues as run has workers. Without CAP_NET_ADMIN, run serves what
    /// is routed here, and nothing that needs a route of its own.
    Init(Box<init::InitArgs>),
    /// Tell whether the proxy that runs here is ready: status 0, else 1 with what it waits for
    Ready(ready::ReadyArgs),
    /// Watch virtual servers and flows of the proxy that runs here, live in a terminal
    Top(top::TopArgs),
    /// Show it: a cluster in network namespaces, the proxy in it, traffic through it
    ///
    /// Works as any user. Nothing outside the namespaces is touched.
    Demo(demo::DemoArgs),
    /// Print completions for a shell
    Completions(generate::CompletionsArgs),
    /// Print the man page, or write one for each command into a directory
    Man(generate::ManArgs),
}

/// The whole command line, to be looked at.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Reads the arguments of the process, does what they say and returns its exit
/// status.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args).map(|()| ExitCode::SUCCESS),
        Command::List(args) => list::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Explain(args) => explain::run(&args).map(|()| ExitCode::SUCCESS),
        Command::LogLevel(args) => log_level::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Capture(args) => capture::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(*args),
        Command::Init(args) => init::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Ready(args) => ready::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Top(args) => top::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => {
            generate::completions(&args, command()).map(|()| ExitCode::SUCCESS)
        }
        Command::Man(args) => generate::man(&args, command()).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.status as u8)
        }
    }
}

/// The option of those that ask a running proxy.
#[derive(Args, Clone, Debug)]
struct Proxy {
    /// Unix socket of the proxy
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
}

/// The option of those that print data.
#[derive(Args, Debug)]
struct Form {
    /// Form of the output
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        value_enum
    )]
    output: Output,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for people, laid out as ipvsadm does.
    Table,
    /// One JSON document.
    Json,
}

/// Exit status of a command that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// It failed while running.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The node lacks something.
    NodeLacks = 3,
}

/// Why a command did not succeed, for the person who called it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    status: Status,
    message: String,
    mend: Option<String>,
}

impl Failure {
    /// A failure with the whole chain of causes in its line.
    fn new(status: Status, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        Self {
            status,
            message,
            mend: None,
        }
    }

    fn with_mend(mut self, mend: Option<String>) -> Self {
        self.mend = mend;
        self
    }

    /// If standard error is closed there is nobody left to tell.
    fn print(&self) {
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "error: {}", self.message);
        if let Some(mend) = &self.mend {
            let _ = writeln!(stderr, "mend: {mend}");
        }
    }
}

/// Asks the proxy on `socket`.
fn fetch<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    wait(ask(socket, path))
}

/// Has the proxy on `socket` replace a document. Returns its answer.
fn send<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    document: &impl Serialize,
) -> Result<T, Failure> {
    wait(put(socket, path, document))
}

fn wait<T>(answer: impl Future<Output = Result<T, AskError>>) -> Result<T, Failure> {
    let failed = |error: &dyn Error| Failure::new(Status::Failed, error);
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?
        .block_on(answer)
        .map_err(|error| failed(&error))
}

/// A document as text.
fn json(document: &impl Serialize) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Status::Failed, &error))?;
    text.push('\n');
    Ok(text)
}

/// Writes data to standard output. A reader that has gone, as `head` does, is no
/// failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Status::Failed, &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failure_tells_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot make it")]
        struct Outer {
            source: io::Error,
        }
        let error = Outer {
            source: io::Error::other("no room"),
        };
        let failure = Failure::new(Status::NodeLacks, &error);
        assert_eq!(failure.message, "cannot make it: no room");
        assert_eq!(failure.status as u8, 3);
    }
}
