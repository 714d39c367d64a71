//! Processes that the harness starts. Each dies with the harness: it is started
//! through `tether`, which asks for that and then becomes the program.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use kube_tun_proxy::lab::{Namespace, TempDir};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::load::{Job, Outcome};

/// A process that runs until it is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    directories: Vec<TempDir>,
}

impl Process {
    /// Starts a program in a namespace. What it prints is kept for [`Self::log`].
    pub(crate) fn start<A: AsRef<OsStr>>(
        namespace: &Namespace,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut tethered = vec![OsStr::new("tether").to_owned(), program.as_ref().to_owned()];
        tethered.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        Ok(Self::spawn(namespace, &tethered, false)?.0)
    }

    /// Starts a job that lasts, and waits until it says that it is ready.
    pub(crate) fn lasting(namespace: &Namespace, job: &Job) -> Result<Self> {
        let arguments = ["load".into(), serde_json::to_string(job)?.into()];
        let (process, stdout) = Self::spawn(namespace, &arguments, true)?;
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            bail!("{}", process.log().trim());
        }
        Ok(process)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Keeps a directory for as long as the process.
    pub(crate) fn keeping(mut self, directory: TempDir) -> Self {
        self.directories.push(directory);
        self
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn spawn(
        namespace: &Namespace,
        arguments: &[OsString],
        read: bool,
    ) -> Result<(Self, Option<ChildStdout>)> {
        let directory = TempDir::new()?;
        let log = directory.path().join("log");
        let file = File::create(&log).context("log of a process")?;
        let mut command = namespace.command(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(file.try_clone()?);
        command.stdout(if read { Stdio::piped() } else { file.into() });
        let mut child = command
            .spawn()
            .with_context(|| format!("start {arguments:?}"))?;
        let stdout = child.stdout.take();
        let process = Self {
            child,
            log,
            directories: vec![directory],
        };
        Ok((process, stdout))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a load generator to its end.
pub(crate) fn load(namespace: &Namespace, job: &Job) -> Result<Outcome> {
    let output = namespace
        .command(std::env::current_exe()?)
        .arg("load")
        .arg(serde_json::to_string(job)?)
        .stdin(Stdio::null())
        .output()
        .context("start a load generator")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("outcome of a load generator")
}

/// Runs a program to its end, with text on its standard input.
pub(crate) fn run_with_input(
    namespace: &Namespace,
    program: &Path,
    arguments: &[&str],
    input: &str,
) -> Result<()> {
    let mut child = namespace
        .command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let mut errors = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut errors)?;
    }
    if !child.wait()?.success() {
        bail!("{}: {}", program.display(), errors.trim());
    }
    Ok(())
}

/// The `tether` subcommand: becomes the program, which dies with the harness.
pub(crate) fn tether(program: &OsStr, arguments: &[OsString]) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    crate::limits::raise_open_files()?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("exec {}", program.display()))
}
