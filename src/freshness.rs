//! How fresh what a service's ranking rests on is: the upper three steps of a ladder,
//! whose lower two, `fallback` and `static`, are modes that a worker is in.
//!
//! ```text
//! fresh     enough of the instances have a fresh report
//! aging     too few have; what was reported within the last minute counts on
//! board     nothing that was reported counts: only what this host sees does
//! fallback  the plugin's thread is silent: Lua alone serves
//! static    etcd was never read: the configured instances serve
//! ```
//!
//! The step changes nothing of a ranking, each instance of which goes by its own
//! report (`ranking::estimate`). It says in one word, and once, what became of them.
//!
//! Two things keep it from flapping. To be fresh again takes more reports than to stay
//! so, and wherever it is to go, it has to have been so for a while: whatever reports
//! do, there are [`DOWN_MS`] or [`UP_MS`] between two steps.

use std::time::Duration;

use crate::ranking::{KEPT_MS, State};
use crate::registry::Member;

/// How long it takes to go down. Reports are late now and then, and a thread that
/// starts anew has to hear them first.
pub const DOWN_MS: u64 = 2000;

/// How long it takes to go up: exporters that come and go are not there.
pub const UP_MS: u64 = 5000;

/// Who should report and does not from the beginning has so long until that is said:
/// services, exporters and gateways start together.
pub const BEGIN_MS: u64 = 10_000;

/// A step of those that the plugin's thread tells, from the most that is known to the
/// least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Enough of the instances have a fresh report.
    Fresh,
    /// Some report was fresh within the last minute.
    Aging,
    /// None was.
    Board,
}

/// The names of all steps, in their order; the last two are modes that a worker is in.
pub const STEPS: [&str; 5] = ["fresh", "aging", "board", "fallback", "static"];

impl Step {
    /// Every one, by its code on the board.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Aging, Self::Board];

    /// The name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        STEPS[self as usize]
    }
}

/// What a service's instances report, of those that are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reports {
    /// Instances that declare a status, or else have a fresh report: who promised
    /// none is not missed.
    pub expected: u32,
    /// Those of them that have a fresh report.
    pub fresh: u32,
    /// How old the oldest of their last reports is, fresh or not, in milliseconds;
    /// `None` if none of them ever reported.
    pub oldest_ms: Option<u64>,
}

impl Reports {
    /// Those of these members.
    pub fn of(members: &[Member<'_>]) -> Self {
        // A doubtful one is missed if it ever reported: what it promised is gone with it.
        let is_expected = |it: &&Member<'_>| match it.state {
            State::Unreported => false,
            State::Doubtful => it.report_age_ms.is_some(),
            _ => true,
        };
        let expected = || members.iter().filter(is_expected);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Reports {
            expected: count(expected().count()),
            fresh: count(expected().filter(|it| it.load.is_some()).count()),
            oldest_ms: expected().filter_map(|it| it.report_age_ms).max(),
        }
    }

    /// Whether they are enough to be fresh by, for who is or is not.
    fn are_enough(self, is_fresh: bool) -> bool {
        let (expected, fresh) = (u64::from(self.expected), u64::from(self.fresh));
        fresh > 0 && if is_fresh { 2 * fresh >= expected } else { 3 * fresh >= 2 * expected }
    }
}

/// Where a service is on the ladder, and where it is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    step: Step,
    /// When some report was last fresh, on a monotonic clock; 0 if none ever was.
    fresh_ms: u64,
    /// Since when it is to go down, or up.
    turned: Option<(Turn, u64)>,
    /// Whether it was said that the service is where it is. Nobody needs to be told of
    /// one that is fresh from the beginning, or that nobody expects to report.
    is_told: bool,
    /// Since when there is something to tell, if it was not told.
    untold_since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Down,
    Up,
}

/// News for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// `None` for a service that is on its first step, and stays there.
    pub from: Option<Step>,
    pub to: Step,
}

impl Ladder {
    /// A service of which nothing was told yet.
    pub fn begin(reports: Reports, now_ms: u64) -> Self {
        let mut ladder = Ladder {
            step: Step::Board,
            fresh_ms: 0,
            turned: None,
            is_told: false,
            untold_since_ms: now_ms,
        };
        ladder.step = ladder.wanted(reports, now_ms);
        ladder.is_told = ladder.step == Step::Fresh;
        ladder
    }

    /// A service that another thread has told of; `fresh_ms` as
    /// [`fresh_ms`](Self::fresh_ms) had it.
    pub fn resume(step: Step, fresh_ms: u64, now_ms: u64) -> Self {
        let fresh_ms = fresh_ms.min(now_ms);
        Ladder { step, fresh_ms, turned: None, is_told: true, untold_since_ms: now_ms }
    }

    /// Takes in what is reported now, and how late it is. To be called about once a
    /// second, or more often.
    pub fn see(&mut self, reports: Reports, now_ms: u64) -> Option<Change> {
        let wanted = self.wanted(reports, now_ms);
        let turn = match wanted.cmp(&self.step) {
            std::cmp::Ordering::Less => Some((Turn::Up, UP_MS)),
            std::cmp::Ordering::Greater => Some((Turn::Down, DOWN_MS)),
            std::cmp::Ordering::Equal => None,
        };
        let Some((turn, takes_ms)) = turn else {
            self.turned = None;
            return self.tell(reports, now_ms);
        };
        let since_ms = match self.turned {
            Some((known, since_ms)) if known == turn => since_ms,
            _ => now_ms,
        };
        self.turned = Some((turn, since_ms));
        if now_ms.saturating_sub(since_ms) < takes_ms {
            return None;
        }
        let from = Some(std::mem::replace(&mut self.step, wanted));
        self.turned = None;
        self.is_told = true;
        Some(Change { from, to: wanted })
    }

    /// The step that it is on.
    pub fn step(&self) -> Step {
        self.step
    }

    /// When some report was last fresh, on the clock of `now_ms`; 0 if none ever was.
    pub fn fresh_ms(&self) -> u64 {
        self.fresh_ms
    }

    /// The step that it would be on if there were no time to be taken.
    fn wanted(&mut self, reports: Reports, now_ms: u64) -> Step {
        if reports.fresh > 0 {
            self.fresh_ms = now_ms;
        }
        let is_kept = self.fresh_ms != 0 && now_ms.saturating_sub(self.fresh_ms) < KEPT_MS;
        match reports.are_enough(self.step == Step::Fresh) {
            true => Step::Fresh,
            false if is_kept => Step::Aging,
            false => Step::Board,
        }
    }

    /// Says once that a service which should report does not, and never did.
    fn tell(&mut self, reports: Reports, now_ms: u64) -> Option<Change> {
        if reports.expected == 0 && self.step == Step::Board {
            // As it should be. Whoever comes to report is another matter.
            self.is_told = false;
            self.untold_since_ms = now_ms;
        }
        if self.is_told || now_ms.saturating_sub(self.untold_since_ms) < BEGIN_MS {
            return None;
        }
        self.is_told = true;
        Some(Change { from: None, to: self.step })
    }
}

impl Change {
    /// The line for the log.
    pub fn line(self, service: &str, reports: Reports) -> String {
        let Reports { expected, fresh, oldest_ms } = reports;
        let way = match self.from {
            Some(from) => format!("{} to {}", from.as_str(), self.to.as_str()),
            None => self.to.as_str().to_owned(),
        };
        let oldest = match oldest_ms {
            _ if expected == 0 => {
                return format!("freshness of {service}: {way}: no reports are expected");
            }
            Some(age_ms) => {
                let age = humantime::format_duration(Duration::from_millis(age_ms / 100 * 100));
                format!("the oldest report is {age} old")
            }
            None => "none ever reported".to_owned(),
        };
        format!(
            "freshness of {service}: {way}: instances with fresh reports: {fresh} of {expected}; {oldest}"
        )
    }

    /// Whether somebody should look at it.
    pub fn is_bad(self, reports: Reports) -> bool {
        reports.expected > 0 && self.from.is_none_or(|from| from < self.to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reports(fresh: u32, expected: u32) -> Reports {
        Reports { expected, fresh, oldest_ms: None }
    }

    /// One look a second from `second` on at each of these; the changes, with the
    /// seconds that they came at.
    fn walk(ladder: &mut Ladder, second: u64, seen: &[(u32, u32)]) -> Vec<(u64, Change)> {
        let seconds = second..;
        let look = |(second, (fresh, expected)): (u64, &(u32, u32))| {
            Some((second, ladder.see(reports(*fresh, *expected), 1000 * second)?))
        };
        seconds.zip(seen).filter_map(look).collect()
    }

    fn begun(fresh: u32, expected: u32) -> Ladder {
        Ladder::begin(reports(fresh, expected), 1000)
    }

    fn change(from: Step, to: Step) -> Change {
        Change { from: Some(from), to }
    }

    #[test]
    fn the_names_and_codes_of_the_steps_never_change() {
        assert_eq!(Step::ALL.map(Step::as_str), ["fresh", "aging", "board"]);
        assert_eq!(STEPS[3..], ["fallback", "static"]);
    }

    #[test]
    fn a_service_whose_reports_end_ages_after_two_seconds_and_is_on_the_board_in_another_minute() {
        let mut ladder = begun(3, 3);
        let changes = walk(&mut ladder, 2, &[(0, 3); 120]);
        // The last fresh report was seen at 1 s.
        let expected =
            [(4, change(Step::Fresh, Step::Aging)), (63, change(Step::Aging, Step::Board))];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_service_is_fresh_again_after_five_seconds_of_reports() {
        for begin in [begun(0, 3), Ladder::resume(Step::Aging, 1, 1000)] {
            let mut ladder = begin;
            let changes = walk(&mut ladder, 2, &[(3, 3); 30]);
            assert_eq!(changes, [(7, change(begin.step(), Step::Fresh))]);
        }
    }

    /// Whether a service that is on this step for long with so many reports is fresh.
    fn settles_fresh(from: Step, fresh: u32, expected: u32) -> bool {
        let mut ladder = Ladder::resume(from, 1000, 1000);
        walk(&mut ladder, 2, &[(fresh, expected); 20]);
        ladder.step() == Step::Fresh
    }

    #[test]
    fn half_of_the_reports_keep_a_service_fresh_and_two_thirds_make_it_so() {
        // fresh, expected; whether it stays, whether it becomes
        let table = [
            (0, 1, false, false),
            (1, 1, true, true),
            (1, 2, true, false),
            (2, 2, true, true),
            (1, 3, false, false),
            (2, 3, true, true),
            (1, 4, false, false),
            (2, 4, true, false),
            (3, 4, true, true),
            (49, 100, false, false),
            (50, 100, true, false),
            (66, 100, true, false),
            (67, 100, true, true),
            (u32::MAX / 2, u32::MAX, false, false),
            (u32::MAX, u32::MAX, true, true),
        ];
        for (fresh, expected, stays, becomes) in table {
            assert_eq!(settles_fresh(Step::Fresh, fresh, expected), stays, "{fresh} of {expected}");
            assert_eq!(
                settles_fresh(Step::Aging, fresh, expected),
                becomes,
                "{fresh} of {expected}"
            );
            assert_eq!(
                settles_fresh(Step::Board, fresh, expected),
                becomes,
                "{fresh} of {expected}"
            );
        }
    }

    #[test]
    fn one_report_of_many_makes_a_service_that_was_on_the_board_aging() {
        let mut ladder = begun(0, 9);
        assert_eq!(walk(&mut ladder, 2, &[(1, 9); 60]), [(7, change(Step::Board, Step::Aging))]);
    }

    #[test]
    fn what_is_over_before_its_time_changes_nothing() {
        let mut ladder = begun(3, 3);
        let gap: Vec<_> = [(0, 3), (0, 3), (3, 3)].repeat(100);
        assert_eq!(walk(&mut ladder, 2, &gap), []);
        let mut ladder = begun(0, 3);
        let burst: Vec<_> = [(3, 3), (3, 3), (3, 3), (3, 3), (3, 3), (0, 3)].repeat(100);
        let changes = walk(&mut ladder, 2, &burst);
        // That some are fresh now and then is more than nothing, and no more than that.
        assert!(
            changes.iter().all(|(_, it)| it.to == Step::Aging) && changes.len() <= 1,
            "{changes:?}"
        );
    }

    #[test]
    fn a_service_that_nobody_expects_to_report_is_on_the_board_and_nothing_is_said() {
        let mut ladder = begun(0, 0);
        assert_eq!((ladder.step(), walk(&mut ladder, 2, &[(0, 0); 300])), (Step::Board, vec![]));
        // Who comes to report has its time, too.
        let told = Change { from: None, to: Step::Board };
        assert_eq!(walk(&mut ladder, 302, &[(0, 1); 300]), [(311, told)]);
    }

    #[test]
    fn a_service_that_should_report_and_never_does_is_told_of_once_after_ten_seconds() {
        let mut ladder = begun(0, 3);
        let told = Change { from: None, to: Step::Board };
        assert_eq!(walk(&mut ladder, 2, &[(0, 3); 300]), [(11, told)]);
    }

    #[test]
    fn a_service_that_is_fresh_from_the_beginning_is_not_told_of() {
        let mut ladder = begun(2, 3);
        assert_eq!((ladder.step(), walk(&mut ladder, 2, &[(2, 3); 300])), (Step::Fresh, vec![]));
    }

    #[test]
    fn a_thread_goes_on_where_the_one_before_it_was() {
        let mut ladder = begun(3, 3);
        walk(&mut ladder, 2, &[(0, 3); 10]);
        let mut next = Ladder::resume(ladder.step(), ladder.fresh_ms(), 12_000);
        assert_eq!(walk(&mut next, 12, &[(0, 3); 100]), [(63, change(Step::Aging, Step::Board))]);
        // Of a time to come nothing was told.
        let mut next = Ladder::resume(Step::Aging, u64::MAX, 1000);
        assert_eq!(walk(&mut next, 2, &[(0, 3); 100]), [(63, change(Step::Aging, Step::Board))]);
    }

    #[test]
    fn a_line_says_from_where_to_where_how_many_and_how_old() {
        let down = change(Step::Fresh, Step::Aging);
        let seen = Reports { expected: 3, fresh: 1, oldest_ms: Some(61_234) };
        assert_eq!(
            down.line("chat", seen),
            "freshness of chat: fresh to aging: instances with fresh reports: 1 of 3; \
             the oldest report is 1m 1s 200ms old"
        );
        let never = Change { from: None, to: Step::Board };
        assert_eq!(
            never.line("chat", reports(0, 3)),
            "freshness of chat: board: instances with fresh reports: 0 of 3; none ever reported"
        );
        let quiet = change(Step::Aging, Step::Board);
        assert_eq!(
            quiet.line("chat", reports(0, 0)),
            "freshness of chat: aging to board: no reports are expected"
        );
        let up = change(Step::Aging, Step::Fresh);
        let bad =
            [(down, 3), (never, 3), (up, 3), (quiet, 0)].map(|(it, n)| it.is_bad(reports(0, n)));
        assert_eq!(bad, [true, true, false, false]);
    }

    proptest! {
        #[test]
        fn whatever_reports_do_steps_are_seconds_apart_and_each_is_told_once(
            seen in proptest::collection::vec((0..6u32, 0..6u32, 1..2500u64), 1..400),
            resumed in prop_oneof![
                Just(None),
                (0..3usize, any::<u64>()).prop_map(|(step, ms)| Some((Step::ALL[step], ms))),
            ],
        ) {
            let begin_ms = 100_000;
            let mut ladder = match resumed {
                Some((step, fresh_ms)) => Ladder::resume(step, fresh_ms, begin_ms),
                None => Ladder::begin(reports(0, seen[0].1), begin_ms),
            };
            let (mut now_ms, mut last_ms, mut known) = (begin_ms, begin_ms, ladder.step());
            for (fresh, expected, passes_ms) in seen {
                now_ms += passes_ms;
                let change = ladder.see(reports(fresh.min(expected), expected), now_ms);
                match change {
                    Some(Change { from: Some(from), to }) => {
                        prop_assert!(from == known && to != known);
                        let least = if to < from { UP_MS } else { DOWN_MS };
                        prop_assert!(now_ms - last_ms >= least, "{from:?} to {to:?}");
                        (last_ms, known) = (now_ms, to);
                    }
                    Some(Change { from: None, to }) => prop_assert!(to == known),
                    None => prop_assert_eq!(ladder.step(), known),
                }
            }
        }

        #[test]
        fn what_does_not_change_has_one_step_within_seconds_and_keeps_it_for_a_minute(
            (expected, fresh) in (1..9u32).prop_flat_map(|n| (Just(n), 1..=n)),
            step in (0..3usize).prop_map(|step| Step::ALL[step]),
        ) {
            let mut ladder = Ladder::resume(step, 900_000, 1_000_000);
            let changes = walk(&mut ladder, 1001, &[(fresh, expected); 200]);
            prop_assert!(changes.len() <= 1, "{:?}", changes);
            prop_assert!(changes.iter().all(|(second, _)| *second <= 1007));
        }
    }
}
