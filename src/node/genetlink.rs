//! The families of generic netlink, and with them whether the kernel offers IPVS.
//!
//! All of them are listed, since to ask for one by name makes the kernel load the
//! module that has it (ctrl_getfamily, net/netlink/genetlink.c), and to look must not
//! change what is seen.

use std::io;

use netlink_packet_generic::constants::{CTRL_ATTR_FAMILY_NAME, CTRL_CMD_GETFAMILY};
use rtnetlink::sys::protocols::NETLINK_GENERIC;

use super::netlink::{attribute, dump, text};

/// IPVS_GENL_NAME, linux/ip_vs.h.
const IPVS: &str = "IPVS";

/// GENL_ID_CTRL, linux/genetlink.h: the family that knows the others.
const CONTROLLER: u16 = 16;

/// `struct genlmsghdr`, linux/genetlink.h.
const HEADER_LEN: usize = 4;

/// The names of the families that this network namespace has, sorted.
///
/// # Errors
///
/// Netlink's.
pub fn families() -> io::Result<Vec<String>> {
    /// CTRL_ATTR's user-space version of the controller.
    const VERSION: u8 = 2;
    let request = [CTRL_CMD_GETFAMILY, VERSION, 0, 0];
    let messages = dump(NETLINK_GENERIC, CONTROLLER, &request)?;
    let name =
        |message: &Vec<u8>| attribute(message.get(HEADER_LEN..)?, CTRL_ATTR_FAMILY_NAME).map(text);
    let mut names: Vec<String> = messages.iter().filter_map(name).collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether the kernel offers IPVS here, with its module loaded.
///
/// # Errors
///
/// As [`families`].
pub fn has_ipvs() -> io::Result<bool> {
    Ok(families()?.iter().any(|family| family == IPVS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_lists_itself() {
        let families = families().unwrap();
        assert!(families.iter().any(|name| name == "nlctrl"), "{families:?}");
        assert!(families.is_sorted());
    }
}
