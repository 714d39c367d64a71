//! Whatever segments a client sends: the guards in front of the TCP stack hold, the
//! stack neither panics nor asks to be polled for ever, and its rings keep their size.
//!
//! The input is a byte of settings and a row of steps, a byte each with its arguments.

use std::time::{Duration, Instant};

use kube_tun_proxy::netstack::{
    Outgoing, RingPool, RingSize, Stack, StackConfig, TcpEndpoint, TcpState, Transmit,
};

/// The client's initial sequence number: the space wraps within an input.
const ISN: u32 = u32::MAX - 70_000;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// Counts packets.
struct Counter(usize);

impl Transmit for Counter {
    fn transmit<R>(&mut self, len: usize, how: Outgoing, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.0 += 1;
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        assert!(how.segment_size.is_none_or(|size| usize::from(size) < len));
        result
    }
}

/// The input, 0 behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Mostly 0, now and then near it, seldom far away.
    fn offset(&mut self) -> u32 {
        match self.byte() {
            near @ 0..=63 => (u32::from(near) % 4).wrapping_sub(2),
            64..=95 => u32::from(self.word()),
            96..=111 => 0_u32.wrapping_sub(u32::from(self.word())),
            112..=119 => u32::from(self.word()) << 16,
            _ => 0,
        }
    }
}

struct Game {
    stack: Stack,
    endpoint: TcpEndpoint,
    out: Counter,
    now: Instant,
    v4: bool,
}

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let settings = input.byte();
    let now = Instant::now();
    let rings = match settings % 3 {
        0 => RingSize::SMALL,
        1 => RingSize {
            receive: 3_000,
            send: 3_000,
        },
        _ => RingSize {
            receive: 65_536,
            send: 70_000,
        },
    };
    let config = StackConfig {
        mtu: 65_535,
        seed: u64::from(settings),
        keep_alive: Duration::from_secs(60),
        dead_after: Duration::from_secs(360),
    };
    let pool = RingPool::new(usize::MAX);
    let v4 = settings & 0x80 == 0;
    let mut stack = Stack::new(config, now);
    let endpoint = stack
        .endpoint(&pool, rings, Some(1460), v4, now)
        .expect("room for rings");
    let mut game = Game {
        stack,
        endpoint,
        out: Counter(0),
        now,
        v4,
    };
    // Two connections, the second on the rings of the first.
    for _ in 0..2 {
        game.open(&mut input);
        while !input.0.is_empty() && game.endpoint.state() != TcpState::Closed {
            if input.byte() % 32 == 31 {
                break;
            }
            game.step(&mut input);
        }
        let next = game.stack.endpoint(&pool, rings, Some(1460), v4, game.now);
        game.endpoint = next.expect("room for rings");
    }
}

impl Game {
    fn open(&mut self, input: &mut Input<'_>) {
        let mut options = Vec::new();
        let wanted = input.byte();
        if wanted & 1 != 0 {
            options.extend([2, 4]);
            options.extend(input.word().to_be_bytes());
        }
        if wanted & 2 != 0 {
            options.extend([1, 3, 3, input.byte() % 16]);
        }
        if wanted & 4 != 0 {
            options.extend([1, 1, 4, 2]);
        }
        let window = input.word();
        let syn = self.packet(SYN, ISN, 0, window, &options, 0);
        self.stack
            .accept(&mut self.endpoint, &syn, 443, ISN, self.now, &mut self.out)
            .expect("accept");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..=8 => self.segment(input),
            9 => self.now += Duration::from_millis(input.word().into()),
            10 | 11 => {
                let limit = usize::from(input.word());
                self.endpoint.receive(|bytes| (limit.min(bytes.len()), ()));
            }
            12 | 13 => {
                let limit = usize::from(input.word());
                self.endpoint.send(|room| (limit.min(room.len()), ()));
            }
            14 => self.endpoint.finish(),
            _ => {}
        }
        // A batch of segments may come before the stack is asked to send.
        if input.byte() % 4 != 3 {
            self.egress();
        }
        assert!(self.endpoint.receive_queue() <= self.endpoint.rings().receive);
        assert!(self.endpoint.send_queue() <= self.endpoint.rings().send);
    }

    fn segment(&mut self, input: &mut Input<'_>) {
        let sent = self.endpoint.last_sent();
        let flags = match input.byte() {
            odd @ 0..=31 => odd,
            32..=63 => ACK | 1,
            64..=67 => ACK | 4,
            _ => ACK,
        };
        let sequence = sent.map_or(ISN, |sent| sent.acknowledgement);
        let sequence = sequence.wrapping_add(input.offset());
        let acknowledgement = sent.map_or(0, |sent| sent.sequence);
        let acknowledgement = acknowledgement.wrapping_add(input.offset());
        let window = match input.byte() {
            0..=63 => 0,
            64..=127 => input.word(),
            _ => u16::MAX,
        };
        let len = match input.byte() {
            0..=127 => 0,
            128..=191 => usize::from(input.byte()),
            _ => usize::from(input.word()) % 60_000,
        };
        let packet = self.packet(flags, sequence, acknowledgement, window, &[], len);
        let end = sequence.wrapping_add(len as u32);
        self.stack
            .ingest(&mut self.endpoint, &packet, end, self.now, &mut self.out)
            .expect("a panic that no guard prevents");
    }

    /// Everything that is due is sent, and then nothing is due.
    fn egress(&mut self) {
        let before = self.out.0;
        let more = self
            .stack
            .egress(&mut self.endpoint, self.now, &mut self.out, 5_000)
            .expect("egress");
        assert!(!more, "{} packets at once", self.out.0 - before);
        let at = self.stack.poll_at(&self.endpoint, self.now);
        assert!(
            at.is_none_or(|at| at > self.now),
            "it spins: {:?}",
            self.endpoint
        );
    }

    fn packet(
        &self,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        window: u16,
        options: &[u8],
        len: usize,
    ) -> Vec<u8> {
        let tcp_len = 20 + options.len() + len;
        let mut packet = if self.v4 {
            let mut header = vec![0x45, 0];
            header.extend(((20 + tcp_len) as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 65, 5, 10, 0, 0, 3]);
            header
        } else {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((tcp_len as u16).to_be_bytes());
            header.extend([6, 64]);
            header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
            header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
            header
        };
        packet.extend([0x9c, 0x40, 0x01, 0xbb]);
        packet.extend(sequence.to_be_bytes());
        packet.extend(acknowledgement.to_be_bytes());
        packet.extend([((20 + options.len()) / 4 * 16) as u8, flags]);
        packet.extend(window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(options);
        packet.resize(packet.len() + len, 7);
        packet
    }
}
