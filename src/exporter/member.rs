//! An instance that is asked: what it said last, and what of that is news.

use std::time::Duration;

use tokio::time::Instant;

use super::collect::{Answer, News, Peer};
use super::deadband::Figures;
use super::discover::Name;
use super::shard::ShardName;
use crate::config::ExporterConfig;
use crate::metrics::{ExporterMetrics, InstanceLabels};
use crate::model::{InstanceReport, Report, Status, StatusUrl};

/// An instance that is asked.
pub struct Member {
    /// Whose status it is.
    pub name: Name,
    url: StatusUrl,
    peer: Peer,
    /// The shard that its reports belong to.
    pub shard: ShardName,
    /// Tells it from an earlier member of its name.
    pub serial: u64,
    /// The round of the last question.
    pub round: u64,
    /// When it last answered, or was first asked.
    heard: Instant,
    state: State,
    /// Whether the last failure is yet to be written.
    failure_is_news: bool,
    /// What it said, and when, until that was compared with what is written.
    news: Option<(News, Instant)>,
    /// Its status before, for the rates.
    before: Option<(Status, Instant)>,
    /// What is in etcd, or on its way there.
    written: Option<Figures>,
}

/// Whether the last round's tries found the instance; a change is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Untried,
    Up,
    /// As of the last question.
    Down {
        since: Instant,
    },
}

/// What a put says of an instance.
pub struct Word {
    /// What there is to say.
    pub report: InstanceReport,
    /// Whether it is another one than before.
    pub is_news: bool,
}

impl Member {
    /// One that is not asked yet.
    pub fn new(serial: u64, name: Name, url: StatusUrl, peer: Peer, shard: ShardName) -> Self {
        Self {
            name,
            url,
            peer,
            shard,
            serial,
            round: 0,
            heard: Instant::now(),
            state: State::Untried,
            failure_is_news: false,
            news: None,
            before: None,
            written: None,
        }
    }

    /// Asks it, in the round that began at `now`.
    pub fn ask(&mut self, round: u64, now: Instant) -> impl Future<Output = Answer> + use<> {
        self.round = round;
        self.peer.ask(now, matches!(self.state, State::Down { .. }))
    }

    /// Whether it answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Gives it another shard, where it has yet to be written; returns the last.
    pub fn move_to(&mut self, shard: ShardName) -> ShardName {
        self.written = None;
        std::mem::replace(&mut self.shard, shard)
    }

    /// Takes in what it said, or that it said nothing.
    pub fn take(&mut self, Answer { at, result, .. }: Answer, metrics: &ExporterMetrics) {
        let Name { service, id } = &self.name;
        match result {
            Ok(None) => {}
            Ok(Some(news)) => {
                if self.state != State::Up {
                    tracing::info!("{service}/{id} answers");
                }
                self.state = State::Up;
                self.heard = at;
                let status = match &news.report {
                    Report::Status(status) => Some(status.clone()),
                    _ => None,
                };
                metrics.set_up(labels(&self.name), status);
                self.news = Some((news, at));
            }
            Err(err) => {
                if !matches!(self.state, State::Down { .. }) {
                    tracing::warn!(
                        "{service}/{id} does not tell its status at {}: {err}",
                        self.url
                    );
                }
                self.state = State::Down { since: at };
                self.failure_is_news = true;
                self.news = None;
                metrics.set_down(labels(&self.name));
            }
        }
    }

    /// What is to be written of it, if anything is; that is taken for written
    /// then. Who gets no requests is named in every put, news or not: a reader who
    /// begins with this one has to know.
    pub fn report(
        &mut self,
        exporter: &ExporterConfig,
        is_full: bool,
        now: Instant,
    ) -> Option<Word> {
        let id = self.name.id.clone();
        if let State::Down { since } = self.state {
            self.written = None;
            let silent_for = since.saturating_duration_since(self.heard);
            let is_news = std::mem::take(&mut self.failure_is_news);
            let report = Report::Unreachable { silent_for };
            let report = InstanceReport { id, report, interval: exporter.interval };
            return Some(Word { report, is_news });
        }
        let (News { mut report, interval }, at) = self.news.take()?;
        let before = self.before.as_ref();
        let elapsed =
            before.map_or(Duration::ZERO, |(_, then)| at.saturating_duration_since(*then));
        let figures = Figures::of(&report, before.map(|(status, _)| status), elapsed);
        if let Report::Status(status) = &mut report {
            self.before = Some((status.clone(), at));
            // What waited here has aged.
            status.age += now.saturating_duration_since(at);
        }
        let is_news = match (&figures, &self.written) {
            (Some(now), Some(written)) => !now.is_as(written, exporter.deadband),
            _ => true,
        };
        if !is_news && !is_full && report != Report::NotServing {
            return None;
        }
        self.written = figures;
        let silence = match exporter.deadband > 0.0 {
            true => exporter.refresh.max(exporter.interval),
            false => exporter.interval,
        };
        let report = InstanceReport { id, report, interval: interval.max(silence) };
        Some(Word { report, is_news })
    }
}

/// Whom its series are about.
pub fn labels(Name { service, id }: &Name) -> InstanceLabels {
    InstanceLabels { service: service.clone(), instance: id.clone() }
}
