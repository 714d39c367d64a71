//! `log-level`: what a running proxy logs.

use clap::Args;

use super::{Failure, Proxy, fetch, print, send};
use crate::admin::api::{LOG_LEVEL, LogLevel};
use crate::config::LogFilter;

#[derive(Args, Debug)]
pub(super) struct LogLevelArgs {
    /// What to log from now on, as `run --log-level` takes it; without it, only tell
    ///
    /// It holds until the proxy ends, or reads its configuration again and finds
    /// another level there than before. An empty text is the default.
    directives: Option<LogFilter>,

    #[command(flatten)]
    proxy: Proxy,
}

pub(super) fn run(args: &LogLevelArgs) -> Result<(), Failure> {
    let level: LogLevel = match &args.directives {
        None => fetch(&args.proxy.admin_socket, LOG_LEVEL)?,
        Some(filter) => {
            let directives = filter.as_str().to_owned();
            send(
                &args.proxy.admin_socket,
                LOG_LEVEL,
                &LogLevel { directives },
            )?
        }
    };
    print(&format!("{}\n", level.directives))
}
