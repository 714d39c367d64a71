//! Resource versions, compared.
//!
//! Kubernetes says since 1.35 that they are decimal numbers of any length which
//! grow with every change (KEP-5504, comparable resource version). A server that
//! has others is never said to be behind.

use std::cmp::Ordering;

/// Whether the server's version lies before ours: it was restored from an older
/// backup, or wiped. `None` if they cannot be compared.
pub(super) fn is_behind(server: &str, ours: &str) -> Option<bool> {
    compare(server, ours).map(Ordering::is_lt)
}

fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (digits(a)?, digits(b)?);
    Some(a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
}

/// The number without leading zeros.
fn digits(version: &str) -> Option<&str> {
    let decimal = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    decimal.then(|| version.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length() {
        assert_eq!(is_behind("9", "10"), Some(true));
        assert_eq!(is_behind("10", "9"), Some(false));
        assert_eq!(is_behind("241", "241"), Some(false));
        assert_eq!(is_behind("0241", "241"), Some(false));
        let long = "99999999999999999999999999";
        assert_eq!(is_behind("1", long), Some(true));
        assert_eq!(is_behind(long, "18446744073709551615"), Some(false));
    }

    #[test]
    fn what_is_no_number_is_not_compared() {
        for version in ["", "abc", "-1", "1.5", "12x"] {
            assert_eq!(is_behind(version, "1"), None, "{version}");
            assert_eq!(is_behind("1", version), None, "{version}");
        }
    }
}
