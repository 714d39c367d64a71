//! Whether kube-proxy is well, by its own word.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time for an answer: it comes from this node, out of memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest head of an answer that is looked at.
const HEAD: usize = 64;

/// Who answers on kube-proxy's health port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody.
    Nobody,
    /// kube-proxy, and it says that its rules are in time.
    Well,
    /// kube-proxy, and it says that they are late, or something that is not HTTP.
    Unwell,
    /// A proxy as this one: it has a `/readyz`, which kube-proxy has not.
    OneOfUs,
}

/// Asks `/healthz`, and `/readyz` to tell one of us.
pub async fn ask(address: SocketAddr) -> Answer {
    match status(address, "/readyz").await {
        Err(_) => return Answer::Nobody,
        Ok(Some(200 | 503)) => return Answer::OneOfUs,
        Ok(_) => {}
    }
    match status(address, "/healthz").await {
        Ok(Some(200)) => Answer::Well,
        Ok(_) => Answer::Unwell,
        Err(_) => Answer::Nobody,
    }
}

/// The status of an answer; `None` if it is not HTTP or does not come.
async fn status(address: SocketAddr, path: &str) -> io::Result<Option<u16>> {
    let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
    let mut stream = connected.map_err(io::Error::from)??;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::with_capacity(HEAD);
        (&mut stream)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .await?;
        Ok::<_, io::Error>(head)
    };
    Ok(match timeout(PATIENCE, exchange).await {
        Ok(Ok(head)) => parse(&head),
        Ok(Err(_)) | Err(_) => None,
    })
}

fn parse(head: &[u8]) -> Option<u16> {
    let line = String::from_utf8_lossy(head);
    let (version, rest) = line.split_once(' ')?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_status_line_is_read() {
        assert_eq!(parse(b"HTTP/1.1 503 Service Unavailable\r\n"), Some(503));
        assert_eq!(parse(b"HTTP/1.0 200 OK"), Some(200));
        assert_eq!(parse(b"SSH-2.0-x 200"), None);
        assert_eq!(parse(b"HTTP/1.1 20"), None);
    }

    async fn answering(readyz: &'static str, healthz: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for text in [readyz, healthz] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn who_answers_is_told_by_what_is_said() {
        let missing = "HTTP/1.1 404 Not Found\r\n\r\n";
        let at = answering(missing, "HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(ask(at).await, Answer::Well);
        let at = answering(missing, "HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        assert_eq!(ask(at).await, Answer::Unwell);
        let at = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n", missing).await;
        assert_eq!(ask(at).await, Answer::OneOfUs);
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        assert_eq!(ask(at).await, Answer::Nobody);
    }
}
