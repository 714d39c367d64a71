//! `run`: the proxy itself.

use std::error::Error;

use tokio::runtime;

use super::{Failure, Status};
use crate::app::signals::Signals;
use crate::app::{App, AppError, logging};
use crate::config::{Config, RunArgs};

/// Threads of the control runtime: one to program while the other answers.
const CONTROL_THREADS: usize = 2;

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let config = Config::try_from(args).map_err(|error| usage(&error))?;
    logging::init(config.log_format).map_err(|error| usage(&error))?;
    runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Status::Failed, &error))?
        .block_on(serve(config))
        .map_err(|error| failure(&error))
}

/// Signals first, so that one that comes while the proxy starts is not lost.
async fn serve(config: Config) -> Result<(), AppError> {
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    // While it starts a signal ends it at once: to take over can take long.
    let app = tokio::select! {
        app = App::start(config) => app?,
        _ = signals.stop() => return Ok(()),
    };
    app.run(signals).await
}

fn usage(error: &dyn Error) -> Failure {
    Failure::new(Status::Usage, error)
}

fn failure(error: &AppError) -> Failure {
    let status = if error.node_lacks() {
        Status::NodeLacks
    } else if error.misconfigured() {
        Status::Usage
    } else {
        Status::Failed
    };
    Failure::new(status, error).with_mend(error.mend())
}
