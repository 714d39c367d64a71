//! The log: events on standard error, as text or JSON.
//!
//! Levels have a fixed meaning: one packet is TRACE, one flow DEBUG, a change of
//! the proxy's state INFO, what a person must act on WARN. The one event that
//! tells of a finished flow has the target `access` and level INFO; the directive
//! `access=off` silences it.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{Handle, Layer as Reloadable};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFilter, LogFormat};
use crate::dataplane::LogWriter;

/// Why logging cannot start.
#[derive(Debug, Error)]
pub enum LogError {
    /// Logging has been started before.
    #[error("the log has been set up before")]
    Twice(#[from] TryInitError),
}

/// Which events are logged, to be changed while the process runs.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: Handle<EnvFilter, Registry>,
    current: Arc<Mutex<LogFilter>>,
}

impl LogLevel {
    /// The directives in force.
    pub fn current(&self) -> LogFilter {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Logs what these directives say from now on.
    ///
    /// # Errors
    ///
    /// Logging has ended.
    pub fn set(&self, filter: LogFilter) -> Result<(), reload::Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.reload(filter.filter())?;
        *current = filter;
        Ok(())
    }
}

/// Starts logging for the whole process.
///
/// # Errors
///
/// [`LogError`] if logging was started before.
pub fn init(format: LogFormat, filter: &LogFilter) -> Result<LogLevel, LogError> {
    let (reloadable, level) = level(filter);
    let events = fmt::layer().with_writer(LogWriter::default);
    let events = match format {
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
            events.with_ansi(colour).boxed()
        }
        LogFormat::Json => events.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(reloadable)
        .with(events)
        .try_init()?;
    Ok(level)
}

fn level(filter: &LogFilter) -> (Reloadable<EnvFilter, Registry>, LogLevel) {
    let (layer, handle) = Reloadable::new(filter.filter());
    let current = Arc::new(Mutex::new(filter.clone()));
    (layer, LogLevel { handle, current })
}

#[cfg(test)]
mod tests {
    use tracing::{Level, enabled};

    use super::*;

    #[test]
    fn what_is_logged_changes_while_it_runs() {
        let (layer, level) = level(&"warn".parse().unwrap());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            assert!(!enabled!(Level::INFO));
            level.set("info,access=off".parse().unwrap()).unwrap();
            assert!(enabled!(Level::INFO));
            assert!(!enabled!(target: "access", Level::INFO));
            assert!(!enabled!(Level::DEBUG));
            assert_eq!(level.current().as_str(), "info,access=off");
        });
    }

    #[test]
    fn a_log_that_has_ended_is_told() {
        let (layer, level) = level(&"warn".parse().unwrap());
        drop(layer);
        level.set("info".parse().unwrap()).unwrap_err();
        assert_eq!(level.current().as_str(), "warn");
    }
}
