//! Listening to a stream of statuses: a task opens it, opens it again when it
//! broke, and keeps the last word; a tick reads that.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

use super::connection::{Connection, Way};
use super::{Answer, AskError, Manner, News};
use crate::model::Report;

/// How often in an interval a stream is read at most.
const READS_PER_INTERVAL: u32 = 10;

/// How many messages are taken at one reading. What a server sends faster than
/// it was asked to is passed over, up to this; the window of its connection has
/// room for thousands of the smallest.
const MAX_MESSAGES: usize = 1000;

/// A stream is asked anew when the next message is late by so many times the
/// time between two…
const MISSED_MESSAGES: u32 = 3;

/// … which, before there were two, is what gRPC's own servers keep to.
const FIRST_SPACING: Duration = Duration::from_secs(30);

/// A stream that speaks only when something changed is asked anew after so long:
/// a server that lives says at once how it is.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// A kind of stream: how it is opened, and what its messages say.
pub(super) trait Feed: Send + 'static {
    type Message: Send + 'static;

    /// For errors.
    const METHOD: &'static str;
    const SERVICE: &'static str;

    /// Whether messages come at a regular spacing, rather than with changes.
    const IS_REGULAR: bool = true;

    /// Asks for messages, one each `interval` if that can be had.
    fn open(
        channel: Channel,
        interval: Duration,
    ) -> impl Future<Output = Result<Streaming<Self::Message>, tonic::Status>> + Send;

    /// Takes in a message that came at `now`.
    fn hear(&mut self, message: Self::Message, now: Instant) -> Result<(), AskError>;

    /// The stream broke at `now`: what it said last does not go on.
    fn broke(&mut self, _now: Instant) {}

    /// What is known at `now`; `None` before the first message.
    fn tell(&mut self, now: Instant) -> Option<Report>;
}

/// A [`Stream`], of whatever kind.
pub(super) trait Listen: Send + Sync {
    /// Begins to listen, if that is still to be done.
    fn start(&self);

    /// What there is to tell now; begins to listen if need be.
    fn answer(&self) -> Answer;
}

/// What is listened to of one instance.
pub(super) struct Stream<F: Feed> {
    session: Arc<Session<F>>,
    task: OnceLock<AbortHandle>,
}

struct Session<F> {
    connection: Connection,
    manner: Arc<Manner>,
    heard: Mutex<Heard<F>>,
}

/// What the task found out.
struct Heard<F> {
    feed: F,
    /// Whether the stream of the last word stands.
    is_open: bool,
    /// Whether the last word is still to be told. It was true when it came, so
    /// that it is told once though its stream broke since.
    is_news: bool,
    /// The time between the last two words of one stream.
    spacing: Option<Duration>,
    /// Since the last word.
    failures_in_a_row: u32,
    error: Option<AskError>,
    /// Since the last answer.
    tries: u32,
    failures: u32,
}

/// The next message is too late. The stream is asked anew, and its last word
/// stands until it is known how that ended.
struct Silence;

impl<F: Feed> Stream<F> {
    /// Listens to nothing yet.
    pub fn new(feed: F, connection: &Connection, manner: &Arc<Manner>) -> Self {
        let session = Session {
            connection: connection.clone(),
            manner: Arc::clone(manner),
            heard: Mutex::new(Heard::new(feed)),
        };
        Self { session: Arc::new(session), task: OnceLock::new() }
    }
}

impl<F: Feed> Listen for Stream<F> {
    fn start(&self) {
        let session = || tokio::spawn(Arc::clone(&self.session).run()).abort_handle();
        self.task.get_or_init(session);
    }

    fn answer(&self) -> Answer {
        self.start();
        let Session { manner, heard, .. } = &*self.session;
        heard.lock().answer(Instant::now(), manner)
    }
}

impl<F: Feed> Drop for Stream<F> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

impl<F: Feed> Session<F> {
    /// Listens until it is aborted.
    async fn run(self: Arc<Self>) {
        loop {
            self.connection.turn_of(Way::Stream).await;
            let Err(err) = self.follow().await else { continue };
            if let AskError::Unimplemented { .. } = err {
                self.connection.refuse(Way::Stream);
            }
            let failures = self.heard.lock().fail(err, Instant::now());
            sleep(self.manner.schedule.backoff(failures, self.manner.chance())).await;
        }
    }

    /// Follows one stream until it breaks or falls silent.
    async fn follow(&self) -> Result<Silence, AskError> {
        let (interval, limit) = (self.manner.schedule.interval, self.manner.schedule.timeout);
        let failed = |status| AskError::from_call(F::METHOD, F::SERVICE, status);

        self.heard.lock().tries += 1;
        let opening = async {
            let mut stream = F::open(self.connection.channel(), interval).await?;
            let first = stream.message().await?;
            Ok((stream, first))
        };
        let opened = timeout(limit, opening).await;
        let late = |_| AskError::Timeout { method: F::METHOD, limit };
        let (mut stream, mut message) = opened.map_err(late)?.map_err(failed)?;
        let mut last = None;
        loop {
            let word = message.ok_or(AskError::Ended { method: F::METHOD })?;
            let now = Instant::now();
            let spacing = last.map(|last| now - last);
            last = Some(now);
            let patience = self.heard.lock().hear(word, spacing, now, interval)?;
            // What comes meanwhile waits in the connection's window, and beyond
            // that at the server.
            sleep(interval / READS_PER_INTERVAL).await;
            message = match timeout(patience, stream.message()).await {
                Ok(next) => newest::<F>(&mut stream, next.map_err(failed)?).await?,
                Err(_) => return Ok(Silence),
            };
        }
    }
}

impl<F: Feed> Heard<F> {
    fn new(feed: F) -> Self {
        Self {
            feed,
            is_open: false,
            is_news: false,
            spacing: None,
            failures_in_a_row: 0,
            error: None,
            tries: 0,
            failures: 0,
        }
    }

    /// Takes in a word; returns how long the next one is waited for.
    fn hear(
        &mut self,
        word: F::Message,
        spacing: Option<Duration>,
        now: Instant,
        interval: Duration,
    ) -> Result<Duration, AskError> {
        self.feed.hear(word, now)?;
        self.is_open = true;
        self.is_news = true;
        self.failures_in_a_row = 0;
        self.spacing = spacing.or(self.spacing);
        Ok(match F::IS_REGULAR {
            true => self.spacing.unwrap_or(FIRST_SPACING).max(interval) * MISSED_MESSAGES,
            false => SIGN_OF_LIFE.max(interval),
        })
    }

    /// Returns how many failures in a row there were.
    fn fail(&mut self, err: AskError, now: Instant) -> u32 {
        if std::mem::take(&mut self.is_open) {
            self.feed.broke(now);
        }
        self.error = Some(err);
        self.failures += 1;
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.failures_in_a_row
    }

    fn answer(&mut self, now: Instant, manner: &Manner) -> Answer {
        let is_known = std::mem::take(&mut self.is_news) || self.is_open;
        let result = match (self.feed.tell(now), &self.error) {
            (Some(report), _) if is_known => {
                let spacing = self.spacing.unwrap_or(FIRST_SPACING).max(manner.schedule.interval);
                let interval = if F::IS_REGULAR { spacing } else { Duration::ZERO };
                Ok(Some(News { report, interval }))
            }
            (_, Some(err)) if self.failures_in_a_row > manner.schedule.retries => Err(err.clone()),
            _ => Ok(None),
        };
        let (tries, failures) =
            (std::mem::take(&mut self.tries), std::mem::take(&mut self.failures));
        Answer { at: now, tries, failures, result }
    }
}

/// The newest of `message` and what is there already; the others are passed
/// over, since each tells all there is to know.
async fn newest<F: Feed>(
    stream: &mut Streaming<F::Message>,
    message: Option<F::Message>,
) -> Result<Option<F::Message>, AskError> {
    let mut newest = message;
    for _ in 0..MAX_MESSAGES {
        let next = tokio::select! {
            biased;
            next = stream.message() => next,
            () = std::future::ready(()) => return Ok(newest),
        };
        match next.map_err(|status| AskError::from_call(F::METHOD, F::SERVICE, status))? {
            Some(message) => newest = Some(message),
            None => return Ok(newest),
        }
    }
    Err(AskError::Flood { method: F::METHOD, allowed: MAX_MESSAGES })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says nothing but that it said something.
    #[derive(Default)]
    struct Word(Option<()>);

    impl Feed for Word {
        type Message = ();
        const METHOD: &'static str = "Speak";
        const SERVICE: &'static str = "Speaker";

        async fn open(_: Channel, _: Duration) -> Result<Streaming<()>, tonic::Status> {
            Err(tonic::Status::unavailable("nobody"))
        }

        fn hear(&mut self, (): (), _now: Instant) -> Result<(), AskError> {
            self.0 = Some(());
            Ok(())
        }

        fn tell(&mut self, _now: Instant) -> Option<Report> {
            self.0.map(|()| Report::Serving)
        }
    }

    const INTERVAL: Duration = Duration::from_secs(1);

    fn heard() -> (Heard<Word>, Manner) {
        let manner = Manner::new(&crate::config::Config::default()).unwrap();
        (Heard::new(Word::default()), manner)
    }

    fn ended() -> AskError {
        AskError::Ended { method: "Speak" }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_open_is_given_up_after_its_retries() {
        let (mut heard, manner) = heard();
        let now = Instant::now();
        for _ in 0..=manner.schedule.retries {
            let answer = heard.answer(now, &manner);
            assert!(matches!(answer.result, Ok(None)), "{answer:?}");
            heard.fail(ended(), now);
        }
        for _ in 0..2 {
            let answer = heard.answer(now, &manner);
            assert!(matches!(answer.result, Err(AskError::Ended { .. })), "{answer:?}");
        }
        heard.hear((), None, now, INTERVAL).unwrap();
        assert!(matches!(heard.answer(now, &manner).result, Ok(Some(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_broken_stream_is_told_once() {
        let (mut heard, manner) = heard();
        let now = Instant::now();
        heard.hear((), None, now, INTERVAL).unwrap();
        for _ in 0..3 {
            assert!(matches!(heard.answer(now, &manner).result, Ok(Some(_))), "while it stands");
        }
        heard.hear((), None, now, INTERVAL).unwrap();
        heard.fail(ended(), now);
        assert!(matches!(heard.answer(now, &manner).result, Ok(Some(_))), "once");
        assert!(matches!(heard.answer(now, &manner).result, Ok(None)), "and not twice");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_word_is_waited_for_by_the_spacing_of_the_last_two() {
        let (mut heard, manner) = heard();
        let now = Instant::now();
        let spacing = Duration::from_secs(20);
        let patience = |spacing, heard: &mut Heard<Word>| {
            heard.hear((), spacing, now, INTERVAL).unwrap().as_secs()
        };
        assert_eq!(patience(None, &mut heard), 90);
        assert_eq!(patience(Some(spacing), &mut heard), 60);
        assert_eq!(patience(None, &mut heard), 60, "the first word of the next stream");
        let told = heard.answer(now, &manner).result.unwrap().unwrap();
        assert_eq!(told.interval, spacing);
        assert_eq!(patience(Some(spacing / 1000), &mut heard), 3);
        let told = heard.answer(now, &manner).result.unwrap().unwrap();
        assert_eq!(told.interval, INTERVAL, "faster than asked is as asked");
    }
}
