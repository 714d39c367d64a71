//! The ports that the kernel gives to connections.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

/// The setting below `/proc/sys` (ip-sysctl.rst).
pub const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";

/// From which ports the kernel chooses one for a connection that names none, in this
/// network namespace.
///
/// # Errors
/// When the setting cannot be read, or is no range.
pub fn local_ports() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string(format!("/proc/sys/{LOCAL_PORTS}"))?;
    let text = text.trim_end();
    range(text).ok_or_else(|| io::Error::other(format!("{text:?} is no range")))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace().map(|word| word.parse().ok());
    let (low, high) = (words.next()??, words.next()??);
    (low <= high).then_some(low..=high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports() {
        assert_eq!(range("32768\t60999"), Some(32_768..=60_999));
        assert_eq!(range("9 8"), None);
        assert_eq!(range("x"), None);
        assert_eq!(range(""), None);
    }
}
