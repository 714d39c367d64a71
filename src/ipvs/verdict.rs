//! What becomes of a packet that starts a flow, and why.
//!
//! Reasons are closed enums, one cause each; their labels are those of the
//! metrics and of the log.

use std::fmt;
use std::sync::Arc;

use super::VirtualServer;

/// The fate of a new flow, by its destination.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Choose a real server of this virtual server.
    Forward(Arc<VirtualServer>),
    /// Tell the client: TCP RST, UDP ICMP port unreachable.
    Reject(RejectReason),
    /// Say nothing.
    Drop(DropReason),
}

/// The fate of an ICMP echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoVerdict {
    /// The address belongs to a service: answer.
    Answer,
    /// Say nothing.
    Drop(DropReason),
}

/// Defines a reason enum whose labels and list cannot fall out of step with it.
macro_rules! reasons {
    (
        $(#[$meta:meta])*
        $name:ident { $( $(#[$doc:meta])* $variant:ident = $label:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $( $(#[$doc])* $variant, )+ }

        impl $name {
            /// Every reason, in the order of declaration; `reason as usize` is
            /// its index.
            pub const ALL: &[Self] = &[ $( Self::$variant, )+ ];

            /// The label in metrics and logs: snake_case, stable.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $label, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a packet, or the flow it would have started, was dropped in silence.
    DropReason {
        /// The first full state is not programmed yet.
        NotSynced = "not_synced",
        /// No service has this address.
        UnknownAddress = "unknown_address",
        /// A Local traffic policy, no endpoint here, some elsewhere.
        NoLocalEndpoint = "no_local_endpoint",
        /// The client is outside the service's `loadBalancerSourceRanges`.
        SourceRange = "source_range",
        /// The client is a pod and pods are not served (`--pod-traffic`).
        PodTraffic = "pod_traffic",
        /// SCTP is not carried.
        Sctp = "sctp",
        /// Neither TCP, UDP, SCTP nor an ICMP echo.
        UnsupportedProtocol = "unsupported_protocol",
        /// A header that contradicts itself or the length of the packet.
        Malformed = "malformed",
        /// A checksum that does not match.
        BadChecksum = "bad_checksum",
        /// A fragment that cannot join its datagram: it overlaps, exceeds the
        /// largest datagram, or the store is full.
        Fragment = "fragment",
        /// A datagram whose missing fragments never came.
        FragmentTimeout = "fragment_timeout",
        /// Too many connections are being opened at once.
        HalfOpenLimit = "half_open_limit",
        /// An ICMP error or RST of ours, over the rate we allow ourselves.
        RateLimited = "rate_limited",
        /// A segment beyond the window that was offered.
        WindowOverrun = "window_overrun",
        /// The flow's state machine failed on this packet and was ended.
        FlowFault = "flow_fault",
        /// A segment other than a SYN, for a connection that is not known.
        NoFlow = "no_flow",
        /// The proxy is stopping and takes no new flow.
        Draining = "draining",
        /// An echo request while `--answer-ping=false`.
        PingDisabled = "ping_disabled",
        /// A queue of bounded length was full.
        QueueFull = "queue_full",
        /// Every real server that was tried stayed silent, so the client hears
        /// nothing either.
        ConnectTimeout = "connect_timeout",
    }
}

reasons! {
    /// Why a new flow was refused with an answer.
    RejectReason {
        /// The address has services, but none on this port and protocol.
        UnknownPort = "unknown_port",
        /// The service has no usable endpoint anywhere.
        NoEndpoints = "no_endpoints",
        /// At least one real server refused, and none that was tried accepted.
        ConnectFailed = "connect_failed",
        /// `--max-flows` is reached.
        FlowLimit = "flow_limit",
        /// `--max-memory` is reached.
        MemoryLimit = "memory_limit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_distinct_snake_case_and_indexed_by_declaration() {
        let mut labels = BTreeSet::new();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(labels.insert(reason.as_str()), "{reason} is used twice");
        }
        for (index, reason) in RejectReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(labels.insert(reason.as_str()), "{reason} is used twice");
        }
        for label in labels {
            assert!(
                label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{label}"
            );
        }
    }
}
