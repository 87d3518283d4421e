//! The services' places on the ladder of freshness: kept here, shown on the board,
//! and one line of the log for each step.

use std::collections::{HashMap, VecDeque};

use crate::board::{Board, Freshness, ServiceId};
use crate::freshness::{Ladder, Reports};

/// So many lines at most in one look, of which there is one a second: when etcd is
/// lost with a thousand services, the log's queue is to have room for others, too.
const LINES_A_LOOK: usize = 100;

/// The ladders of all services.
pub struct Ladders {
    board: Board,
    of: HashMap<String, Place>,
    /// Lines that are yet to be logged, and whether somebody should look at them.
    lines: VecDeque<(bool, String)>,
}

struct Place {
    id: ServiceId,
    ladder: Ladder,
    /// As of `heard_ms`.
    reports: Reports,
    heard_ms: u64,
}

impl Ladders {
    /// The ladders of services that an earlier thread has told of, if they are
    /// `served` still: until something is heard of them, nobody reports.
    pub fn new(board: Board, served: impl Fn(&str) -> bool, now_ms: u64) -> Self {
        let place = |name: String| {
            let id = board.find_service(&name)?;
            let Freshness { step, expected, fresh_ms, .. } = board.freshness(id)?;
            let age_ms = (fresh_ms != 0).then(|| now_ms.saturating_sub(fresh_ms));
            let reports = Reports { expected, fresh: 0, oldest_ms: age_ms };
            let ladder = Ladder::resume(step, fresh_ms, now_ms);
            Some((name, Place { id, ladder, reports, heard_ms: now_ms }))
        };
        let of = board.service_names().filter(|name| served(name)).filter_map(place).collect();
        Ladders { board, of, lines: VecDeque::new() }
    }

    /// Takes in what the instances of a service report.
    pub fn hear(&mut self, service: &str, reports: Reports, now_ms: u64) {
        if let Some(place) = self.of.get_mut(service) {
            (place.reports, place.heard_ms) = (reports, now_ms);
            return;
        }
        let Some(id) = self.board.service(service) else { return };
        let place = Place { id, ladder: Ladder::begin(reports, now_ms), reports, heard_ms: now_ms };
        place.show(self.board);
        self.of.insert(service.to_owned(), place);
    }

    /// The service is gone.
    pub fn forget(&mut self, service: &str) {
        if let Some(place) = self.of.remove(service) {
            self.board.set_freshness(place.id, None);
        }
    }

    /// Lets time pass: to be called about once a second.
    pub fn look(&mut self, now_ms: u64) {
        for (service, place) in &mut self.of {
            if let Some(change) = place.ladder.see(place.reports, now_ms) {
                if change.from.is_some() {
                    self.board.count_step(place.id, change.to);
                }
                let reports = place.reports_at(now_ms);
                self.lines.push_back((change.is_bad(reports), change.line(service, reports)));
            }
            place.show(self.board);
        }
        for (is_bad, line) in self.lines.drain(..self.lines.len().min(LINES_A_LOOK)) {
            match is_bad {
                true => tracing::warn!("{line}"),
                false => tracing::info!("{line}"),
            }
        }
    }
}

impl Place {
    fn reports_at(&self, now_ms: u64) -> Reports {
        let passed_ms = now_ms.saturating_sub(self.heard_ms);
        let oldest_ms = self.reports.oldest_ms.map(|age_ms| age_ms.saturating_add(passed_ms));
        Reports { oldest_ms, ..self.reports }
    }

    fn show(&self, board: Board) {
        let Reports { expected, fresh, .. } = self.reports;
        let (step, fresh_ms) = (self.ladder.step(), self.ladder.fresh_ms());
        board.set_freshness(self.id, Some(Freshness { step, expected, fresh, fresh_ms }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freshness::Step;

    const ALL_WELL: Reports = Reports { expected: 3, fresh: 3, oldest_ms: Some(500) };
    const SILENT: Reports = Reports { expected: 3, fresh: 0, oldest_ms: Some(4000) };

    fn shown(board: Board, service: &str) -> Option<(Step, u32, u32)> {
        let known = board.freshness(board.find_service(service)?)?;
        Some((known.step, known.fresh, known.expected))
    }

    #[test]
    fn what_is_heard_shows_at_once_and_a_step_in_its_time_once_counted() {
        let board = Board::map_for_tests();
        let mut ladders = Ladders::new(board, |_| true, 1000);
        ladders.hear("chat", ALL_WELL, 1000);
        assert_eq!(shown(board, "chat"), Some((Step::Fresh, 3, 3)));
        ladders.hear("chat", SILENT, 2000);
        for second in 2..=30 {
            ladders.look(1000 * second);
        }
        assert_eq!(shown(board, "chat"), Some((Step::Aging, 0, 3)));
        assert_eq!(board.steps(board.find_service("chat").unwrap()), [0, 1, 0]);
        ladders.forget("chat");
        assert_eq!(shown(board, "chat"), None);
    }

    #[test]
    fn a_thread_that_hears_nothing_goes_on_where_the_one_before_it_was() {
        let board = Board::map_for_tests();
        let mut ladders = Ladders::new(board, |_| true, 1000);
        ladders.hear("chat", ALL_WELL, 1000);
        ladders.hear("other", ALL_WELL, 1000);
        ladders.look(1000);
        let mut next = Ladders::new(board, |service| service == "chat", 2000);
        next.look(2000);
        assert_eq!(shown(board, "chat"), Some((Step::Fresh, 0, 3)));
        next.look(4000);
        assert_eq!(shown(board, "chat"), Some((Step::Aging, 0, 3)));
        next.look(61_000);
        next.look(63_000);
        assert_eq!(shown(board, "chat"), Some((Step::Board, 0, 3)));
        assert_eq!(shown(board, "other"), Some((Step::Fresh, 3, 3)), "it is not served any more");
    }

    #[test]
    fn a_thousand_services_that_age_at_once_leave_room_in_the_log() {
        let board = Board::map_for_tests();
        let mut ladders = Ladders::new(board, |_| true, 1000);
        for service in 0..1000 {
            ladders.hear(&format!("s{service}"), ALL_WELL, 1000);
        }
        ladders.look(1000);
        for service in 0..1000 {
            ladders.hear(&format!("s{service}"), SILENT, 2000);
        }
        ladders.look(2000);
        let waiting: Vec<usize> = (4..16)
            .map(|second| {
                ladders.look(1000 * second);
                ladders.lines.len()
            })
            .collect();
        assert_eq!(waiting, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, 0, 0]);
    }
}
