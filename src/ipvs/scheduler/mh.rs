//! Maglev hashing, `ip_vs_mh.c`, with the flag `mh-port`, which kube-proxy always
//! sets: the client's address and port name a place in the lookup table.
//!
//! Each real server has a permutation of the table's places, made from its
//! address and port; in turns, in the order of the list, each takes the next free
//! place of its permutation, `weight` places a turn. So a change of the list
//! moves few clients other than those of the real servers that came or went.
//!
//! A fail-over hashes again with other offsets, as the kernel does with the flag
//! `mh-fallback`.

use super::hash::{fold, gcd, hsiphash};
use super::{Candidates, Request, Scheduler, Update};
use std::net::SocketAddr;

/// `IP_VS_MH_TAB_SIZE`: the fifth of the kernel's primes, chosen by the default
/// `CONFIG_IP_VS_MH_TAB_INDEX=12`. Real servers beyond this number get no place;
/// the kernel refuses to add them.
const PLACES: usize = 4093;

/// `IP_VS_MH_TAB_BITS`: half of `CONFIG_IP_VS_MH_TAB_INDEX`.
const WEIGHT_BITS: u32 = 6;

/// `hash1` and `hash2` of `generate_hash_secret`.
const KEY_1: [u64; 2] = [2_654_435_761; 2];
const KEY_2: [u64; 2] = [2_654_446_892; 2];

#[derive(Clone, Debug, Default)]
pub(super) struct Maglev {
    /// Indices into the list, which fit since at most [`PLACES`] have a place;
    /// empty while no real server has weight.
    places: Vec<u16>,
}

impl Scheduler for Maglev {
    fn changed(&mut self, update: &Update<'_>) {
        let weights = || update.servers.iter().map(|server| server.weight());
        let divisor = weights().fold(0, gcd);
        if divisor == 0 {
            self.places.clear();
            return;
        }
        let shift = shift(weights().max().unwrap_or(0) / divisor);
        let turns = update
            .servers
            .iter()
            .map(|server| Permutation::new(server.address, server.weight(), divisor, shift))
            .collect();
        self.places = populate(turns);
    }

    fn pick(&mut self, request: &Request, candidates: Candidates<'_>) -> Option<usize> {
        let usable = |place: usize| {
            let index = usize::from(*self.places.get(place)?);
            candidates.usable(index).then_some(index)
        };
        let home = place(request.client, KEY_1, 0);
        usable(home).or_else(|| {
            (0..PLACES).find_map(|offset| {
                let offset = (offset + home) % PLACES;
                usable(place(request.client, KEY_1, offset as u32))
            })
        })
    }
}

/// The walk of one real server through the table, and how many places it takes
/// each time.
struct Permutation {
    next: usize,
    skip: usize,
    turns: u32,
}

impl Permutation {
    fn new(address: SocketAddr, weight: u32, divisor: u32, shift: u32) -> Self {
        let turns = match (weight / divisor) >> shift {
            // Whoever has any weight gets a turn.
            0 => u32::from(weight > 0),
            turns => turns,
        };
        Self {
            next: place(address, KEY_1, 0),
            skip: hash(address, KEY_2, 0) as usize % (PLACES - 1) + 1,
            turns,
        }
    }
}

/// `ip_vs_mh_populate`. At least one of `walks` has turns.
fn populate(mut walks: Vec<Permutation>) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let mut places = vec![FREE; PLACES];
    let mut left = PLACES;
    loop {
        for (index, walk) in walks.iter_mut().enumerate().take(PLACES) {
            for _ in 0..walk.turns {
                // The table's size is prime, so the walk visits every place.
                while places[walk.next] != FREE {
                    walk.next = (walk.next + walk.skip) % PLACES;
                }
                places[walk.next] = index as u16;
                left -= 1;
                if left == 0 {
                    return places;
                }
            }
        }
    }
}

/// How far to cut weights so that the largest keeps to [`WEIGHT_BITS`]
/// (`ip_vs_mh_shift_weight`).
fn shift(largest: u32) -> u32 {
    (u32::BITS - largest.leading_zeros()).saturating_sub(WEIGHT_BITS)
}

fn place(address: SocketAddr, key: [u64; 2], offset: u32) -> usize {
    hash(address, key, offset) as usize % PLACES
}

/// `ip_vs_mh_hashkey`.
fn hash(address: SocketAddr, key: [u64; 2], offset: u32) -> u32 {
    let value = offset
        .wrapping_add(u32::from(address.port()))
        .wrapping_add(fold(address.ip()));
    hsiphash(value, key)
}

/// How many places each real server of a list gets.
#[cfg(test)]
pub(super) fn shares(servers: &[std::sync::Arc<crate::ipvs::RealServer>]) -> Vec<usize> {
    let mut maglev = Maglev::default();
    maglev.changed(&Update {
        servers,
        added: servers.len(),
        kept: &[],
    });
    let mut shares = vec![0; servers.len()];
    for index in maglev.places {
        shares[usize::from(index)] += 1;
    }
    shares
}
