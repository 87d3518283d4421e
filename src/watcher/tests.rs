//! The watcher against scripted sources, with paused time.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use xxhash_rust::xxh64::xxh64;

use super::*;

const CLUSTER: u64 = 0xc1;

const WRONG_PASSWORD: &str = "wrong password";

#[derive(Debug, Error)]
#[error("{text}")]
struct TestError {
    text: &'static str,
    history_is_lost: bool,
}

fn error<T>(text: &'static str) -> Result<T, TestError> {
    Err(TestError { text, history_is_lost: false })
}

/// What a scripted source answers, in the order of the calls. After the last
/// answer every call waits for ever.
enum Answer {
    Connect(Result<(), TestError>),
    List(Result<Page, TestError>),
    Watch(Result<Vec<Say>, TestError>),
}

/// What a scripted stream does, one after the other. After the last it is
/// silent.
enum Say {
    Message(Message),
    After(Duration, Message),
    Break(TestError),
    /// Silent until it is asked for a sign of life.
    OnceAsked(Message),
}

#[derive(Debug, Clone, PartialEq)]
enum Call {
    Connect,
    List(PageRequest),
    Watch(i64),
    RequestProgress,
}

#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    calls: Arc<Mutex<Vec<(Duration, Call)>>>,
    /// What the source says of itself, in turn; then that it is at the last revision
    /// that there can be.
    heads: Arc<Mutex<VecDeque<Head>>>,
    /// Whether its files changed, until it connects.
    is_outdated: Arc<AtomicBool>,
    began: Instant,
    progress_is_exact: bool,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            calls: Arc::default(),
            heads: Arc::default(),
            is_outdated: Arc::default(),
            began: Instant::now(),
            progress_is_exact: true,
        }
    }

    fn with_head(self, cluster_id: u64, revision: i64) -> Self {
        self.heads.lock().unwrap().push_back(Head { cluster_id, revision });
        self
    }

    fn with_untrusted_progress(self) -> Self {
        Self { progress_is_exact: false, ..self }
    }

    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push((self.began.elapsed(), call));
    }

    async fn answer(&self, call: Call) -> Answer {
        self.record(call);
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer,
            None => pending().await,
        }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().iter().map(|(_, call)| call.clone()).collect()
    }

    fn watched_from(&self) -> Vec<i64> {
        let from = |call| if let Call::Watch(from) = call { Some(from) } else { None };
        self.calls().into_iter().filter_map(from).collect()
    }

    fn times_of(&self, wanted: &Call) -> Vec<Duration> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(_, call)| call == wanted).map(|(at, _)| *at).collect()
    }

    /// Everything the watcher says in the first `span` of paused time.
    async fn events_within(&self, span: Duration) -> Vec<Event> {
        self.events_asked(span, &Notify::new()).await
    }

    /// The same where somebody asks for audits.
    async fn events_asked(&self, span: Duration, asks: &Notify) -> Vec<Event> {
        let (sender, mut receiver) = mpsc::channel(16);
        let rng = SmallRng::seed_from_u64(7);
        let watcher = run_asked(self.clone(), Timing::default(), rng, sender, asks);
        let deadline = Instant::now() + span;
        let mut events = vec![];
        let collect = async {
            while let Ok(Some(event)) = timeout_at(deadline, receiver.recv()).await {
                events.push(event);
            }
        };
        tokio::select! {
            () = watcher => panic!("the watcher ended while it was listened to"),
            () = collect => {}
        }
        events
    }

    /// The same without the changes of state.
    async fn facts_within(&self, span: Duration) -> Vec<Event> {
        let mut events = self.events_within(span).await;
        events.retain(|event| !matches!(event, Event::State(_)));
        events
    }
}

impl Source for Script {
    type Error = TestError;
    type Watch = ScriptedWatch;

    async fn connect(&mut self) -> Result<(), TestError> {
        match self.answer(Call::Connect).await {
            Answer::Connect(answer) => {
                if answer.is_ok() {
                    self.is_outdated.store(false, Relaxed);
                }
                answer
            }
            _ => panic!("the watcher connects where the script does not: {:?}", self.calls()),
        }
    }

    async fn list(&mut self, page: PageRequest) -> Result<Page, TestError> {
        match self.answer(Call::List(page)).await {
            Answer::List(answer) => answer,
            _ => panic!("the watcher lists where the script does not: {:?}", self.calls()),
        }
    }

    async fn watch(&mut self, from_revision: i64) -> Result<ScriptedWatch, TestError> {
        match self.answer(Call::Watch(from_revision)).await {
            Answer::Watch(Ok(says)) => {
                let script = self.clone();
                Ok(ScriptedWatch { script, says: says.into(), since: Instant::now(), asked: false })
            }
            Answer::Watch(Err(error)) => Err(error),
            _ => panic!("the watcher watches where the script does not: {:?}", self.calls()),
        }
    }

    async fn newest(&mut self) -> Result<Head, TestError> {
        let head = self.heads.lock().unwrap().pop_front();
        Ok(head.unwrap_or(Head { cluster_id: CLUSTER, revision: i64::MAX }))
    }

    async fn is_outdated(&mut self) -> bool {
        self.is_outdated.load(Relaxed)
    }

    fn progress_is_exact(&self) -> bool {
        self.progress_is_exact
    }

    fn history_is_lost(error: &TestError) -> bool {
        error.history_is_lost
    }

    fn is_refusal(error: &TestError) -> bool {
        error.text == WRONG_PASSWORD
    }
}

struct ScriptedWatch {
    script: Script,
    says: VecDeque<Say>,
    /// When it said something the last time.
    since: Instant,
    asked: bool,
}

impl Watch for ScriptedWatch {
    type Error = TestError;

    async fn next(&mut self) -> Result<Message, TestError> {
        match self.says.front() {
            None => pending().await,
            Some(Say::OnceAsked(_)) if !self.asked => pending().await,
            Some(Say::After(wait, _)) => sleep_until(self.since + *wait).await,
            Some(_) => {}
        }
        self.since = Instant::now();
        match self.says.pop_front() {
            Some(Say::Message(message) | Say::After(_, message)) => Ok(message),
            Some(Say::OnceAsked(message)) => {
                self.asked = false;
                Ok(message)
            }
            Some(Say::Break(error)) => Err(error),
            None => unreachable!("looked at above"),
        }
    }

    async fn request_progress(&mut self) -> Result<(), TestError> {
        self.asked = true;
        self.script.record(Call::RequestProgress);
        Ok(())
    }
}

// ------------------------------------------------------------ script phrases

fn connects() -> Answer {
    Answer::Connect(Ok(()))
}

fn lists(revision: i64, keys: &[(&str, i64)]) -> Answer {
    Answer::List(Ok(page(revision, keys, false)))
}

fn page(revision: i64, keys: &[(&str, i64)], more: bool) -> Page {
    let record = |&(key, mod_revision): &(&str, i64)| Record {
        key: key.into(),
        value: b"v".to_vec(),
        mod_revision,
        mark: mark(key, mod_revision),
    };
    Page { cluster_id: CLUSTER, revision, records: keys.iter().map(record).collect(), more }
}

fn watches(says: impl IntoIterator<Item = Say>) -> Answer {
    Answer::Watch(Ok(says.into_iter().collect()))
}

fn header(revision: i64) -> Message {
    Message { cluster_id: CLUSTER, revision, ..Message::default() }
}

fn created(revision: i64) -> Message {
    Message { created: true, ..header(revision) }
}

fn puts(key: &str, revision: i64) -> Message {
    changes(revision, [change(key, Some("v"), revision)])
}

/// As a stream says it that resumes at what is past.
fn replays(key: &str, revision: i64) -> Message {
    Message { revision: 100, ..puts(key, revision) }
}

fn deletes(key: &str, revision: i64) -> Message {
    changes(revision, [change(key, None, revision)])
}

fn changes(revision: i64, changes: impl IntoIterator<Item = Change>) -> Message {
    Message { changes: changes.into_iter().collect(), ..header(revision) }
}

fn change(key: &str, value: Option<&str>, mod_revision: i64) -> Change {
    let mark = mark(key, mod_revision);
    Change { key: key.into(), value: value.map(Into::into), mod_revision, mark }
}

fn mark(key: &str, mod_revision: i64) -> u64 {
    xxh64(key.as_bytes(), mod_revision as u64)
}

fn breaks() -> Say {
    Say::Break(TestError { text: "connection reset", history_is_lost: false })
}

fn put(key: &str, mod_revision: i64) -> Event {
    Event::Put { key: key.into(), value: b"v".to_vec(), mod_revision }
}

fn delete(key: &str, mod_revision: i64) -> Event {
    Event::Delete { key: key.into(), mod_revision }
}

fn init_done(revision: i64) -> Event {
    Event::InitDone { revision }
}

fn progress(revision: i64) -> Event {
    Event::Progress { revision }
}

const SECOND: Duration = Duration::from_secs(1);

// ---------------------------------------------------------------------- laws

#[tokio::test(start_paused = true)]
async fn a_list_is_followed_by_a_watch_from_the_revision_after_it() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3), ("b", 9)]),
        // Written between the list and the watch.
        watches([Say::Message(created(11)), Say::Message(puts("c", 11))]),
    ]);
    let events = script.facts_within(SECOND).await;
    let wanted = [Event::Init, put("a", 3), put("b", 9), init_done(10), put("c", 11)];
    assert_eq!(events, wanted);
    assert_eq!(script.watched_from(), [11], "a write in the gap would be lost");
}

#[tokio::test(start_paused = true)]
async fn an_empty_source_is_a_complete_list_and_not_a_failure() {
    let script = Script::new([connects(), lists(1, &[]), watches([Say::Message(created(1))])]);
    assert_eq!(script.facts_within(SECOND).await, [Event::Init, init_done(1)]);
}

#[tokio::test(start_paused = true)]
async fn pages_are_read_at_the_revision_of_the_first_one() {
    let script = Script::new([
        connects(),
        Answer::List(Ok(page(10, &[("a", 3), ("b", 9)], true))),
        // The source has moved on; the pages have not.
        Answer::List(Ok(page(12, &[("c", 4)], true))),
        Answer::List(Ok(page(13, &[("d", 5)], false))),
        watches([Say::Message(created(13))]),
    ]);
    let events = script.facts_within(SECOND).await;
    let wanted = [Event::Init, put("a", 3), put("b", 9), put("c", 4), put("d", 5), init_done(10)];
    assert_eq!(events, wanted);
    let after = |key: &str| PageRequest { revision: Some(10), after: Some(key.into()) };
    let pages = [PageRequest::default(), after("b"), after("c")].map(Call::List);
    assert_eq!(script.calls()[1..4], pages);
    assert_eq!(script.watched_from(), [11]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_halfway_begins_anew_and_is_never_called_complete() {
    let script = Script::new([
        connects(),
        Answer::List(Ok(page(10, &[("a", 3)], true))),
        Answer::List(error("compacted between the pages")),
        connects(),
        lists(20, &[("b", 15)]),
        watches([Say::Message(created(20))]),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events, [Event::Init, put("a", 3), Event::Init, put("b", 15), init_done(20)]);
    assert_eq!(script.calls()[4], Call::List(PageRequest::default()), "from the first page again");
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_pages_are_of_two_clusters_begins_anew() {
    let foreign = Page { cluster_id: 0xbad, ..page(10, &[("z", 5)], false) };
    let script = Script::new([
        connects(),
        Answer::List(Ok(page(10, &[("a", 3)], true))),
        Answer::List(Ok(foreign)),
        connects(),
        lists(10, &[("z", 5)]),
        watches([Say::Message(created(10))]),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events, [Event::Init, put("a", 3), Event::Init, put("z", 5), init_done(10)]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_resumes_after_its_last_event_without_a_list() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches([Say::Message(created(10)), Say::Message(puts("b", 14)), breaks()]),
        Answer::Connect(error("connection refused")),
        connects(),
        watches([created(15), puts("b", 14), deletes("a", 15)].map(Say::Message)),
    ]);
    let events = script.facts_within(SECOND).await;
    let wanted = [Event::Init, put("a", 3), init_done(10), put("b", 14), delete("a", 15)];
    assert_eq!(events, wanted);
    assert_eq!(script.watched_from(), [11, 14], "with the last one, to know the history by");
}

#[tokio::test(start_paused = true)]
async fn each_change_of_state_is_told_once() {
    use WatchState::{Backoff, Connecting, Listing, Watching};
    let script = Script::new([
        Answer::Connect(error("connection refused")),
        connects(),
        Answer::List(Ok(page(10, &[("a", 3)], true))),
        lists(10, &[("b", 3)]),
        watches([Say::Message(created(10)), Say::Message(puts("b", 14)), breaks()]),
        connects(),
        watches([Say::Message(created(14)), Say::Message(puts("b", 14))]),
    ]);
    let events = script.events_within(SECOND).await;
    let states: Vec<_> = events
        .iter()
        .filter_map(|event| if let Event::State(state) = event { Some(*state) } else { None })
        .collect();
    let start = [Connecting, Backoff, Connecting, Listing, Watching];
    assert_eq!(states, [&start[..], &[Backoff, Connecting, Watching]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_compacted_cursor_is_dropped_and_everything_listed_again() {
    // As etcd sends it: canceled as well.
    let compacted = Message {
        compact_revision: 50,
        canceled: Some("required revision has been compacted".into()),
        ..header(60)
    };
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3), ("b", 4)]),
        watches([Say::Message(created(10)), breaks()]),
        connects(),
        watches([Say::Message(compacted)]),
        connects(),
        lists(60, &[("b", 4)]),
        watches([Say::Message(created(60))]),
    ]);
    let events = script.facts_within(SECOND).await;
    let first = [Event::Init, put("a", 3), put("b", 4), init_done(10)];
    let second = [Event::Init, put("b", 4), init_done(60)];
    assert_eq!(events, [&first[..], &second].concat());
    assert_eq!(script.watched_from(), [11, 4, 61], "50 is where history begins, not a cursor");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_lost_the_history_is_listed_again() {
    let lost = || Answer::Watch(Err(TestError { text: "too large", history_is_lost: true }));
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        lost(),
        connects(),
        lists(20, &[]),
        watches([Say::Message(created(20))]),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events, [Event::Init, put("a", 3), init_done(10), Event::Init, init_done(20)]);
    assert_eq!(script.watched_from(), [11, 21]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_canceled_when_it_is_created_was_never_open() {
    let refused = || {
        let canceled = Some("etcdserver: permission denied".to_owned());
        Say::Message(Message { canceled, ..created(10) })
    };
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches([refused()]),
        connects(),
        watches([refused(), Say::Message(puts("never", 11))]),
    ]);
    let events = script.events_within(SECOND).await;
    assert!(!events.contains(&Event::State(WatchState::Watching)), "{events:?}");
    assert!(!events.contains(&put("never", 11)), "{events:?}");
    assert_eq!(script.watched_from(), [11, 3], "being refused costs no cursor");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_canceled_later_resumes() {
    let canceled = Message { canceled: Some("etcdserver: no leader".into()), ..header(14) };
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([Say::Message(created(10)), Say::Message(puts("a", 14)), Say::Message(canceled)]),
        connects(),
        watches([Say::Message(created(14))]),
    ]);
    assert_eq!(script.facts_within(SECOND).await, [Event::Init, init_done(10), put("a", 14)]);
    assert_eq!(script.watched_from(), [11, 14]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_that_answers_is_kept() {
    let answers = (0..100).map(|_| Say::OnceAsked(header(10)));
    let says = [Say::Message(created(10))].into_iter().chain(answers);
    let script = Script::new([connects(), lists(10, &[]), watches(says)]);
    let events = script.facts_within(60 * SECOND).await;
    assert!(events[2..].iter().all(|event| *event == progress(10)), "{events:?}");
    let asked = script.times_of(&Call::RequestProgress);
    let every_5_s: Vec<_> = (1..=12).map(|n| n * 5 * SECOND).collect();
    assert_eq!(asked, every_5_s[..asked.len()]);
    assert!(asked.len() >= 11, "{asked:?}");
    assert_eq!(script.times_of(&Call::Connect).len(), 1, "an idle stream is not a dead one");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_answer_is_dead_after_5_s_and_5_s_and_resumes_elsewhere() {
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([Say::Message(created(10)), Say::After(3 * SECOND, puts("a", 12))]),
        connects(),
        watches([Say::Message(created(12)), Say::Message(puts("a", 12))]),
    ]);
    let events = script.facts_within(14 * SECOND).await;
    assert_eq!(events, [Event::Init, init_done(10), put("a", 12)]);
    assert_eq!(script.times_of(&Call::RequestProgress), [8 * SECOND]);
    let connects = script.times_of(&Call::Connect);
    assert_eq!(connects.len(), 2, "{connects:?}");
    assert!(connects[1] >= 13 * SECOND, "{connects:?}");
    assert!(connects[1] <= 13 * SECOND + Timing::default().backoff_base, "{connects:?}");
    assert_eq!(script.watched_from(), [11, 12]);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_an_answer_to_a_question_too() {
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([
            Say::Message(created(10)),
            Say::After(9 * SECOND, puts("a", 12)),
            Say::After(9 * SECOND, puts("b", 13)),
        ]),
    ]);
    let events = script.facts_within(20 * SECOND).await;
    assert_eq!(events[2..], [put("a", 12), put("b", 13)]);
    assert_eq!(script.times_of(&Call::RequestProgress), [5 * SECOND, 14 * SECOND]);
    assert_eq!(script.times_of(&Call::Connect).len(), 1, "the stream is alive");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_never_opens_is_dead() {
    let script = Script::new([connects(), lists(10, &[]), watches([]), connects()]);
    let events = script.events_within(6 * SECOND).await;
    assert!(!events.contains(&Event::State(WatchState::Watching)), "{events:?}");
    assert_eq!(script.times_of(&Call::Connect).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn silence_does_not_move_the_cursor() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        // The source is at 90 already: what is between was not delivered yet.
        watches([Say::Message(created(90))]),
        connects(),
        watches([created(95), replays("a", 3), replays("a", 50)].map(Say::Message)),
    ]);
    let events = script.facts_within(12 * SECOND).await;
    assert_eq!(script.watched_from(), [11, 3], "neither the header nor the wait moves it");
    assert_eq!(events.last(), Some(&put("a", 50)));
}

#[tokio::test(start_paused = true)]
async fn the_header_of_a_change_does_not_move_the_cursor() {
    let behind = Message { revision: 40, ..puts("a", 12) };
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([Say::Message(created(40)), Say::Message(behind), breaks()]),
        connects(),
        watches([Say::Message(created(40))]),
    ]);
    script.facts_within(SECOND).await;
    assert_eq!(script.watched_from(), [11, 12]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_newer_than_its_list_does_not_move_the_cursor() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3), ("z", 25)]),
        watches([Say::Message(created(10)), breaks()]),
        connects(),
        watches([replays("a", 3), puts("b", 12)].map(Say::Message)),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events[2..], [put("z", 25), init_done(10), put("b", 12)]);
    assert_eq!(script.watched_from(), [11, 3], "from 25 on, 12 would be lost");
}

#[tokio::test(start_paused = true)]
async fn there_is_no_revision_after_the_last_one() {
    let script = Script::new([
        connects(),
        lists(i64::MAX, &[("a", i64::MAX)]),
        watches([Say::Message(created(i64::MAX)), breaks()]),
        connects(),
        watches([Say::Message(Message { compact_revision: 5, ..header(i64::MAX) })]),
    ]);
    script.facts_within(SECOND).await;
    assert_eq!(script.watched_from(), [i64::MAX, i64::MAX]);
}

#[tokio::test(start_paused = true)]
async fn progress_moves_the_cursor_where_it_is_exact() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches([Say::Message(created(10)), Say::OnceAsked(header(77)), breaks()]),
        connects(),
        // Nothing changed between 3 and 77, so this is another history.
        watches([created(90), replays("a", 3), replays("b", 77)].map(Say::Message)),
        connects(),
        lists(90, &[("a", 3), ("b", 77)]),
        watches([Say::Message(created(90))]),
    ]);
    let events = script.facts_within(6 * SECOND).await;
    let first = [Event::Init, put("a", 3), init_done(10), progress(77)];
    let second = [Event::Init, put("a", 3), put("b", 77), init_done(90)];
    assert_eq!(events, [&first[..], &second].concat());
    assert_eq!(script.watched_from(), [11, 3, 91]);
}

#[tokio::test(start_paused = true)]
async fn progress_that_may_be_wrong_is_a_sign_of_life_and_nothing_else() {
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([
            Say::Message(created(10)),
            Say::OnceAsked(header(77)),
            // Overtaken by the progress message.
            Say::Message(Message { revision: 77, ..puts("a", 60) }),
            breaks(),
        ]),
        connects(),
        watches([Say::Message(created(77))]),
    ])
    .with_untrusted_progress();
    let events = script.facts_within(6 * SECOND).await;
    assert_eq!(events, [Event::Init, init_done(10), progress(10), put("a", 60)]);
    assert_eq!(script.watched_from(), [11, 60]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_delivered_is_not_delivered_again() {
    let again = [change("a", Some("v"), 12), change("b", Some("v"), 13), change("c", None, 13)];
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([
            Say::Message(created(10)),
            Say::Message(puts("a", 12)),
            Say::Message(changes(13, again)),
        ]),
    ]);
    let events = script.facts_within(SECOND).await;
    let wanted = [Event::Init, init_done(10), put("a", 12), put("b", 13), delete("c", 13)];
    assert_eq!(events, wanted, "once each, and all of one revision");
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_revisions_went_back_is_listed_again() {
    let script = Script::new([
        connects(),
        lists(500, &[("old", 400)]),
        watches([Say::Message(created(500)), breaks()]),
        connects(),
        connects(),
        lists(3, &[("new", 2)]),
        watches([Say::Message(created(3))]),
    ])
    .with_head(CLUSTER, 2);
    let events = script.facts_within(SECOND).await;
    let first = [Event::Init, put("old", 400), init_done(500)];
    let second = [Event::Init, put("new", 2), init_done(3)];
    assert_eq!(events, [&first[..], &second].concat());
    assert_eq!(script.watched_from(), [501, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_was_replaced_while_away_is_listed_again() {
    let script = Script::new([
        connects(),
        lists(10, &[("old", 4)]),
        watches([Say::Message(created(10)), breaks()]),
        connects(),
        connects(),
        lists(90, &[("new", 2)]),
        watches([Say::Message(created(90))]),
    ])
    .with_head(0xbad, 90);
    let events = script.facts_within(SECOND).await;
    let first = [Event::Init, put("old", 4), init_done(10)];
    assert_eq!(events, [&first[..], &[Event::Init, put("new", 2), init_done(90)]].concat());
    assert_eq!(script.watched_from(), [11, 91]);
}

/// After a list at 10 and the change of `a` at 12 the stream broke, and the next one
/// says this.
async fn resumed(says: impl IntoIterator<Item = Say>) -> (Script, Vec<Event>) {
    let script = Script::new([
        connects(),
        lists(10, &[("b", 9)]),
        watches([Say::Message(created(12)), Say::Message(puts("a", 12)), breaks()]),
        connects(),
        watches([Say::Message(created(90))].into_iter().chain(says)),
        connects(),
        lists(90, &[("c", 80)]),
        watches([Say::Message(created(90))]),
    ]);
    let events = script.events_within(8 * SECOND).await;
    assert_eq!(script.watched_from()[..2], [11, 12]);
    (script, events)
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_begin_with_what_was_delivered_last_is_of_another_history() {
    let other = Change { mark: 1, ..change("a", Some("v"), 12) };
    let stories: [(&str, Vec<Say>); 6] = [
        ("another write", vec![Say::Message(changes(90, [other]))]),
        ("another key", vec![Say::Message(puts("z", 12))]),
        ("a later one", vec![Say::Message(puts("z", 13))]),
        ("the same key later", vec![Say::Message(puts("a", 15))]),
        ("progress", vec![Say::Message(header(90))]),
        ("silence", vec![]),
    ];
    for (what, says) in stories {
        let says = says.into_iter().chain([Say::Message(puts("never", 91))]);
        let says: Vec<Say> = if what == "silence" { vec![] } else { says.collect() };
        let (script, events) = resumed(says).await;
        assert_eq!(script.watched_from(), [11, 12, 91], "{what}");
        assert!(!events.contains(&put("never", 91)), "{what}: {events:?}");
        let list = [Event::Init, put("c", 80), init_done(90)];
        assert!(events.windows(3).any(|events| *events == list), "{what}: {events:?}");
        let watching = events.iter().filter(|it| **it == Event::State(WatchState::Watching));
        assert_eq!(watching.count(), 2, "{what}: it is not watched before that is known");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_with_what_was_delivered_last_goes_on_and_does_not_repeat_it() {
    // With others of its revision, and with older ones before it.
    let again = [change("y", None, 12), change("a", Some("v"), 12), change("z", None, 13)];
    let says = [replays("b", 9), changes(90, again), puts("c", 14)].map(Say::Message);
    let (script, events) = resumed(says).await;
    assert_eq!(script.watched_from(), [11, 12]);
    let changes: Vec<_> = events.into_iter().skip_while(|it| *it != put("a", 12)).skip(1).collect();
    let changes = changes.into_iter().filter(|event| !matches!(event, Event::State(_)));
    assert_eq!(changes.take(2).collect::<Vec<_>>(), [delete("z", 13), put("c", 14)]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_lags_is_left_and_nothing_goes_back() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 9)]),
        watches([Say::Message(created(10)), breaks()]),
        connects(),
        watches([Say::Message(created(5)), Say::Message(puts("never", 11))]),
        connects(),
        watches([created(12), replays("a", 9), puts("b", 12)].map(Say::Message)),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events, [Event::Init, put("a", 9), init_done(10), put("b", 12)]);
    assert_eq!(script.watched_from(), [11, 9, 9]);
}

// -------------------------------------------------------------------- audits

/// Says something each 4 s, so that it is never asked.
fn lives(first: i64) -> impl Iterator<Item = Say> {
    let created = [Say::Message(created(first))];
    let signs = (1..5000).map(move |n| Say::After(4 * SECOND, puts("s", first + n)));
    created.into_iter().chain(signs)
}

fn lists_of(script: &Script) -> Vec<(Duration, PageRequest)> {
    let calls = script.calls.lock().unwrap();
    let list = |(at, call): &(Duration, Call)| match call {
        Call::List(page) => Some((*at, page.clone())),
        _ => None,
    };
    calls.iter().filter_map(list).collect()
}

#[tokio::test(start_paused = true)]
async fn an_audit_lists_what_was_delivered_every_5_to_10_minutes_and_tells_it_whole() {
    let audit = |more| Answer::List(Ok(page(i64::MAX, &[("a", 3)], more)));
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches(lives(10)),
        audit(true),
        audit(false),
    ]);
    let events = script.facts_within(660 * SECOND).await;
    let [_, (at, first), (_, second)] = &lists_of(&script)[..] else { panic!("not two pages") };
    assert!((300 * SECOND..=604 * SECOND).contains(at), "{at:?}");
    let revision = 10 + i64::try_from(at.as_secs() / 4).unwrap();
    assert_eq!(*first, PageRequest { revision: Some(revision), after: None });
    assert_eq!(*second, PageRequest { revision: Some(revision), after: Some("a".into()) });
    let begin = events.iter().position(|event| *event == Event::Audit).expect("an audit");
    let told = [Event::Audit, Event::Init, put("a", 3), put("a", 3), init_done(revision)];
    assert_eq!(events[begin..begin + 5], told);
    assert_eq!(events[begin - 1], put("s", revision));
    assert_eq!(events[begin + 5], put("s", revision + 1), "and the stream goes on");
    assert_eq!(script.times_of(&Call::Connect).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn gateways_that_started_together_do_not_audit_together() {
    let mut times = vec![];
    for seed in 0..200 {
        let rng = SmallRng::seed_from_u64(seed);
        let mut watcher = Watcher::new(Script::new([]), Timing::default(), rng);
        let now = Instant::now();
        watcher.put_off_audit();
        times.push((watcher.audit_at - now).as_secs());
    }
    times.sort();
    assert!(times[0] >= 300 && times[199] <= 600, "{times:?}");
    assert!(times[0] < 330 && times[100].abs_diff(450) < 40 && times[199] > 570, "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_fails_tells_nothing_and_costs_neither_stream_nor_change() {
    let halfway = [Answer::List(Ok(page(i64::MAX, &[("a", 3)], true))), Answer::List(error("no"))];
    let hangs = [];
    for answers in [Vec::from(halfway), Vec::from(hangs)] {
        let answers =
            [connects(), lists(10, &[("a", 3)]), watches(lives(10))].into_iter().chain(answers);
        let script = Script::new(answers);
        let events = script.facts_within(660 * SECOND).await;
        assert!(lists_of(&script).len() > 1, "there was one");
        assert_eq!(events[..3], [Event::Init, put("a", 3), init_done(10)]);
        let changes: Vec<_> = (11..11 + events.len() as i64 - 3).map(|n| put("s", n)).collect();
        assert_eq!(events[3..], changes);
        assert!(changes.len() > 160, "an audit that hangs is given up after 10 s");
        assert_eq!(script.times_of(&Call::Connect).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_audit_that_was_given_up_the_next_one_waits_twice_as_long() {
    let fails = || Answer::List(error("no"));
    let completes = Answer::List(Ok(page(i64::MAX, &[("a", 3)], false)));
    // The last one hangs.
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches(lives(10)),
        fails(),
        fails(),
        completes,
        fails(),
    ]);
    script.facts_within(7300 * SECOND).await;
    let times: Vec<_> = lists_of(&script).into_iter().map(|(at, _)| at).collect();
    // Between two signs of life nobody looks whether it is time.
    let expected = [(300, 604), (600, 1204), (1200, 2404), (300, 604), (600, 1204)];
    let waits = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs());
    for (wait, (least, most)) in waits.zip(expected) {
        assert!((least..=most).contains(&wait), "{times:?}");
    }
    assert!(times.len() > expected.len(), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn however_many_were_given_up_there_is_an_audit_each_half_hour_to_hour() {
    let mut watcher = Watcher::new(Script::new([]), Timing::default(), SmallRng::seed_from_u64(7));
    for given_up in [3, 4, 31, 32, u32::MAX] {
        watcher.audits_given_up = given_up;
        watcher.put_off_audit();
        let wait = watcher.audit_at - Instant::now();
        assert!((1800 * SECOND..=3600 * SECOND).contains(&wait), "{wait:?} after {given_up}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_audit_is_not_told_where_the_message_that_waits_breaks_the_stream() {
    let of_another = Message { cluster_id: 0xbad, ..puts("b", 11) };
    let canceled = Message { canceled: Some("no leader".into()), ..header(11) };
    let compacted = Message { compact_revision: 50, ..header(11) };
    let bad = [of_another, canceled, compacted, puts("b", 9)].map(|message| (message, false));
    for (message, is_good) in bad.into_iter().chain([(puts("b", 11), true)]) {
        let script = Script::new([lists(i64::MAX, &[("a", 3)])]);
        let says = [Say::Message(message.clone())].into();
        let since = Instant::now();
        let watch = ScriptedWatch { script: script.clone(), says, since, asked: false };
        let head = Head { cluster_id: CLUSTER, revision: 10 };
        let cursor = Cursor { head, witness: None };
        let watching = Watching { watch, cursor, since, asked: false, proof: Proof::default() };
        let mut watcher = Watcher::new(script, Timing::default(), SmallRng::seed_from_u64(7));
        let (events, state) = watcher.audit(watching).await;
        let told = [Event::Audit, Event::Init, put("a", 3), init_done(10), put("b", 11)];
        assert_eq!(events, if is_good { &told[..] } else { &[] }, "{message:?}");
        assert_eq!(matches!(state, State::Failed { .. }), !is_good, "{message:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_is_asked_for_is_made_at_once_or_when_there_is_a_stream() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches(lives(10)),
        lists(i64::MAX, &[("a", 3)]),
        lists(i64::MAX, &[("a", 3)]),
    ]);
    let asks = Notify::new();
    asks.notify_one(); // before there is anything
    let ask = async {
        sleep(Duration::from_millis(101_500)).await;
        asks.notify_one();
        pending::<()>().await;
    };
    let events = tokio::select! {
        events = script.events_asked(202 * SECOND, &asks) => events,
        () = ask => unreachable!(),
    };
    assert_eq!(events.iter().filter(|event| **event == Event::Audit).count(), 2);
    let times: Vec<_> = lists_of(&script).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [Duration::ZERO, Duration::ZERO, Duration::from_millis(101_500)]);
    let changes = events.iter().filter(|event| matches!(event, Event::Put { .. })).count();
    assert_eq!(changes, 3 + 50, "nothing of the stream is lost");
    assert_eq!(script.times_of(&Call::Connect).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_audit_of_what_the_source_forgot_is_a_list() {
    let forgotten = TestError { text: "compacted", history_is_lost: true };
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches(lives(10)),
        Answer::List(Err(forgotten)),
        lists(500, &[("a", 3)]),
        watches([Say::Message(created(500))]),
    ]);
    let events = script.facts_within(610 * SECOND).await;
    assert!(!events.contains(&Event::Audit), "what differs is not to be counted");
    let list = [Event::Init, put("a", 3), init_done(500)];
    assert!(events.windows(3).any(|events| *events == list), "{events:?}");
    assert_eq!(script.watched_from(), [11, 501]);
}

// ------------------------------------------------------------- changed files

#[tokio::test(start_paused = true)]
async fn files_that_change_are_used_at_once_and_the_stream_stays_until_they_are_good() {
    let script = Script::new([
        connects(),
        lists(10, &[("a", 3)]),
        watches(lives(10)),
        Answer::Connect(error("not a certificate")),
        connects(),
        watches([created(90), replays("s", 17), puts("t", 18)].map(Say::Message)),
    ]);
    script.is_outdated.store(true, Relaxed);
    // A connection is new when it is made.
    let files = Arc::clone(&script.is_outdated);
    let change = async {
        sleep(9 * SECOND).await;
        files.store(true, Relaxed);
        pending::<()>().await;
    };
    let events = tokio::select! {
        events = script.events_within(30 * SECOND) => events,
        () = change => unreachable!("it waits for ever"),
    };
    let connects = script.times_of(&Call::Connect);
    assert_eq!(connects.len(), 3, "{connects:?}");
    assert!(connects[1] <= 16 * SECOND, "{connects:?}");
    assert!(connects[2] - connects[1] >= 10 * SECOND, "{connects:?}");
    assert!(!events.contains(&Event::State(WatchState::Backoff)), "{events:?}");
    let changes = events.into_iter().filter(|it| matches!(it, Event::Put { .. }));
    let wanted = [put("a", 3)].into_iter().chain((11..=17).map(|n| put("s", n)));
    assert_eq!(changes.collect::<Vec<_>>(), wanted.chain([put("t", 18)]).collect::<Vec<_>>());
    assert_eq!(script.watched_from(), [11, 17]);
}

#[tokio::test(start_paused = true)]
async fn a_source_of_another_cluster_is_listed_again() {
    let foreign = Message { cluster_id: 0xbad, ..puts("never", 11) };
    let script = Script::new([
        connects(),
        lists(10, &[]),
        watches([Say::Message(created(10)), Say::Message(foreign)]),
        connects(),
        lists(90, &[]),
        watches([Say::Message(created(90))]),
    ]);
    let events = script.facts_within(SECOND).await;
    assert_eq!(events, [Event::Init, init_done(10), Event::Init, init_done(90)]);
    assert_eq!(script.watched_from(), [11, 91]);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_gone_ends_the_watcher_in_whatever_it_does() {
    let idle = || Script::new([connects(), lists(10, &[]), watches([Say::Message(created(10))])]);
    let unreachable =
        || Script::new((0..1000).map(|_| Answer::Connect(error("connection refused"))));
    for script in [idle(), unreachable(), Script::new([]), Script::new([connects()])] {
        let (sender, mut receiver) = mpsc::channel(1000);
        let rng = SmallRng::seed_from_u64(7);
        let watcher = tokio::spawn(run(script, Timing::default(), rng, sender));
        sleep(3 * SECOND).await;
        receiver.close();
        timeout(Duration::from_millis(1), watcher).await.expect("it ends").expect("in peace");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_loses_nothing_and_does_not_make_the_stream_dead() {
    let says = (11..=60).map(|revision| Say::Message(puts("a", revision)));
    let says = [Say::Message(created(60))].into_iter().chain(says);
    let script = Script::new([connects(), lists(10, &[]), watches(says)]);
    let (sender, mut receiver) = mpsc::channel(1);
    let rng = SmallRng::seed_from_u64(7);
    let watcher = tokio::spawn(run(script.clone(), Timing::default(), rng, sender));
    let mut seen = vec![];
    while seen.last() != Some(&60) {
        sleep(20 * SECOND).await;
        if let Some(Event::Put { mod_revision, .. }) = receiver.recv().await {
            seen.push(mod_revision);
        }
    }
    assert_eq!(seen, (11..=60).collect::<Vec<_>>());
    assert_eq!(script.times_of(&Call::Connect).len(), 1);
    watcher.abort();
}

// ------------------------------------------------------------------- backoff

#[test]
fn backoff_doubles_from_200_ms_to_10_s_with_full_jitter() {
    let timing = Timing::default();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut outages: Vec<Outage> = (0..2000).map(|_| Outage::default()).collect();
    for limit_ms in [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
        let limit = Duration::from_millis(limit_ms);
        let mut delays: Vec<_> =
            outages.iter_mut().map(|outage| outage.delay(&timing, &mut rng)).collect();
        delays.sort();
        assert!(delays[1999] <= limit, "{:?} is more than {limit:?}", delays[1999]);
        // Full jitter: all of it is used, from 0 on, evenly.
        assert!(delays[100] < limit / 10 && delays[1900] > limit / 10 * 9, "{limit:?}");
        let median = delays[1000].as_secs_f64() / limit.as_secs_f64();
        assert!((0.45..0.55).contains(&median), "the median is at {median} of {limit:?}");
    }
}

#[test]
fn backoff_stays_at_its_longest_however_long_the_outage() {
    let mut outage = Outage { failures: u32::MAX - 1, ..Outage::default() };
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..10 {
        assert!(outage.delay(&Timing::default(), &mut rng) <= Duration::from_secs(10));
    }
    assert_eq!(outage.failures, u32::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_does_not_loop_fast() {
    let script = Script::new((0..1000).map(|_| Answer::Connect(error(WRONG_PASSWORD))));
    script.events_within(600 * SECOND).await;
    let attempts = script.times_of(&Call::Connect).len();
    // From the first on, one in 5 to 10 s: each costs the source a password hash.
    assert!((65..95).contains(&attempts), "{attempts} attempts in 10 minutes");
    let pause = script.times_of(&Call::Connect)[1];
    assert!((5 * SECOND..=10 * SECOND).contains(&pause), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_opens_streams_and_breaks_them_is_asked_ever_more_slowly() {
    let flaps =
        (0..1000).flat_map(|_| [connects(), watches([Say::Message(created(10)), breaks()])]);
    let script = Script::new(
        [connects(), lists(10, &[("a", 3)]), Answer::Watch(error("no"))].into_iter().chain(flaps),
    );
    script.events_within(600 * SECOND).await;
    let attempts = script.times_of(&Call::Connect).len();
    assert!((80..180).contains(&attempts), "{attempts} attempts in 10 minutes");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_held_for_a_while_makes_the_next_failure_a_first_one() {
    let failures = (0..20).map(|_| Answer::Connect(error("connection refused")));
    let holds = watches([
        Say::Message(created(10)),
        Say::After(4 * SECOND, puts("a", 11)),
        Say::After(4 * SECOND, puts("a", 12)),
        Say::After(4 * SECOND, puts("a", 13)),
        breaks(),
    ]);
    let end = [connects(), lists(10, &[]), holds];
    let script = Script::new(failures.chain(end));
    script.events_within(1200 * SECOND).await;
    let connects = script.times_of(&Call::Connect);
    assert_eq!(connects.len(), 22, "{connects:?}");
    let pause = connects[21] - connects[20] - 12 * SECOND;
    assert!(pause <= Timing::default().backoff_base, "waited {pause:?}");
}

// ----------------------------------------------------------------------- log

/// What `act` logs as warnings, a line each.
fn warnings(act: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_failure_is_logged_when_it_is_new_and_not_when_it_is_met_again() {
    let fail = |outage: &mut Outage, text| {
        let problem = Problem::Source(TestError { text, history_is_lost: false });
        outage.delay(&Timing::default(), &mut SmallRng::seed_from_u64(1));
        outage.log(&problem, Duration::ZERO);
    };
    let logged = warnings(|| {
        let mut outage = Outage::default();
        // Two endpoints in turn, each with a failure of its own.
        for _ in 0..50 {
            fail(&mut outage, "a refuses");
            fail(&mut outage, "b hangs");
        }
        outage.end();
        fail(&mut outage, "a refuses");
    });
    assert_eq!(logged.len(), 3, "{logged:#?}");
    for (line, text) in logged.iter().zip(["a refuses", "b hangs", "a refuses"]) {
        assert!(line.contains(text), "{logged:#?}");
    }
}

// ------------------------------------------------------- any course of events

/// What can happen to a source.
#[derive(Debug, Clone)]
enum Act {
    Put(u8),
    Delete(u8),
    Break,
    Compact,
    Save,
    Restore,
    Wipe,
    Down(u8),
    Wait(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..6_u8).prop_map(Act::Put),
        3 => (0..6_u8).prop_map(Act::Delete),
        2 => Just(Act::Break),
        1 => Just(Act::Compact),
        1 => Just(Act::Wipe),
        1 => Just(Act::Save),
        1 => Just(Act::Restore),
        1 => (1..8_u8).prop_map(Act::Down),
        4 => (0..30_u8).prop_map(Act::Wait),
    ]
}

/// A small etcd: a history, what is left of it, and streams that can break.
#[derive(Clone, Default)]
struct Model(Arc<Mutex<ModelState>>);

#[derive(Default, Clone)]
struct ModelState {
    cluster_id: u64,
    revision: i64,
    compacted: i64,
    history: Vec<Change>,
    saved: Option<Box<ModelState>>,
    /// Those of all histories.
    writes: u64,
    /// Streams of earlier generations are broken.
    generation: u64,
    down: bool,
}

impl ModelState {
    fn change(&mut self, key: u8, value: Option<u8>) {
        self.revision += 1;
        let value = value.map(|value| vec![value]);
        let mark = xxh64(&[key], self.cluster_id ^ self.revision as u64 ^ self.writes << 32);
        self.writes += 1;
        self.history.push(Change { key: vec![key], value, mod_revision: self.revision, mark });
    }

    fn become_again(&mut self, other: &ModelState) {
        let ModelState { revision, compacted, ref history, .. } = *other;
        (self.revision, self.compacted) = (revision, compacted);
        self.history.clone_from(history);
        self.generation += 1;
    }

    fn at(&self, revision: i64) -> Keys {
        let mut keys = Keys::new();
        for Change { key, value, mod_revision, .. } in &self.history {
            if *mod_revision <= revision {
                match value {
                    Some(value) => keys.insert(key.clone(), (value.clone(), *mod_revision)),
                    None => keys.remove(key),
                };
            }
        }
        keys
    }
}

impl Source for Model {
    type Error = TestError;
    type Watch = ModelWatch;

    async fn connect(&mut self) -> Result<(), TestError> {
        if self.0.lock().unwrap().down { error("down") } else { Ok(()) }
    }

    async fn list(&mut self, page: PageRequest) -> Result<Page, TestError> {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let state = self.0.lock().unwrap();
        let revision = page.revision.unwrap_or(state.revision);
        if state.down {
            return error("down");
        }
        if !(state.compacted..=state.revision).contains(&revision) {
            return Err(TestError { text: "compacted, or not yet", history_is_lost: true });
        }
        let keys = state.at(revision);
        let of = |wanted: i64| {
            let of = |change: &&Change| change.mod_revision == wanted;
            state.history.iter().find(of).map_or(0, |change| change.mark)
        };
        let mut rest = keys.into_iter().filter(|(key, _)| page.after.as_ref() < Some(key));
        let records: Vec<_> = rest
            .by_ref()
            .take(2)
            .map(|(key, (value, mod_revision))| {
                let mark = of(mod_revision);
                Record { key, value, mod_revision, mark }
            })
            .collect();
        let more = rest.next().is_some();
        Ok(Page { cluster_id: state.cluster_id, revision: state.revision, records, more })
    }

    async fn watch(&mut self, from_revision: i64) -> Result<ModelWatch, TestError> {
        let generation = self.0.lock().unwrap().generation;
        Ok(ModelWatch { model: self.clone(), generation, next: from_revision, created: false })
    }

    async fn newest(&mut self) -> Result<Head, TestError> {
        let state = self.0.lock().unwrap();
        if state.down {
            return error("down");
        }
        Ok(Head { cluster_id: state.cluster_id, revision: state.revision })
    }

    fn progress_is_exact(&self) -> bool {
        true
    }

    fn history_is_lost(error: &TestError) -> bool {
        error.history_is_lost
    }

    fn is_refusal(_: &TestError) -> bool {
        false
    }
}

struct ModelWatch {
    model: Model,
    generation: u64,
    next: i64,
    created: bool,
}

impl Watch for ModelWatch {
    type Error = TestError;

    async fn next(&mut self) -> Result<Message, TestError> {
        loop {
            {
                let state = self.model.0.lock().unwrap();
                if state.down || state.generation != self.generation {
                    return error("broken");
                }
                let header = Message {
                    cluster_id: state.cluster_id,
                    revision: state.revision,
                    ..Message::default()
                };
                if !self.created {
                    self.created = true;
                    return Ok(Message { created: true, ..header });
                }
                if self.next < state.compacted {
                    return Ok(Message { compact_revision: state.compacted, ..header });
                }
                let missing = state.history.iter().find(|change| change.mod_revision >= self.next);
                if let Some(change) = missing {
                    self.next = change.mod_revision + 1;
                    return Ok(Message { changes: vec![change.clone()], ..header });
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn request_progress(&mut self) -> Result<(), TestError> {
        Ok(())
    }
}

/// By key: the value and when it was written.
type Keys = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

/// What the events amount to, by the contract of [`Event`].
#[derive(Default)]
struct Replica {
    keys: Keys,
    list: Option<Keys>,
    revision: i64,
    is_audit: bool,
}

impl Replica {
    fn apply(&mut self, event: Event) {
        match event {
            Event::State(_) | Event::Progress { .. } => {}
            Event::Audit => self.is_audit = true,
            Event::Init => self.list = Some(Keys::new()),
            Event::InitDone { revision } => {
                let list = self.list.take().expect("a list ends that began");
                if std::mem::take(&mut self.is_audit) {
                    assert_eq!(list, self.keys, "an audit finds nothing where nothing was lost");
                }
                self.keys = list;
                self.revision = revision;
            }
            Event::Put { key, value, mod_revision } => {
                let keys = match &mut self.list {
                    Some(list) => list,
                    None => {
                        assert!(mod_revision > self.revision, "changes come once and in order");
                        self.revision = mod_revision;
                        &mut self.keys
                    }
                };
                keys.insert(key, (value, mod_revision));
            }
            Event::Delete { key, mod_revision } => {
                assert!(self.list.is_none(), "a list deletes nothing");
                assert!(mod_revision > self.revision, "changes come once and in order");
                self.revision = mod_revision;
                self.keys.remove(&key);
            }
        }
    }
}

async fn replay(acts: Vec<Act>, seed: u64) {
    let model = Model::default();
    model.0.lock().unwrap().revision = 1;
    let (sender, mut receiver) = mpsc::channel(2);
    let rng = SmallRng::seed_from_u64(seed);
    // Audits between two and four seconds, so that any course of events has some.
    let timing = Timing { audit: 2 * SECOND, ..Timing::default() };
    let watcher = tokio::spawn(run(model.clone(), timing, rng, sender));
    let replica = Arc::new(Mutex::new(Replica::default()));
    let applied = Arc::clone(&replica);
    let reader = tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            applied.lock().unwrap().apply(event);
        }
    });
    let act_on = |act: &Act, step: usize| {
        let mut state = model.0.lock().unwrap();
        match *act {
            Act::Put(key) => state.change(key, Some(u8::try_from(step % 256).unwrap_or(0))),
            Act::Delete(key) => state.change(key, None),
            Act::Break => state.generation += 1,
            Act::Compact => state.compacted = state.revision,
            // An etcd's cluster id is made from its flags, and so stays as it was.
            Act::Wipe => state.become_again(&ModelState { revision: 1, ..ModelState::default() }),
            Act::Save => state.saved = Some(Box::new(state.clone())),
            Act::Restore => {
                if let Some(saved) = state.saved.clone() {
                    state.become_again(&saved);
                }
            }
            Act::Down(_) => state.down = true,
            Act::Wait(_) => {}
        }
    };
    for (step, act) in acts.iter().enumerate() {
        act_on(act, step);
        match act {
            Act::Down(seconds) => {
                sleep(Duration::from_secs(u64::from(*seconds))).await;
                model.0.lock().unwrap().down = false;
            }
            Act::Wait(centiseconds) => {
                sleep(Duration::from_millis(10 * u64::from(*centiseconds))).await;
            }
            _ => {}
        }
    }
    // Longer than the longest wait between two attempts.
    sleep(Duration::from_secs(100)).await;
    {
        let (state, replica) = (model.0.lock().unwrap(), replica.lock().unwrap());
        assert_eq!(replica.keys, state.at(state.revision), "the replica is what the source has");
    }
    watcher.abort();
    reader.await.expect("the reader found nothing wrong");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_events_amount_to_what_the_source_has(
        acts in prop::collection::vec(act(), 0..60),
        seed in any::<u64>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(replay(acts, seed));
    }
}
