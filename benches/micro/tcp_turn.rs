//! One turn of a TCP flow, its real server in memory: what the stack costs without
//! any system call.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::BytesCount;
use kube_tun_proxy::dataplane::{ServerSocket, TcpFlow, TcpTimeouts};
use kube_tun_proxy::netstack::{Outgoing, RingPool, RingSize, Stack, StackConfig, Transmit};

use crate::wire::{ACK, IPV4_HEADER, MSS, SERVICE, SYN, TCP_HEADER, packet, renumber};

/// MTU of the TUN; segments are cut from larger packets by the device.
const MTU: usize = 1500;

/// The client's initial sequence number.
const INITIAL: u32 = 1_000;

const TIMEOUTS: TcpTimeouts = TcpTimeouts {
    idle: None,
    closing: Duration::from_secs(120),
};

/// A real server that takes everything, and sends what it is told to.
struct InMemory {
    to_send: Rc<Cell<usize>>,
}

impl ServerSocket for InMemory {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let length = room.len().min(self.to_send.get());
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        // The kernel would copy as well.
        room[..length].fill(0x5a);
        self.to_send.set(self.to_send.get() - length);
        Ok(length)
    }

    fn finish(&mut self) {}

    fn reset_on_close(&mut self) {}

    fn owes_ack(&self) -> bool {
        false
    }

    fn acknowledge(&mut self) {}

    fn keep_alive(&mut self) {}
}

/// Writes packets into one buffer and remembers how far they reach.
struct Wire {
    buffer: Vec<u8>,
    /// Sequence number behind the last byte that the client was sent.
    reached: u32,
    /// Bytes of data it was sent.
    data: usize,
}

impl Transmit for Wire {
    fn transmit<R>(&mut self, len: usize, _: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let packet = &mut self.buffer[..len];
        let result = fill(packet);
        let tcp = &packet[IPV4_HEADER..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let data = len - IPV4_HEADER - usize::from(tcp[12] >> 4) * 4;
        let syn = u32::from(tcp[13] & SYN != 0);
        self.reached = sequence.wrapping_add(data as u32).wrapping_add(syn);
        self.data += data;
        result
    }
}

/// An open connection, and the clock it runs on.
struct Open {
    stack: Stack,
    flow: TcpFlow<InMemory>,
    /// What the real server still has to send.
    to_send: Rc<Cell<usize>>,
    wire: Wire,
    now: Instant,
}

impl Open {
    fn new() -> Self {
        let now = Instant::now();
        let config = StackConfig {
            mtu: MTU,
            seed: 1,
            keep_alive: Duration::from_secs(60),
            dead_after: Duration::from_secs(360),
        };
        let mut stack = Stack::new(config, now);
        let mut wire = Wire {
            buffer: vec![0; 1 << 16],
            reached: 0,
            data: 0,
        };
        let pool = RingPool::new(64 << 20);
        let endpoint = stack
            .endpoint(&pool, RingSize::FULL, Some(MSS), true, now)
            .expect("memory for two rings");
        let to_send = Rc::new(Cell::new(0));
        let server = InMemory {
            to_send: Rc::clone(&to_send),
        };
        let syn = packet(SYN, INITIAL, 0, 0);
        let port = SERVICE.1;
        let flow = TcpFlow::open(
            endpoint, server, &mut stack, &syn, port, INITIAL, now, &mut wire,
        );
        let mut open = Self {
            stack,
            flow: flow.expect("an open flow"),
            to_send,
            wire,
            now,
        };
        let answer = packet(ACK, INITIAL + 1, open.wire.reached, 0);
        open.segment(&answer, INITIAL + 1);
        open.turn();
        assert!(open.flow.is_established());
        open
    }

    fn segment(&mut self, packet: &[u8], end: u32) {
        let Self {
            stack,
            flow,
            wire,
            now,
            ..
        } = self;
        flow.segment(stack, packet, end, false, *now, wire)
            .expect("no fault");
    }

    fn turn(&mut self) {
        let Self {
            stack,
            flow,
            wire,
            now,
            ..
        } = self;
        flow.turn(stack, &TIMEOUTS, *now, wire).expect("no fault");
    }
}

/// A segment of the client goes through to the real server.
#[divan::bench(args = [64, 1_410, 64_000], min_time = 0.1)]
fn up(bencher: Bencher<'_, '_>, payload: usize) {
    let mut open = Open::new();
    let mut sequence = INITIAL + 1;
    let acknowledged = open.wire.reached;
    let mut segment = packet(ACK, sequence, acknowledged, payload);
    let before = open.flow.bytes_in();
    let mut turns = 0;
    bencher.counter(BytesCount::new(payload)).bench_local(|| {
        renumber(&mut segment, sequence, acknowledged);
        sequence = sequence.wrapping_add(payload as u32);
        open.segment(&segment, sequence);
        open.turn();
        turns += 1;
    });
    assert_eq!(open.flow.bytes_in() - before, turns * payload as u64);
}

/// Bytes of the real server go through to the client, which acknowledges them.
#[divan::bench(args = [64, 1_410, 64_000], min_time = 0.1)]
fn down(bencher: Bencher<'_, '_>, payload: usize) {
    let mut open = Open::new();
    let mut acknowledgement = packet(ACK, INITIAL + 1, 0, 0);
    let mut expected = open.wire.data;
    bencher.counter(BytesCount::new(payload)).bench_local(|| {
        expected += payload;
        open.to_send.set(payload);
        open.flow.server_ready(true, false, false);
        // More than once where the congestion window makes it so.
        while open.wire.data < expected {
            open.turn();
            renumber(&mut acknowledgement, INITIAL + 1, open.wire.reached);
            open.segment(&acknowledgement, INITIAL + 1);
        }
    });
    assert_eq!(open.wire.data, expected);
}

// What `wire` writes and `Wire` reads have the same shape.
const _: () = assert!(IPV4_HEADER + TCP_HEADER == 40);
