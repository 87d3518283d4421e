//! Records of etcd that were dropped: counted once for each write, logged once.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use tracing::warn;
use xxhash_rust::xxh64::xxh64;

/// Subjects remembered as logged. A feed that is broken throughout would
/// otherwise fill the memory with the proof of it; beyond this many, records are
/// counted and no longer logged.
const MAX_LOGGED_SUBJECTS: usize = 1024;

/// A subject is cut to this: more than the longest good key with a prefix of usual
/// length, and little beside the 1.5 MB that a key may have in etcd.
const MAX_SUBJECT_BYTES: usize = 512;

/// Keys remembered with the write that was rejected, some 20 bytes each. Beyond this
/// many all are forgotten, and lists count again what stands.
const MAX_STANDING: usize = 16_384;

/// The dropped records of one reader.
#[derive(Debug, Default)]
pub struct Rejects {
    counts: BTreeMap<&'static str, u64>,
    logged: HashMap<String, Vec<&'static str>>,
    /// At which revision the rejected record of a key was written, by the key's hash.
    standing: HashMap<u64, i64>,
}

impl Rejects {
    /// Counts a dropped record, and logs it if that was not done before for this
    /// subject and reason. `subject` says whose record it was: a key, mostly. It may
    /// be of any length; the beginning of a long one is what counts.
    pub fn reject(&mut self, subject: &str, reason: &'static str, error: impl Display) {
        self.reject_many(subject, reason, 1, error);
    }

    /// As [`reject`](Self::reject), for what a key holds since `mod_revision`; nothing
    /// if that was rejected before, as every list and every audit repeats it.
    pub fn reject_at(
        &mut self,
        key: &str,
        mod_revision: i64,
        reason: &'static str,
        error: impl Display,
    ) {
        if self.is_new(key, mod_revision) {
            self.reject(key, reason, error);
        }
    }

    /// Whether what a key holds since `mod_revision` is rejected for the first time;
    /// from now on it no longer is, until [`forget_except`](Self::forget_except).
    pub fn is_new(&mut self, key: &str, mod_revision: i64) -> bool {
        let hash = hash(key);
        if self.standing.len() >= MAX_STANDING && !self.standing.contains_key(&hash) {
            self.standing.clear();
        }
        self.standing.insert(hash, mod_revision) != Some(mod_revision)
    }

    /// As [`reject`](Self::reject), for several records with one explanation.
    pub fn reject_many(
        &mut self,
        subject: &str,
        reason: &'static str,
        count: u64,
        error: impl Display,
    ) {
        *self.counts.entry(reason).or_default() += count;
        let subject = cut(subject);
        if self.is_first(subject, reason) {
            warn!(key = subject, reason, %error, "bad record ignored");
        }
    }

    /// Forgets what was logged of `subject`, but for the given reasons: if it
    /// goes bad again, that is news.
    pub fn forget_except(&mut self, subject: &str, reasons: &[&'static str]) {
        if !self.standing.is_empty() {
            self.standing.remove(&hash(subject));
        }
        let subject = cut(subject);
        if let Some(logged) = self.logged.get_mut(subject) {
            logged.retain(|reason| reasons.contains(reason));
            if logged.is_empty() {
                self.logged.remove(subject);
            }
        }
    }

    /// Dropped records by reason, since the start.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    fn is_first(&mut self, subject: &str, reason: &'static str) -> bool {
        if let Some(logged) = self.logged.get_mut(subject) {
            let is_first = !logged.contains(&reason);
            if is_first {
                logged.push(reason);
            }
            return is_first;
        }
        let has_room = self.logged.len() < MAX_LOGGED_SUBJECTS;
        if has_room {
            self.logged.insert(subject.to_owned(), vec![reason]);
            if self.logged.len() == MAX_LOGGED_SUBJECTS {
                warn!("too many bad records: those of further keys are only counted");
            }
        }
        has_room
    }
}

fn hash(key: &str) -> u64 {
    xxh64(key.as_bytes(), 0)
}

fn cut(subject: &str) -> &str {
    &subject[..subject.floor_char_boundary(MAX_SUBJECT_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_logged_once_for_each_reason_and_counted_each_time() {
        let mut rejects = Rejects::default();
        assert!(rejects.is_first("a", "json"));
        assert!(!rejects.is_first("a", "json"));
        assert!(rejects.is_first("a", "addr"));
        assert!(rejects.is_first("b", "json"));
        rejects.reject("a", "json", "error");
        rejects.reject_many("a", "json", 4, "error");
        assert_eq!(rejects.counts(), &BTreeMap::from([("json", 5)]));
    }

    #[test]
    fn what_stands_is_counted_once_for_each_write_and_anew_once_it_was_forgotten() {
        let mut rejects = Rejects::default();
        // Another key of the same length, and the same revisions.
        for (key, revision) in [("a", 5), ("a", 5), ("b", 5), ("a", 6), ("b", 5), ("a", 6)] {
            rejects.reject_at(key, revision, "json", "error");
        }
        assert_eq!(rejects.counts(), &BTreeMap::from([("json", 3)]));
        rejects.forget_except("b", &[]);
        rejects.reject_at("a", 6, "json", "error");
        assert_eq!(rejects.counts(), &BTreeMap::from([("json", 3)]));
        rejects.reject_at("b", 5, "json", "error");
        assert_eq!(rejects.counts(), &BTreeMap::from([("json", 4)]));
    }

    #[test]
    fn no_more_writes_are_remembered_than_there_is_room_for() {
        let mut rejects = Rejects::default();
        for n in 0..MAX_STANDING {
            assert!(rejects.is_new(&n.to_string(), 1));
        }
        assert!(!rejects.is_new("0", 1), "there is room for all of these");
        assert!(rejects.is_new("one too many", 1));
        assert!(!rejects.is_new("one too many", 1));
        assert!(rejects.standing.len() < MAX_STANDING);
    }

    #[test]
    fn a_subject_that_was_good_in_between_is_logged_anew() {
        let mut rejects = Rejects::default();
        rejects.is_first("a", "json");
        rejects.is_first("a", "status");
        rejects.forget_except("a", &["status"]);
        assert!(rejects.is_first("a", "json"));
        assert!(!rejects.is_first("a", "status"));
    }

    #[test]
    fn of_a_subject_no_more_than_its_beginning_is_kept() {
        let mut rejects = Rejects::default();
        // 511 bytes, then a character of two.
        let long = format!("{}{}", "x".repeat(511), "ä".repeat(700_000));
        rejects.reject(&long, "key", "error");
        assert_eq!(rejects.logged.keys().map(String::len).collect::<Vec<_>>(), [511]);
        rejects.reject(&long, "key", "error");
        assert_eq!(rejects.logged.len(), 1);
        rejects.forget_except(&long, &[]);
        assert!(rejects.logged.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_room_is_used_again() {
        let mut rejects = Rejects::default();
        for n in 0..MAX_LOGGED_SUBJECTS {
            assert!(rejects.is_first(&n.to_string(), "json"));
        }
        assert!(!rejects.is_first("one too many", "json"));
        rejects.forget_except("7", &[]);
        assert!(rejects.is_first("one too many", "json"));
        assert_eq!(rejects.logged.len(), MAX_LOGGED_SUBJECTS);
    }
}
