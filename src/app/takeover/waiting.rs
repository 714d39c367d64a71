//! A process that another one goes on for, and whom its supervisor would start anew if it
//! ended: it waits until it is told to end, or is needed again.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::sleep;
use tracing::info;

use crate::app::signals::Signals;

/// Between two looks whether a proxy runs: how long at most nobody carries services
/// because of them.
const LOOK: Duration = Duration::from_millis(500);

/// Waits for the signal to stop, or until nobody answers on the admin socket.
pub async fn until_gone(path: &Path, signals: &mut Signals) {
    info!("another proxy serves here: waiting for SIGTERM, or to be needed");
    tokio::select! {
        signal = signals.stop() => info!(signal, "stopped"),
        () = gone(path) => info!("no proxy runs here any more: ending, to be started anew"),
    }
}

/// Returns when nobody answers on the admin socket.
pub(in crate::app) async fn gone(path: &Path) {
    loop {
        sleep(LOOK).await;
        if let Err(error) = UnixStream::connect(path).await
            && is_nobody(&error)
        {
            return;
        }
    }
}

/// Whether there is no socket, or nobody listens on it.
pub(super) fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_socket_without_a_listener_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(timeout(3 * LOOK, gone(&path)).await.is_err());
        // Its file stays, as when a proxy is killed.
        drop(listener);
        gone(&path).await;
    }
}
