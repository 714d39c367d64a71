//! `demo`: the seed's cluster in namespaces, the proxy in it, traffic through it.
//!
//! The process enters the lab before it starts a thread. It then owns one thread
//! that waits for SIGINT and SIGTERM, and what the lab's servers, captures and
//! proxy own; all end when [`run`] returns.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, ExitCode, ExitStatus};

use clap::Args;

use super::{Failure, Status};
use crate::lab::{self, LabError};

mod console;
mod interrupt;
mod scenes;
mod world;

use console::Console;
use interrupt::Interrupt;
use world::World;

/// The options of `demo`.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Tell the story once and end: status 0 when all went as it should, 1 when not
    ///
    /// Without it the cluster stays up afterwards, until Ctrl-C.
    #[arg(long)]
    once: bool,

    /// Run this on the master instead of telling the story, and end with it
    ///
    /// As in: demo -- curl http://10.0.94.107:3000/, or: demo -- bash. The
    /// status is the command's own. In its environment, ADMIN_SOCKET is where
    /// the proxy is asked: demo -- sh -c 'kube-tun-proxy list --admin-socket
    /// $ADMIN_SOCKET', and MANIFESTS the directory of its objects. Its status page
    /// is at 127.0.0.1:10249 there.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Builds the cluster, then tells the story or runs the command.
pub(super) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    lab::enter().and_then(|()| lab::require_tun())?;
    let interrupt = Interrupt::listen().map_err(|error| Failure::new(Status::Failed, &error))?;
    let world = World::build()?;
    match args.command.split_first() {
        Some((program, arguments)) => run_command(&world, &interrupt, program, arguments),
        None => tell(&world, &interrupt, args.once).map(|()| ExitCode::SUCCESS),
    }
}

fn tell(world: &World, interrupt: &Interrupt, once: bool) -> Result<(), Failure> {
    let mut console = Console::of_stdout();
    let told = scenes::tell(world, interrupt, &mut console);
    let failed = told.map_err(|error| Failure::new(Status::Failed, &error))?;
    if !once && !interrupt.came() {
        explain_how_to_enter(world, &mut console)
            .map_err(|error| Failure::new(Status::Failed, &error))?;
        interrupt.wait();
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure {
            status: Status::Failed,
            message: format!("{failed} of the demo's scenes did not go as they should"),
            mend: Some(format!("the proxy's log:\n{}", world.proxy.log())),
        }),
    }
}

/// Lines to paste into another terminal. A pod has no process in it; our own
/// descriptor leads there.
fn explain_how_to_enter(world: &World, console: &mut Console) -> io::Result<()> {
    let demo = process::id();
    let client = world.cluster.pod(world::CLIENT);
    let fd = client.namespace().as_fd().as_raw_fd();
    console.title("The cluster stays up until Ctrl-C. From another terminal:")?;
    console.say("on the master:")?;
    console.command(&format!(
        "nsenter --preserve-credentials --user --net --target {} curl http://{}/",
        world.proxy.pid(),
        world::GRAFANA
    ))?;
    console.say(&format!(
        "in the pod {} ({}) on the master:",
        client.name(),
        client.address()
    ))?;
    console.command(&format!(
        "nsenter --preserve-credentials --user=/proc/{demo}/ns/user --net=/proc/{demo}/fd/{fd} \
         curl http://{}/",
        world::GRAFANA
    ))?;
    console.say("what the proxy does:")?;
    console.command(&format!(
        "kube-tun-proxy list --admin-socket {}",
        world.proxy.admin_socket().display()
    ))?;
    console.say("its manifests, re-read on change:")?;
    console.command(&world.manifests.path().display().to_string())?;
    console.say("a command of your own on the master: kube-tun-proxy demo -- COMMAND")
}

/// Runs the command on the master with our standard streams. SIGINT reaches it
/// from the terminal by itself and leaves us to clean up.
fn run_command(
    world: &World,
    interrupt: &Interrupt,
    program: &OsString,
    arguments: &[OsString],
) -> Result<ExitCode, Failure> {
    let mut command = world.master().namespace().command(program);
    command
        .args(arguments)
        .env("ADMIN_SOCKET", world.proxy.admin_socket())
        .env("MANIFESTS", world.manifests.path());
    let failed = |error: io::Error| Failure {
        status: Status::Failed,
        message: format!("cannot run {}: {error}", program.display()),
        mend: None,
    };
    let status = command
        .spawn()
        .and_then(|child| interrupt.wait_for_child(child));
    status
        .map(|status| ExitCode::from(status_of(status)))
        .map_err(failed)
}

/// As a shell has it: the command's own, or 128 and the signal that ended it.
fn status_of(status: ExitStatus) -> u8 {
    let signalled = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signalled).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        let mend = error.mend().map(ToOwned::to_owned);
        let status = if mend.is_some() {
            Status::NodeLacks
        } else {
            Status::Failed
        };
        Self::new(status, &error).with_mend(mend)
    }
}
