//! Follows the keys of a [`Source`] and tells each change as an [`Event`].
//!
//! A state machine over list and watch. A list reads everything at one
//! revision, page by page; a watch then tells what came after that revision.
//! A broken watch resumes after the last revision that it delivered, and only
//! when the source no longer knows what came after it, everything is listed
//! again. Nothing is ever taken to be gone because a source cannot be reached.
//!
//! Revisions alone do not tell one history from another: an etcd that was wiped
//! or restored has the cluster id that it had, and soon the revisions too. So a
//! watch that resumes asks for the last change that was delivered as well, and
//! goes on if that comes first and is the very same.
//!
//! Every few minutes an audit lists everything as it was at the cursor. By then
//! all that was delivered, so whatever differs was lost on the way.
//!
//! ```text
//!           +----------------------- Failed <---- any step that fails
//!           v
//! Disconnected --> Listing --> Opening --> Watching <--> Auditing
//!           |  (no cursor)        ^
//!           +---------------------+
//!                (cursor)
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use rand::{Rng, RngExt};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

use crate::error::with_causes;

mod cursor;
mod source;

use cursor::{Cursor, Proof};
pub use source::{Change, Head, Message, Page, PageRequest, Record, Source, Watch};

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
    /// The list that follows, whole, tells nothing new: it is of the revision up to
    /// which everything was delivered. What differs from it was lost on the way.
    Audit,
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
    /// The least time from a list to the audit of what followed it; at most twice
    /// as long, at random, so that gateways that started together do not list
    /// together. Doubled by each audit in a row that is given up, up to an hour at
    /// most.
    pub audit: Duration,
    /// For how long an audit may keep a stream waiting. One that takes longer is
    /// given up.
    pub audit_limit: Duration,
}

/// The longest wait for an audit, however many were given up before.
const LONGEST_AUDIT_WAIT: Duration = Duration::from_hours(1);

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
            audit: Duration::from_mins(5),
            audit_limit: Duration::from_secs(10),
        }
    }
}

/// Follows `source` until the receiver of `events` is gone. A slow receiver
/// slows the stream down; it loses nothing and is not taken for a dead source.
///
/// A failure is logged when it is new, not each time that it is met again
/// before the source works again.
pub async fn run<S: Source, R: Rng>(source: S, timing: Timing, rng: R, events: Sender<Event>) {
    run_asked(source, timing, rng, events, &Notify::new()).await;
}

/// As [`run`], and makes an audit each time that it is asked for one; at once, or when
/// the source is watched again.
pub async fn run_asked<S: Source, R: Rng>(
    source: S,
    timing: Timing,
    rng: R,
    events: Sender<Event>,
    asks: &Notify,
) {
    let mut watcher = Watcher::new(source, timing, rng);
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
            stepped = watcher.step(state, asks) => stepped,
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
    /// Everything up to the cursor was delivered. The next step opens a watch of
    /// what came after it and waits for that to be confirmed. If the cursor is of an
    /// earlier connection, the watch is `resumed`: it begins with the cursor's
    /// witness.
    Opening { cursor: Cursor, resumed: bool },
    /// The watch is open. The next step waits for its next message, and asks
    /// for a sign of life if there is none for a while.
    Watching(Watching<W>),
    /// The watch is open and its messages wait. The next step lists everything as
    /// it was at the cursor.
    Auditing(Watching<W>),
    /// A step failed. The next one waits, and begins again at `Disconnected`.
    Failed { cursor: Option<Cursor>, delay: Duration },
}

/// An open watch.
struct Watching<W> {
    watch: W,
    cursor: Cursor,
    since: Instant,
    /// Whether a sign of life was asked for: another silence means that the stream
    /// is dead.
    asked: bool,
    proof: Proof,
}

impl<W> State<W> {
    /// What is said about the state; `None`: the same as before.
    fn reported(&self) -> Option<WatchState> {
        match self {
            Self::Disconnected { .. } => Some(WatchState::Connecting),
            Self::Listing { .. } => Some(WatchState::Listing),
            Self::Opening { .. } | Self::Auditing(_) => None,
            // What is not proven may be another history.
            Self::Watching(Watching { proof, .. }) => {
                (!proof.is_due).then_some(WatchState::Watching)
            }
            Self::Failed { .. } => Some(WatchState::Backoff),
        }
    }
}

/// The part of a list that was read.
struct Listed {
    /// The list's one revision, and the newest of the records so far.
    cursor: Cursor,
    last_key: Option<Vec<u8>>,
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
        "the source was restored or wiped (revision {} of cluster {:x} after {} of {:x}): \
         listing everything again",
        found.revision, found.cluster_id, known.revision, known.cluster_id
    )]
    Restored { known: Head, found: Head },
    #[error(
        "the source was restored or wiped, or has forgotten (revision {0} is not what it was): \
         listing everything again"
    )]
    Foreign(i64),
    #[error("the endpoint lags behind the others: it is at revision {found} after {known}")]
    Behind { known: i64, found: i64 },
    #[error("the watch is dead: no answer within {0:?}")]
    Dead(Duration),
}

struct Watcher<S, R> {
    source: S,
    timing: Timing,
    rng: R,
    outage: Outage,
    /// When the next audit is due.
    audit_at: Instant,
    /// Audits that were given up since one came to its end.
    audits_given_up: u32,
    /// When to look next whether the connection is outdated.
    look_at: Instant,
}

impl<S: Source, R: Rng> Watcher<S, R> {
    fn new(source: S, timing: Timing, rng: R) -> Self {
        let now = Instant::now();
        let outage = Outage::default();
        Self { source, timing, rng, outage, audit_at: now, audits_given_up: 0, look_at: now }
    }

    /// Does what `state` says comes next.
    async fn step(
        &mut self,
        state: State<S::Watch>,
        asks: &Notify,
    ) -> (Vec<Event>, State<S::Watch>) {
        match state {
            State::Disconnected { cursor } => (vec![], self.connect(cursor).await),
            State::Listing { begun } => self.list(begun).await,
            State::Opening { cursor, resumed } => self.open(cursor, resumed).await,
            State::Watching(watching) => self.watch(watching, asks).await,
            State::Auditing(watching) => self.audit(watching).await,
            State::Failed { cursor, delay } => {
                sleep(delay).await;
                (vec![], State::Disconnected { cursor })
            }
        }
    }

    /// Connects, and asks whether what is behind it can be where the cursor is.
    async fn connect(&mut self, cursor: Option<Cursor>) -> State<S::Watch> {
        if let Err(error) = self.source.connect().await {
            return self.failed(cursor, Problem::Source(error));
        }
        // Nothing was there when it was last seen, so there is little to list.
        let Some(cursor) = cursor.filter(|cursor| cursor.witness.is_some()) else {
            return State::Listing { begun: None };
        };
        let found = match self.source.newest().await {
            Ok(found) => found,
            Err(error) => return self.failed(Some(cursor), Problem::Source(error)),
        };
        if !cursor.head.may_precede(found) {
            return self.failed(None, Problem::Restored { known: cursor.head, found });
        }
        State::Opening { cursor, resumed: true }
    }

    async fn list(&mut self, begun: Option<Listed>) -> (Vec<Event>, State<S::Watch>) {
        let mut events = vec![];
        if begun.is_none() {
            events.push(Event::Init);
        }
        match self.read_page(begun).await {
            Err(problem) => (vec![], self.failed(None, problem)),
            Ok((puts, listed, more)) => {
                events.extend(puts);
                if more {
                    return (events, State::Listing { begun: Some(listed) });
                }
                let cursor = listed.cursor;
                events.push(Event::InitDone { revision: cursor.head.revision });
                self.put_off_audit();
                (events, State::Opening { cursor, resumed: false })
            }
        }
    }

    /// Reads the next page of a list: its records, the list with it, and whether
    /// there are more.
    async fn read_page(
        &mut self,
        begun: Option<Listed>,
    ) -> Result<(impl Iterator<Item = Event> + use<S, R>, Listed, bool), Problem<S::Error>> {
        let request = begun.as_ref().map_or_else(PageRequest::default, |listed| PageRequest {
            revision: Some(listed.cursor.head.revision),
            after: listed.last_key.clone(),
        });
        let page = self.source.list(request).await.map_err(Problem::Source)?;
        let found = Head { cluster_id: page.cluster_id, revision: page.revision };
        let mut listed = begun
            .unwrap_or(Listed { cursor: Cursor { head: found, witness: None }, last_key: None });
        let known = listed.cursor.head;
        if !known.may_precede(found) {
            return Err(Problem::Restored { known, found });
        }
        // A record that is newer than its list cannot be: a watch that resumes there
        // would begin too late.
        let revision = listed.cursor.head.revision;
        for record in page.records.iter().filter(|it| it.mod_revision <= revision) {
            listed.cursor.see(&record.key, record.mod_revision, record.mark);
        }
        listed.last_key = page.records.last().map(|record| record.key.clone());
        let more = page.more && listed.last_key.is_some();
        let put = |Record { key, value, mod_revision, .. }| Event::Put { key, value, mod_revision };
        Ok((page.records.into_iter().map(put), listed, more))
    }

    async fn open(&mut self, cursor: Cursor, resumed: bool) -> (Vec<Event>, State<S::Watch>) {
        let from = if resumed { cursor.proven_at() } else { cursor.next() };
        let opened = async {
            let mut watch = self.source.watch(from).await?;
            // The first message tells whether the stream was accepted.
            let first = watch.next().await?;
            Ok((watch, first))
        };
        let problem = match timeout(self.timing.answer, opened).await {
            Ok(Ok((watch, first))) => {
                let since = Instant::now();
                let proof = if resumed { Proof::of(&cursor) } else { Proof::default() };
                let opened = Watching { watch, cursor, since, asked: false, proof };
                return self.receive(opened, first);
            }
            Ok(Err(error)) => Problem::Source(error),
            Err(_) => Problem::Dead(self.timing.answer),
        };
        (vec![], self.failed(Some(cursor), problem))
    }

    /// Waits for the stream's next message. The wait begins when the last
    /// message was taken, so that a slow receiver is not the stream's silence.
    async fn watch(
        &mut self,
        mut watching: Watching<S::Watch>,
        asks: &Notify,
    ) -> (Vec<Event>, State<S::Watch>) {
        let (now, is_proven) = (Instant::now(), !watching.proof.is_due);
        if is_proven && now >= self.look_at {
            self.look_at = now + self.timing.idle;
            if self.source.is_outdated().await {
                return (vec![], self.change_connection(watching).await);
            }
        }
        if is_proven && now >= self.audit_at {
            return (vec![], State::Auditing(watching));
        }
        let patience = match (is_proven, watching.asked) {
            // What begins in the past is sent at once.
            (false, _) => self.timing.answer.saturating_sub(watching.since.elapsed()),
            (true, true) => self.timing.answer,
            (true, false) => self.timing.idle,
        };
        let next = tokio::select! {
            biased;
            () = asks.notified(), if is_proven => {
                self.audit_at = Instant::now();
                return (vec![], State::Watching(watching));
            }
            next = timeout(patience, watching.watch.next()) => next,
        };
        let problem = match next {
            Ok(Ok(message)) => return self.receive(watching, message),
            Ok(Err(error)) => Problem::Source(error),
            Err(_) if !is_proven => Problem::Foreign(watching.cursor.proven_at()),
            Err(_) if watching.asked => Problem::Dead(patience),
            Err(_) => match watching.watch.request_progress().await {
                Ok(()) => {
                    watching.asked = true;
                    return (vec![], State::Watching(watching));
                }
                Err(error) => Problem::Source(error),
            },
        };
        (vec![], self.failed(Some(watching.cursor), problem))
    }

    /// Connects with the files of now, and resumes there. The open stream goes on
    /// if that fails: files that are wrong cost nothing before it breaks.
    async fn change_connection(&mut self, watching: Watching<S::Watch>) -> State<S::Watch> {
        let changed = timeout(self.timing.audit_limit, self.source.connect()).await;
        let problem = match changed {
            Ok(Ok(())) if watching.cursor.witness.is_some() => {
                tracing::info!("connected anew, with the files that were changed");
                return State::Opening { cursor: watching.cursor, resumed: true };
            }
            Ok(Ok(())) => return State::Listing { begun: None },
            Ok(Err(error)) => Problem::Source(error),
            Err(_) => Problem::Dead(self.timing.audit_limit),
        };
        self.look_at = Instant::now() + self.timing.backoff_max;
        self.outage.log(&problem, self.timing.backoff_max);
        State::Watching(watching)
    }

    /// Lists everything as it was at the cursor, while the stream's messages wait,
    /// and tells the list as a whole.
    async fn audit(&mut self, watching: Watching<S::Watch>) -> (Vec<Event>, State<S::Watch>) {
        self.put_off_audit();
        let (at, limit) = (watching.cursor.head, self.timing.audit_limit);
        let mut listed = Listed { cursor: watching.cursor.clone(), last_key: None };
        let mut events = vec![Event::Audit, Event::Init];
        let listing = async {
            loop {
                let (puts, now_listed, more) = self.read_page(Some(listed)).await?;
                events.extend(puts);
                listed = now_listed;
                if !more {
                    return Ok(());
                }
            }
        };
        let problem = match timeout(limit, listing).await {
            Ok(Ok(())) => {
                self.audits_given_up = 0;
                self.put_off_audit();
                events.push(Event::InitDone { revision: at.revision });
                return self.end_audit(watching, events).await;
            }
            // It is so long ago that something changed here that nobody remembers.
            Ok(Err(Problem::Source(error))) if S::history_is_lost(&error) => {
                return (vec![], State::Listing { begun: None });
            }
            Ok(Err(problem @ Problem::Restored { .. })) => {
                return (vec![], self.failed(None, problem));
            }
            Ok(Err(problem)) => problem,
            Err(_) => Problem::Dead(limit),
        };
        tracing::warn!("an audit was given up: {}", with_causes(&problem));
        self.audits_given_up = self.audits_given_up.saturating_add(1);
        self.put_off_audit();
        (vec![], State::Watching(watching))
    }

    /// Tells an audit, unless the stream broke meanwhile, or says that it is no longer
    /// the same: then the list may be of what was put in the place of the source.
    async fn end_audit(
        &mut self,
        mut watching: Watching<S::Watch>,
        mut events: Vec<Event>,
    ) -> (Vec<Event>, State<S::Watch>) {
        match timeout(Duration::ZERO, watching.watch.next()).await {
            Ok(Ok(message)) => {
                let (more, state) = self.receive(watching, message);
                if matches!(state, State::Failed { .. }) {
                    return (more, state);
                }
                events.extend(more);
                (events, state)
            }
            Ok(Err(error)) => (vec![], self.failed(Some(watching.cursor), Problem::Source(error))),
            Err(_) => (events, State::Watching(watching)),
        }
    }

    /// Each audit that is given up kept the stream waiting: after it the wait is twice
    /// as long.
    fn put_off_audit(&mut self) {
        let audit = self.timing.audit;
        let factor = 2_u32.checked_pow(self.audits_given_up).unwrap_or(u32::MAX);
        let least = audit.saturating_mul(factor).min(LONGEST_AUDIT_WAIT / 2).max(audit);
        let wait = self.rng.random_range(least..=2 * least);
        self.audit_at = Instant::now() + wait;
    }

    /// Takes a message of a stream.
    fn receive(
        &mut self,
        mut watching: Watching<S::Watch>,
        message: Message,
    ) -> (Vec<Event>, State<S::Watch>) {
        watching.asked = false;
        let Watching { cursor, proof, .. } = &mut watching;
        match cursor.advance(message, self.source.progress_is_exact(), proof) {
            Ok(events) => {
                if watching.since.elapsed() >= self.timing.settled {
                    self.outage.end();
                }
                (events, State::Watching(watching))
            }
            Err(problem) => (vec![], self.failed(Some(watching.cursor), problem)),
        }
    }

    /// Backs off after `problem`; keeps the cursor, if it is still of use.
    fn failed(&mut self, cursor: Option<Cursor>, problem: Problem<S::Error>) -> State<S::Watch> {
        let cursor = match &problem {
            Problem::Compacted { .. } | Problem::Restored { .. } | Problem::Foreign(_) => None,
            Problem::Source(error) if S::history_is_lost(error) => None,
            Problem::Source(_)
            | Problem::Canceled(_)
            | Problem::Behind { .. }
            | Problem::Dead(_) => cursor,
        };
        let mut delay = self.outage.delay(&self.timing, &mut self.rng);
        if let Problem::Source(error) = &problem
            && S::is_refusal(error)
        {
            let longest = self.timing.backoff_max;
            delay = self.rng.random_range(longest / 2..=longest);
        }
        self.outage.log(&problem, delay);
        State::Failed { cursor, delay }
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
