//! Devices, addresses, routes and rules of the node, read by netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// A netlink socket and the task that carries it.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    task: JoinHandle<()>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is set up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of the bridge, bond or VRF that it is a member of.
    pub master: Option<u32>,
    /// What a TUN says of itself; `None` for other kinds.
    pub tun: Option<Tun>,
}

/// What the kernel tells of a TUN (IFLA_TUN_*, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// The user who may attach to it without privilege.
    pub owner: Option<u32>,
    /// Whether it stays when nobody is attached.
    pub persistent: bool,
    /// Whether it takes several queues.
    pub multi_queue: bool,
    /// Queues that are attached.
    pub queues: u32,
}

/// Where a packet of this node would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Index of the device.
    pub device: Option<u32>,
    /// The source address that the route prefers.
    pub source: Option<IpAddr>,
}

impl Device {
    /// Whether this user may attach queues to it without privilege, as `init` makes it.
    pub fn is_prepared_for(&self, user: u32) -> bool {
        self.tun
            .is_some_and(|tun| tun.persistent && tun.multi_queue && tun.owner == Some(user))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    /// Opens a socket in the network namespace of the calling thread and starts its
    /// task on the present runtime.
    ///
    /// # Errors
    ///
    /// No netlink socket.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, task })
    }

    /// Every device, by index.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn devices(&self) -> io::Result<Vec<Device>> {
        let stream = self.handle.link().get().execute();
        let messages: Vec<LinkMessage> = stream.try_collect().await.map_err(io_error)?;
        let mut devices: Vec<Device> = messages.iter().map(device).collect();
        devices.sort_by_key(|device| device.index);
        Ok(devices)
    }

    /// The device of this name.
    ///
    /// # Errors
    ///
    /// As [`devices`](Self::devices).
    pub async fn device(&self, name: &str) -> io::Result<Option<Device>> {
        let devices = self.devices().await?;
        Ok(devices.into_iter().find(|device| device.name == name))
    }

    /// Every address, with the index of its device, sorted.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn addresses(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut stream = std::pin::pin!(self.handle.address().get().execute());
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(io_error)? {
            let local = message.attributes.iter().find_map(|attribute| {
                if let AddressAttribute::Local(address) = attribute {
                    Some(*address)
                } else {
                    None
                }
            });
            // IPv6 has the own address in Address unless there is a peer.
            let own = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| {
                    if let AddressAttribute::Address(address) = attribute {
                        Some(*address)
                    } else {
                        None
                    }
                })
            });
            found.extend(own.map(|address| (message.header.index, address)));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The rules that choose among routing tables, beside the kernel's own three, as
    /// `ip rule` would name them.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn rules(&self, v6: bool) -> io::Result<Vec<String>> {
        let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
        let stream = self.handle.rule().get(version).execute();
        let messages: Vec<RuleMessage> = stream.try_collect().await.map_err(io_error)?;
        Ok(messages.iter().filter_map(foreign_rule).collect())
    }

    /// Where a packet of this node to `address` would go.
    ///
    /// # Errors
    ///
    /// There is no way (ENETUNREACH and the like), or netlink's.
    pub async fn way(&self, address: IpAddr) -> io::Result<Way> {
        let message = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut stream = std::pin::pin!(self.handle.route().get(message).execute());
        let answer = stream.try_next().await.map_err(io_error)?;
        let mut way = Way {
            device: None,
            source: None,
        };
        for attribute in answer.iter().flat_map(|message| &message.attributes) {
            if let RouteAttribute::Oif(index) = attribute {
                way.device = Some(*index);
            } else if let RouteAttribute::PrefSource(source) = attribute {
                way.source = match source {
                    RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
                    RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
                    RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
                };
            }
        }
        Ok(way)
    }

    /// Whether this thread's task may change devices and routes here: asks for a route
    /// to be taken out of a table that there is not, which the kernel refuses for want of
    /// permission before it looks.
    ///
    /// # Errors
    ///
    /// Netlink's, other than EPERM.
    pub async fn may_configure(&self) -> io::Result<bool> {
        /// RFC 5737: an address that nobody has.
        const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
        /// No table that anybody would use.
        const NOWHERE: u32 = 0x7fff_fffe;
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(NOBODY, 32)
            .table_id(NOWHERE)
            .build();
        match self.handle.route().del(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) => match io_error(error) {
                error if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
                error if error.raw_os_error().is_some() => Ok(true),
                error => Err(error),
            },
        }
    }
}

fn device(message: &LinkMessage) -> Device {
    let mut device = Device {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        master: None,
        tun: None,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            device.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            device.mtu = *mtu;
        } else if let LinkAttribute::Controller(master) = attribute {
            device.master = Some(*master);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            device.tun = tun(infos);
        }
    }
    device
}

fn tun(infos: &[LinkInfo]) -> Option<Tun> {
    /// IFLA_TUN_*, linux/if_link.h.
    const OWNER: u16 = 1;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    const NUM_QUEUES: u16 = 8;
    const NUM_DISABLED_QUEUES: u16 = 9;
    let is_tun = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Tun));
    if !infos.iter().any(is_tun) {
        return None;
    }
    let mut tun = Tun::default();
    for info in infos {
        let LinkInfo::Data(InfoData::Tun(attributes)) = info else {
            continue;
        };
        for attribute in attributes {
            let InfoTun::Other(attribute) = attribute else {
                continue;
            };
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            let number = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            let is_set = value.first().is_some_and(|&byte| byte != 0);
            match attribute.kind() {
                OWNER => tun.owner = number(),
                PERSIST => tun.persistent = is_set,
                MULTI_QUEUE => tun.multi_queue = is_set,
                NUM_QUEUES | NUM_DISABLED_QUEUES => tun.queues += number().unwrap_or(0),
                _ => {}
            }
        }
    }
    Some(tun)
}

/// `None` for the three that every node has (fib_default_rules_init,
/// net/ipv4/fib_rules.c) and for those of other families.
fn foreign_rule(message: &RuleMessage) -> Option<String> {
    /// RT_TABLE_DEFAULT to RT_TABLE_LOCAL, linux/rtnetlink.h.
    const OWN_TABLES: std::ops::RangeInclusive<u32> = 253..=255;
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut priority = 0;
    let mut whom = "from all".to_owned();
    for attribute in &message.attributes {
        if let RuleAttribute::Table(number) = attribute {
            table = *number;
        } else if let RuleAttribute::Priority(number) = attribute {
            priority = *number;
        } else if let RuleAttribute::Source(address) = attribute {
            whom = format!("from {address}/{}", header.src_len);
        } else if let RuleAttribute::Destination(address) = attribute {
            whom.push_str(&format!(" to {address}/{}", header.dst_len));
        } else if let RuleAttribute::FwMark(mark) = attribute {
            whom.push_str(&format!(" fwmark {mark:#x}"));
        }
    }
    (!OWN_TABLES.contains(&table)).then(|| format!("{priority}: {whom} lookup {table}"))
}

fn io_error(error: Error) -> io::Error {
    if let Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_is_there_and_no_tun() {
        let node = Node::open().unwrap();
        let lo = node.device("lo").await.unwrap().unwrap();
        assert!(lo.tun.is_none() && lo.mtu > 0, "{lo:?}");
        assert!(node.device("no-such-device").await.unwrap().is_none());
        let addresses = node.addresses().await.unwrap();
        assert!(addresses.is_sorted());
    }
}
