//! `run`: the proxy itself.

use std::error::Error;

use tokio::runtime;

use super::{Failure, Status};
use crate::app::confinement::Confinement;
use crate::app::signals::Signals;
use crate::app::{App, AppError, logging};
use crate::config::{Config, RunArgs};

/// Threads of the control runtime: one to program while the other answers.
const CONTROL_THREADS: usize = 2;

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let config = Config::try_from(args).map_err(|error| usage(&error))?;
    logging::init(config.log_format).map_err(|error| usage(&error))?;
    let confinement = Confinement::of(&config);
    // Before there is another thread, since each has privileges of its own.
    confinement.confine_start();
    let control = confinement.clone();
    runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(move || control.confine_control())
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Status::Failed, &error))?
        .block_on(serve(config, confinement))
        .map_err(|error| failure(&error))
}

/// Signals first, so that one that comes while the proxy starts is not lost.
async fn serve(config: Config, confinement: Confinement) -> Result<(), AppError> {
    let signals = Signals::install().map_err(AppError::Signals)?;
    App::start(config, &confinement).await?.run(signals).await
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
