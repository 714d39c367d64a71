//! Packets for tests.
//!
//! The constants are what Linux 6.18 put on its loopback device between 10.1.15.7 and 10.0.0.3,
//! fd00::7 and fd00::3: requests to closed ports and the kernel's own answers to them. The
//! kernel leaves TCP and UDP checksums partial there (the pseudo-header's sum); those of ICMP,
//! fragments and the IPv4 reset are whole. Built packets come from smoltcp, which shares no code with ours.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use smoltcp::wire::{UdpPacket, UdpRepr};

pub(super) const SYN_V4: &str = "4500003cd1c04000400645f10a010f070a0000039c4001bb47b38f9a00000000\
    a002fd5c23390000020405820402080aa5bcee75000000000103030a";
pub(super) const RST_V4: &str = "4500002800004000400617c60a0000030a010f0701bb9c400000000047b38f9b\
    50140000177c0000";
pub(super) const UDP_V4: &str = "45000029f84c400040111f6d0a010f070a0000039c4100350015233112342077\
    686f2069732069743f";
pub(super) const UNREACHABLE_V4: &str = "45c0004538a2000040011e4c0a0000030a010f070303662700000000\
    45000029f84c400040111f6d0a010f070a0000039c4100350015233112342077686f2069732069743f";
pub(super) const PING_V4: &str = "45b80030e4fd40004001320d0a010f070a00000308000ff104d2000770696e67\
    20746f2061207669727475616c204950";
pub(super) const PONG_V4: &str = "45b8003038c4000040011e470a0000030a010f07000017f104d2000770696e67\
    20746f2061207669727475616c204950";
/// Headers of a datagram with [`big_payload`] in two fragments, and of the error about it.
pub(super) const FIRST_V4: &str = "450005a4359d20004011fca10a010f070a0000039c42003508082e5e";
pub(super) const LAST_V4: &str = "4500028c359d00b240111f080a010f070a000003";
pub(super) const BIG_UNREACHABLE_V4: &str = "45c0024038dd000040011c160a0000030a010f0703039d8f000000004500081c359d000040111a2a0a010f070a00\
    00039c42003508082e5e";

pub(super) const SYN_V6: &str = "6003000500280640fd000000000000000000000000000007fd00000000000000\
    00000000000000039c4001bbd8965c3900000000a002ff32fa3900000204056e0402080a353627fc000000000103\
    030a";
pub(super) const RST_V6: &str = "600507a700140640fd000000000000000000000000000003fd00000000000000\
    000000000000000701bb9c4000000000d8965c3a50140000fa250000";
pub(super) const UDP_V6: &str = "600d1b2600151140fd000000000000000000000000000007fd00000000000000\
    00000000000000039c4100350015fa3112342077686f2069732069743f";
pub(super) const UNREACHABLE_V6: &str = "6006263000453a40fd000000000000000000000000000003fd000000\
    0000000000000000000000070104100600000000600d1b2600151140fd000000000000000000000000000007fd00\
    00000000000000000000000000039c4100350015fa3112342077686f2069732069743f";
pub(super) const PING_V6: &str = "6b8b8279001c3a40fd000000000000000000000000000007fd00000000000000\
    000000000000000380009d8e04d2000770696e6720746f2061207669727475616c204950";
pub(super) const PONG_V6: &str = "6b88ac44001c3a40fd000000000000000000000000000003fd00000000000000\
    000000000000000781009c8e04d2000770696e6720746f2061207669727475616c204950";
pub(super) const FIRST_V6: &str = "6003cf1005802c40fd000000000000000000000000000007fd000000000000\
    00000000000000000311000001d4cb3c969c4200350808575d";
pub(super) const LAST_V6: &str = "6003cf1002982c40fd000000000000000000000000000007fd00000000000000\
    000000000000000311000578d4cb3c96";
pub(super) const BIG_UNREACHABLE_V6: &str = "6006263004d83a40fd000000000000000000000000000003fd0000000000000000000000000000070104f7800000\
    00006003cf1008081140fd000000000000000000000000000007fd0000000000000000000000000000039c420035\
    0808575d";

/// The bytes that a hexadecimal constant stands for.
pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    assert!(digits.len().is_multiple_of(2), "a whole number of bytes");
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// What the large datagrams of the capture carry: 2048 bytes.
pub(super) fn big_payload() -> Vec<u8> {
    (0..2048u32).map(|index| index as u8).collect()
}

/// The two fragments of the large datagram.
pub(super) fn big_fragments(v4: bool) -> [Vec<u8>; 2] {
    let payload = big_payload();
    let (first, last, cut) = if v4 {
        (FIRST_V4, LAST_V4, 1416)
    } else {
        (FIRST_V6, LAST_V6, 1392)
    };
    let mut fragments = [bytes(first), bytes(last)];
    fragments[0].extend_from_slice(&payload[..cut]);
    fragments[1].extend_from_slice(&payload[cut..]);
    fragments
}

/// A TCP segment with whole checksums.
pub(super) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    payload: &[u8],
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
        control,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
        window_len: 64_240,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(1410),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let (from, to) = (source.ip().into(), destination.ip().into());
    ip(
        source.ip(),
        destination.ip(),
        IpProtocol::Tcp,
        repr.buffer_len(),
        |out| {
            repr.emit(
                &mut TcpPacket::new_unchecked(out),
                &from,
                &to,
                &ChecksumCapabilities::default(),
            );
        },
    )
}

/// A UDP datagram with whole checksums.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let (from, to) = (source.ip().into(), destination.ip().into());
    ip(
        source.ip(),
        destination.ip(),
        IpProtocol::Udp,
        8 + payload.len(),
        |out| {
            repr.emit(
                &mut UdpPacket::new_unchecked(out),
                &from,
                &to,
                payload.len(),
                |data| data.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        },
    )
}

fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = IpRepr::new(source.into(), destination.into(), protocol, len, 64);
    let mut out = vec![0; repr.header_len() + len];
    repr.emit(&mut out[..], &ChecksumCapabilities::default());
    fill(&mut out[repr.header_len()..]);
    out
}

/// A fragment made by hand, with a correct IPv4 header checksum left out: nothing here reads it.
pub(super) fn fragment(
    source: IpAddr,
    destination: IpAddr,
    ident: u32,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    const UDP: u8 = 17;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = (20 + payload.len()) as u16;
            let place = offset >> 3 | u16::from(more) << 13;
            let mut packet = vec![0x45, 0];
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&(ident as u16).to_be_bytes());
            packet.extend_from_slice(&place.to_be_bytes());
            packet.extend_from_slice(&[64, UDP, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            packet.extend_from_slice(payload);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = (8 + payload.len()) as u16;
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[44, 64]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            packet.extend_from_slice(&[UDP, 0]);
            packet.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            packet.extend_from_slice(&ident.to_be_bytes());
            packet.extend_from_slice(payload);
            packet
        }
        _ => panic!("addresses of two families"),
    }
}
