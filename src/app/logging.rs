//! The log: events on standard error, as text or JSON.
//!
//! Levels have a fixed meaning: one packet is TRACE, one flow DEBUG, a change of
//! the proxy's state INFO, what a person must act on WARN. The one event that
//! tells of a finished flow has the target `access` and level INFO; `RUST_LOG`
//! with `access=off` silences it.

use std::env;
use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::filter::{EnvFilter, FromEnvError};
use tracing_subscriber::fmt;
use tracing_subscriber::util::TryInitError;

use crate::config::LogFormat;
use crate::dataplane::LogWriter;

/// What is logged when RUST_LOG is not set. kube logs each failed request as an
/// error; the source tells of trouble once.
const DEFAULT_FILTER: &str = "info,kube_client=off";

/// Why logging cannot start.
#[derive(Debug, Error)]
pub enum LogError {
    /// RUST_LOG does not parse.
    #[error(
        "RUST_LOG is no filter; one looks like info,access=off,kube_tun_proxy::dataplane=debug"
    )]
    Filter(#[from] FromEnvError),
    /// Logging has been started before.
    #[error("the log has been set up before")]
    Twice(#[from] TryInitError),
}

/// Starts logging for the whole process.
///
/// # Errors
///
/// [`LogError`] if RUST_LOG is wrong or logging was started before.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let events = fmt()
        .with_env_filter(filter()?)
        .with_writer(LogWriter::default);
    match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
            events.with_ansi(colour).finish().try_init()?;
        }
        LogFormat::Json => events.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

fn filter() -> Result<EnvFilter, FromEnvError> {
    match env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(text) if !text.is_empty() => EnvFilter::try_from_default_env(),
        _ => Ok(EnvFilter::new(DEFAULT_FILTER)),
    }
}
