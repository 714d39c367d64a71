//! Keeps web pages of others from reading what the metrics address tells.
//!
//! Whoever has a browser on this node, or a tunnel to it, may have any page open in it.
//! Such a page cannot read answers of another origin, unless its own name is made to
//! lead here (DNS rebinding); then `Host` holds that name. So a browser's question must
//! be for an address, `localhost` or this node's name. Who is no browser can write what
//! it wants, and is kept away by the address that is listened on.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use std::net::IpAddr;

/// Where the metrics address may be asked as.
#[derive(Debug)]
pub(super) struct Guard {
    node: String,
    /// Prometheus, too, asks by an address or `localhost` then.
    is_loopback: bool,
}

const WRONG_HOST: &str = "this address is asked by a name that is not its own: ask by the \
    address itself, as localhost, or by the node's name\n";

const WRONG_SITE: &str = "another web page asks, which may not read the answer\n";

impl Guard {
    pub(super) fn new(node: &str, is_loopback: bool) -> Self {
        Self {
            node: node.to_owned(),
            is_loopback,
        }
    }

    /// Whether a question is answered, or why not.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
        // Off loopback these may be scraped by any name that the network has for us.
        if !self.is_loopback && matches!(uri.path(), "/metrics" | "/proxyMode" | "/healthz") {
            return Ok(());
        }
        // Every browser says which host it means; what does not is none.
        if let Some(host) = headers.get(header::HOST)
            && !host.to_str().is_ok_and(|host| self.is_ours(host))
        {
            return Err(WRONG_HOST);
        }
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        let navigates = headers
            .get("sec-fetch-mode")
            .is_some_and(|mode| mode.as_bytes() == b"navigate");
        match site {
            Some(b"cross-site" | b"same-site") if !navigates => Err(WRONG_SITE),
            _ => Ok(()),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        bare.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || host.eq_ignore_ascii_case(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, path: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        guard.check(&path.parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn a_foreign_name_is_refused() {
        let guard = Guard::new("node1", true);
        for host in [
            "127.0.0.1:10249",
            "[::1]:10249",
            "192.168.0.7",
            "localhost:9",
            "LOCALHOST",
            "node1:10249",
        ] {
            assert!(check(&guard, "/", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example:10249",
            "localhost.evil.example",
            "",
            "::",
            "a b",
        ] {
            for path in ["/", "/api/v1/flows", "/metrics", "/configz"] {
                assert!(!check(&guard, path, &[("host", host)]), "{host} {path}");
            }
        }
        assert!(check(&guard, "/metrics", &[]));
    }

    #[test]
    fn prometheus_may_use_any_name_where_the_network_leads_here() {
        let guard = Guard::new("node1", false);
        let host = [("host", "node1.example:10249")];
        assert!(check(&guard, "/metrics", &host));
        assert!(check(&guard, "/proxyMode", &host));
        assert!(check(&guard, "/healthz", &host));
        assert!(!check(&guard, "/api/v1/flows", &host));
        assert!(!check(&guard, "/", &host));
    }

    #[test]
    fn another_page_may_lead_here_but_not_read() {
        let guard = Guard::new("node1", true);
        let ask = |site, mode| {
            let headers = [
                ("host", "127.0.0.1"),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
            ];
            check(&guard, "/api/v1/flows", &headers)
        };
        assert!(ask("same-origin", "cors"));
        assert!(ask("none", "navigate"));
        assert!(ask("cross-site", "navigate"));
        assert!(!ask("cross-site", "no-cors"));
        assert!(!ask("same-site", "cors"));
    }
}
