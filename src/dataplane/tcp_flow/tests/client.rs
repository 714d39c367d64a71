//! The client: a smoltcp socket of its own with an application behind it.

use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, TcpControl};

use super::hand::bare;
use super::proxy::Seen;
use super::server::Pace;
use super::{DOWN, Ends, UP};
use crate::dataplane::testing::{check, fill};

/// Time between probes of a flow that does not acknowledge.
const PERSIST: Duration = Duration::from_secs(1);

/// The client's network card.
struct Card {
    received: Option<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

impl Device for Card {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.received.take()?;
        Some((Arrived(packet), Leaving(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.sent))
    }

    /// Checksums are made and verified: those of the flow's packets are real.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

/// A client with one connection.
pub(super) struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    card: Card,
    base: Instant,
    ends: Option<Ends>,
    /// What it has sent and heard last.
    said: Option<Seen>,
    heard: Option<Seen>,
    /// The window of the last bare acknowledgment, as its stack saw it.
    window: Option<u16>,
    probed_at: Instant,
    /// Bytes it wants to send, all told.
    pub(super) offered: u64,
    /// Bytes of those that its socket has taken.
    pub(super) sent: u64,
    /// FIN behind what it offered.
    finishing: bool,
    /// The sequence number behind its FIN, once sent.
    finish_end: Option<u32>,
    /// The sequence number behind the window that it has told.
    window_end: Option<u32>,
    window_scale: u32,
    /// Bytes received and read.
    pub(super) received: u64,
    /// FIN was read behind the last byte.
    pub(super) saw_end: bool,
    pace: Option<Pace>,
    reads_at: Option<Instant>,
}

impl Client {
    pub(super) fn new(mtu: usize, rings: (usize, usize), seed: u64, base: Instant) -> Self {
        let mut card = Card {
            received: None,
            sent: Vec::new(),
            mtu,
        };
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let mut interface =
            Interface::new(settings, &mut card, smoltcp::time::Instant::from_secs(1));
        interface.set_any_ip(true);
        let receive = tcp::SocketBuffer::new(vec![0; rings.0]);
        let send = tcp::SocketBuffer::new(vec![0; rings.1]);
        let mut socket = tcp::Socket::new(receive, send);
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            card,
            base,
            ends: None,
            said: None,
            heard: None,
            window: None,
            probed_at: base,
            offered: 0,
            sent: 0,
            finishing: false,
            finish_end: None,
            window_end: None,
            window_scale: (usize::BITS - rings.0.leading_zeros()).saturating_sub(16),
            received: 0,
            saw_end: false,
            pace: None,
            reads_at: None,
        }
    }

    pub(super) fn connect(&mut self, ends: Ends) {
        self.ends = Some(ends);
        let remote = IpEndpoint::new(
            IpAddress::from(ends.virtual_server.ip()),
            ends.virtual_server.port(),
        );
        let local = IpEndpoint::new(IpAddress::from(ends.client.ip()), ends.client.port());
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(self.handle);
        socket
            .connect(self.interface.context(), remote, local)
            .unwrap();
    }

    /// Sends so many bytes more.
    pub(super) fn write(&mut self, bytes: u64) {
        assert!(!self.finishing, "a write behind FIN");
        self.offered += bytes;
    }

    /// Sends FIN behind what it has written.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
    }

    /// Sends RST and forgets the connection.
    pub(super) fn reset(&mut self) {
        self.socket_mut().abort();
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// Reads at this pace from now on; `None`: at once.
    pub(super) fn set_pace(&mut self, pace: Option<Pace>, now: Instant) {
        self.pace = pace;
        self.reads_at = pace.map(|pace| now + pace.every);
    }

    pub(super) fn state(&self) -> tcp::State {
        self.socket().state()
    }

    pub(super) fn receive_queue(&self) -> usize {
        self.socket().recv_queue()
    }

    /// A packet arrives.
    pub(super) fn take_in(&mut self, mut packet: Vec<u8>, now: Instant) {
        let seen = Seen::read(&packet);
        if self.misleads(&seen) {
            return;
        }
        if seen.flags.ack() {
            self.heard = Some(seen);
        }
        self.disguise(&mut packet, &seen);
        self.card.received = Some(packet);
        let at = self.time(now);
        self.interface
            .poll_ingress_single(at, &mut self.card, &mut self.sockets);
    }

    pub(super) fn take_sent(&mut self) -> Vec<Vec<u8>> {
        let sent = std::mem::take(&mut self.card.sent);
        for packet in &sent {
            let seen = Seen::read(packet);
            if !seen.flags.rst() {
                self.said = Some(seen);
            }
            if seen.flags.fin() {
                self.finish_end = Some(seen.end());
            }
            if !seen.flags.syn() && seen.len != 1 {
                let window = u32::from(seen.window) << self.window_scale;
                self.window_end = Some(seen.acknowledgement.wrapping_add(window));
            }
        }
        sent
    }

    /// The application and the stack do what they can. True if they did anything.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        let at = self.time(now);
        let mut busy = self.read(now);
        busy |= self.write_out();
        self.interface.poll(at, &mut self.card, &mut self.sockets);
        self.persist(now);
        busy || !self.card.sent.is_empty()
    }

    /// When it has to be stepped though nothing arrives.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        let at = self.time(now);
        // Never at once: what can be done now has been done.
        let stack = self.interface.poll_at(at, &self.sockets).map(|at| {
            let micros = (at.total_micros() - 1_000_000).max(0) as u64;
            (self.base + Duration::from_micros(micros)).max(now + Duration::from_millis(1))
        });
        let stack = stack.or_else(|| self.is_owed().then(|| self.probed_at + PERSIST));
        let reading = (self.receive_queue() > 0)
            .then_some(self.reads_at)
            .flatten();
        stack.into_iter().chain(reading).min()
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = (now - self.base).as_micros() as i64;
        smoltcp::time::Instant::from_micros(micros + 1_000_000)
    }

    /// True for what would lead smoltcp 0.14 astray, and no kernel: of a segment
    /// beyond its window it takes the FIN but not the data. netstack has the flow's
    /// counter-measure; here such a packet is lost.
    fn misleads(&self, seen: &Seen) -> bool {
        let beyond = |end: u32| (end.wrapping_sub(seen.end().wrapping_sub(1)) as i32) < 0;
        seen.flags.fin() && self.window_end.is_some_and(beyond)
    }

    /// After repeated acknowledgments smoltcp 0.14 sends a segment, here of up to
    /// 64 KiB, beyond the flow's window, as no kernel does. To it they are news of the
    /// window, as netstack has it for the flow.
    fn disguise(&mut self, packet: &mut [u8], seen: &Seen) {
        let window = Some(seen.window).filter(|_| seen.is_bare());
        let repeated = window.is_some() && self.window == window && seen.window > 0;
        self.window = window;
        if !repeated || self.card.mtu <= 1_500 || self.socket().send_queue() == 0 {
            return;
        }
        self.window = Some(seen.window - 1);
        let tcp = if packet[0] >> 4 == 4 { 20 } else { 40 };
        packet[tcp + 14..tcp + 16].copy_from_slice(&(seen.window - 1).to_be_bytes());
        // One less there, one more here, in one's complement (RFC 1624).
        let checksum = u16::from_be_bytes([packet[tcp + 16], packet[tcp + 17]]);
        let (sum, carry) = checksum.overflowing_add(1);
        let checksum = sum + u16::from(carry);
        packet[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_be_bytes());
    }

    /// True if not all that it has said is acknowledged.
    fn is_owed(&self) -> bool {
        let state = self.state();
        let finishing = matches!(
            state,
            tcp::State::FinWait1 | tcp::State::Closing | tcp::State::LastAck
        );
        let open = matches!(state, tcp::State::Established | tcp::State::CloseWait);
        finishing || open && self.socket().send_queue() > 0
    }

    /// What a kernel's persist timer does, and netstack's probes for the flow:
    /// smoltcp 0.14 can wait for ever.
    fn persist(&mut self, now: Instant) {
        let at = self.time(now);
        let (Some(ends), Some(said), Some(heard)) = (self.ends, self.said, self.heard) else {
            return;
        };
        if now < self.probed_at + PERSIST
            || !self.is_owed()
            || self.interface.poll_at(at, &self.sockets).is_some()
        {
            return;
        }
        self.probed_at = now;
        let finish = self.finish_end.filter(|_| self.socket().send_queue() == 0);
        let packet = match finish {
            Some(end) => bare(ends, TcpControl::Fin, &said, end.wrapping_sub(1)),
            None => {
                let before = heard.acknowledgement.wrapping_sub(1);
                bare(ends, TcpControl::None, &said, before)
            }
        };
        self.card.sent.push(packet);
    }

    fn read(&mut self, now: Instant) -> bool {
        let mut limit = match self.pace {
            None => u64::MAX,
            // The buffer of a kernel's socket outlives TIME_WAIT, smoltcp's does not.
            Some(_) if self.state() == tcp::State::TimeWait => u64::MAX,
            Some(pace) if self.reads_at.is_some_and(|at| at <= now) => {
                self.reads_at = Some(now + pace.every);
                pace.bytes
            }
            Some(_) => 0,
        };
        let mut busy = false;
        let place = &mut self.received;
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(self.handle);
        while limit > 0 && socket.recv_queue() > 0 {
            let result = socket.recv(|bytes| {
                let count = limit.min(bytes.len() as u64);
                check(DOWN, *place, &bytes[..count as usize]);
                (count as usize, count)
            });
            let Ok(count) = result else { break };
            *place += count;
            limit -= count;
            busy = true;
        }
        if socket.recv_queue() == 0 {
            let end = socket.recv(|_| (0, ())) == Err(tcp::RecvError::Finished);
            busy |= end && !self.saw_end;
            self.saw_end |= end;
        }
        busy
    }

    fn write_out(&mut self) -> bool {
        let mut busy = false;
        let (place, offered) = (&mut self.sent, self.offered);
        let socket: &mut tcp::Socket<'_> = self.sockets.get_mut(self.handle);
        while *place < offered && socket.can_send() {
            let count = socket.send(|room| {
                let count = (offered - *place).min(room.len() as u64) as usize;
                fill(UP, *place, &mut room[..count]);
                (count, count as u64)
            });
            *place += count.unwrap();
            busy = true;
        }
        let may_finish = matches!(
            socket.state(),
            tcp::State::Established | tcp::State::CloseWait
        );
        // As the flow itself: smoltcp 0.14 learns of no window in LAST_ACK.
        let blocked = socket.state() == tcp::State::CloseWait && socket.send_queue() > 0;
        if self.finishing && *place == offered && may_finish && !blocked {
            socket.close();
            busy = true;
        }
        busy
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}
