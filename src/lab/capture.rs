//! What was on the wire: a packet socket on an interface of a namespace.
//!
//! A [`Capture`] owns one thread, which [`Capture::stop`] or its drop ends
//! after it has taken in whatever the kernel holds. Its constructor returns
//! when the socket is bound: what is sent afterwards is seen.

mod packet;
mod pcap;
mod pcapng;
mod socket;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::error::LabError;
use super::namespace::Namespace;

pub use packet::{Packet, Protocol, TcpFlags};
pub use pcap::{LinkType, write_pcap};
pub use pcapng::{Commented, PcapngFile, read_pcapng};
use socket::{PacketSocket, wait_for_either};

/// Frames kept by one capture; those beyond are counted, not kept.
pub const MAX_FRAMES: usize = 1 << 20;

/// A frame as it passed the interface.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When the capture's thread took it in.
    pub at: SystemTime,
    /// Whether this host sent it (PACKET_OUTGOING), rather than received it.
    pub outgoing: bool,
    /// How its bytes begin.
    pub link_type: LinkType,
    /// Its bytes. Offloads leave their marks: a frame may be longer than the
    /// MTU, and a checksum of an outgoing one unfinished.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The IP packet in it, if it is one that parses.
    pub fn packet(&self) -> Option<Packet> {
        Packet::parse(self.link_type.network_layer(&self.bytes)?)
    }
}

/// A capture that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    /// Closing our end wakes the thread and tells it to finish.
    stop: UnixStream,
    thread: Option<JoinHandle<io::Result<u32>>>,
}

/// What a capture had when it was stopped.
#[derive(Debug)]
pub struct Captured {
    /// The frames, in order.
    pub frames: Vec<Frame>,
    /// Frames that the kernel or [`MAX_FRAMES`] dropped.
    pub lost: u64,
}

impl Captured {
    /// The IP packets among the frames, in order.
    pub fn packets(&self) -> impl Iterator<Item = Packet> + '_ {
        self.frames.iter().filter_map(Frame::packet)
    }
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    frames: Vec<Frame>,
    beyond: u64,
    ended: bool,
}

impl Capture {
    /// Captures on an interface of a namespace.
    ///
    /// # Errors
    ///
    /// [`LabError::Capture`], as when there is no such interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        Self::start_with(namespace, interface, None)
    }

    /// Captures on an interface and writes a pcap file while it does.
    ///
    /// # Errors
    ///
    /// [`LabError::Capture`], as when there is no such interface, or
    /// [`LabError::File`].
    pub fn start_to_file(
        namespace: &Namespace,
        interface: &str,
        path: &Path,
    ) -> Result<Self, LabError> {
        let file = File::create(path).map_err(|cause| LabError::File {
            path: path.to_owned(),
            cause,
        })?;
        Self::start_with(namespace, interface, Some(BufWriter::new(file)))
    }

    fn start_with(
        namespace: &Namespace,
        interface: &str,
        file: Option<BufWriter<File>>,
    ) -> Result<Self, LabError> {
        let failed = |step| {
            move |cause| LabError::Capture {
                interface: interface.to_owned(),
                step,
                cause,
            }
        };
        let socket = namespace
            .run(|| PacketSocket::open(interface))
            .map_err(failed("cannot open a packet socket"))?;
        let (stop, stopped) = UnixStream::pair().map_err(failed("cannot make a socket pair"))?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name(format!("capture {interface}"));
        let worker = Worker {
            socket,
            stopped,
            shared: shared.clone(),
            file,
        };
        let thread = thread
            .spawn(move || worker.run())
            .map_err(failed("cannot start a thread"))?;
        Ok(Self {
            shared,
            stop,
            thread: Some(thread),
        })
    }

    /// The frames so far.
    pub fn snapshot(&self) -> Vec<Frame> {
        self.shared.lock().frames.clone()
    }

    /// Waits until a packet fits; returns the first that does, or None after
    /// `limit`.
    pub fn wait_for(
        &self,
        limit: Duration,
        mut fits: impl FnMut(&Packet) -> bool,
    ) -> Option<Packet> {
        let mut looked_at = 0;
        let mut found = None;
        let missing = |seen: &mut Seen| {
            while found.is_none() && looked_at < seen.frames.len() {
                found = seen.frames[looked_at].packet().filter(&mut fits);
                looked_at += 1;
            }
            found.is_none() && !seen.ended
        };
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), limit, missing);
        drop(waited);
        found
    }

    /// Ends the capture and returns what it has, everything included that
    /// passed the interface before the call.
    ///
    /// # Errors
    ///
    /// When the socket failed or the file could not be written.
    pub fn stop(mut self) -> io::Result<Captured> {
        let kernel = self.finish()?;
        let mut seen = self.shared.lock();
        let lost = u64::from(kernel) + seen.beyond;
        Ok(Captured {
            frames: std::mem::take(&mut seen.frames),
            lost,
        })
    }

    /// Ends the thread; returns how many frames the kernel dropped.
    fn finish(&mut self) -> io::Result<u32> {
        let Some(thread) = self.thread.take() else {
            return Ok(0);
        };
        self.stop.shutdown(Shutdown::Both)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the capture's thread panicked")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Who drops a capture does not want its result.
        drop(self.finish());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    socket: PacketSocket,
    stopped: UnixStream,
    shared: Arc<Shared>,
    file: Option<BufWriter<File>>,
}

impl Worker {
    fn run(mut self) -> io::Result<u32> {
        let result = self.capture();
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        result
    }

    fn capture(&mut self) -> io::Result<u32> {
        let link_type = self.socket.link_type();
        if let Some(file) = &mut self.file {
            pcap::write_header(file, link_type)?;
            file.flush()?;
        }
        let mut buffer = vec![0; socket::MAX_FRAME];
        loop {
            wait_for_either(self.socket.as_fd(), self.stopped.as_fd())?;
            // Asked before the last drain: what came before the stop is in.
            let stopping = self.is_stopping()?;
            while let Some((length, outgoing)) = self.socket.receive(&mut buffer)? {
                let at = SystemTime::now();
                let bytes = buffer[..length].to_vec();
                self.keep(Frame {
                    at,
                    outgoing,
                    link_type,
                    bytes,
                })?;
            }
            if let Some(file) = &mut self.file {
                file.flush()?;
            }
            if stopping {
                return self.socket.dropped();
            }
        }
    }

    fn keep(&mut self, frame: Frame) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            pcap::write_frame(file, &frame)?;
        }
        let mut seen = self.shared.lock();
        if seen.frames.len() < MAX_FRAMES {
            seen.frames.push(frame);
        } else {
            seen.beyond += 1;
        }
        drop(seen);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn is_stopping(&mut self) -> io::Result<bool> {
        self.stopped.set_nonblocking(true)?;
        match self.stopped.read(&mut [0]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}
