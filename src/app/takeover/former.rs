//! The side that is taken over from.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UnixStream;
use tracing::info;

use super::channel::{Channel, PATIENCE};
use super::{Answer, Hello, NamedListener, Offer, PROGRAMMING, PROTOCOL, State, Word, unexpected};
use crate::app::exposure::Exposure;
use crate::dataplane::Dataplane;
use crate::ipvs::Table;
use crate::node_port::NodePorts;
use crate::tun::Offloads;

/// What can be handed over.
#[derive(Debug)]
pub(in crate::app) struct FormerSide {
    pub(in crate::app) tun: String,
    pub(in crate::app) offloads: Offloads,
    pub(in crate::app) generation: Option<u64>,
    /// None after a hand-over: nobody listens here any more then.
    pub(in crate::app) admin: Option<OwnedFd>,
    pub(in crate::app) listeners: Vec<NamedListener>,
    pub(in crate::app) table: Arc<Table>,
    pub(in crate::app) dataplane: Arc<Dataplane>,
    pub(in crate::app) node_ports: Arc<NodePorts>,
    pub(in crate::app) exposure: Arc<Exposure>,
}

/// A new process that has got the descriptors and programs its first state.
#[derive(Debug)]
pub(in crate::app) struct Taking {
    channel: Channel,
    /// Its process id, as it says.
    pub(in crate::app) pid: u32,
}

impl FormerSide {
    /// Answers a new process: with what it needs to begin with, or with the reason why
    /// not, in which case there is nothing to wait for.
    pub(in crate::app) async fn offer(
        &self,
        stream: UnixStream,
        refusal: Option<&str>,
    ) -> io::Result<Option<Taking>> {
        let channel = Channel::new(stream);
        let (hello, _) = channel.receive::<Hello>(PATIENCE).await?;
        let reason = if hello.protocol != PROTOCOL {
            Some(format!(
                "this one (version {}) hands over by protocol {PROTOCOL}, the new one (version \
                 {}) by {}",
                env!("CARGO_PKG_VERSION"),
                hello.version,
                hello.protocol
            ))
        } else {
            refusal.map(str::to_owned)
        };
        if let Some(reason) = reason {
            info!(pid = hello.pid, reason, "a hand-over is refused");
            channel.send(&Answer::Refused { reason }, &[]).await?;
            return Ok(None);
        }
        if let (Some(generation), Some(its)) = (self.generation, hello.generation)
            && its < generation
        {
            info!(
                pid = hello.pid,
                generation = its,
                "an older process is not handed over to"
            );
            channel
                .send(&Answer::Superseded { generation }, &[])
                .await?;
            return Ok(None);
        }
        let mut rights = self.dataplane.queues()?;
        let offer = Offer {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            tun: self.tun.clone(),
            checksum: self.offloads.checksum,
            tcp_segmentation: self.offloads.tcp_segmentation,
            udp_segmentation: self.offloads.udp_segmentation,
            queues: rights.len(),
            listeners: self
                .listeners
                .iter()
                .map(|listener| (listener.name.to_owned(), listener.address))
                .collect(),
        };
        let admin = self.admin.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        rights.push(admin.try_clone()?);
        for listener in &self.listeners {
            rights.push(listener.socket.try_clone()?);
        }
        channel.send(&Answer::Offer(offer), &rights).await?;
        info!(
            pid = hello.pid,
            version = hello.version,
            "a new process is about to take over"
        );
        Ok(Some(Taking {
            channel,
            pid: hello.pid,
        }))
    }

    /// Hands over. When it returns without an error the new process reads the queues and
    /// waits for [`Taking::commit`].
    ///
    /// # Errors
    ///
    /// The new process has failed; this one goes on as before.
    pub(in crate::app) async fn hand_over(&self, taking: &Taking) -> io::Result<()> {
        let handed = self.give(&taking.channel).await;
        if handed.is_err() {
            self.dataplane.resume();
            self.node_ports.reclaim();
        }
        handed
    }

    /// Lets go of what the new process listens on, so that it is free once that one ends.
    pub(in crate::app) fn let_go(&mut self) {
        self.admin = None;
        self.listeners.clear();
    }

    async fn give(&self, channel: &Channel) -> io::Result<()> {
        let mut lent = self.node_ports.lend().await?;
        let mut suspended = self.dataplane.suspend().await?;
        suspended.flows.extend(lent.take_relayed());
        let (node_ports, descriptors) = lent.into_parts();
        let checks = self.exposure.lend_checks()?;
        let (health_checks, checks): (_, Vec<_>) = checks.into_iter().unzip();
        let state = State {
            flows: suspended.flows,
            workers: suspended.sockets.len(),
            // No flow is begun any more: this is how it stays.
            servers: self.table.memory(Instant::now()),
            node_ports,
            health_checks,
        };
        let mut rights = suspended.sockets;
        rights.extend(descriptors);
        rights.extend(checks);
        channel.send(&state, &rights).await?;
        drop(rights);
        match channel.receive(PATIENCE).await? {
            (Word::Reading, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }
}

impl Taking {
    /// Waits until the new process is programmed.
    pub(in crate::app) async fn wait(self) -> io::Result<Self> {
        match self.channel.receive(PROGRAMMING).await? {
            (Word::Take, _) => Ok(self),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// This process has let go of everything. If the new one is not there to hear it,
    /// there is nothing to be done.
    pub(in crate::app) async fn commit(self) {
        if let Err(error) = self.channel.send(&Word::Committed, &[]).await {
            tracing::warn!(%error, "the new process is gone after it has taken over");
        }
    }
}
