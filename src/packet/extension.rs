//! The walk over IPv6 extension headers (RFC 8200 4).

use super::ip::{FragmentInfo, Malformed, be16};
use super::protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};

/// Extension headers walked before a packet is given up. RFC 8200 4.1 recommends an order in
/// which at most five of those we know occur before the transport header; RFC 8504 5.3 lets a
/// node set a limit.
const MAX_HEADERS: usize = 8;

/// RFC 8200 4.2: a single byte of padding, the only option without a length.
const PAD1: u8 = 0;
/// RFC 8200 4.2: the two highest bits of an option's type say what to do with a packet whose
/// option is not known; 00 is "skip the option", every other value discards the packet.
const DISCARD_UNKNOWN: u8 = 0b1100_0000;

/// Where the walk ended.
pub(super) struct Walk {
    /// Bytes up to what `protocol` names.
    pub(super) header_len: usize,
    /// The next header value that ended the walk.
    pub(super) protocol: u8,
    /// The fragment header that ended it, if one did.
    pub(super) fragment: Option<FragmentInfo>,
}

/// Walks the extension headers of `packet`, which is at least 40 bytes long and trimmed to its
/// payload length; `first` is the next header field of the IPv6 header.
#[inline]
pub(super) fn walk(packet: &[u8], first: u8) -> Result<Walk, Malformed> {
    if !matches!(first, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT) {
        return Ok(Walk {
            header_len: 40,
            protocol: first,
            fragment: None,
        });
    }
    walk_headers(packet, first)
}

fn walk_headers(packet: &[u8], first: u8) -> Result<Walk, Malformed> {
    if first == HOP_BY_HOP && packet.len() == 40 {
        return Err(Malformed::Jumbogram);
    }
    // The next header field of the IPv6 header is its seventh byte.
    let (mut next, mut next_header_at, mut at) = (first, 6, 40);
    for _ in 0..=MAX_HEADERS {
        let rest = packet.get(at..).unwrap_or_default();
        match next {
            // RFC 8200 4.1: hop-by-hop options come first or not at all.
            HOP_BY_HOP if at != 40 => return Err(Malformed::ExtensionHeader),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let length = rest.get(1).ok_or(Malformed::ExtensionHeader)?;
                let header = rest
                    .get(..(usize::from(*length) + 1) * 8)
                    .ok_or(Malformed::ExtensionHeader)?;
                if next == ROUTING {
                    if header[3] != 0 {
                        return Err(Malformed::RoutingHeader);
                    }
                } else {
                    check_options(&header[2..])?;
                }
                next = header[0];
                next_header_at = at;
                at += header.len();
            }
            FRAGMENT => {
                let header = rest.first_chunk::<8>().ok_or(Malformed::ExtensionHeader)?;
                let place = be16(header[2], header[3]);
                let [.., i0, i1, i2, i3] = *header;
                return Ok(Walk {
                    header_len: at + header.len(),
                    protocol: header[0],
                    fragment: Some(FragmentInfo {
                        ident: u32::from_be_bytes([i0, i1, i2, i3]),
                        // The offset counts units of 8 bytes and sits above three other bits.
                        offset: place & !0b111,
                        more: place & 1 != 0,
                        header_at: at,
                        next_header_at,
                    }),
                });
            }
            protocol => {
                return Ok(Walk {
                    header_len: at,
                    protocol,
                    fragment: None,
                });
            }
        }
    }
    Err(Malformed::ExtensionHeader)
}

/// None of the options concerns an endpoint that ends the packet here, so each is skipped
/// where its type allows that.
fn check_options(mut options: &[u8]) -> Result<(), Malformed> {
    while let Some((&kind, rest)) = options.split_first() {
        if kind == PAD1 {
            options = rest;
            continue;
        }
        if kind & DISCARD_UNKNOWN != 0 {
            return Err(Malformed::ExtensionHeader);
        }
        options = rest
            .split_first()
            .and_then(|(&length, data)| data.get(usize::from(length)..))
            .ok_or(Malformed::ExtensionHeader)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
