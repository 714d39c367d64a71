//! The side that takes over.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::channel::{Channel, PATIENCE};
use super::waiting::is_nobody;
use super::{Answer, Hello, PROTOCOL, State, TakeoverError, Word, unexpected};
use crate::admin::socket::{TAKEOVER, TAKEOVER_UPGRADE};
use crate::app::exposure::Exposure;
use crate::config::Config;
use crate::dataplane::{Dataplane, Suspended};
use crate::ipvs::Table;
use crate::node_port::{Lent, NodePorts};
use crate::tun::{Queue, Queues, adopt_queues};

/// Longest answer to the request for an upgrade: a status line and a few headers.
const MAX_HEAD: usize = 4096;

/// Between two questions whether a process that is about to end has ended.
const ENDING: Duration = Duration::from_millis(100);

/// The running proxy, and what it has lent so far.
#[derive(Debug)]
pub(in crate::app) struct Predecessor {
    channel: Channel,
    /// Its listener of the admin socket.
    pub(in crate::app) admin: Option<OwnedFd>,
    listeners: BTreeMap<String, (SocketAddr, OwnedFd)>,
    /// Queues that it had and that this process has no worker for.
    surplus: Vec<Queue>,
}

/// Asks the proxy that runs here to hand over; none if there is none.
///
/// # Errors
///
/// There is one, and it does not; it goes on then.
pub(in crate::app) async fn greet(
    config: &Config,
) -> Result<Option<(Predecessor, Queues)>, TakeoverError> {
    let path = config.admin_socket.as_path();
    let ask = |source| TakeoverError::Ask {
        path: path.to_owned(),
        source,
    };
    let mut waits = false;
    let stream = loop {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => {
                info!(admin_socket = %path.display(), "no proxy runs that could be taken over from: starting anew");
                return Ok(None);
            }
            Err(error) => return Err(ask(error)),
        };
        if let Some(stream) = upgrade(stream, path).await? {
            break stream;
        }
        if !waits {
            info!("the proxy that runs here is about to end: this one waits for that");
        }
        waits = true;
        sleep(ENDING).await;
    };
    let channel = Channel::new(stream);
    let broken = |step| move |source| TakeoverError::Broken { step, source };
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        generation: config.generation,
    };
    channel.send(&hello, &[]).await.map_err(broken("asking"))?;
    let (answer, mut rights) = channel
        .receive::<Answer>(PATIENCE)
        .await
        .map_err(broken("the answer"))?;
    let offer = match answer {
        Answer::Refused { reason } => return Err(TakeoverError::Refused { reason }),
        Answer::Superseded { generation } => return Err(TakeoverError::Superseded { generation }),
        Answer::Offer(offer) => offer,
    };
    if offer.protocol != PROTOCOL {
        return Err(TakeoverError::Protocol {
            version: offer.version,
            protocol: offer.protocol,
        });
    }
    if offer.tun != config.tun.name.as_str() {
        return Err(TakeoverError::Device {
            wanted: config.tun.name.to_string(),
            found: offer.tun,
        });
    }
    if rights.len() != offer.queues + 1 + offer.listeners.len() {
        let source = io::Error::other("not all descriptors came");
        return Err(broken("the answer")(source));
    }
    let listeners = rights.split_off(offer.queues + 1);
    let admin = rights.pop();
    let offloads = offer.offloads();
    let workers = config.tun.workers.get();
    let mut queues = adopt_queues(&offer.tun, rights, workers, offloads)
        .map_err(|error| broken("adopting the device")(io::Error::other(error)))?;
    let surplus = queues.queues.split_off(workers.min(queues.queues.len()));
    info!(
        pid = offer.pid,
        version = offer.version,
        queues = offer.queues,
        "a proxy runs here and is taken over from"
    );
    let predecessor = Predecessor {
        channel,
        admin,
        listeners: offer
            .listeners
            .into_iter()
            .zip(listeners)
            .map(|((name, address), socket)| (name, (address, socket)))
            .collect(),
        surplus,
    };
    Ok(Some((predecessor, queues)))
}

impl Predecessor {
    /// Its listener of that name, if it listens there.
    pub(in crate::app) fn listener(&mut self, name: &str, at: SocketAddr) -> Option<OwnedFd> {
        let (address, _) = self.listeners.get(name)?;
        // With port 0 any port would do, but not a different one each time.
        let same = address.ip() == at.ip() && (at.port() == 0 || at.port() == address.port());
        same.then(|| self.listeners.remove(name))?
            .map(|(_, socket)| socket)
    }

    /// Takes over. The first full state must be in the table. When it returns, this
    /// process takes all new flows, and the former one has let go of everything else.
    ///
    /// # Errors
    ///
    /// The former process goes on, and this one must end.
    pub(in crate::app) async fn take(
        self,
        table: &Table,
        dataplane: &Dataplane,
        node_ports: &NodePorts,
        exposure: &Exposure,
    ) -> Result<(), TakeoverError> {
        let broken = |step| move |source| TakeoverError::Broken { step, source };
        let channel = &self.channel;
        channel
            .send(&Word::Take, &[])
            .await
            .map_err(broken("asking for the flows"))?;
        let (state, mut rights) = channel
            .receive::<State>(PATIENCE * 2)
            .await
            .map_err(broken("receiving the flows"))?;
        let missing =
            || broken("receiving the listeners")(io::Error::other("not all descriptors came"));
        if rights.len() < state.workers + state.health_checks.len() {
            return Err(missing());
        }
        let checks = rights.split_off(rights.len() - state.health_checks.len());
        let descriptors = rights.split_off(state.workers);
        let lent = Lent::from_parts(state.node_ports, descriptors).ok_or_else(missing)?;
        exposure.inherit_checks(state.health_checks.into_iter().zip(checks).collect());
        table.recall(&state.servers, Instant::now());
        let flows = state.flows.len();
        node_ports.inherit(lent);
        let handed = Suspended {
            flows: state.flows,
            sockets: rights,
        };
        dataplane
            .begin(handed)
            .await
            .map_err(broken("reading the queues"))?;
        channel
            .send(&Word::Reading, &[])
            .await
            .map_err(broken("saying that the queues are read"))?;
        match channel.receive(PATIENCE * 2).await {
            Ok((Word::Committed, _)) => {}
            Ok((other, _)) => return Err(broken("the end")(unexpected(other))),
            Err(error) => return Err(broken("the end")(error)),
        }
        for queue in &self.surplus {
            if let Err(error) = queue.detach() {
                warn!(%error, "a queue of the former process cannot be taken off the device");
            }
        }
        info!(
            flows,
            "taken over: the former process keeps the flows it has until they end"
        );
        Ok(())
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Turns a connection to the admin socket, which speaks HTTP, into one of our own; none
/// if the process there is about to end.
async fn upgrade(mut stream: UnixStream, path: &Path) -> Result<Option<UnixStream>, TakeoverError> {
    let asking = async {
        let request = format!(
            "GET {TAKEOVER} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: {TAKEOVER_UPGRADE}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // Not a byte beyond it: what follows is not for us to read here.
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
            head.push(stream.read_u8().await?);
        }
        let status = head.get(..12).unwrap_or_default();
        Ok::<_, io::Error>(String::from_utf8_lossy(status).into_owned())
    };
    let failed = |source| TakeoverError::Ask {
        path: path.to_owned(),
        source,
    };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(status)) => match status.as_str() {
            "HTTP/1.1 101" => Ok(Some(stream)),
            "HTTP/1.1 503" => Ok(None),
            _ => Err(TakeoverError::Unknown),
        },
        // It has ended meanwhile.
        Ok(Err(error)) if is_end(&error) => Ok(None),
        Ok(Err(error)) => Err(failed(error)),
        Err(elapsed) => Err(failed(elapsed.into())),
    }
}
