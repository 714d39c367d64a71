//! The packet socket (packet(7)).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::pcap::LinkType;
use crate::tun::packet_statistics;

/// Longest frame taken in, in bytes: a 64 KiB super-packet and its header.
pub(super) const MAX_FRAME: usize = 66_000;

/// Receive buffer asked for, in bytes. Beyond `net.core.rmem_max` only with
/// CAP_NET_ADMIN over the machine; else the kernel cuts it.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A non-blocking packet socket bound to one interface.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: Socket,
    link_type: LinkType,
}

impl PacketSocket {
    /// Opens it in the calling thread's namespace.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let index = if_nametoindex(interface)?;
        // Protocol 0 receives nothing until bind() names one: no frame of
        // another interface slips in before.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        let link_type = link_type(&socket, interface)?;
        grow_receive_buffer(&socket)?;
        bind(&socket, index)?;
        Ok(Self { socket, link_type })
    }

    pub(super) fn link_type(&self) -> LinkType {
        self.link_type
    }

    /// Takes in a frame: its length and whether this host sent it. None when
    /// there is none.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut from_length = length_of::<libc::sockaddr_ll>();
        // SAFETY: the kernel writes at most buffer.len() bytes to the buffer and
        // from_length bytes to `from`, both borrowed for the call.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_length,
            )
        };
        match usize::try_from(received) {
            Ok(length) => Ok(Some((length, from.sll_pkttype == libc::PACKET_OUTGOING))),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                // The interface went down or away: nothing more will come.
                error if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Frames that the kernel has dropped for want of room since it was asked last.
    pub(super) fn dropped(&self) -> io::Result<u32> {
        Ok(packet_statistics(self.as_fd())?.dropped)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sleeps until one of the two can be read.
pub(super) fn wait_for_either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(one), entry(other)];
    // SAFETY: the kernel reads and writes the two entries, borrowed for the call.
    match check(unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// What the interface's frames begin with, by its hardware type (netdevice(7)).
fn link_type(socket: &Socket, interface: &str) -> io::Result<LinkType> {
    // SAFETY: ifreq is plain numbers and unions of them; zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes one ifreq, borrowed for the call. The
    // name is terminated: if_nametoindex took it, so it is shorter than the field.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: SIOCGIFHWADDR has just filled this member of the union.
    match unsafe { request.ifr_ifru.ifru_hwaddr.sa_family } {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(LinkType::Ethernet),
        _ => Ok(LinkType::Raw),
    }
}

fn grow_receive_buffer(socket: &Socket) -> io::Result<()> {
    let size = RECEIVE_BUFFER as libc::c_int;
    // SAFETY: the kernel reads one c_int, borrowed for the call.
    let forced = check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            length_of::<libc::c_int>(),
        )
    });
    match forced {
        Ok(()) => Ok(()),
        Err(_) => socket.set_recv_buffer_size(RECEIVE_BUFFER),
    }
}

fn bind(socket: &Socket, index: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one sockaddr_ll, borrowed for the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of::<libc::sockaddr_ll>(),
        )
    })
}

fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
