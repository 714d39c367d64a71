//! Two processes with one device: the former one has flows, the new one reads the queues.
//!
//! The former process has told its successor which flows it has ([`HandedFlow`]). A packet
//! of one of them that the successor reads goes back over a socket for each former worker
//! (SOCK_SEQPACKET, a packet a message, with its virtio-net header); answers go straight
//! into the TUN, whose queues both processes have. Over the same socket the former
//! process tells of flows that have ended, and returns packets that are of none, as the
//! SYN that starts anew on a tuple whose connection is over. So which of the two has a
//! tuple is decided in one place, and its packets are not seen in another order.
//!
//! Flows through listeners ([`crate::node_port`]) have no packets here. They are told all
//! the same, and their ends by the first of the sockets, so that schedulers which count
//! connections go on to count them.
//!
//! No thread: the sockets are watched by the workers ([`super::worker`]).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use super::flow_table::FlowKey;
use super::shared::Shared;
use crate::ipvs::{Connection, Protocol, VirtualAddress};

/// Buffer asked for: as much as sixteen of the largest packets. The kernel cuts it to
/// net.core.wmem_max.
const BUFFER: usize = 1 << 20;

/// First byte of a message that tells of the end of flows. No virtio-net header begins
/// with it: three of the bits of its flags are defined.
const ENDED: u8 = 0xff;

/// A flow of the former process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedFlow {
    protocol: Protocol,
    client: SocketAddr,
    virtual_server: SocketAddr,
    real_server: Option<SocketAddr>,
    /// Established, as ipvsadm's ActiveConn counts.
    active: bool,
    /// The former process's worker that has it.
    worker: usize,
    /// It came to a node port, through a listener: no packet of it comes by here.
    #[serde(default)]
    node_port: bool,
}

/// What the former process gives away of its data plane.
#[derive(Debug)]
pub struct Suspended {
    /// The flows it has.
    pub flows: Vec<HandedFlow>,
    /// The successor's end of a socket for each worker.
    pub sockets: Vec<OwnedFd>,
}

/// The former process, as the workers of its successor see it.
#[derive(Debug)]
pub(crate) struct Former {
    /// Who has which flow, and its count on the real server.
    flows: DashMap<FlowKey, (Place, Option<Connection>), foldhash::fast::RandomState>,
    pub(crate) sockets: Vec<OwnedFd>,
    /// Sockets that are open.
    open: AtomicUsize,
}

/// Where the former process has a flow.
#[derive(Clone, Copy, Debug)]
struct Place {
    worker: usize,
    node_port: bool,
}

/// What came of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// There is no room now.
    Full,
    /// Nobody is there any more.
    Gone,
}

/// What was received.
#[derive(Debug)]
pub(crate) enum Received {
    /// Bytes of a frame.
    Frame(usize),
    /// A flow has ended.
    Ended(FlowKey),
    /// Nothing that this version understands.
    Unknown,
    Nothing,
    Gone,
}

impl HandedFlow {
    pub(crate) fn new(
        key: &FlowKey,
        connection: Option<&Connection>,
        active: bool,
        worker: usize,
    ) -> Self {
        Self {
            protocol: key.protocol,
            client: key.client,
            virtual_server: key.virtual_server,
            real_server: connection.map(|connection| connection.real_server().address),
            active,
            worker,
            node_port: false,
        }
    }

    /// A flow through a listener, of a node port or of an address that the node has. Its
    /// end is told like the end of others.
    pub(crate) fn listened(
        key: &FlowKey,
        connection: Option<&Connection>,
        active: bool,
        node_port: bool,
    ) -> Self {
        Self {
            node_port,
            ..Self::new(key, connection, active, 0)
        }
    }

    /// Its virtual server in the table.
    fn address(&self) -> VirtualAddress {
        let (ip, port) = (self.virtual_server.ip(), self.virtual_server.port());
        let protocol = self.protocol;
        // A node port's is none in particular.
        let any: IpAddr = match ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ip = if self.node_port { any } else { ip };
        VirtualAddress { ip, port, protocol }
    }
}

impl Former {
    /// Takes in what the former process has told. Flows count on the real servers of
    /// this process's table.
    pub(crate) fn new(handed: Suspended, shared: &Shared) -> Self {
        let flows = DashMap::default();
        for flow in handed.flows {
            let key = FlowKey {
                client: flow.client,
                virtual_server: flow.virtual_server,
                protocol: flow.protocol,
            };
            let connection = flow.real_server.and_then(|real_server| {
                let table = &shared.table;
                table.adopt(flow.address(), real_server, flow.active)
            });
            // One that names a worker which is not there could not be sent to.
            if flow.worker < handed.sockets.len() {
                let place = Place {
                    worker: flow.worker,
                    node_port: flow.node_port,
                };
                flows.insert(key, (place, connection));
            }
        }
        Self {
            flows,
            open: AtomicUsize::new(handed.sockets.len()),
            sockets: handed.sockets,
        }
    }

    /// The former worker that has this flow.
    pub(crate) fn worker_of(&self, key: &FlowKey) -> Option<usize> {
        self.flows.get(key).map(|entry| entry.0.worker)
    }

    /// The virtual IPs of its flows.
    pub(crate) fn virtual_ips(&self) -> BTreeSet<IpAddr> {
        let flows = self.flows.iter();
        flows.map(|entry| entry.key().virtual_server.ip()).collect()
    }

    pub(crate) fn forget(&self, key: &FlowKey) {
        self.flows.remove(key);
    }

    /// One of the sockets is closed. True for the last of them.
    pub(crate) fn closed(&self) -> bool {
        let last = self.open.fetch_sub(1, Ordering::Relaxed) == 1;
        if last {
            self.flows.clear();
        }
        last
    }

    /// Its flows, as flows of this process's worker `worker`, for a third one.
    pub(crate) fn handed(&self, worker: usize) -> Vec<HandedFlow> {
        let handed = self.flows.iter();
        handed
            .map(|entry| {
                let (place, connection) = entry.value();
                HandedFlow {
                    node_port: place.node_port,
                    ..HandedFlow::new(entry.key(), connection.as_ref(), true, worker)
                }
            })
            .collect()
    }
}

/// A socket for packets and what is told of them: ours, and the one to give away.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = Type::SEQPACKET.nonblocking().cloexec();
    let (ours, theirs) = Socket::pair(Domain::UNIX, kind, None)?;
    for socket in [&ours, &theirs] {
        // Less room is no reason to fail: what does not fit waits or is sent again.
        let _ = SockRef::from(socket).set_send_buffer_size(BUFFER);
    }
    Ok((ours.into(), theirs.into()))
}

/// Sends one frame.
pub(crate) fn send_frame(socket: &OwnedFd, frame: &[u8]) -> Sent {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match send(socket.as_raw_fd(), frame, flags) {
        Ok(_) => Sent::Yes,
        Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE | Errno::EINTR) => {
            Sent::Full
        }
        Err(_) => Sent::Gone,
    }
}

/// Tells that a flow has ended. If it is not heard, packets of the tuple come back here
/// and are returned; those of a flow through a listener do not, and it is told again.
pub(crate) fn send_ended(socket: &OwnedFd, key: &FlowKey) -> Sent {
    let mut message = vec![ENDED];
    let told = (key.protocol, key.client, key.virtual_server);
    match serde_json::to_writer(&mut message, &told) {
        Ok(()) => send_frame(socket, &message),
        Err(_) => Sent::Gone,
    }
}

/// Receives one message.
pub(crate) fn receive(socket: &OwnedFd, room: &mut [u8]) -> Received {
    let len = match recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => return Received::Gone,
        Ok(len) => len,
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::Gone,
    };
    let Some((&ENDED, told)) = room[..len].split_first() else {
        return Received::Frame(len);
    };
    match serde_json::from_slice(told) {
        Ok((protocol, client, virtual_server)) => Received::Ended(FlowKey {
            client,
            virtual_server,
            protocol,
        }),
        Err(_) => Received::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_ends_arrive_as_they_were_sent() {
        let (here, there) = pair().unwrap();
        let key = FlowKey {
            client: "[fd00::7]:40000".parse().unwrap(),
            virtual_server: "[fd00::3]:443".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        let frame = vec![7; 60_000];
        assert_eq!(send_frame(&here, &frame), Sent::Yes);
        assert_eq!(send_ended(&here, &key), Sent::Yes);
        let mut room = vec![0; 70_000];
        assert!(matches!(
            receive(&there, &mut room),
            Received::Frame(60_000)
        ));
        assert!(room[..60_000] == frame);
        assert!(matches!(receive(&there, &mut room), Received::Ended(its) if its == key));
        assert!(matches!(receive(&there, &mut room), Received::Nothing));
        assert_eq!(send_frame(&here, &[ENDED, b'x']), Sent::Yes);
        assert!(matches!(receive(&there, &mut room), Received::Unknown));
        drop(there);
        assert_eq!(send_frame(&here, &frame), Sent::Gone);
        assert!(matches!(receive(&here, &mut room), Received::Gone));
    }

    #[test]
    fn a_full_socket_says_so() {
        let (here, there) = pair().unwrap();
        let frame = vec![7; 60_000];
        let sent = (0..1000).take_while(|_| send_frame(&here, &frame) == Sent::Yes);
        let sent = sent.count();
        assert!((1..1000).contains(&sent), "{sent}");
        assert_eq!(send_frame(&here, &frame), Sent::Full);
        let mut room = vec![0; 70_000];
        for _ in 0..sent {
            assert!(matches!(
                receive(&there, &mut room),
                Received::Frame(60_000)
            ));
        }
        assert_eq!(send_frame(&here, &frame), Sent::Yes);
    }
}
