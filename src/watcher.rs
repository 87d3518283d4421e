//! Follows the keys of a [`Source`] and tells each change as an [`Event`].
//!
//! A state machine over list and watch. A list reads everything at one
//! revision, page by page; a watch then tells what came after that revision.
//! A broken watch resumes after the last revision that it delivered, and only
//! when the source no longer knows what came after it, everything is listed
//! again. Nothing is ever taken to be gone because a source cannot be reached.
//!
//! ```text
//!           +----------------------- Failed <---- any step that fails
//!           v
//! Disconnected --> Listing --> Opening --> Watching
//!           |  (no cursor)        ^
//!           +---------------------+
//!                (cursor)
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use rand::{Rng, RngExt};
use thiserror::Error;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

use crate::error::with_causes;

mod source;

pub use source::{Change, Message, Page, PageRequest, Record, Source, Watch};

/// What happened to the keys of a source.
///
/// [`Init`](Self::Init) to [`InitDone`](Self::InitDone) bracket a complete
/// list: what was known before and is not in it is gone. An `Init` that is
/// followed by another `Init` began a list that failed half-way and means
/// nothing. Outside of the brackets the events tell single changes, each
/// change once, in the order of their revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The watcher does something else now.
    State(WatchState),
    /// A list begins.
    Init,
    /// The key has this value; within a list, or because it was written.
    Put {
        /// The whole key, with its prefix.
        key: Vec<u8>,
        /// What it holds.
        value: Vec<u8>,
        /// When it was written.
        mod_revision: i64,
    },
    /// The key was deleted, or its lease ended.
    Delete {
        /// The whole key, with its prefix.
        key: Vec<u8>,
        /// When it was deleted.
        mod_revision: i64,
    },
    /// The list is complete: these were all keys there were at `revision`.
    /// Revisions may begin anew here, when the source was restored or wiped.
    InitDone {
        /// The one revision of the whole list.
        revision: i64,
    },
    /// The stream is alive and nothing happened.
    Progress {
        /// Everything up to this revision was delivered.
        revision: i64,
    },
}

/// What the watcher is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchState {
    /// Reaching a source, to list or to resume.
    Connecting,
    /// Reading all keys.
    Listing,
    /// Up to date, but for the time that a change takes to arrive.
    Watching,
    /// Waiting before the next attempt.
    Backoff,
}

impl WatchState {
    /// All states, in the order in which a start passes them.
    pub const ALL: [Self; 4] = [Self::Connecting, Self::Listing, Self::Watching, Self::Backoff];

    /// The name in metrics and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Listing => "listing",
            Self::Watching => "watching",
            Self::Backoff => "backoff",
        }
    }
}

/// How long the watcher waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Silence of a stream after which it is asked for a sign of life. Status
    /// comes once a second, so 5 s without a message is already unusual.
    pub idle: Duration,
    /// Silence after that question, or after a stream was asked for, that
    /// makes the stream dead.
    pub answer: Duration,
    /// The longest wait after a first failure; doubled by each further one.
    pub backoff_base: Duration,
    /// The longest wait of all.
    pub backoff_max: Duration,
    /// Age of a stream whose messages end the series of failures. Below it, a
    /// source that accepts a stream and breaks it would be asked in a loop.
    pub settled: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            backoff_base: Duration::from_millis(200),
            // A source that comes back is to be followed again soon; that many
            // gateways ask it at once is what the jitter is for.
            backoff_max: Duration::from_secs(10),
            settled: Duration::from_secs(10),
        }
    }
}

/// Follows `source` until the receiver of `events` is gone. A slow receiver
/// slows the stream down; it loses nothing and is not taken for a dead source.
///
/// A failure is logged when it is new, not each time that it is met again
/// before the source works again.
pub async fn run<S: Source, R: Rng>(source: S, timing: Timing, rng: R, events: Sender<Event>) {
    let mut watcher = Watcher { source, timing, rng, outage: Outage::default() };
    let mut state = State::Disconnected { cursor: None };
    let mut reported = None;
    loop {
        if let Some(now) = state.reported()
            && reported.replace(now) != Some(now)
            && events.send(Event::State(now)).await.is_err()
        {
            return;
        }
        let (happened, next) = tokio::select! {
            biased;
            () = events.closed() => return,
            stepped = watcher.step(state) => stepped,
        };
        for event in happened {
            if events.send(event).await.is_err() {
                return;
            }
        }
        state = next;
    }
}

/// Where the watcher is, and with it what the next step does.
enum State<W> {
    /// There is no connection. The next step connects; after that, everything
    /// is listed if there is no cursor, and the watch resumed if there is one.
    Disconnected { cursor: Option<Cursor> },
    /// Connected, with a part of the list read, or none yet. The next step
    /// reads the next page, at the revision of the first one.
    Listing { begun: Option<Listed> },
    /// Everything up to the cursor was delivered. The next step opens a watch
    /// from `cursor.revision + 1` and waits for it to be confirmed.
    Opening { cursor: Cursor },
    /// The watch is open. The next step waits for its next message, and asks
    /// for a sign of life if there is none for a while; `asked`: it did, and
    /// another silence means that the stream is dead.
    Watching { watch: W, cursor: Cursor, since: Instant, asked: bool },
    /// A step failed. The next one waits, and begins again at `Disconnected`.
    Failed { cursor: Option<Cursor>, delay: Duration },
}

impl<W> State<W> {
    /// What is said about the state; `None`: the same as before.
    fn reported(&self) -> Option<WatchState> {
        match self {
            Self::Disconnected { .. } => Some(WatchState::Connecting),
            Self::Listing { .. } => Some(WatchState::Listing),
            Self::Opening { .. } => None,
            Self::Watching { .. } => Some(WatchState::Watching),
            Self::Failed { .. } => Some(WatchState::Backoff),
        }
    }
}

/// Every change of this history up to this revision was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    cluster_id: u64,
    revision: i64,
}

/// The part of a list that was read.
struct Listed {
    at: Cursor,
    last_key: Vec<u8>,
}

/// Why a step failed.
#[derive(Debug, Error)]
enum Problem<E: Error + 'static> {
    #[error(transparent)]
    Source(E),
    #[error("the watch was canceled: {0}")]
    Canceled(String),
    #[error("revision {wanted} is compacted, up to {compact_revision}: listing everything again")]
    Compacted { wanted: i64, compact_revision: i64 },
    #[error(
        "the source was restored or wiped, or lags (revision {} of cluster {:x} after {} of {:x}): \
         listing everything again",
        found.revision, found.cluster_id, cursor.revision, cursor.cluster_id
    )]
    Restored { cursor: Cursor, found: Cursor },
    #[error("the watch is dead: no answer within {0:?}")]
    Dead(Duration),
}

struct Watcher<S, R> {
    source: S,
    timing: Timing,
    rng: R,
    outage: Outage,
}

impl<S: Source, R: Rng> Watcher<S, R> {
    /// Does what `state` says comes next.
    async fn step(&mut self, state: State<S::Watch>) -> (Vec<Event>, State<S::Watch>) {
        match state {
            State::Disconnected { cursor } => (vec![], self.connect(cursor).await),
            State::Listing { begun } => self.list(begun).await,
            State::Opening { cursor } => self.open(cursor).await,
            State::Watching { watch, cursor, since, asked } => {
                self.watch(watch, cursor, since, asked).await
            }
            State::Failed { cursor, delay } => {
                sleep(delay).await;
                (vec![], State::Disconnected { cursor })
            }
        }
    }

    async fn connect(&mut self, cursor: Option<Cursor>) -> State<S::Watch> {
        match (self.source.connect().await, cursor) {
            (Ok(()), None) => State::Listing { begun: None },
            (Ok(()), Some(cursor)) => State::Opening { cursor },
            (Err(error), cursor) => self.failed(cursor, Problem::Source(error)),
        }
    }

    async fn list(&mut self, begun: Option<Listed>) -> (Vec<Event>, State<S::Watch>) {
        let (request, at) = match begun {
            None => (PageRequest::default(), None),
            Some(Listed { at, last_key }) => {
                (PageRequest { revision: Some(at.revision), after: Some(last_key) }, Some(at))
            }
        };
        let page = match self.source.list(request).await {
            Ok(page) => page,
            Err(error) => return (vec![], self.failed(None, Problem::Source(error))),
        };
        let mut events = vec![];
        let at = at.unwrap_or_else(|| {
            events.push(Event::Init);
            Cursor { cluster_id: page.cluster_id, revision: page.revision }
        });
        if let Err(problem) = at.check(page.cluster_id, page.revision) {
            return (vec![], self.failed(None, problem));
        }
        let last_key = page.records.last().map(|record| record.key.clone());
        events.extend(
            page.records.into_iter().map(|Record { key, value, mod_revision }| Event::Put {
                key,
                value,
                mod_revision,
            }),
        );
        match last_key {
            Some(last_key) if page.more => {
                (events, State::Listing { begun: Some(Listed { at, last_key }) })
            }
            _ => {
                events.push(Event::InitDone { revision: at.revision });
                (events, State::Opening { cursor: at })
            }
        }
    }

    async fn open(&mut self, cursor: Cursor) -> (Vec<Event>, State<S::Watch>) {
        let opened = async {
            let mut watch = self.source.watch(cursor.revision + 1).await?;
            // The first message tells whether the stream was accepted.
            let first = watch.next().await?;
            Ok((watch, first))
        };
        match timeout(self.timing.answer, opened).await {
            Ok(Ok((watch, first))) => self.receive(watch, cursor, Instant::now(), first),
            Ok(Err(error)) => (vec![], self.failed(Some(cursor), Problem::Source(error))),
            Err(_) => (vec![], self.failed(Some(cursor), Problem::Dead(self.timing.answer))),
        }
    }

    /// Waits for the stream's next message. The wait begins when the last
    /// message was taken, so that a slow receiver is not the stream's silence.
    async fn watch(
        &mut self,
        mut watch: S::Watch,
        cursor: Cursor,
        since: Instant,
        asked: bool,
    ) -> (Vec<Event>, State<S::Watch>) {
        let patience = if asked { self.timing.answer } else { self.timing.idle };
        let problem = match timeout(patience, watch.next()).await {
            Ok(Ok(message)) => return self.receive(watch, cursor, since, message),
            Ok(Err(error)) => Problem::Source(error),
            Err(_) if asked => Problem::Dead(patience),
            Err(_) => match watch.request_progress().await {
                Ok(()) => return (vec![], State::Watching { watch, cursor, since, asked: true }),
                Err(error) => Problem::Source(error),
            },
        };
        (vec![], self.failed(Some(cursor), problem))
    }

    /// Takes a message of a stream that was opened at `since`.
    fn receive(
        &mut self,
        watch: S::Watch,
        cursor: Cursor,
        since: Instant,
        message: Message,
    ) -> (Vec<Event>, State<S::Watch>) {
        match cursor.advance(message, self.source.progress_is_exact()) {
            Ok((events, cursor)) => {
                if since.elapsed() >= self.timing.settled {
                    self.outage.end();
                }
                (events, State::Watching { watch, cursor, since, asked: false })
            }
            Err(problem) => (vec![], self.failed(Some(cursor), problem)),
        }
    }

    /// Backs off after `problem`; keeps the cursor, if it is still of use.
    fn failed(&mut self, cursor: Option<Cursor>, problem: Problem<S::Error>) -> State<S::Watch> {
        let cursor = match &problem {
            Problem::Compacted { .. } | Problem::Restored { .. } => None,
            Problem::Source(error) if S::history_is_lost(error) => None,
            Problem::Source(_) | Problem::Canceled(_) | Problem::Dead(_) => cursor,
        };
        let delay = self.outage.delay(&self.timing, &mut self.rng);
        self.outage.log(&problem, delay);
        State::Failed { cursor, delay }
    }
}

impl Cursor {
    /// Refuses an answer that does not belong to this history: revisions never
    /// go back, but where a source was restored from a backup or wiped.
    fn check<E: Error>(self, cluster_id: u64, revision: i64) -> Result<(), Problem<E>> {
        let found = Cursor { cluster_id, revision };
        if cluster_id != self.cluster_id || revision < self.revision {
            return Err(Problem::Restored { cursor: self, found });
        }
        Ok(())
    }

    /// What `message` says on a stream that has delivered everything up to
    /// this cursor, and the cursor after it. Nothing but what the stream itself
    /// delivered moves the cursor: a header's revision is the source's, not the
    /// stream's, and a change between the two would be lost by a resume.
    fn advance<E: Error>(
        self,
        message: Message,
        progress_is_exact: bool,
    ) -> Result<(Vec<Event>, Cursor), Problem<E>> {
        let Message { cluster_id, revision, compact_revision, canceled, created, changes } =
            message;
        if compact_revision != 0 {
            let wanted = self.revision + 1;
            return Err(Problem::Compacted { wanted, compact_revision });
        }
        if let Some(reason) = canceled {
            return Err(Problem::Canceled(reason));
        }
        self.check(cluster_id, revision)?;
        if changes.is_empty() {
            if created {
                return Ok((vec![], self));
            }
            let revision = if progress_is_exact { revision } else { self.revision };
            return Ok((vec![Event::Progress { revision }], Cursor { cluster_id, revision }));
        }
        let newest = changes.iter().map(|change| change.mod_revision).max();
        let events = changes
            .into_iter()
            // Some versions of etcd send a change twice, or older ones than
            // were asked for.
            .filter(|change| change.mod_revision > self.revision)
            .map(|Change { key, value, mod_revision }| match value {
                Some(value) => Event::Put { key, value, mod_revision },
                None => Event::Delete { key, mod_revision },
            })
            .collect();
        let revision = newest.map_or(self.revision, |newest| newest.max(self.revision));
        Ok((events, Cursor { cluster_id, revision }))
    }
}

/// A series of failures, up to the next stream that holds.
#[derive(Debug, Default)]
struct Outage {
    failures: u32,
    /// The failures that were logged.
    logged: BTreeSet<String>,
}

impl Outage {
    /// Bounds the memory of a long outage whose failures carry numbers. More
    /// than a few endpoints times the ways in which one can fail.
    const MAX_LOGGED: usize = 64;

    /// How long to wait after one more failure: exponential backoff with full
    /// jitter, so that gateways that lost a source together do not come back
    /// together. From 0 to `backoff_base` doubled for each failure before, at
    /// most `backoff_max`
    /// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
    fn delay(&mut self, timing: &Timing, rng: &mut impl Rng) -> Duration {
        let factor = 2_u32.checked_pow(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let longest = timing.backoff_base.saturating_mul(factor).min(timing.backoff_max);
        rng.random_range(Duration::ZERO..=longest)
    }

    fn log<E: Error + 'static>(&mut self, problem: &Problem<E>, delay: Duration) {
        let text = with_causes(problem);
        if self.logged.contains(&text) {
            tracing::debug!(?delay, "{text}");
            return;
        }
        tracing::warn!(?delay, "{text}");
        if self.logged.len() >= Self::MAX_LOGGED {
            self.logged.clear();
        }
        self.logged.insert(text);
    }

    fn end(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "the watch holds again");
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests;
