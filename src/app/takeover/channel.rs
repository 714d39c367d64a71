//! Messages between two proxies: JSON documents with descriptors.
//!
//! A message is its length and the number of its descriptors, four bytes each, little
//! endian; the document; then a byte for each [`MAX_RIGHTS`] descriptors, which come with
//! it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::tun::{MAX_RIGHTS, receive_rights, send_rights};

/// How long the other side may take for one step, between which it waits for nothing
/// but its own workers.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Longest document, in bytes: a million flows, at some 200 bytes each.
const MAX_DOCUMENT: usize = 200 << 20;

/// Most descriptors: queues, listeners and UDP flows of node ports, of which there can be
/// no more than open files (the kernel's own nr_open).
const MAX_DESCRIPTORS: usize = 1 << 20;

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Sends a message, within [`PATIENCE`].
    pub(super) async fn send(
        &self,
        message: &impl Serialize,
        rights: &[OwnedFd],
    ) -> io::Result<()> {
        within(PATIENCE, self.send_all(message, rights)).await
    }

    /// Receives a message and its descriptors, within `patience`.
    pub(super) async fn receive<T: DeserializeOwned>(
        &self,
        patience: Duration,
    ) -> io::Result<(T, Vec<OwnedFd>)> {
        within(patience, self.receive_all()).await
    }

    async fn send_all(&self, message: &impl Serialize, rights: &[OwnedFd]) -> io::Result<()> {
        let document = serde_json::to_vec(message)?;
        let too_large = || io::Error::other("a message of the hand-over is too large");
        let length = u32::try_from(document.len()).map_err(|_| too_large())?;
        let count = u32::try_from(rights.len()).map_err(|_| too_large())?;
        let mut bytes = Vec::with_capacity(8 + document.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&document);
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.send_some(&bytes[sent..], &[]).await?;
        }
        for chunk in rights.chunks(MAX_RIGHTS) {
            self.send_some(&[0], chunk).await?;
        }
        Ok(())
    }

    async fn send_some(&self, bytes: &[u8], rights: &[OwnedFd]) -> io::Result<usize> {
        let rights: Vec<_> = rights.iter().map(AsFd::as_fd).collect();
        let send = || send_rights(self.stream.as_fd(), bytes, &rights);
        self.stream.async_io(Interest::WRITABLE, send).await
    }

    async fn receive_all<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut rights = Vec::new();
        let mut head = [0; 8];
        self.fill(&mut head, &mut rights).await?;
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let count = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MAX_DOCUMENT || count > MAX_DESCRIPTORS {
            let kind = io::ErrorKind::InvalidData;
            return Err(io::Error::new(
                kind,
                "what came is no message of a hand-over",
            ));
        }
        let mut document = vec![0; length];
        self.fill(&mut document, &mut rights).await?;
        let mut fillers = vec![0; count.div_ceil(MAX_RIGHTS)];
        self.fill(&mut fillers, &mut rights).await?;
        if rights.len() != count {
            let what = format!("{} descriptors came and not {count}", rights.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok((serde_json::from_slice(&document)?, rights))
    }

    /// Reads exactly so much.
    async fn fill(&self, room: &mut [u8], rights: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut filled = 0;
        while filled < room.len() {
            let receive = || receive_rights(self.stream.as_fd(), &mut room[filled..], rights);
            let count = self.stream.async_io(Interest::READABLE, receive).await?;
            if count == 0 {
                let kind = io::ErrorKind::UnexpectedEof;
                return Err(io::Error::new(kind, "the other process is gone"));
            }
            filled += count;
        }
        Ok(())
    }
}

async fn within<T>(
    patience: Duration,
    doing: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let what = "the other process did not answer in time";
    timeout(patience, doing)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_brings_its_descriptors_however_many() {
        let (here, there) = UnixStream::pair().unwrap();
        let (here, there) = (Channel::new(here), Channel::new(there));
        let rights: Vec<OwnedFd> = (0..600)
            .map(|_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
            .collect();
        let text = "x".repeat(500_000);
        let (sent, received) =
            tokio::join!(here.send(&text, &rights), there.receive::<String>(PATIENCE));
        sent.unwrap();
        let (read, brought) = received.unwrap();
        assert!(read == text);
        assert_eq!(brought.len(), 600);
        here.send(&"next", &[]).await.unwrap();
        let (read, brought) = there.receive::<String>(PATIENCE).await.unwrap();
        assert_eq!((read.as_str(), brought.len()), ("next", 0));
        drop(here);
        let error = there.receive::<String>(PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut here, b"GET / HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let error = Channel::new(there)
            .receive::<String>(PATIENCE)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
