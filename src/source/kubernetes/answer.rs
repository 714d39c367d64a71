//! The body of an answer, read with patience that has an end.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use super::machine::End;

/// Longest line of a watch. etcd takes objects of 1.5 MiB by default
/// (`--max-request-bytes`); as JSON one grows, but not so much.
const LINE_MAX: usize = 16 << 20;

/// Longest answer that is no watch: 500 of the largest objects that etcd takes.
const WHOLE_MAX: usize = 750 << 20;

/// Reads a body line by line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no line ends.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        }
    }

    /// The next line, which may take as long as `patience` without a byte.
    ///
    /// # Errors
    ///
    /// How it ended. A line that breaks off is not given out.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<&[u8], End> {
        let end = loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') {
                break self.searched + at;
            }
            self.searched = self.buffer.len();
            if self.searched - self.start > LINE_MAX {
                return Err(End::Nonsense);
            }
            self.forget_read();
            match part(&mut self.body, patience).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                // A last line that breaks off: the server was killed, or said so.
                None if self.searched > self.start => return Err(End::Cut),
                None => return Err(End::Closed),
            }
        };
        let line = self.start..end;
        self.start = end + 1;
        self.searched = self.start;
        Ok(self.buffer.get(line).unwrap_or_default())
    }

    /// Frees what has been read, and the room that an uncommonly long line took.
    fn forget_read(&mut self) {
        const KEEP: usize = 64 << 10;
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.shrink_to(KEEP.max(self.buffer.len()));
    }
}

/// Reads all of a body.
pub(super) async fn whole(mut body: Body, patience: Duration) -> Result<Vec<u8>, End> {
    let mut all = Vec::new();
    while let Some(bytes) = part(&mut body, patience).await? {
        if all.len() + bytes.len() > WHOLE_MAX {
            return Err(End::Nonsense);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

async fn part(body: &mut Body, patience: Duration) -> Result<Option<hyper::body::Bytes>, End> {
    loop {
        match timeout(patience, body.frame()).await {
            Err(_) => return Err(End::Silent),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                tracing::debug!(error = %error, "the API server's answer broke off");
                return Err(End::Cut);
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn lines_come_whole_and_a_torn_one_does_not() {
        let mut lines = Lines::new(Body::from(b"one\ntwo\n\nthr".to_vec()));
        for expected in ["one", "two", ""] {
            assert_eq!(lines.next(PATIENCE).await, Ok(expected.as_bytes()));
        }
        assert_eq!(lines.next(PATIENCE).await, Err(End::Cut));

        let mut lines = Lines::new(Body::from(b"one\n".to_vec()));
        assert_eq!(lines.next(PATIENCE).await, Ok(&b"one"[..]));
        assert_eq!(lines.next(PATIENCE).await, Err(End::Closed));
    }

    #[tokio::test]
    async fn a_line_without_end_is_given_up() {
        let mut lines = Lines::new(Body::from(vec![b'x'; LINE_MAX + 1]));
        assert_eq!(lines.next(PATIENCE).await, Err(End::Nonsense));
    }
}
