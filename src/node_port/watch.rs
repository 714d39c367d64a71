//! Word of the kernel that addresses of the node have changed.

use std::io;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long changes are gathered: an interface that comes up gets its addresses one
/// after the other.
const GATHER: Duration = Duration::from_millis(20);

/// How often addresses are looked at though nothing was said: netlink loses words when
/// its buffer is full, and may not be had at all.
const LOOK: Duration = Duration::from_secs(5);

/// Owns a task that reads netlink; it ends when this is dropped.
pub struct AddressWatch {
    words: Option<Words>,
}

struct Words {
    received: Box<dyn Stream<Item = ()> + Send + Unpin>,
    connection: JoinHandle<()>,
}

impl Drop for Words {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl AddressWatch {
    /// Begins to listen. Without netlink it goes by the clock alone, and says so. Must
    /// be called within a tokio runtime, in the network namespace in question.
    pub fn start() -> Self {
        let words = Words::listen();
        if let Err(error) = &words {
            tracing::warn!(
                %error, every = ?LOOK,
                "the kernel does not tell of changes of addresses: they are looked at instead"
            );
        }
        Self { words: words.ok() }
    }

    /// Returns when addresses may have changed.
    pub async fn changed(&mut self) {
        let Some(words) = &mut self.words else {
            return sleep(LOOK).await;
        };
        match timeout(LOOK, words.received.next()).await {
            Ok(Some(())) => {
                let gathered = async { while words.received.next().await.is_some() {} };
                // Ends by the limit, as words do not end.
                let _ = timeout(GATHER, gathered).await;
            }
            Ok(None) => self.words = None,
            Err(_) => {}
        }
    }
}

impl Words {
    fn listen() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = new_multicast_connection(&groups)?;
        Ok(Self {
            received: Box::new(messages.map(drop)),
            connection: tokio::spawn(connection),
        })
    }
}

impl std::fmt::Debug for AddressWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatch")
            .field("by_netlink", &self.words.is_some())
            .finish()
    }
}
