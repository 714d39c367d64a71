//! What each UDP server does with a datagram.

use std::sync::Arc;

use tokio::net::UdpSocket;

use super::record::Record;
use super::{Udp, canonical, who_line};

/// No datagram is larger (RFC 768: a 16-bit length).
const MAX_DATAGRAM: usize = 65_535;

/// Receives until the runtime ends.
pub(super) async fn serve(socket: UdpSocket, what: Udp, record: Arc<Record>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error is an answer of ours that was refused; it concerns a client
        // that is gone, not the next datagram.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let peer = canonical(from);
        record.saw(peer);
        let answered = match &what {
            Udp::Who(name) => socket.send_to(who_line(name, peer).as_bytes(), from).await,
            Udp::Echo => socket.send_to(&buffer[..length], from).await,
            Udp::Mute => continue,
        };
        if let Err(error) = answered {
            tracing::debug!(%peer, %error, "lab: answer not sent");
        }
    }
}
