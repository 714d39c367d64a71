//! What each TCP server does with a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::record::{Ended, How, Record};
use super::{MAX_CONNECTIONS, Phase, Tcp, canonical, who_line};

/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;

/// Receive buffer of a slow reader, in bytes; the kernel doubles it.
const SLOW_RECEIVE_BUFFER: usize = 16 << 10;

/// Parts of a second in which a slow reader reads.
const SLOW_TICKS: u64 = 20;

/// Longest request head of HTTP, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Accepts until the runtime ends.
pub(super) async fn serve(
    listener: TcpListener,
    what: Tcp,
    record: Arc<Record>,
    phase: watch::Receiver<Phase>,
) {
    if matches!(what, Tcp::Slow(_)) {
        // Inherited by the connections; set before they negotiate windows.
        let socket = socket2::SockRef::from(&listener);
        if let Err(error) = socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER) {
            tracing::error!(%error, "lab: slow reader keeps its large buffer");
        }
    }
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let what = Arc::new(what);
    while let Ok(permit) = room.clone().acquire_owned().await {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, peer)) => (stream, canonical(peer)),
            // A connection that was reset in the queue, or a want of
            // descriptors that passes when another connection closes.
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        record.saw(peer);
        let (what, record, phase) = (what.clone(), record.clone(), phase.clone());
        tokio::spawn(async move {
            let mut received = 0;
            let how = match one(stream, peer, &what, phase, &mut received).await {
                Ok(how) => how,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => How::Reset,
                Err(error) => How::Failed(error.kind()),
            };
            record.over(Ended {
                peer,
                received,
                how,
            });
            drop(permit);
        });
    }
}

async fn one(
    mut stream: TcpStream,
    peer: SocketAddr,
    what: &Tcp,
    mut phase: watch::Receiver<Phase>,
    received: &mut u64,
) -> io::Result<How> {
    match what {
        Tcp::Who(name) => who(stream, &who_line(name, peer), received).await?,
        Tcp::Http(name) => http(stream, &who_line(name, peer), received).await?,
        Tcp::Echo => echo(stream, received).await?,
        Tcp::Digest => digest(stream, None, received).await?,
        Tcp::Slow(pace) => digest(stream, Some(pace.get()), received).await?,
        Tcp::Source(bytes) => source(stream, *bytes, received).await?,
        Tcp::Reset => {
            *received = stream
                .read(&mut [0; 4096])
                .await?
                .try_into()
                .unwrap_or(u64::MAX);
            stream.set_zero_linger()?;
            return Ok(How::ResetByUs);
        }
        Tcp::Hold => {
            // An error is a server that is gone, which closes all the same.
            drop(phase.wait_for(|phase| *phase >= Phase::Released).await);
            stream.shutdown().await?;
            read_to_end(&mut stream, received).await?;
        }
    }
    Ok(How::Closed)
}

async fn who(stream: TcpStream, line: &str, received: &mut u64) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(line.as_bytes()).await?;
    let mut asked = Vec::new();
    loop {
        asked.clear();
        // Bounded: a line is answered whole or cut at CHUNK.
        let read = (&mut stream)
            .take(CHUNK as u64)
            .read_until(b'\n', &mut asked)
            .await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        *received += read as u64;
        stream.write_all(line.as_bytes()).await?;
    }
}

/// As much of RFC 9112 as curl and test clients need: requests in a row, bodies
/// with Content-Length, `Connection: close`.
async fn http(stream: TcpStream, body: &str, received: &mut u64) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut keep_alive = true;
        let mut length = 0;
        let mut first = true;
        let mut head = (&mut stream).take(MAX_HEAD);
        let mut line = String::new();
        loop {
            line.clear();
            let read = head.read_line(&mut line).await?;
            *received += read as u64;
            if read == 0 {
                return stream.shutdown().await;
            }
            let field = line.trim_end().to_ascii_lowercase();
            if field.is_empty() {
                break;
            }
            if first {
                keep_alive = !field.ends_with("http/1.0");
                first = false;
            } else if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            } else if let Some(value) = field.strip_prefix("connection:") {
                keep_alive = value.trim() != "close";
            }
        }
        let mut body_of_request = (&mut stream).take(length);
        *received += tokio::io::copy_buf(&mut body_of_request, &mut tokio::io::sink()).await?;
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        if !keep_alive {
            stream.shutdown().await?;
            return read_to_end(&mut stream.into_inner(), received).await;
        }
    }
}

async fn echo(mut stream: TcpStream, received: &mut u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        *received += read as u64;
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn digest(mut stream: TcpStream, pace: Option<u64>, received: &mut u64) -> io::Result<()> {
    let mut digest = Fnv1a::default();
    let chunk = pace.map_or(CHUNK, |pace| {
        usize::try_from((pace / SLOW_TICKS).max(1))
            .unwrap_or(CHUNK)
            .min(CHUNK)
    });
    let mut buffer = vec![0; chunk];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        *received += read as u64;
        digest.update(&buffer[..read]);
        if let Some(pace) = pace {
            let due = Duration::from_secs(1).mul_f64(read as f64 / pace as f64);
            tokio::time::sleep(due).await;
        }
    }
    stream
        .write_all(format!("{digest} {received}\n").as_bytes())
        .await?;
    stream.shutdown().await
}

async fn source(mut stream: TcpStream, bytes: u64, received: &mut u64) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = vec![0; CHUNK];
    let sending = async {
        let mut sent = 0;
        while sent < bytes {
            let length = CHUNK.min(usize::try_from(bytes - sent).unwrap_or(CHUNK));
            pattern(sent, &mut buffer[..length]);
            writer.write_all(&buffer[..length]).await?;
            sent += length as u64;
        }
        writer.shutdown().await
    };
    let reading = async {
        let mut sink = vec![0; 4096];
        loop {
            match reader.read(&mut sink).await? {
                0 => return Ok(()),
                read => *received += read as u64,
            }
        }
    };
    tokio::try_join!(sending, reading).map(|_: ((), ())| ())
}

async fn read_to_end(stream: &mut TcpStream, received: &mut u64) -> io::Result<()> {
    let mut sink = vec![0; 4096];
    loop {
        match stream.read(&mut sink).await? {
            0 => return Ok(()),
            read => *received += read as u64,
        }
    }
}

/// Fills `buffer` with the bytes that stand from `offset` on in the endless
/// pattern of [`Tcp::Source`]. Its period, 251, is a prime: a piece that is
/// lost, doubled or swapped shows.
pub fn pattern(offset: u64, buffer: &mut [u8]) {
    let mut next = (offset % 251) as u8;
    for byte in buffer {
        *byte = next;
        next = if next == 250 { 0 } else { next + 1 };
    }
}

/// FNV-1a, 64 bits: what [`Tcp::Digest`] sends. Shows as 16 hex digits.
///
/// Offset basis and prime: draft-eastlake-fnv-17, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl std::fmt::Display for Fnv1a {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_fnv_1a() {
        // Vectors of draft-eastlake-fnv-17, appendix C.
        let of = |bytes: &[u8]| {
            let mut digest = Fnv1a::default();
            digest.update(bytes);
            digest.to_string()
        };
        assert_eq!(of(b""), "cbf29ce484222325");
        assert_eq!(of(b"a"), "af63dc4c8601ec8c");
        assert_eq!(of(b"foobar"), "85944171f73967e8");
    }

    #[test]
    fn the_pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = [0; 1000];
        pattern(0, &mut whole);
        let mut part = [0; 300];
        pattern(400, &mut part);
        assert_eq!(part[..], whole[400..700]);
    }
}
