//! The guard against mass loss, of one service: who is kept though etcd no longer has
//! it, and until when. No I/O, no clock: time is an argument.
//!
//! etcd says of a key that ended no more than that: a lease that ran out, a range that
//! somebody deleted and a service that was scaled down look alike. So one loss is
//! believed, and many at once are not. When more than `max_loss` percent of a
//! service's instances are lost within `window`,
//!
//! ```text
//! lost = min(gone, most - there)          100 * lost > max_loss * (there + lost)
//! ```
//!
//! the last of those that are `gone` are doubtful: they are there again, and offered.
//! `most` is the largest number that there were in the window. `there` has those that
//! came meanwhile, so that who is replaced is no loss, and neither is who comes and goes
//! while the others stay. What ends a doubt:
//!
//! - It is registered again, or another one is at its address.
//! - It is dead: a probe of it fails, or so many of its requests do in a row.
//! - A list that began after the loss ends without it, and the loss is no mass loss any
//!   more, since others came (or came back), or were found dead.
//! - Such a list ends, and `hold` is over: it is alive, and its operator wants it out.
//!
//! The last two need a list. Without etcd there is none, and what is known stands.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::to_ms;
use crate::config::GuardConfig;

/// Whether so many of so many are more than so many percent.
pub fn is_mass_loss(lost: usize, of: usize, max_loss: u32) -> bool {
    // Some of these numbers come from a file.
    100 * lost as u128 > u128::from(max_loss) * of as u128
}

/// What ended a doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is registered again.
    Returned,
    /// A probe of it failed.
    Dead,
    /// Its requests failed.
    Failed,
    /// Enough others are there.
    Replaced,
    /// It answered until its time was over.
    Deregistered,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Returned, Self::Dead, Self::Failed, Self::Replaced, Self::Deregistered];

    /// The name in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Dead => "dead",
            Self::Failed => "failed",
            Self::Replaced => "replaced",
            Self::Deregistered => "deregistered",
        }
    }
}

/// What the guards of all services did since the thread began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// How many instances of a service are doubtful now; of services with any.
    pub doubtful: BTreeMap<String, u64>,
    /// How often a service began to have such.
    pub trips: u64,
    /// How their doubts ended, by [`Outcome::as_str`].
    pub outcomes: BTreeMap<String, u64>,
}

/// When an instance was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// In milliseconds of a monotonic clock.
    pub at_ms: u64,
    /// The number of the last list that had begun by then.
    pub list: u64,
}

/// The guard of one service; `T` is what is known of an instance that is gone.
#[derive(Debug)]
pub struct Guard<T> {
    max_loss: u32,
    window: Duration,
    hold: Duration,
    /// How many there were not long ago, and until when: ever fewer, and ever later.
    had: VecDeque<(usize, u64)>,
    /// Lost not long ago, and believed.
    gone: BTreeMap<String, (Loss, T)>,
    doubts: BTreeMap<String, Doubt>,
    tally: Tally,
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    loss: Loss,
    /// Whether a list that began after the loss has ended.
    is_listed: bool,
}

/// Of all doubts since there were none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally([usize; Outcome::ALL.len()]);

impl<T> Guard<T> {
    pub fn new(config: &GuardConfig) -> Self {
        let GuardConfig { max_loss, window, hold } = *config;
        let (had, gone, doubts) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Self { max_loss, window, hold, had, gone, doubts, tally: Tally::default() }
    }

    /// Whether there is a loss that is not believed.
    pub fn is_on(&self) -> bool {
        self.max_loss < 100
    }

    /// Whether nothing is known of any loss.
    pub fn is_idle(&self) -> bool {
        self.gone.is_empty() && self.doubts.is_empty()
    }

    /// So many are `there` without doubt, of whom some are about to be lost.
    pub fn note(&mut self, there: usize, now_ms: u64) {
        let all = there + self.doubts.len();
        while self.had.pop_back_if(|(had, _)| *had <= all).is_some() {}
        self.had.push_back((all, now_ms));
    }

    /// An instance was lost, and is gone unless [`weigh`](Self::weigh) says otherwise.
    pub fn lose(&mut self, id: &str, loss: Loss, what: T) {
        if self.is_on() {
            self.gone.insert(id.to_owned(), (loss, what));
        }
    }

    /// An instance was lost that was in doubt before, and is again.
    pub fn doubt(&mut self, id: &str, loss: Loss) {
        self.doubts.insert(id.to_owned(), Doubt { loss, is_listed: false });
    }

    /// Forgets who is gone and `has_moved`.
    pub fn forget(&mut self, has_moved: impl Fn(&str, &T) -> bool) {
        self.gone.retain(|id, (_, what)| !has_moved(id, what));
    }

    /// Says who is in doubt by now, where so many are `there` without doubt: they are
    /// to be taken back.
    pub fn weigh(&mut self, there: usize, now_ms: u64) -> Vec<(String, T)> {
        self.forget_old(now_ms);
        let lost = self.lost(there);
        if lost == 0 || !self.is_over(there) {
            return Vec::new();
        }
        // Who left before them was no loss.
        let mut last: Vec<_> = self.gone.iter().map(|(id, (loss, _))| (loss.at_ms, id)).collect();
        last.sort_unstable_by(|one, other| other.cmp(one));
        let last: Vec<_> = last.into_iter().take(lost).map(|(_, id)| id.clone()).collect();
        let back = last.into_iter().filter_map(|id| self.gone.remove_entry(&id));
        let back: Vec<_> = back.collect();
        back.into_iter()
            .map(|(id, (loss, what))| {
                self.doubt(&id, loss);
                (id, what)
            })
            .collect()
    }

    /// Forgets what was longer ago than losses are one.
    pub fn forget_old(&mut self, now_ms: u64) {
        let window_ms = to_ms(self.window);
        let is_old = |at_ms: u64| now_ms.saturating_sub(at_ms) >= window_ms;
        self.gone.retain(|_, (loss, _)| !is_old(loss.at_ms));
        while self.had.pop_front_if(|(_, at_ms)| is_old(*at_ms)).is_some() {}
    }

    /// Ends a doubt; `false` if there was none. Who returns is no longer gone, either.
    pub fn end(&mut self, id: &str, outcome: Outcome) -> bool {
        if outcome == Outcome::Returned {
            self.gone.remove(id);
        }
        let had_doubt = self.doubts.remove(id).is_some();
        self.count(outcome, usize::from(had_doubt));
        had_doubt
    }

    /// A list of this number has ended, and has those that are `there`. Returns who has
    /// left by that.
    pub fn end_list(&mut self, list: u64, there: usize) -> Vec<String> {
        let is_over = self.is_over(there);
        for doubt in self.doubts.values_mut().filter(|doubt| doubt.loss.list < list) {
            doubt.is_listed = true;
        }
        let leaves = |doubt: &Doubt| doubt.is_listed && !is_over;
        self.end_all(leaves, Outcome::Replaced)
    }

    /// Returns who has left since its time is over.
    pub fn expire(&mut self, now_ms: u64) -> Vec<String> {
        let hold_ms = to_ms(self.hold);
        let is_due = |doubt: &Doubt| now_ms.saturating_sub(doubt.loss.at_ms) >= hold_ms;
        self.end_all(|doubt| doubt.is_listed && is_due(doubt), Outcome::Deregistered)
    }

    /// Whether a list would tell anything, where so many are `there`.
    pub fn wants_list(&self, there: impl FnOnce() -> usize) -> bool {
        let is_any_unlisted = || self.doubts.values().any(|doubt| !doubt.is_listed);
        !self.doubts.is_empty() && (is_any_unlisted() || !self.is_over(there()))
    }

    /// Those in doubt, by id.
    pub fn doubtful(&self) -> impl ExactSizeIterator<Item = &str> {
        self.doubts.keys().map(String::as_str)
    }

    /// What became of all doubts since there were none, once there are none again.
    pub fn take_tally(&mut self) -> Option<Tally> {
        let is_over = self.doubts.is_empty() && self.tally != Tally::default();
        is_over.then(|| std::mem::take(&mut self.tally))
    }

    /// How many of those that are gone are missing.
    fn lost(&self, there: usize) -> usize {
        let most = self.had.front().map_or(0, |(had, _)| *had);
        self.gone.len().min(most.saturating_sub(there + self.doubts.len()))
    }

    fn is_over(&self, there: usize) -> bool {
        let lost = self.lost(there) + self.doubts.len();
        is_mass_loss(lost, there + lost, self.max_loss)
    }

    fn end_all(&mut self, leaves: impl Fn(&Doubt) -> bool, outcome: Outcome) -> Vec<String> {
        let left: Vec<_> =
            self.doubts.extract_if(.., |_, doubt| leaves(doubt)).map(|(id, _)| id).collect();
        self.count(outcome, left.len());
        left
    }

    /// So many doubts have ended. Who is out for good counts as if it had not been there.
    fn count(&mut self, outcome: Outcome, ended: usize) {
        self.tally.0[outcome as usize] += ended;
        if outcome != Outcome::Returned {
            self.had.iter_mut().for_each(|(had, _)| *had = had.saturating_sub(ended));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Outcome::ALL.iter().zip(self.0).filter(|(_, count)| *count > 0);
        for (index, (outcome, count)) in counts.enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{}: {count}", outcome.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const WINDOW_MS: u64 = 15_000;
    const HOLD_MS: u64 = 30_000;

    #[test]
    fn a_share_of_more_than_can_be_counted_is_a_share() {
        assert!(is_mass_loss(usize::MAX, usize::MAX, 99));
        assert!(!is_mass_loss(usize::MAX, usize::MAX, 100));
        assert!(!is_mass_loss(usize::MAX / 2, usize::MAX, 50));
    }

    /// A service that has nothing but ids, and remembers what happened.
    struct Model {
        guard: Guard<()>,
        max_loss: u32,
        now_ms: u64,
        list: u64,
        there: BTreeSet<String>,
        doubtful: BTreeSet<String>,
        /// Who left without a doubt, and when.
        left: BTreeMap<String, u64>,
        /// How many there were before each loss, less those whose doubt ended since.
        had: Vec<(usize, u64)>,
    }

    impl Model {
        fn new(max_loss: u32, count: usize) -> Self {
            Self {
                guard: Guard::new(&GuardConfig { max_loss, ..GuardConfig::default() }),
                max_loss,
                now_ms: 1_000_000,
                list: 1,
                there: ids(0..count).collect(),
                doubtful: BTreeSet::new(),
                left: BTreeMap::new(),
                had: Vec::new(),
            }
        }

        fn put(&mut self, id: &str) {
            self.there.insert(id.to_owned());
            self.left.remove(id);
            assert_eq!(self.guard.end(id, Outcome::Returned), self.doubtful.remove(id));
            self.weigh();
        }

        /// Takes away all of them at once.
        fn lose(&mut self, ids: impl IntoIterator<Item = String>) -> usize {
            self.guard.note(self.there.len(), self.now_ms);
            self.had.push((self.there.len() + self.doubtful.len(), self.now_ms));
            for id in ids {
                if self.there.remove(&id) {
                    self.left.insert(id.clone(), self.now_ms);
                    self.guard.lose(&id, Loss { at_ms: self.now_ms, list: self.list }, ());
                }
            }
            self.weigh()
        }

        fn weigh(&mut self) -> usize {
            let back = self.guard.weigh(self.there.len(), self.now_ms);
            for (id, ()) in &back {
                self.left.remove(id);
                self.doubtful.insert(id.clone());
            }
            back.len()
        }

        fn end_list(&mut self) {
            self.list += 1;
            let left = self.guard.end_list(self.list, self.there.len());
            self.let_go(left);
        }

        fn pass(&mut self, ms: u64) {
            self.now_ms += ms;
            let left = self.guard.expire(self.now_ms);
            self.let_go(left);
            self.weigh();
        }

        fn let_go(&mut self, ids: Vec<String>) {
            for id in ids {
                assert!(self.doubtful.remove(&id));
                self.had.iter_mut().for_each(|(had, _)| *had = had.saturating_sub(1));
            }
        }

        fn refute(&mut self, id: &str) {
            let is_doubtful = self.doubtful.contains(id);
            assert_eq!(self.guard.end(id, Outcome::Dead), is_doubtful);
            self.let_go(self.doubtful.get(id).cloned().into_iter().collect());
        }

        /// How many of those that left of late without a doubt are missing, and of how
        /// many.
        fn loss(&self) -> (usize, usize) {
            let is_late = |at_ms: u64| self.now_ms - at_ms < WINDOW_MS;
            let left = self.left.values().filter(|at_ms| is_late(**at_ms)).count();
            let had = self.had.iter().filter(|(_, at_ms)| is_late(*at_ms)).map(|(had, _)| *had);
            let offered = self.there.len() + self.doubtful.len();
            let lost = left.min(had.max().unwrap_or(0).saturating_sub(offered));
            (lost, offered + lost)
        }
    }

    fn ids(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
        range.map(|n| format!("i{n:02}"))
    }

    #[test]
    fn up_to_the_limit_who_leaves_is_gone_and_beyond_it_all_of_them_are_kept() {
        for (count, lost, kept) in
            [(1, 1, 1), (2, 1, 0), (2, 2, 2), (3, 1, 0), (3, 2, 2), (10, 5, 0), (10, 6, 6)]
        {
            let mut model = Model::new(50, count);
            assert_eq!(model.lose(ids(0..lost)), kept, "{lost} of {count}");
        }
        let mut off = Model::new(100, 10);
        assert_eq!(off.lose(ids(0..10)), 0);
        let mut strict = Model::new(0, 10);
        assert_eq!(strict.lose(ids(0..1)), 1);
    }

    #[test]
    fn losses_one_by_one_are_as_one_within_the_window_and_single_ones_beyond_it() {
        let mut model = Model::new(50, 10);
        for id in ids(0..5) {
            assert_eq!(model.lose([id]), 0);
            model.pass(2000);
        }
        assert_eq!(model.lose(ids(5..6)), 6, "those that had left are back");
        let mut model = Model::new(50, 10);
        for (index, id) in ids(0..8).enumerate() {
            assert_eq!(model.lose([id]), 0, "after {index}");
            model.pass(WINDOW_MS);
        }
    }

    #[test]
    fn who_comes_and_goes_while_the_others_stay_is_no_loss() {
        let mut model = Model::new(50, 3);
        for n in 10..40 {
            model.put(&format!("i{n}"));
            model.pass(100);
            assert_eq!(model.lose(ids(n..n + 1)), 0);
        }
        assert_eq!(model.lose(ids(0..3)), 4, "of those that left before, the last one alone");
    }

    #[test]
    fn who_is_replaced_is_no_loss_whichever_comes_first() {
        let mut model = Model::new(50, 10);
        ids(10..20).for_each(|id| model.put(&id));
        assert_eq!(model.lose(ids(0..10)), 0, "the new ones were there");
        let mut model = Model::new(50, 10);
        assert_eq!(model.lose(ids(0..10)), 10);
        ids(10..20).for_each(|id| model.put(&id));
        assert_eq!(model.doubtful.len(), 10, "until a list agrees");
        model.end_list();
        assert_eq!(model.doubtful.len(), 0);
    }

    #[test]
    fn who_answers_leaves_after_its_time_and_a_second_list_and_not_before_either() {
        let mut model = Model::new(50, 10);
        model.lose(ids(0..8));
        assert!(model.guard.wants_list(|| 2));
        model.pass(10 * HOLD_MS);
        assert_eq!(model.doubtful.len(), 8, "nobody has looked again");
        model.end_list();
        assert!(!model.guard.wants_list(|| 2));
        model.pass(0);
        assert_eq!(model.doubtful.len(), 0);

        let mut model = Model::new(50, 10);
        model.lose(ids(0..8));
        model.end_list();
        model.pass(HOLD_MS - 1);
        assert_eq!(model.doubtful.len(), 8);
        model.pass(1);
        assert_eq!(model.doubtful.len(), 0);
        assert_eq!(model.guard.take_tally().unwrap().to_string(), "deregistered: 8");
        assert_eq!(model.guard.take_tally(), None);
    }

    #[test]
    fn the_list_that_shows_a_loss_is_not_the_one_that_agrees_with_it() {
        let mut model = Model::new(50, 4);
        model.list += 1; // as the registry does: losses are of the list's end
        model.lose(ids(0..4));
        assert!(model.guard.end_list(model.list, 0).is_empty());
        assert!(model.guard.wants_list(|| 0));
    }

    #[test]
    fn who_returns_or_is_dead_is_no_longer_doubtful_at_once() {
        let mut model = Model::new(50, 4);
        model.lose(ids(0..4));
        model.put("i00");
        model.refute("i01");
        model.refute("i01");
        assert_eq!(model.doubtful.len(), 2);
        model.refute("i02");
        assert_eq!(model.guard.take_tally(), None, "one is left");
        model.refute("i03");
        assert_eq!(model.guard.take_tally().unwrap().to_string(), "returned: 1, dead: 3");
    }

    #[derive(Debug, Clone)]
    enum Act {
        Put(usize),
        Lose(usize, usize),
        Refute(usize),
        List,
        Pass(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..16usize).prop_map(Act::Put),
            4 => (0..16usize, 1..16usize).prop_map(|(first, count)| Act::Lose(first, count)),
            2 => (0..16usize).prop_map(Act::Refute),
            2 => Just(Act::List),
            3 => (1..20_000u64).prop_map(Act::Pass),
        ];
        proptest::collection::vec(act, 1..60)
    }

    proptest! {
        #[test]
        fn whatever_happens_no_more_leave_unproven_than_may_and_all_doubts_end(
            max_loss in prop_oneof![Just(50u32), 0..100u32],
            count in 0..16usize,
            acts in acts(),
        ) {
            let mut model = Model::new(max_loss, count);
            for act in acts {
                let (before, had_doubts) = (model.loss(), !model.doubtful.is_empty());
                match act {
                    Act::Put(n) => model.put(&format!("i{n:02}")),
                    Act::Lose(first, count) => {
                        let had = model.there.len();
                        let back = model.lose(ids(first..first + count));
                        let lost = had - model.there.len();
                        if is_mass_loss(lost, had, max_loss) {
                            prop_assert!(back >= lost, "{back} are back of {lost} of {had}");
                        } else if !had_doubts && before == (0, had) {
                            prop_assert_eq!(back, 0, "{} of {}", lost, had);
                        }
                    }
                    Act::Refute(n) => model.refute(&format!("i{n:02}")),
                    Act::List => model.end_list(),
                    Act::Pass(ms) => model.pass(ms),
                }
                let (lost, of) = model.loss();
                prop_assert!(!is_mass_loss(lost, of, model.max_loss), "{lost} of {of} are gone");
                let doubtful: Vec<_> = model.doubtful.iter().map(String::as_str).collect();
                prop_assert_eq!(model.guard.doubtful().collect::<Vec<_>>(), doubtful);
            }
            model.pass(HOLD_MS);
            model.end_list();
            model.pass(HOLD_MS);
            model.end_list();
            model.pass(0);
            prop_assert!(model.doubtful.is_empty());
        }
    }
}
