//! A node's kernel as other programs leave it: devices, tables, kube-proxy's health.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kube_tun_proxy::lab::{LabError, Namespace};
use libtest_mimic::Failed;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddress};
use rtnetlink::{Error, LinkBridge, LinkUnspec};

/// Makes a device with addresses. The kernels that tests run on have no dummy device,
/// as kube-ipvs0 is; a bridge without ports holds addresses as well.
pub(crate) fn add_device(node: &Namespace, name: &str, addresses: &[IpAddr]) -> Result<(), Failed> {
    node.netlink(async |handle| {
        let failed = |cause: Error| LabError::Netlink {
            name: node.name().to_owned(),
            step: format!("adding {name}"),
            cause,
        };
        let bridge = LinkBridge::new(name).build();
        handle.link().add(bridge).execute().await.map_err(failed)?;
        let index = nix::net::if_::if_nametoindex(name).expect("the device just made");
        for address in addresses {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let request = handle.address().add(index, *address, prefix);
            request.execute().await.map_err(failed)?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.map_err(failed)
    })?;
    Ok(())
}

/// Takes a device away.
pub(crate) fn delete_device(node: &Namespace, name: &str) -> Result<(), Failed> {
    node.netlink(async |handle| {
        let index = nix::net::if_::if_nametoindex(name).expect("a device to delete");
        let deleted = handle.link().del(index).execute().await;
        deleted.map_err(|cause| LabError::Netlink {
            name: node.name().to_owned(),
            step: format!("deleting {name}"),
            cause,
        })
    })?;
    Ok(())
}

/// Adds or takes away the table of kube-proxy's nftables mode, as `nft add table ip
/// kube-proxy`.
pub(crate) fn kube_proxy_table(node: &Namespace, there: bool) -> Result<(), Failed> {
    /// linux/netfilter/nfnetlink.h, nf_tables.h.
    const BATCH_BEGIN: u16 = 16;
    const BATCH_END: u16 = 17;
    const NEW_TABLE: u16 = 10 << 8;
    const DELETE_TABLE: u16 = 10 << 8 | 2;
    const ACK: u16 = 0x4;
    let header = |family: u8, resource: u16| {
        let mut bytes = vec![family, 0];
        bytes.extend(resource.to_be_bytes());
        bytes
    };
    let mut table = header(2, 0);
    let name = b"kube-proxy\0";
    table.extend(u16::try_from(4 + name.len())?.to_ne_bytes());
    table.extend(1_u16.to_ne_bytes());
    table.extend(name);
    let what = if there { NEW_TABLE } else { DELETE_TABLE };
    let mut batch = message(BATCH_BEGIN, 0, &header(0, 10));
    batch.extend(message(what, ACK, &table));
    batch.extend(message(BATCH_END, 0, &header(0, 10)));
    let answered = node.run(move || -> std::io::Result<i32> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        socket.send(&batch, 0)?;
        let mut answer = Vec::with_capacity(4096);
        socket.recv(&mut answer, 0)?;
        Ok(i32::from_ne_bytes([
            answer[16], answer[17], answer[18], answer[19],
        ]))
    })?;
    assert_eq!(answered, 0, "nf_tables refuses the table");
    Ok(())
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = 16 + payload.len();
    let mut bytes = u32::try_from(length).expect("short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    // NLM_F_REQUEST.
    bytes.extend((1 | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Answers on a port as kube-proxy's health server does. Ends when dropped.
pub(crate) struct KubeProxy {
    address: SocketAddr,
    namespace: Namespace,
    well: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl KubeProxy {
    pub(crate) fn start(node: &Namespace) -> Result<Self, Failed> {
        let address: SocketAddr = ([127, 0, 0, 1], 10256).into();
        let listener = node.run(|| TcpListener::bind(address))?;
        let well = Arc::new(AtomicBool::new(true));
        let ended = Arc::new(AtomicBool::new(false));
        let (says, ends) = (Arc::clone(&well), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap_or(0);
                let status = if !request[..length].starts_with(b"GET /healthz ") {
                    "404 Not Found"
                } else if says.load(Ordering::SeqCst) {
                    "200 OK"
                } else {
                    "503 Service Unavailable"
                };
                // Who has asked may have gone.
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Ok(Self {
            address,
            namespace: node.clone(),
            well,
            ended,
            thread: Some(thread),
        })
    }

    pub(crate) fn set_well(&self, well: bool) {
        self.well.store(well, Ordering::SeqCst);
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let address = self.address;
        // Wakes the listener.
        drop(self.namespace.run(|| std::net::TcpStream::connect(address)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
