//! Connections that are being opened, counted so that a flood of SYNs ends somewhere.

use std::collections::HashMap;
use std::net::IpAddr;

/// Half-open connections of one worker; each holds a socket. The comparable limit
/// of kubevpn is 8192, of tun2socks 2048 (kube-proxy has none).
const MAX_TOTAL: usize = 4096;

/// Half-open connections of one client address, so that one pod cannot use up the
/// total.
const MAX_PER_CLIENT: u32 = 1024;

/// Counts by client address. Above a limit a SYN is dropped, not refused: the
/// client tries again by itself.
#[derive(Debug, Default)]
pub(super) struct HalfOpen {
    total: usize,
    clients: HashMap<IpAddr, u32, foldhash::fast::RandomState>,
}

impl HalfOpen {
    /// Counts one more. False above a limit: nothing is counted.
    pub(super) fn enter(&mut self, client: IpAddr) -> bool {
        let count = self.clients.get(&client).copied().unwrap_or(0);
        if self.total >= MAX_TOTAL || count >= MAX_PER_CLIENT {
            return false;
        }
        self.clients.insert(client, count + 1);
        self.total += 1;
        true
    }

    /// One that was counted is open or gone.
    pub(super) fn leave(&mut self, client: IpAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 1, 65, last).into()
    }

    #[test]
    fn one_client_cannot_take_it_all() {
        let mut half_open = HalfOpen::default();
        for _ in 0..MAX_PER_CLIENT {
            assert!(half_open.enter(client(5)));
        }
        assert!(!half_open.enter(client(5)));
        assert!(half_open.enter(client(6)));
        half_open.leave(client(5));
        assert!(half_open.enter(client(5)));
    }

    #[test]
    fn the_total_is_bounded_and_forgets_clients_that_left() {
        let mut half_open = HalfOpen::default();
        let mut taken = 0;
        for last in 0..=255 {
            while half_open.enter(client(last)) {
                taken += 1;
            }
        }
        assert_eq!(taken, MAX_TOTAL);
        for last in 0..4 {
            for _ in 0..MAX_PER_CLIENT {
                half_open.leave(client(last));
            }
        }
        assert_eq!(half_open.total, 0);
        assert!(half_open.clients.is_empty());
    }
}
