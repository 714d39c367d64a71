//! The signals that end the proxy, or have it read its configuration again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// SIGINT, SIGTERM and SIGHUP, taken over from their default action for as long
/// as the process lives.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Waits for a signal that asks to stop and returns its name; SIGHUP stays to be
    /// waited for.
    pub async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }

    /// Waits for the next signal that asks to stop and returns its name.
    pub async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Told::Stop(signal) => return signal,
                Told::Reload => info!("SIGHUP: not read again, the proxy is stopping"),
            }
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The end; with the signal's name.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}
