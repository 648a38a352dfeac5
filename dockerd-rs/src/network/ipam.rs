//! Which addresses are free: pools for networks, addresses for endpoints.
//!
//! Pure: what is taken is given as an argument, from the records and the host's own links and routes; nothing is remembered here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{Pool, Prefix, number, number_to_ip};
use crate::error::{Error, Result};

/// A space that pools of one size are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The space.
    pub base: Prefix,
    /// Prefix length of each pool.
    pub size: u8,
}

/// Docker's own spaces: 172.17–172.31 in /16s, then 192.168 in /20s.
pub fn default_spaces() -> Vec<Space> {
    let space = |text: &str, size| text.parse().ok().map(|base| Space { base, size });
    [
        space("172.17.0.0/16", 16),
        space("172.18.0.0/16", 16),
        space("172.19.0.0/16", 16),
        space("172.20.0.0/14", 16),
        space("172.24.0.0/14", 16),
        space("172.28.0.0/14", 16),
        space("192.168.0.0/16", 20),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The space IPv6 pools are cut from when none is configured: a unique local prefix that is this host's own (RFC 4193).
pub fn unique_local(host: &str) -> Space {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(host.as_bytes());
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&hash[..5]);
    Space { base: Prefix::new(IpAddr::from(bytes), 48), size: 64 }
}

/// The first pool of the spaces that overlaps nothing in `taken`.
///
/// # Errors
/// Every pool is taken; the text names them all.
pub fn free_pool(spaces: &[Space], v6: bool, taken: &[Prefix]) -> Result<Prefix> {
    for space in spaces.iter().filter(|space| space.base.ip.is_ipv6() == v6) {
        let (first, last) = space.base.bounds();
        let step = 1u128.checked_shl((space.base.width() - space.size).into()).unwrap_or(0).max(1);
        let mut at = first;
        while at <= last {
            let pool = Prefix::new(number_to_ip(at, v6), space.size);
            // Skip past whatever is in the way in one stride: a /8 in the way covers thousands of pools.
            match taken.iter().filter(|other| other.overlaps(&pool)).map(|other| other.bounds().1).max() {
                None => return Ok(pool),
                Some(end) => {
                    let beyond = end.saturating_sub(first) / step + 1;
                    match beyond.checked_mul(step).and_then(|offset| first.checked_add(offset)) {
                        Some(next) if next > at => at = next,
                        _ => break,
                    }
                }
            }
        }
    }
    Err(Error::invalid("all predefined address pools have been fully subnetted"))
}

/// Whether no endpoint may have this address although nobody has it: the network's own number, and IPv4's broadcast.
fn reserved(subnet: &Prefix, at: u128) -> bool {
    let (first, last) = subnet.bounds();
    let v4 = subnet.ip.is_ipv4();
    // In /31 and /32 (RFC 3021), and /127, every address is a host's.
    let small = subnet.width() - subnet.len < 2;
    !small && (at == first || (v4 && at == last))
}

/// The lowest free address of the pool, if one is left.
pub fn free_address(pool: &Pool, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let v6 = pool.subnet.ip.is_ipv6();
    let (first, last) = pool.range.unwrap_or(pool.subnet).bounds();
    let mut at = first;
    while at <= last {
        let ip = number_to_ip(at, v6);
        if !reserved(&pool.subnet, at) && !used.contains(&ip) {
            return Some(ip);
        }
        at = at.checked_add(1)?;
    }
    None
}

/// What a pool has in use and still to give, as `Status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Addresses in use, with the reserved ones.
    pub in_use: u64,
    /// Addresses left to hand out.
    pub available: u64,
}

/// Counts a pool. `used` holds gateway, auxiliary and endpoint addresses.
pub fn usage(pool: &Pool, used: &BTreeSet<IpAddr>) -> Usage {
    let (first, last) = pool.subnet.bounds();
    let reserved_ones: Vec<u128> =
        [first, last].into_iter().filter(|at| reserved(&pool.subnet, *at)).collect();
    let taken: BTreeSet<u128> = used
        .iter()
        .filter(|ip| pool.subnet.contains(**ip))
        .map(|ip| number(*ip))
        .chain(reserved_ones)
        .collect();
    let (low, high) = pool.range.unwrap_or(pool.subnet).bounds();
    let within = taken.range(low..=high).count() as u128;
    let size = (high - low).saturating_add(1);
    let clamp = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
    Usage { in_use: taken.len() as u64, available: clamp(size - within) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn pool(subnet: &str, range: Option<&str>) -> Pool {
        Pool { subnet: p(subnet), range: range.map(p), gateway: None, auxiliary: Default::default() }
    }

    #[test]
    fn pools_skip_what_the_host_uses() {
        let spaces = default_spaces();
        assert_eq!(free_pool(&spaces, false, &[]).unwrap(), p("172.17.0.0/16"));
        assert_eq!(
            free_pool(&spaces, false, &[p("172.17.5.0/24"), p("172.18.0.1/32")]).unwrap(),
            p("172.19.0.0/16")
        );
        assert_eq!(free_pool(&spaces, false, &[p("172.16.0.0/12")]).unwrap(), p("192.168.0.0/20"));
        let full = [p("172.16.0.0/12"), p("192.168.0.0/16")];
        assert_eq!(
            free_pool(&spaces, false, &full).unwrap_err().message(),
            "all predefined address pools have been fully subnetted"
        );
        let ula = unique_local("host");
        let first = free_pool(&[ula], true, &[]).unwrap();
        assert_ne!(free_pool(&[ula], true, &[first]).unwrap(), first);
    }

    #[test]
    fn status_counts_as_the_real_engine_does() {
        let used = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        let count = |pool, list: &[&str]| {
            let usage = usage(&pool, &used(list));
            (usage.in_use, usage.available)
        };
        assert_eq!(count(pool("172.18.0.0/16", None), &["172.18.0.1"]), (3, 65533));
        assert_eq!(
            count(pool("10.78.0.0/16", Some("10.78.5.0/24")), &["10.78.5.254", "10.78.5.1"]),
            (4, 254)
        );
        assert_eq!(count(pool("fd00:77::/64", None), &["fd00:77::1"]), (2, 18_446_744_073_709_551_614));
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(len in 24u8..=32, count in 0usize..300) {
            let pool = Pool { subnet: Prefix::new([10, 0, 0, 0].into(), len), range: None, gateway: None, auxiliary: Default::default() };
            let mut used = BTreeSet::new();
            for _ in 0..count {
                match free_address(&pool, &used) {
                    Some(ip) => {
                        prop_assert!(pool.subnet.contains(ip));
                        prop_assert!(used.insert(ip));
                    }
                    None => {
                        prop_assert_eq!(usage(&pool, &used).available, 0);
                        break;
                    }
                }
            }
        }
    }
}
