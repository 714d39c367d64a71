//! The queues of a multi-queue TUN: open, read, write.
//!
//! The crate `tun` has no multi-queue and sets no offload, so the descriptors
//! are opened here; it then owns each of them. Reads and writes go straight to
//! the descriptor, since that crate's zero a buffer per call.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::net::if_::if_nametoindex;
use nix::sys::stat::Mode;

use super::error::TunError;
use super::offload::VNET_HEADER_LEN;

/// Queues of one TUN at most (MAX_TAP_QUEUES, drivers/net/tun.c).
pub const MAX_QUEUES: usize = 256;

/// What a queue does for us, as the kernel accepted it (TUNSETOFFLOAD).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Offloads {
    /// Packets may come and go with their transport checksum left open.
    pub checksum: bool,
    /// TCP super-packets over IPv4 and IPv6, also those that carry CWR.
    pub tcp_segmentation: bool,
    /// UDP super-packets (Linux 6.2).
    pub udp_segmentation: bool,
}

/// A TUN with its queues.
#[derive(Debug)]
pub struct Queues {
    /// The name that the device got; a `%d` in the one asked for is a number now.
    pub name: String,
    /// Its interface index in the network namespace it was made in.
    pub index: u32,
    /// One per worker. The device goes with the last of them.
    pub queues: Vec<Queue>,
    /// What is on, for the device as a whole.
    pub offloads: Offloads,
}

/// One queue of a TUN: a non-blocking descriptor that carries a
/// [`VnetHeader`](super::VnetHeader) and an IP packet per read and per write.
///
/// Closed on drop.
pub struct Queue {
    /// Owns `fd`.
    device: ::tun::Device,
    /// The descriptor, kept here to spare the packet path the way through
    /// `device`.
    fd: RawFd,
}

/// Makes the device `name` with `count` queues, in the network namespace of the
/// calling thread.
///
/// It is multi-queue also with one queue, so that others can be attached later.
/// It comes without address, down, and not persistent.
///
/// # Errors
///
/// No driver, no permission, no capability; a device of that name exists,
/// whatever its kind; more than [`MAX_QUEUES`]. Offloads that the kernel does
/// not have are no error; [`Queues::offloads`] says what is on.
pub fn open_queues(name: &str, count: usize) -> Result<Queues, TunError> {
    if !is_device_name(name) {
        return Err(TunError::BadName {
            name: name.to_owned(),
        });
    }
    if !(1..=MAX_QUEUES).contains(&count) {
        return Err(TunError::QueueCount {
            name: name.to_owned(),
            count,
        });
    }
    // Exclusive: without it the kernel would join us to a stranger's device.
    let (first, name) = open_queue(name, 0, libc::IFF_TUN_EXCL)?;
    let offloads = set_up_device(&first, &name)?;
    let index = if_nametoindex(name.as_str())
        .map_err(|errno| queue_error(&name, 0, "if_nametoindex", errno))?;
    let mut queues = Vec::with_capacity(count);
    queues.push(adopt(first, &name, 0)?);
    for number in 1..count {
        let (fd, _) = open_queue(&name, number, 0)?;
        queues.push(adopt(fd, &name, number)?);
    }
    Ok(Queues {
        name,
        index,
        queues,
        offloads,
    })
}

impl Queue {
    /// Reads one frame, header and packet, and returns its length. A frame
    /// longer than `buf` is cut; [`MAX_FRAME_LEN`](super::MAX_FRAME_LEN) holds
    /// any.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when none is waiting. EBADFD: the device was deleted by
    /// someone, this queue is dead.
    #[inline]
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self, buf)?)
    }

    /// Writes one frame, header and packet, whole. The client's receive path
    /// runs inside the call.
    ///
    /// # Errors
    ///
    /// EINVAL: the header does not fit the packet. EIO: the device is down.
    /// EBADFD: the device was deleted. The packet is lost in each case.
    #[inline]
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        nix::unistd::write(self, frame)?;
        Ok(())
    }
}

impl AsRawFd for Queue {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl AsFd for Queue {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `device` owns this descriptor and closes it only when dropped
        // or consumed; both need the queue by value, and the borrow ends before.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl IntoRawFd for Queue {
    /// Gives the descriptor away, open.
    fn into_raw_fd(self) -> RawFd {
        self.device.into_raw_fd()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// The kernel's rule (dev_valid_name, net/core/dev.c), for a name that is also
/// not a pattern of ours to misread.
fn is_device_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace())
}

/// Opens `/dev/net/tun` and closes it again: whether there is a driver, and for us.
///
/// # Errors
///
/// As those of [`open_queues`] that concern the driver.
pub fn check_driver() -> Result<(), TunError> {
    open_driver("", 0).map(drop)
}

fn open_driver(name: &str, queue: usize) -> Result<OwnedFd, TunError> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| {
        let source = io::Error::from(errno);
        match errno as i32 {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => TunError::NoDriver { source },
            libc::EACCES | libc::EPERM => TunError::DriverDenied { source },
            _ => TunError::OpenDriver {
                name: name.to_owned(),
                queue,
                source,
            },
        }
    })
}

/// Opens the driver and attaches the descriptor to the device as one more
/// queue; returns the device's name as well, since it may have been a pattern.
pub(super) fn open_queue(
    name: &str,
    queue: usize,
    exclusive: libc::c_int,
) -> Result<(OwnedFd, String), TunError> {
    let fd = open_driver(name, queue)?;

    // SAFETY: `ifreq` is plain old data: an array and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // At most IFNAMSIZ - 1 bytes (checked), so that a zero stays behind them.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags =
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
    // The field has 16 bits, and IFF_TUN_EXCL is the highest of them.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map_err(|errno| match errno as i32 {
        libc::EPERM => TunError::NoCapability {
            name: name.to_owned(),
            operation: "making a TUN device".to_owned(),
            source: errno.into(),
        },
        // EBUSY: the name is taken (IFF_TUN_EXCL).
        libc::EBUSY if queue == 0 => TunError::DeviceExists {
            name: name.to_owned(),
        },
        _ => queue_error(name, queue, "ioctl TUNSETIFF", errno),
    })?;

    Ok((fd, name_in(&request)))
}

/// The name of the device that a queue belongs to.
pub(super) fn name_of(fd: &OwnedFd) -> nix::Result<String> {
    // SAFETY: `ifreq` is plain old data: an array and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    Errno::result(result)?;
    Ok(name_in(&request))
}

fn name_in(request: &libc::ifreq) -> String {
    let name = request
        .ifr_name
        .iter()
        .map_while(|&c| Some(c.to_ne_bytes()[0]).filter(|&byte| byte != 0))
        .collect::<Vec<u8>>();
    String::from_utf8_lossy(&name).into_owned()
}

/// Header and offloads. They belong to the device, so one queue sets them for all.
pub(super) fn set_up_device(fd: &OwnedFd, name: &str) -> Result<Offloads, TunError> {
    ioctl_int(fd, libc::TUNSETVNETHDRSZ, VNET_HEADER_LEN as libc::c_int)
        .map_err(|errno| queue_error(name, 0, "ioctl TUNSETVNETHDRSZ", errno))?;
    ioctl_int(fd, libc::TUNSETVNETLE, 1)
        .map_err(|errno| queue_error(name, 0, "ioctl TUNSETVNETLE", errno))?;
    Ok(set_offloads(|bits| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe {
            libc::ioctl(
                fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(bits),
            )
        };
        Errno::result(result).is_ok()
    }))
}

/// Asks for less until the kernel agrees: it refuses a request with a bit that
/// it does not know as a whole (set_offload, drivers/net/tun.c).
fn set_offloads(accepts: impl Fn(libc::c_uint) -> bool) -> Offloads {
    let tcp = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if accepts(libc::TUN_F_CSUM | tcp | udp) {
        Offloads {
            checksum: true,
            tcp_segmentation: true,
            udp_segmentation: true,
        }
    } else if accepts(libc::TUN_F_CSUM | tcp) {
        Offloads {
            checksum: true,
            tcp_segmentation: true,
            udp_segmentation: false,
        }
    } else if accepts(libc::TUN_F_CSUM) {
        Offloads {
            checksum: true,
            ..Offloads::default()
        }
    } else {
        Offloads::default()
    }
}

fn ioctl_int(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_int) -> nix::Result<()> {
    // SAFETY: the requests passed here read one int, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) };
    Errno::result(result).map(drop)
}

/// Makes the crate `tun` the owner of the descriptor.
pub(super) fn adopt(fd: OwnedFd, name: &str, queue: usize) -> Result<Queue, TunError> {
    let fd = fd.into_raw_fd();
    let mut configuration = ::tun::Configuration::default();
    configuration
        .raw_fd(fd)
        .close_fd_on_drop(true)
        .tun_name(name);
    let device = ::tun::create(&configuration).map_err(|error| TunError::Queue {
        name: name.to_owned(),
        queue,
        operation: "adopting the descriptor",
        source: io::Error::other(error),
    })?;
    Ok(Queue { device, fd })
}

pub(super) fn queue_error(
    name: &str,
    queue: usize,
    operation: &'static str,
    errno: Errno,
) -> TunError {
    TunError::Queue {
        name: name.to_owned(),
        queue,
        operation,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse() {
        assert!(is_device_name("svc-tun0"));
        assert!(is_device_name("svc-tun%d"));
        assert!(is_device_name("fifteen-bytes-x"));
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "a\0b",
            "sixteen-bytes-xx",
        ] {
            assert!(!is_device_name(name), "{name:?}");
            assert!(matches!(
                open_queues(name, 1),
                Err(TunError::BadName { .. })
            ));
        }
    }

    #[test]
    fn a_tun_has_1_to_256_queues() {
        for count in [0, 257] {
            let error = open_queues("svc-tun0", count).unwrap_err();
            assert!(matches!(error, TunError::QueueCount { .. }), "{error}");
            assert_eq!(error.mend().unwrap(), "--workers 1 to 256");
        }
    }

    #[test]
    fn offloads_fall_back_step_by_step() {
        let kernel = |known: libc::c_uint| set_offloads(|bits| bits & !known == 0);
        let found = |checksum, tcp_segmentation, udp_segmentation| Offloads {
            checksum,
            tcp_segmentation,
            udp_segmentation,
        };
        assert_eq!(kernel(0x7f), found(true, true, true));
        // Before 6.2: no USO bits.
        assert_eq!(kernel(0x1f), found(true, true, false));
        assert_eq!(kernel(0x01), found(true, false, false));
        assert_eq!(kernel(0x00), found(false, false, false));
    }
}
