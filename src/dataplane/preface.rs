//! What a real server is sent before anything of the client's.

use std::net::SocketAddr;

use crate::ipvs::ProxyProtocol;
use crate::packet::{proxy_header_v1, proxy_header_v2};

/// The PROXY protocol's header for a client that connected to `destination`. `None` if
/// the two are of different families, which no connection is.
pub(crate) fn proxy_header(
    version: ProxyProtocol,
    client: SocketAddr,
    destination: SocketAddr,
) -> Option<Vec<u8>> {
    match version {
        ProxyProtocol::V1 => proxy_header_v1(client, destination),
        ProxyProtocol::V2 => proxy_header_v2(client, destination),
    }
}
