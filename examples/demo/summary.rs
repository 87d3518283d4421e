//! What is said at the end.

use std::fmt;
use std::time::Duration;

use crate::probe::Delays;
use crate::traffic::{self, Record, Sample};

/// What the play showed.
pub struct Summary<'a> {
    /// By number.
    pub phases: Vec<String>,
    pub expectations: Vec<Expectation>,
    pub delays: Option<Delays>,
    /// Their ids.
    pub instances: Vec<String>,
    pub record: &'a Record,
}

/// Something that was to happen.
pub struct Expectation {
    pub what: String,
    pub held: bool,
    /// What was seen.
    pub found: String,
}

impl Summary<'_> {
    /// Whether no request failed and everything happened that should.
    pub fn is_as_expected(&self) -> bool {
        self.record.sent > 0
            && self.record.failed == 0
            && self.expectations.iter().all(|expectation| expectation.held)
    }

    pub fn to_text(&self) -> String {
        let mut lines = vec![String::new(), "who answered".to_owned(), self.head()];
        lines.extend((0..self.phases.len()).map(|phase| self.row(phase)));
        lines.push(String::new());
        lines.extend(self.expectations.iter().map(ToString::to_string));
        lines.extend(self.delays.as_ref().map(ToString::to_string));
        let Record { sent, failed, moved_on, failures, .. } = self.record;
        lines.push(String::new());
        lines.extend(failures.iter().map(|failure| format!("failed: {failure}")));
        lines.push(format!(
            "{sent} requests sent, {failed} failed; {moved_on} moved on to another instance"
        ));
        lines.push(match self.is_as_expected() {
            true => "everything happened as it should".to_owned(),
            false => format!("NOT as it should: {}", self.shortcomings().join("; ")),
        });
        lines.join("\n")
    }

    fn head(&self) -> String {
        let instances: String = self.instances.iter().map(|id| format!(" {id:>6}")).collect();
        format!(
            "  {:<16} {:>8} {:>6} {:>8} {instances}  {:>6} {:>6}",
            "phase", "requests", "failed", "moved on", "p50 ms", "p99 ms"
        )
    }

    fn row(&self, phase: usize) -> String {
        let of_phase = || self.record.of_phase(phase);
        let count =
            |is_one: fn(&Sample) -> bool| of_phase().filter(|sample| is_one(sample)).count();
        let share = |index: usize| {
            let share = traffic::share(of_phase(), |sample| sample.served_by() == Some(index));
            format!(" {:>5.1}%", share * 100.0)
        };
        let shares: String = (0..self.instances.len()).map(share).collect();
        let (p50_ms, p99_ms) = traffic::p50_p99_ms(of_phase()).unwrap_or_default();
        format!(
            "{} {:<16} {:>8} {:>6} {:>8} {shares}  {p50_ms:>6.1} {p99_ms:>6.1}",
            phase + 1,
            self.phases[phase],
            count(|_| true),
            count(|sample| !sample.is_ok),
            count(Sample::moved_on),
        )
    }

    fn shortcomings(&self) -> Vec<String> {
        let failed = match self.record.failed {
            0 => None,
            failed => Some(format!("{failed} requests failed")),
        };
        let unmet = self.expectations.iter().filter(|expectation| !expectation.held);
        let unmet = unmet.map(|expectation| expectation.what.clone());
        failed.into_iter().chain(unmet).collect()
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { puts, writing_median, ranking_median, ranking_worst } = self;
        let ms = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        write!(
            f,
            "     a put takes etcd {}; nginx ranks by it {} later ({puts} puts: medians; worst {})",
            ms(writing_median),
            ms(ranking_median),
            ms(ranking_worst),
        )
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, held, found } = self;
        let mark = if *held { " ok" } else { "NOT" };
        write!(f, "{mark}  {what}: {found}")
    }
}
