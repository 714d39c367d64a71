//! A program for the kernel (classic BPF, Documentation/networking/filter.rst) that passes
//! over packets which can be of no wanted flow: on members of bridges, of other protocols
//! than IP, and neither from nor to a wanted virtual server or real server.
//!
//! It may let too much through, never too little: what is let through is looked at again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::SockFilter;

use super::scope::Scope;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const SHIFT_RIGHT: u16 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The index of the interface (SKF_AD_OFF + SKF_AD_IFINDEX, linux/filter.h). A packet of a
/// socket without link headers begins with its IP header.
const INTERFACE: u32 = 0xffff_f000 + 8;

/// Where addresses are (RFC 791 section 3.1, RFC 8200 section 3).
const V4: [u32; 2] = [12, 16];
const V6: [u32; 2] = [8, 24];

/// Most of each that are looked for: more is let through. So the program stays below
/// BPF_MAXINSNS (4096, linux/bpf_common.h): two instructions for an interface, four for
/// an IPv4 address, 18 for an IPv6 address.
const MAX_INTERFACES: usize = 250;
const MAX_V4: usize = 400;
const MAX_V6: usize = 100;

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    /// Instructions to skip when a comparison holds, and when it does not.
    then: u8,
    otherwise: u8,
    value: u32,
}

impl Instruction {
    pub(super) fn kernel(&self) -> SockFilter {
        SockFilter::new(self.code, self.then, self.otherwise, self.value)
    }
}

/// For this scope; `snapshot` is how many bytes of a packet are kept.
pub(super) fn program(scope: &Scope, snapshot: usize) -> Vec<Instruction> {
    let keep = u32::try_from(snapshot).unwrap_or(u32::MAX);
    let mut program = Vec::new();
    let members: BTreeSet<u32> = scope.interfaces.members.iter().copied().collect();
    if !members.is_empty() && members.len() <= MAX_INTERFACES {
        program.push(plain(LOAD, INTERFACE));
        for member in members {
            unless_equal(&mut program, member, 0);
        }
    }
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for address in addresses(scope) {
        match address {
            IpAddr::V4(ip) => v4.insert(u32::from(ip).to_be_bytes()[..].to_vec()),
            IpAddr::V6(ip) => v6.insert(ip.octets().to_vec()),
        };
    }
    let any = |set: &BTreeSet<Vec<u8>>, most| set.len() > most;
    let of_v4 = section(&v4, V4, any(&v4, MAX_V4), keep);
    let of_v6 = section(&v6, V6, any(&v6, MAX_V6), keep);
    program.extend([plain(LOAD_BYTE, 0), plain(SHIFT_RIGHT, 4)]);
    for (version, section) in [(4, of_v4), (6, of_v6)] {
        // A comparison cannot jump far, a jump can.
        program.push(compare(version, 1, 0));
        program.push(plain(JUMP, u32::try_from(section.len()).unwrap_or(0)));
        program.extend(section);
    }
    program.push(plain(RETURN, 0));
    program
}

/// For whatever address, on whatever interface.
pub(super) fn any_address(snapshot: usize) -> Vec<Instruction> {
    let keep = u32::try_from(snapshot).unwrap_or(u32::MAX);
    vec![
        plain(LOAD_BYTE, 0),
        plain(SHIFT_RIGHT, 4),
        compare(4, 1, 0),
        compare(6, 0, 1),
        plain(RETURN, keep),
        plain(RETURN, 0),
    ]
}

/// Of all that is looked for. A virtual server at no address in particular is at all of
/// the node's.
fn addresses(scope: &Scope) -> impl Iterator<Item = IpAddr> {
    let servers = scope
        .virtual_servers
        .keys()
        .chain(scope.real_servers.keys());
    let ips: BTreeSet<IpAddr> = servers.map(|(_, address)| address.ip()).collect();
    let any = |ip: IpAddr| ips.contains(&ip);
    let (any_v4, any_v6) = (
        any(Ipv4Addr::UNSPECIFIED.into()),
        any(Ipv6Addr::UNSPECIFIED.into()),
    );
    let own = scope.interfaces.addresses.iter().copied();
    let own: Vec<IpAddr> = own
        .filter(|ip| if ip.is_ipv4() { any_v4 } else { any_v6 })
        .collect();
    ips.into_iter().chain(own)
}

/// For packets of one family: keeps those from or to one of the addresses.
fn section(set: &BTreeSet<Vec<u8>>, at: [u32; 2], any: bool, keep: u32) -> Vec<Instruction> {
    if any {
        return vec![plain(RETURN, keep)];
    }
    let mut program = Vec::new();
    for at in at {
        for (number, address) in set.iter().enumerate() {
            let words = address.as_chunks::<4>().0;
            // What a single word is compared with is loaded once for all.
            let once = words.len() == 1;
            let loads = if once { 0 } else { words.len() };
            if once && number == 0 {
                program.push(plain(LOAD, at));
            }
            // Over what is left of this address, and over its return.
            let mut left = u8::try_from(loads + words.len() + 1).unwrap_or(u8::MAX);
            for (offset, word) in (0..).step_by(4).zip(words) {
                if !once {
                    program.push(plain(LOAD, at + offset));
                    left -= 1;
                }
                left -= 1;
                program.push(compare(u32::from_be_bytes(*word), 0, left));
            }
            program.push(plain(RETURN, keep));
        }
    }
    program.push(plain(RETURN, 0));
    program
}

/// Ends with `result` if the value is this.
fn unless_equal(program: &mut Vec<Instruction>, value: u32, result: u32) {
    program.extend([compare(value, 0, 1), plain(RETURN, result)]);
}

fn plain(code: u16, value: u32) -> Instruction {
    Instruction {
        code,
        then: 0,
        otherwise: 0,
        value,
    }
}

fn compare(value: u32, then: u8, otherwise: u8) -> Instruction {
    Instruction {
        code: JUMP_IF_EQUAL,
        then,
        otherwise,
        value,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::SocketAddr;

    use super::super::scope::Interfaces;
    use super::*;
    use crate::packet::protocol;

    /// What the kernel does with it.
    fn run(program: &[Instruction], interface: u32, packet: &[u8]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let instruction = program[at];
            let (k, index) = (instruction.value, instruction.value as usize);
            at += 1;
            match instruction.code {
                LOAD if k == INTERFACE => value = interface,
                LOAD => match packet.get(index..index + 4) {
                    Some(word) => value = u32::from_be_bytes(word.try_into().unwrap()),
                    None => return 0,
                },
                LOAD_BYTE => match packet.get(index) {
                    Some(byte) => value = u32::from(*byte),
                    None => return 0,
                },
                SHIFT_RIGHT => value >>= k,
                JUMP => at += index,
                JUMP_IF_EQUAL if value == k => at += usize::from(instruction.then),
                JUMP_IF_EQUAL => at += usize::from(instruction.otherwise),
                RETURN => return k,
                code => panic!("{code}"),
            }
        }
    }

    fn packet(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut bytes = vec![0x45; 12];
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut bytes = vec![0x60; 8];
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes
            }
            mixed => panic!("{mixed:?}"),
        }
    }

    fn scope(virtual_servers: &[&str], real_servers: &[&str]) -> Scope {
        let key = |text: &&str| (protocol::TCP, text.parse::<SocketAddr>().unwrap());
        let interfaces = Interfaces {
            members: [5, 9].into(),
            addresses: ["192.168.1.2", "fd00::2"]
                .map(|text| text.parse().unwrap())
                .into(),
            ..Interfaces::default()
        };
        Scope {
            virtual_servers: virtual_servers
                .iter()
                .map(|text| (key(text), "default/web".to_owned()))
                .collect(),
            real_servers: real_servers
                .iter()
                .map(|text| (key(text), HashSet::new()))
                .collect(),
            interfaces,
        }
    }

    #[test]
    fn either_end_of_a_wanted_address_and_nothing_else() {
        let virtual_servers = ["10.0.0.3:80", "10.0.0.4:80", "[fd00:10::3]:80"];
        let real_servers = ["10.1.15.8:8080", "[fd01::8]:8080", "[fd01:0:0:1::8]:8080"];
        let program = program(&scope(&virtual_servers, &real_servers), 128);
        for (from, to, kept) in [
            ("10.1.7.5", "10.0.0.3", true),
            ("10.0.0.4", "10.1.7.5", true),
            ("10.1.7.5", "10.1.15.8", true),
            ("10.1.7.5", "10.0.0.5", false),
            ("192.168.1.2", "10.1.7.5", false),
            ("fd00::9", "fd00:10::3", true),
            ("fd01::8", "fd00::9", true),
            ("fd00::9", "fd01:0:0:1::8", true),
            ("fd00::9", "fd01:0:0:2::8", false),
            ("fd00::9", "fd01::9", false),
        ] {
            let packet = packet(from, to);
            let expected = if kept { 128 } else { 0 };
            assert_eq!(run(&program, 3, &packet), expected, "{from} {to}");
            // On a member of a bridge it is seen a second time.
            assert_eq!(run(&program, 9, &packet), 0, "{from} {to}");
        }
        // ARP, and nothing at all.
        assert_eq!(run(&program, 3, &[0; 28]), 0);
        assert_eq!(run(&program, 3, &[]), 0);
    }

    #[test]
    fn a_node_port_is_at_every_address_of_the_node() {
        let program = program(&scope(&["0.0.0.0:30080"], &[]), 96);
        let kept = |from, to| run(&program, 3, &packet(from, to)) > 0;
        assert!(kept("10.9.9.9", "192.168.1.2"));
        assert!(!kept("10.9.9.9", "192.168.1.3"));
        // That of IPv6 is another virtual server.
        assert!(!kept("fd00::9", "fd00::2"));
    }

    #[test]
    fn with_too_many_addresses_all_are_kept_and_it_fits() {
        let many: Vec<String> = (0..MAX_V4)
            .map(|n| format!("10.0.{}.{}:80", n / 250, n % 250))
            .chain((0..=MAX_V6).map(|n| format!("[fd00::{n:x}]:80")))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let full = program(&scope(&many, &[]), 96);
        assert!(full.len() <= 4096, "{}", full.len());
        let kept = |from, to| run(&full, 3, &packet(from, to));
        assert_eq!(kept("10.9.9.9", "10.0.1.149"), 96);
        assert_eq!(kept("10.9.9.9", "10.0.1.150"), 0);
        assert_eq!(kept("fe80::1", "fe80::2"), 96);
        let most = many[MAX_V4 + 1..].to_vec();
        let v6 = program(&scope(&[&many[..MAX_V4], &most].concat(), &[]), 96);
        assert!(v6.len() <= 4096, "{}", v6.len());
        assert_eq!(run(&v6, 3, &packet("fe80::1", "fd00::64")), 96);
        assert_eq!(run(&v6, 3, &packet("fe80::1", "fd00::65")), 0);
        let any = any_address(96);
        assert_eq!(run(&any, 3, &packet("1.2.3.4", "5.6.7.8")), 96);
        assert_eq!(run(&any, 3, &packet("fe80::1", "fe80::2")), 96);
        assert_eq!(run(&any, 3, &[0; 28]), 0);
    }
}
