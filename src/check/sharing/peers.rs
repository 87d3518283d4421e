//! Which of the gateways check the same as this one does.
//!
//! A gateway's silence says that an instance passes, but only if that gateway knows
//! the instance. One with other `etcd.prefixes`, another `allow`, other instances in
//! its file or another check knows others. So each says what it follows, in short
//! ([`Follows`]), and who says something else is not believed for its silence.
//!
//! Registrations reach one gateway before the other, and what it follows is written
//! now and then. What was true here a short time ago is therefore as good as what is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use crate::config::CheckConfig;
use crate::registry::Sharers;
use crate::wire::checks::Follows;

/// What the gateways follow of one service.
pub struct Peers {
    /// How it is checked here.
    check: u64,
    /// What is followed here.
    here: Follows,
    /// What was, and until when.
    before: HashMap<Follows, Instant>,
    /// Since when another gateway follows something else.
    differ: HashMap<String, Difference>,
}

struct Difference {
    since: Instant,
    /// Whether it has lasted.
    is_known: bool,
}

/// What another gateway's silence about an instance means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// That it passes.
    Passes,
    /// Nothing yet: it may not have heard of the instance so far.
    Nothing,
    /// Nothing, and that will not change by itself.
    Ignorance,
}

impl Peers {
    /// Nobody is followed yet.
    pub fn new(check: &CheckConfig) -> Self {
        let check = hash_check(check);
        let (before, differ) = (HashMap::new(), HashMap::new());
        Self { check, here: follows(check, &[] as &[(&str, _)]), before, differ }
    }

    /// What is followed here.
    pub fn here(&self) -> Follows {
        self.here
    }

    /// From now on these instances are followed here.
    pub fn follow<Id: AsRef<str>>(
        &mut self,
        instances: &[(Id, SocketAddr)],
        now: Instant,
        memory: Duration,
    ) {
        let here = follows(self.check, instances);
        self.before.insert(std::mem::replace(&mut self.here, here), now);
        self.before.retain(|_, until| now < *until + memory);
    }

    /// Who differed is asked anew.
    pub fn forget(&mut self) {
        self.differ.clear();
    }

    /// Compares what `me` follows with what each other gateway says that it follows.
    /// Returns those that say the same again after a difference that had lasted for
    /// `patience`, and when to look again.
    pub fn compare(
        &mut self,
        service: &str,
        me: &str,
        sharers: &Sharers,
        now: Instant,
        patience: Duration,
    ) -> (Vec<String>, Option<Instant>) {
        self.differ.retain(|gateway, _| sharers.checks.contains_key(gateway));
        let (mut agree, mut again) = (Vec::new(), None);
        for (gateway, checks) in sharers.checks.iter().filter(|(gateway, _)| *gateway != me) {
            let until = checks.follows.as_ref().and_then(|it| self.before.get(it).copied());
            let is_same = checks.follows == Some(self.here);
            if is_same || until.is_some() {
                if !is_same {
                    again = again.max(until.map(|until| until + patience));
                }
                if self.differ.remove(gateway).is_some_and(|it| it.is_known) {
                    tracing::info!("{service}: {gateway} checks the same as this gateway again");
                    agree.push(gateway.clone());
                }
                continue;
            }
            let new = || Difference { since: now, is_known: false };
            let difference = self.differ.entry(gateway.clone()).or_insert_with(new);
            if difference.is_known {
                continue;
            }
            difference.is_known = difference.since + patience <= now;
            if difference.is_known {
                tracing::warn!(
                    "{service}: {gateway} checks other instances than this gateway, or in \
                     another way: its part is checked here, too; gateways that share checks \
                     need the same etcd.prefixes, allow, instances and check"
                );
            } else {
                again = again.max(Some(difference.since + patience));
            }
        }
        (agree, again)
    }

    /// What it means that a gateway says nothing of an instance, as of the last
    /// comparison.
    pub fn silence(&self, gateway: &str) -> Silence {
        match self.differ.get(gateway) {
            None => Silence::Passes,
            Some(Difference { is_known: false, .. }) => Silence::Nothing,
            Some(_) => Silence::Ignorance,
        }
    }
}

/// The same for the same instances in any order, checked in the same way.
fn follows<Id: AsRef<str>>(check: u64, instances: &[(Id, SocketAddr)]) -> Follows {
    let hash = |(id, addr): &(Id, SocketAddr)| {
        let addr_hash = match addr.ip() {
            IpAddr::V4(ip) => xxh64(&ip.octets(), check),
            IpAddr::V6(ip) => xxh64(&ip.octets(), check),
        };
        xxh64(id.as_ref().as_bytes(), xxh64(&addr.port().to_be_bytes(), addr_hash))
    };
    let sum = instances.iter().map(hash).fold(check, u64::wrapping_add);
    // The upper half: every bit of the sum counts, and any reader of JSON can hold it.
    let digest = u32::try_from(sum >> 32).unwrap_or_default();
    Follows { count: u32::try_from(instances.len()).unwrap_or(u32::MAX), digest }
}

/// Of what decides how a check ends; how often it is made does not.
fn hash_check(check: &CheckConfig) -> u64 {
    let CheckConfig { http, tcp, timeout, port, host, status, .. } = check;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let good = (200..600u16).filter(|code| status.has(*code)).flat_map(u16::to_be_bytes);
    let good: Vec<_> = good.collect();
    [
        http.as_bytes(),
        &[u8::from(*tcp)],
        &timeout_ms.to_be_bytes(),
        &port.to_be_bytes(),
        host.as_bytes(),
        &good,
    ]
    .iter()
    .fold(0, |seed, part| xxh64(part, seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Statuses;

    fn addr(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 80).into()
    }

    fn of(instances: &[(&str, SocketAddr)]) -> Follows {
        follows(7, instances)
    }

    #[test]
    fn the_same_instances_are_the_same_in_any_order_and_no_others_are() {
        let (a, b) = (("a", addr(1)), ("b", addr(2)));
        assert_eq!(of(&[a, b]), of(&[b, a]));
        assert_eq!(of(&[a, b]).count, 2);
        let swapped = [("a", addr(2)), ("b", addr(1))];
        let six = ("a", SocketAddr::from(([0xfd, 0, 0, 0, 0, 0, 0, 1], 80)));
        let port = ("a", SocketAddr::from(([10, 0, 0, 1], 81)));
        let sets: [&[_]; 7] = [&[], &[a], &[b], &[a, b], &swapped, &[six], &[port]];
        let all = sets.map(of);
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
        assert_ne!(follows(8, &[a]), of(&[a]));
    }

    #[test]
    fn what_decides_how_a_check_ends_tells_two_configurations_apart() {
        let base = CheckConfig { http: "/".into(), ..CheckConfig::default() };
        let others = [
            CheckConfig { http: "/healthz".into(), ..base.clone() },
            CheckConfig { tcp: true, ..base.clone() },
            CheckConfig { port: 81, ..base.clone() },
            CheckConfig { host: "h".into(), ..base.clone() },
            CheckConfig { timeout: base.timeout / 2, ..base.clone() },
            CheckConfig { status: Statuses::of_classes(2..=2), ..base.clone() },
        ];
        for other in others {
            assert_ne!(hash_check(&other), hash_check(&base), "{other:?}");
        }
        let rarer = CheckConfig { interval: base.interval * 2, fall: 9, rise: 9, ..base.clone() };
        assert_eq!(hash_check(&rarer), hash_check(&base));
    }
}
