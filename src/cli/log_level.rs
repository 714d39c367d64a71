//! `log-level`: what a running proxy logs.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, fetch, print, send};
use crate::admin::api::{LOG_LEVEL, LogLevel};
use crate::config::{ADMIN_SOCKET, LogFilter};

#[derive(Args, Debug)]
pub(super) struct LogLevelArgs {
    /// What to log from now on, as `run --log-level` takes it; without it, only tell
    ///
    /// It holds until the proxy ends, or reads its configuration again and finds
    /// another level there than before. An empty text is the default.
    directives: Option<LogFilter>,

    /// Unix socket of the proxy
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
}

pub(super) fn run(args: &LogLevelArgs) -> Result<(), Failure> {
    let level: LogLevel = match &args.directives {
        None => fetch(&args.admin_socket, LOG_LEVEL)?,
        Some(filter) => {
            let directives = filter.as_str().to_owned();
            send(&args.admin_socket, LOG_LEVEL, &LogLevel { directives })?
        }
    };
    print(&format!("{}\n", level.directives))
}
