//! TCP segments of no flow: strays, and those of a connection that is over.

use super::Worker;
use crate::dataplane::flow_table::FlowKey;
use crate::ipvs::{DropReason, EchoVerdict};
use crate::netstack::Sent;
use crate::packet::{IpPacket, TcpSegment};

impl Worker {
    /// A segment that belongs to no flow: as a host that knows the address answers.
    pub(super) fn stray(&mut self, key: &FlowKey, packet: &IpPacket<'_>, segment: &TcpSegment<'_>) {
        if let EchoVerdict::Drop(reason) = self.shared.table.echo(key.virtual_server.ip()) {
            return self.discard(reason);
        }
        self.discard(DropReason::NoFlow);
        if !segment.flags.rst() {
            self.refuse_tcp(packet);
        }
    }

    pub(super) fn time_wait(
        &mut self,
        key: &FlowKey,
        sent: Sent,
        packet: &IpPacket<'_>,
        segment: &TcpSegment<'_>,
    ) {
        if segment.flags.rst() {
            self.flows.end_time_wait(key);
        } else if segment.flags.fin() || !segment.payload.is_empty() {
            self.acknowledge(key, sent, packet);
        }
    }

    /// Repeats the last ACK of a connection in TIME_WAIT.
    fn acknowledge(&mut self, key: &FlowKey, sent: Sent, packet: &IpPacket<'_>) {
        let mut reply = std::mem::take(&mut self.scratch);
        let made = crate::packet::tcp_ack(packet, sent.sequence, sent.acknowledgement, &mut reply);
        if made.is_ok() {
            self.sink.send_whole(&reply);
        } else {
            self.flows.end_time_wait(key);
        }
        self.scratch = reply;
    }
}
