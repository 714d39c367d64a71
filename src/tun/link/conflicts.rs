//! What stands in the way of a device that is not made yet.

use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::Netlink;
use super::routes::{self, MAIN_TABLE};
use super::{Link, TunError};

impl Link {
    /// Everything that would keep these addresses and routes from a device `name`, not
    /// only the first: addresses in use, routes in the way, rules that lead to another
    /// table. `index` is that of the device if there is one, which is then not in its
    /// own way. Nothing is changed, and no privilege is needed.
    ///
    /// # Errors
    ///
    /// Netlink's.
    pub async fn conflicts(
        name: &str,
        index: Option<u32>,
        addresses: &[IpAddr],
        routes: &[IpNet],
    ) -> Result<Vec<TunError>, TunError> {
        let link = Self {
            netlink: Netlink::open(name)?,
            name: name.to_owned(),
            // No device has it.
            index: index.unwrap_or(0),
            addresses: addresses.to_vec(),
            ipv6_missing: None,
        };
        let mut found = Vec::new();
        note(link.check_addresses(routes).await, &mut found)?;
        for &route in routes {
            note(link.check_conflicts(&[route]).await, &mut found)?;
            let probe = routes::probe(route);
            // Where there is no way at all there is none for a rule to prescribe; one
            // that forbids is found when the route is set.
            let Ok(way) = link.netlink.lookup(probe).await else {
                continue;
            };
            if way.table != MAIN_TABLE && !way.is_local() && way.device != Some(link.index) {
                found.push(TunError::RouteBypassed {
                    name: name.to_owned(),
                    route,
                    probe,
                    target: link.target(&way).await,
                    table: way.table,
                });
            }
        }
        Ok(found)
    }
}

/// Sorts what is found from what has failed.
fn note(checked: Result<(), TunError>, found: &mut Vec<TunError>) -> Result<(), TunError> {
    match checked {
        Ok(()) => Ok(()),
        Err(
            error @ (TunError::AddressInUse { .. }
            | TunError::AddressInServiceRange { .. }
            | TunError::RouteConflict { .. }
            | TunError::RouteBypassed { .. }),
        ) => {
            found.push(error);
            Ok(())
        }
        Err(error) => Err(error),
    }
}
