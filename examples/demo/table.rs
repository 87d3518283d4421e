//! The table: where each instance stands in the ranking, and what it serves.

use std::time::Duration;

use crate::gateway::Ranking;
use crate::stage::Instance;
use crate::traffic::{self, Record, Sample};

/// Shares are those of so much time before.
pub const SHARE_TIME: Duration = Duration::from_secs(1);

/// Latencies are those of so much time before.
const LATENCY_TIME: Duration = Duration::from_secs(5);

/// The characters of a bar that stands for all requests.
const BAR: f64 = 16.0;

/// What is to be seen at one moment.
pub struct Scene<'a> {
    /// Since the play began, and how long it is to take.
    pub time: Duration,
    pub length: Duration,
    /// What is being done, in words.
    pub action: &'a str,
    pub instances: &'a [Instance],
    pub ranking: &'a Ranking,
    pub record: &'a Record,
}

impl Scene<'_> {
    /// At most 100 characters each.
    pub fn lines(&self) -> Vec<String> {
        let Ranking { mode, version, revision, age_ms, .. } = self.ranking;
        let Record { sent, failed, moved_on, .. } = self.record;
        let (time, length) = (self.time.as_secs(), self.length.as_secs());
        let age_s = *age_ms as f64 / 1e3;
        let head = [
            String::new(),
            format!("{time} of {length} s | {}", self.action),
            format!(
                "mode {mode} | etcd revision {revision} | ranking {version}, {age_s:.1} s old | \
                 sent {sent}, moved on {moved_on}, failed {failed}"
            ),
            format!(
                "{:<7} {:<15} {:<13} {:>4} {:>6} {:>6} {:>5} {:<11} {:>6} {:>6}  {}",
                "id",
                "address",
                "set to",
                "rank",
                "score",
                "weight",
                "share",
                "",
                "p50 ms",
                "p99 ms",
                "state"
            ),
        ];
        let rows = (0..).zip(self.instances).map(|(index, instance)| self.row(index, instance));
        head.into_iter().chain(rows).collect()
    }

    fn row(&self, index: usize, instance: &Instance) -> String {
        let served = |sample: &Sample| sample.served_by() == Some(index);
        let share = traffic::share(self.record.of_last(SHARE_TIME), served);
        let recent = self.record.of_last(LATENCY_TIME).filter(|sample| served(sample));
        let (p50_ms, p99_ms) = match traffic::p50_p99_ms(recent) {
            Some((p50_ms, p99_ms)) => (format!("{p50_ms:.1}"), format!("{p99_ms:.1}")),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let (rank, score, weight, state) = match self.ranking.of(&instance.id) {
            Some(place) => (
                place.rank.to_string(),
                format!("{:+.2}", place.score),
                format!("{:.2}", place.weight),
                place.state.as_str(),
            ),
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned(), "out"),
        };
        format!(
            "{:<7} {:<15} {:<13} {rank:>4} {score:>6} {weight:>6} {:>4.0}% {:<11} {p50_ms:>6} \
             {p99_ms:>6}  {state}",
            instance.id,
            instance.addr.to_string(),
            match instance.process_id() {
                Some(_) => instance.knob.to_string(),
                None => "killed".to_owned(),
            },
            share * 100.0,
            "#".repeat((share * BAR).round() as usize),
        )
    }
}
