//! `check`: what this node has and lacks for the proxy.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::runtime;

use super::{Failure, Form, Output, Status, json, print};
use crate::check::{Asker, Finding, Level, Question, check};
use crate::config::{Config, RunArgs};
use crate::node::flannel::SUBNET_FILE;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    form: Form,

    /// Flannel's subnet file
    #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
    flannel_subnet_file: PathBuf,

    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(args: CheckArgs) -> Result<ExitCode, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new(Status::Failed, error);
    let config = Config::try_from(args.run).map_err(|error| Failure::new(Status::Usage, &error))?;
    let question = Question {
        config,
        subnet_file: args.flannel_subnet_file,
        asker: Asker::Command,
    };
    let report = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?
        .block_on(check(&question))
        .map_err(|error| failed(&error))?;
    print(&match args.form.output {
        Output::Table => report.findings.iter().map(line).collect(),
        Output::Json => json(&report)?,
    })?;
    Ok(match report.level() {
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
        Level::Failure => ExitCode::from(Status::NodeLacks as u8),
    })
}

/// One line for each finding, the mend at its end, so that grep finds both.
fn line(finding: &Finding) -> String {
    let Finding {
        subject,
        level,
        found,
        mend,
    } = finding;
    match mend {
        None => format!("{level:<7}  {subject:<16} {found}\n"),
        Some(mend) => format!("{level:<7}  {subject:<16} {found} [mend: {mend}]\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding {
            subject: "ip-forward".to_owned(),
            level: Level::Warning,
            found: "0: pods are not served".to_owned(),
            mend: Some("sysctl -w net.ipv4.ip_forward=1".to_owned()),
        };
        assert_eq!(
            line(&finding),
            "warning  ip-forward       0: pods are not served [mend: sysctl -w \
             net.ipv4.ip_forward=1]\n"
        );
    }
}
