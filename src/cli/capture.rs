//! `capture`: packets of chosen flows, both sides, as pcapng.
//!
//! One thread takes packets from the kernel and writes them. On its runtime a task asks
//! the proxy for its flows ([`follow`]); it ends with the command.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use nix::net::if_::if_indextoname;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::{Failure, Proxy, Status};
use crate::admin::api::{AddressFilter, ServiceFilter};
use crate::capture::{Hold, PacketSocket, PcapngPacket, PcapngWriter, Received, Told};
use follow::{Follower, Question};

mod follow;

/// Packets taken in before something else has its turn.
const AT_A_TIME: usize = 256;

/// Bytes that go to the file at a time, unless they are all that there is.
const WRITE: usize = 1 << 20;

/// Longest packet taken in unless told otherwise, as tcpdump has it: all of it, since what
/// was cut off cannot be had afterwards.
const SNAPSHOT: u32 = 262_144;

/// Least bytes of a packet that are worth it: IPv6's header and TCP's with its options,
/// without which nobody knows what it belongs to (RFC 8200 section 3, RFC 9293 3.1).
const LEAST: i64 = 100;

/// How long the proxy may take for the last question, after which the file is ended
/// without its answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Between two looks at what has waited long enough.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args, Clone, Debug)]
pub(super) struct CaptureArgs {
    /// Only flows of this service, or of its port of that name
    #[arg(long, value_name = "NS/NAME[:PORT]")]
    service: Option<ServiceFilter>,

    /// Only flows that this client has opened, from any port or from this one
    #[arg(long, value_name = "ADDR[:PORT]")]
    client: Option<AddressFilter>,

    /// Only flows to this real server, at any port or at this one
    #[arg(long, value_name = "ADDR[:PORT]")]
    real_server: Option<AddressFilter>,

    /// End after so many packets
    #[arg(short, long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Bytes of each packet to keep, from the IP header on
    ///
    /// Above 65535 it is all of them. With 128, headers alone, a bulk transfer can be
    /// recorded that is too fast to be written whole.
    #[arg(short, long, value_name = "BYTES", default_value_t = SNAPSHOT, value_parser = clap::value_parser!(u32).range(LEAST..=i64::from(SNAPSHOT)))]
    snaplen: u32,

    /// Where to write; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,

    #[command(flatten)]
    proxy: Proxy,
}

type Output = BufWriter<Box<dyn Write>>;

pub(super) fn run(args: &CaptureArgs) -> Result<(), Failure> {
    let to_stdout = args.write == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure {
            status: Status::Usage,
            message: "pcapng is not for terminals".to_owned(),
            mend: Some("-w FILE, or pipe it into tcpdump -r - or wireshark -k -i -".to_owned()),
        });
    }
    let snapshot = usize::try_from(args.snaplen).unwrap_or(usize::MAX);
    let socket = PacketSocket::open(snapshot).map_err(|error| no_socket(&error))?;
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("no runtime", error))?
        .block_on(capture(args, socket))
}

async fn capture(args: &CaptureArgs, mut socket: PacketSocket) -> Result<(), Failure> {
    let mut question = Question::new(args)?;
    let first = question.ask_everything().await?;
    let scope = first.scope.unwrap_or_default();
    let filtered = socket.look_for(&scope);
    socket
        .start()
        .map_err(|error| failed("packet socket", error))?;
    let client = args.client;
    let hold = Hold::new(
        scope,
        move |address| client.is_none_or(|client| client.takes(address)),
        args.real_server.is_none(),
    );
    let mut recorder = Recorder::new(args, hold)?;
    recorder.hold.update(Instant::now(), first.flows, None);
    let mut socket = watched(socket).map_err(|error| failed("packet socket", error))?;
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate)] = signals else {
        return Err(failed("signals", io::Error::last_os_error()));
    };
    say("capturing; an interrupt (Ctrl-C) ends it");
    tell_of_filter(filtered);
    let mut follower = Follower::start(question);
    let mut tick = tokio::time::interval(TICK);
    while !recorder.is_done() {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            update = follower.next() => {
                if let Some(scope) = &update.scope {
                    tell_of_filter(socket.get_mut().look_for(scope));
                }
                recorder.hold.update(Instant::now(), update.flows, update.scope);
            }
            ready = socket.readable_mut() => {
                let mut ready = ready.map_err(|error| failed("packet socket", error))?;
                if recorder.drain(ready.get_inner_mut(), AT_A_TIME) {
                    ready.clear_ready();
                }
                if recorder.hold.asks() {
                    follower.hurry();
                }
            }
            _ = tick.tick() => {}
        }
        recorder.write_what_is_told()?;
    }
    // What the kernel holds has passed before the end, and may be of a flow not told yet.
    recorder.drain(socket.get_mut(), usize::MAX);
    if !recorder.is_done()
        && let Some(mut question) = follower.stop().await
        && let Ok(Ok(last)) = timeout(LAST_ANSWER, question.ask_everything()).await
    {
        recorder.hold.update(Instant::now(), last.flows, last.scope);
    }
    recorder.hold.finish();
    recorder.write_what_is_told()?;
    recorder.end(socket.get_mut())
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for types that may lose their descriptor; this one owns it"
)]
fn watched(socket: PacketSocket) -> io::Result<AsyncFd<PacketSocket>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Who writes, and counts what is written.
struct Recorder {
    hold: Hold,
    path: PathBuf,
    /// None once its reader has gone.
    out: Option<PcapngWriter<Output>>,
    /// The numbers of interfaces in the file, by index.
    numbers: BTreeMap<u32, u32>,
    at_most: Option<u64>,
    written: u64,
    unlisted: u64,
}

impl Recorder {
    fn new(args: &CaptureArgs, hold: Hold) -> Result<Self, Failure> {
        let mut recorder = Self {
            hold,
            path: args.write.clone(),
            out: None,
            numbers: BTreeMap::new(),
            at_most: args.count,
            written: 0,
            unlisted: 0,
        };
        let out: Box<dyn Write> = if args.write == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(File::create(&args.write).map_err(|error| recorder.failed(error))?)
        };
        const APPLICATION: &str = concat!("kube-tun-proxy ", env!("CARGO_PKG_VERSION"));
        let out = PcapngWriter::new(BufWriter::with_capacity(WRITE, out), APPLICATION)
            .and_then(|mut out| out.flush().map(|()| out))
            .map_err(|error| recorder.failed(error))?;
        recorder.out = Some(out);
        Ok(recorder)
    }

    /// Whether all is written that is wanted, or can be.
    fn is_done(&self) -> bool {
        self.out.is_none() || self.at_most.is_some_and(|most| self.written >= most)
    }

    /// Takes in what the kernel holds, but not more than `most`. True when it holds
    /// nothing more.
    fn drain(&mut self, socket: &mut PacketSocket, most: usize) -> bool {
        let until = SystemTime::now();
        for _ in 0..most {
            let mut late = false;
            let some = socket.receive(|received, bytes| {
                self.hold.offer(Instant::now(), received, bytes);
                late = received.at > until;
            });
            if !some {
                return true;
            }
            // Else a busy node would never come to an end.
            if most == usize::MAX && late {
                return false;
            }
        }
        false
    }

    fn write_what_is_told(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let before = self.written;
        while !self.is_done()
            && let Some(told) = self.hold.next(now)
        {
            self.unlisted += u64::from(!told.listed);
            self.written += 1;
            let done = self.write(&told);
            self.settle(done)?;
        }
        if self.written > before
            && let Some(out) = &mut self.out
        {
            let done = out.flush();
            self.settle(done)?;
        }
        Ok(())
    }

    fn write(&mut self, told: &Told) -> io::Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        let Received {
            interface: index,
            outgoing,
            hardware,
            at,
            length,
            ..
        } = told.received;
        let interface = match self.numbers.get(&index) {
            Some(number) => *number,
            None => {
                let number = out.interface(&name(&self.hold, index))?;
                self.numbers.insert(index, number);
                number
            }
        };
        out.packet(&PcapngPacket {
            interface,
            at,
            outgoing,
            hardware,
            bytes: &told.bytes,
            original_length: length,
            comment: &told.comment,
        })
    }

    /// Ends the section and tells what was lost.
    fn end(mut self, socket: &mut PacketSocket) -> Result<(), Failure> {
        let (received, dropped) = socket
            .statistics()
            .map_err(|error| failed("packet socket", error))?;
        if let Some(out) = &mut self.out {
            // One socket for all interfaces has one count for all of them.
            let done = match self.numbers.values().next() {
                Some(first) => out.statistics(
                    *first,
                    SystemTime::now(),
                    received,
                    dropped,
                    "of all interfaces together",
                ),
                None => Ok(()),
            };
            let done = done.and_then(|()| out.flush());
            self.settle(done)?;
        }
        say(&format!(
            "{} packets written, {} of them of flows that the proxy did not list; \
             {received} packets received by filter; \
             {dropped} packets dropped by the kernel, \
             {} because too many waited",
            self.written,
            self.unlisted,
            self.hold.crowded_out(),
        ));
        Ok(())
    }

    /// A reader that has gone, as `tcpdump -c` does, is an end and no failure.
    fn settle(&mut self, done: io::Result<()>) -> Result<(), Failure> {
        match done {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                if let Some(out) = self.out.take() {
                    // Its buffer would be written once more, to nobody.
                    drop(out.into_inner().into_parts());
                }
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
            Ok(()) => Ok(()),
        }
    }

    fn failed(&self, error: io::Error) -> Failure {
        failed(&format!("-w '{}'", self.path.display()), error)
    }
}

fn name(hold: &Hold, index: u32) -> String {
    let known = hold.interface(index).map(str::to_owned);
    let asked = || Some(if_indextoname(index).ok()?.to_string_lossy().into_owned());
    known
        .or_else(asked)
        .unwrap_or_else(|| format!("interface {index}"))
}

fn failed(what: &str, error: io::Error) -> Failure {
    Failure {
        status: Status::Failed,
        message: format!("{what}: {error}"),
        mend: None,
    }
}

fn no_socket(error: &io::Error) -> Failure {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return Failure {
            status: Status::Failed,
            message: format!("packet socket: {error}"),
            mend: None,
        };
    }
    Failure {
        status: Status::NodeLacks,
        message: "no packet socket without CAP_NET_RAW".to_owned(),
        mend: Some(
            "run it as root; in a container, add the capability NET_RAW and use the host's network"
                .to_owned(),
        ),
    }
}

/// Without one it is slower, and loses more; everything else is the same.
fn tell_of_filter(filtered: io::Result<()>) {
    if let Err(error) = filtered {
        say(&format!(
            "the kernel takes no packet filter from this process ({error}), which may need \
             CAP_NET_ADMIN over the machine: it hands over every packet of the node"
        ));
    }
}

/// If standard error is closed there is nobody left to tell.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}
