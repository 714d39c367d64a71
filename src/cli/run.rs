//! `run`: the proxy itself.

use std::error::Error;

use tokio::runtime;
use tracing::info;

use super::{Failure, Status};
use crate::app::confinement::Confinement;
use crate::app::logging::{self, LogLevel};
use crate::app::signals::Signals;
use crate::app::{App, AppError, TakeoverError, until_gone};
use crate::config::{Loaded, Settings};

/// Threads of the control runtime: one to program while the other answers.
const CONTROL_THREADS: usize = 2;

pub(super) fn run(settings: &Settings) -> Result<(), Failure> {
    let loaded = settings.load().map_err(|error| usage(&error))?;
    let config = &loaded.config;
    let log = logging::init(config.log_format, &config.log_level).map_err(|error| usage(&error))?;
    let confinement = Confinement::of(config);
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
        .block_on(serve(loaded, settings, log, confinement))
        .map_err(|error| failure(&error))
}

/// Signals first, so that one that comes while the proxy starts is not lost.
async fn serve(
    loaded: Loaded,
    settings: &Settings,
    log: LogLevel,
    confinement: Confinement,
) -> Result<(), AppError> {
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    loaded.tell_ignored();
    // While it starts a signal ends it at once: to take over can take long.
    let admin_socket = loaded.config.admin_socket.clone();
    let app = tokio::select! {
        app = App::start(loaded.config, log, &confinement) => app,
        _ = signals.end() => return Ok(()),
    };
    match app {
        Err(AppError::Takeover(error @ TakeoverError::Superseded { .. })) => {
            info!(%error, "nothing to do");
            until_gone(&admin_socket, &mut signals).await;
            Ok(())
        }
        app => app?.run(signals, settings).await,
    }
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
