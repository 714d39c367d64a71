//! The lab itself.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use kube_tun_proxy::lab::{ClusterBuilder, Namespace};
use libtest_mimic::{Failed, Trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "lab::pods_reach_each_other_over_the_overlay",
        pods_reach_each_other,
    )]
}

fn pods_reach_each_other() -> Result<(), Failed> {
    let start = std::time::Instant::now();
    let cluster = ClusterBuilder::seed().build()?;
    eprintln!("built in {:?}", start.elapsed());
    let ask =
        |from: &Namespace, to: &Namespace, at: SocketAddr, expect: &str| -> Result<(), Failed> {
            let server = to.run(|| UdpSocket::bind(at))?;
            server.set_read_timeout(Some(Duration::from_secs(3)))?;
            let any: SocketAddr = if at.is_ipv4() {
                "0.0.0.0:0".parse()?
            } else {
                "[::]:0".parse()?
            };
            let client = from.run(|| UdpSocket::bind(any))?;
            client.send_to(b"x", at)?;
            let (_, peer) = server
                .recv_from(&mut [0; 9])
                .map_err(|e| format!("{from:?} {at} {e}"))?;
            assert_eq!(peer.ip().to_string(), expect);
            Ok(())
        };
    let pod = cluster.pod("pod-5");
    let client = cluster.pod("client");
    let master = cluster.node("master");
    let v4 = SocketAddr::new(pod.address().into(), 53);
    let v6 = SocketAddr::new(pod.address6().into(), 53);
    ask(master.namespace(), pod.namespace(), v4, "10.1.15.0")?;
    ask(client.namespace(), pod.namespace(), v4, "10.1.15.7")?;
    ask(master.namespace(), pod.namespace(), v6, "fd00:10:1:15::")?;
    ask(client.namespace(), pod.namespace(), v6, "fd00:10:1:15::7")?;
    Ok(())
}
