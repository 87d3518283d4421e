//! Requests by routing rule: a few counters for each service, each of them a rule's
//! for as long as its name is in use.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::AtomicU64;
use super::{Board, OwnLine, ServiceId};

/// Rules of a service that have counters at once.
const MAX_COUNTED: usize = 16;

/// The counters of one service's rules.
#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Counts([OwnLine<Count>; MAX_COUNTED]);

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
struct Count {
    /// A hash of the rule's name; 0 while it is nobody's.
    rule: AtomicU64,
    requests: AtomicU64,
}

/// Where a rule's requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleId(usize);

impl Board {
    /// The counters of a service's rules, in their order; `None` for those past the
    /// room. What was another rule's, of a name that is not in use any more, begins
    /// anew; one that is in use keeps its own, wherever it stands.
    pub fn rules(&self, service: ServiceId, names: &[&str]) -> Vec<Option<RuleId>> {
        let Counts(counts) = &self.layout.rules[service.0];
        let hashes: Vec<u64> = names.iter().map(|name| hash(name)).collect();
        let of = |hash: u64| counts.iter().position(|it| it.0.rule.load(Relaxed) == hash);
        // Workers load rules at the same moment: a counter is taken only as it was
        // seen, in the same order by all, and another's may turn out to be this rule's.
        let take = |at: usize, hash: u64, is_free: &dyn Fn(u64) -> bool| {
            let Count { rule, requests } = &counts[at].0;
            let mut owner = rule.load(Relaxed);
            if is_free(owner) {
                match rule.compare_exchange(owner, hash, Relaxed, Relaxed) {
                    Ok(0) => return true,
                    Ok(_) => {
                        requests.store(0, Relaxed);
                        return true;
                    }
                    Err(another) => owner = another,
                }
            }
            owner == hash
        };
        let is_unused = |owner: u64| owner == 0;
        let is_given_up = |owner: u64| !hashes.contains(&owner);
        let claim = |&hash: &u64| {
            let known = || of(hash);
            // What was never used first.
            let unused = || (0..MAX_COUNTED).find(|&at| take(at, hash, &is_unused));
            let given_up = || (0..MAX_COUNTED).find(|&at| take(at, hash, &is_given_up));
            known().or_else(unused).or_else(given_up).map(RuleId)
        };
        hashes.iter().map(claim).collect()
    }

    /// Counts a request that a rule took.
    pub fn count_rule(&self, service: ServiceId, RuleId(at): RuleId) {
        self.layout.rules[service.0].0[at].0.requests.fetch_add(1, Relaxed);
    }

    /// Requests that a rule took, of all workers.
    pub fn rule_requests(&self, service: ServiceId, RuleId(at): RuleId) -> u64 {
        self.layout.rules[service.0].0[at].0.requests.load(Relaxed)
    }
}

/// FNV-1a, and never 0.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step).max(1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_its_counter_wherever_it_stands_as_long_as_its_name_is_in_use() {
        let board = Board::map_for_tests();
        let [chat, mail] = ["chat", "mail"].map(|name| board.service(name).unwrap());
        let ids = board.rules(chat, &["a", "b"]);
        board.count_rule(chat, ids[0].unwrap());
        let again = board.rules(chat, &["b", "a"]);
        assert_eq!((again[1], again[0]), (ids[0], ids[1]));
        assert_eq!(board.rule_requests(chat, again[1].unwrap()), 1);
        assert_eq!(board.rule_requests(chat, again[0].unwrap()), 0);
        let elsewhere = board.rules(mail, &["a"])[0].unwrap();
        assert_eq!(board.rule_requests(mail, elsewhere), 0, "another service's");
    }

    #[test]
    fn a_name_that_is_not_in_use_gives_its_counter_away_and_the_new_one_begins_at_0() {
        let board = Board::map_for_tests();
        let chat = board.service("chat").unwrap();
        let old: Vec<String> = (0..MAX_COUNTED).map(|n| format!("old-{n}")).collect();
        let old: Vec<&str> = old.iter().map(String::as_str).collect();
        let first = board.rules(chat, &old);
        assert!(first.iter().all(Option::is_some));
        first.iter().flatten().for_each(|id| board.count_rule(chat, *id));

        let mixed = board.rules(chat, &["new", old[3]]);
        assert_eq!(board.rule_requests(chat, mixed[0].unwrap()), 0);
        assert_eq!(mixed[1], first[3]);
        assert_eq!(board.rule_requests(chat, mixed[1].unwrap()), 1);
    }
}
