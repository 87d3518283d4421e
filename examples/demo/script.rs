//! The play: what happens to the parts, and what is expected of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Ending;
use crate::failure::Failure;
use crate::gateway::Ranking;
use crate::probe::{self, Delays};
use crate::screen::Screen;
use crate::stage::{Knob, SERVICE, Stage};
use crate::summary::{Expectation, Summary};
use crate::table::{SHARE_TIME, Scene};
use crate::traffic::{self, Sample, Traffic};

/// What two cores carry easily, with everything on one machine.
const REQUESTS_PER_SECOND: f64 = 300.0;

/// How often the gateway is asked for its ranking.
const LOOK: Duration = Duration::from_millis(100);

/// How long an expectation has to hold without a break, so that chance alone does
/// not meet it.
const STEADY: Duration = Duration::from_millis(500);

/// How long an expectation may take: the gateway's longest pause before it tries
/// etcd again is 30 s.
const LIMIT: Duration = Duration::from_secs(35);

/// Requests that were under way when a ranking changed have ended by then.
const UNDER_WAY: Duration = Duration::from_millis(250);

/// Each phase's part of the time.
const TIMES: [f64; 7] = [0.175, 0.175, 0.125, 0.15, 0.125, 0.1, 0.15];

// The instances by index, as the stage sets them up.
const CHAT_1: usize = 0;
const CHAT_2: usize = 1;
const CHAT_3: usize = 2;
const CHAT_4: usize = 3;

/// Plays everything once and says how it was.
pub async fn play(
    stage: &mut Stage,
    screen: &mut Screen,
    length: Duration,
) -> Result<Ending, Failure> {
    let uri = stage.gateway.uri(&format!("/{SERVICE}/"));
    let traffic = Traffic::start(uri, REQUESTS_PER_SECOND, &stage.instances);
    let mut play = Play::new(stage, screen, &traffic, length);
    play.warm_up().await?;
    play.change_speeds().await?;
    play.fail_some_requests().await?;
    play.kill_an_instance().await?;
    play.bring_it_back().await?;
    play.kill_etcd().await?;
    play.bring_etcd_back().await?;

    let Play { phases, expectations, delays, .. } = play;
    traffic.stop().await;
    let record = &*traffic.record();
    let instances = stage.instances.iter().map(|instance| instance.id.clone()).collect();
    let summary = Summary { phases, expectations, delays, instances, record };
    screen.say(summary.to_text())?;
    Ok(if summary.is_as_expected() { Ending::AsExpected } else { Ending::Otherwise })
}

struct Play<'a> {
    stage: &'a mut Stage,
    screen: &'a mut Screen,
    traffic: &'a Traffic,
    began: Instant,
    length: Duration,
    /// What the phases are called; the last one is being played.
    phases: Vec<String>,
    phase_began: Instant,
    /// What is being done, in words.
    action: String,
    /// The service's ranking as of the last look.
    ranking: Ranking,
    expectations: Vec<Expectation>,
    delays: Option<Delays>,
}

impl Play<'_> {
    async fn warm_up(&mut self) -> Result<(), Failure> {
        self.begin("warm-up", "the exporter starts: the services' own reports make the ranking")?;
        self.stage.start_exporter().await?;
        self.expect("every instance is ranked by its own report", |play| {
            play.stage.instances.iter().all(|instance| play.reports(&instance.id))
        })
        .await?;
        let probe = probe::measure(self.stage.etcd.endpoint(), self.stage.gateway.clone());
        let expected =
            self.expect("chat-3, which takes 25 ms, serves less than each of 4 ms", |play| {
                [CHAT_1, CHAT_2, CHAT_4].map(|fast| play.served(fast) > play.served(CHAT_3))
                    == [true; 3]
            });
        let (delays, ()) = tokio::try_join!(probe, expected)?;
        self.delays = Some(delays);
        self.rest().await
    }

    async fn change_speeds(&mut self) -> Result<(), Failure> {
        let before = self.served(CHAT_1);
        self.begin("speeds change", "chat-1 slows down from 4 to 40 ms, chat-3 takes 4 ms now")?;
        self.stage.turn(CHAT_1, Knob::ms(40)).await?;
        self.stage.turn(CHAT_3, Knob::ms(4)).await?;
        self.expect("chat-1 serves less than half of what it did", |play| {
            play.served(CHAT_1) < before / 2.0
        })
        .await?;
        self.expect("chat-3 serves more than twice as much as chat-1", |play| {
            play.served(CHAT_3) > 2.0 * play.served(CHAT_1)
        })
        .await?;
        self.rest().await
    }

    async fn fail_some_requests(&mut self) -> Result<(), Failure> {
        let before = self.tried_first(CHAT_4);
        self.begin("503s", "chat-4 answers half of its requests with 503, and they move on")?;
        self.stage.turn(CHAT_4, Knob { fail_percent: 50, ..Knob::ms(4) }).await?;
        self.stage.turn(CHAT_1, Knob::ms(4)).await?;
        self.expect("chat-4 is tried first less than half as often", |play| {
            play.tried_first(CHAT_4) < before / 2.0
        })
        .await?;
        self.rest().await
    }

    async fn kill_an_instance(&mut self) -> Result<(), Failure> {
        self.begin(
            "chat-2 killed",
            "kill -9 of chat-2: its requests move on; chat-4 is well again",
        )?;
        self.stage.turn(CHAT_4, Knob::ms(4)).await?;
        self.stage.kill(CHAT_2);
        self.expect("chat-2 leaves the ranking", |play| play.ranking.of("chat-2").is_none())
            .await?;
        let out = Instant::now() + UNDER_WAY;
        self.rest().await?;
        let is_late = |sample: &&Sample| sample.due > out && sample.tried.contains(&CHAT_2);
        let late = self.traffic.record().of_phase(self.phase()).filter(is_late).count();
        self.conclude("nothing is sent to chat-2 after that", late == 0, format!("{late} requests"))
    }

    async fn bring_it_back(&mut self) -> Result<(), Failure> {
        self.begin("chat-2 returns", "chat-2 starts again")?;
        self.stage.restart(CHAT_2).await?;
        self.expect("chat-2 is ranked by its own report", |play| play.reports("chat-2")).await?;
        self.expect("chat-2 serves a tenth of the requests or more", |play| {
            play.served(CHAT_2) >= 0.1
        })
        .await?;
        self.rest().await
    }

    async fn kill_etcd(&mut self) -> Result<(), Failure> {
        self.begin("etcd killed", "kill -9 of etcd: nginx goes on by the last ranking")?;
        self.stage.etcd.kill();
        self.expect("the mode is stale", |play| play.ranking.mode == "stale").await?;
        self.rest().await?;
        let answered = {
            let record = self.traffic.record();
            traffic::share(record.of_phase(self.phase()), |sample| sample.is_ok)
        };
        let found = format!("{:.2}% were", answered * 100.0);
        self.conclude("every request without etcd is answered", answered == 1.0, found)
    }

    async fn bring_etcd_back(&mut self) -> Result<(), Failure> {
        let before = self.ranking.version;
        self.begin("etcd returns", "etcd starts again")?;
        self.stage.etcd.restart().await;
        self.expect("the mode is live", |play| play.ranking.mode == "live").await?;
        self.expect("the ranking follows new reports", |play| {
            let instances = &play.stage.instances;
            play.ranking.version > before
                && instances.iter().all(|instance| play.reports(&instance.id))
        })
        .await?;
        self.rest().await
    }

    /// Whether an instance is ranked by what it reported a moment ago.
    fn reports(&self, id: &str) -> bool {
        self.ranking.of(id).is_some_and(|place| place.state == "reporting")
    }

    /// The part of the last second's requests that an instance answered.
    fn served(&self, index: usize) -> f64 {
        self.share(|sample| sample.served_by() == Some(index))
    }

    /// The part of the last second's requests that nginx sent there first.
    fn tried_first(&self, index: usize) -> f64 {
        self.share(|sample| sample.tried.first() == Some(&index))
    }

    fn share(&self, is_one: impl Fn(&Sample) -> bool) -> f64 {
        traffic::share(self.traffic.record().of_last(SHARE_TIME), is_one)
    }
}

impl<'a> Play<'a> {
    fn new(
        stage: &'a mut Stage,
        screen: &'a mut Screen,
        traffic: &'a Traffic,
        length: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            stage,
            screen,
            traffic,
            began: now,
            length,
            phases: Vec::new(),
            phase_began: now,
            action: String::new(),
            ranking: Ranking::default(),
            expectations: Vec::new(),
            delays: None,
        }
    }

    /// Begins the next phase: `name` is for the summary, `action` says what is
    /// done.
    fn begin(&mut self, name: &str, action: &str) -> Result<(), Failure> {
        self.phases.push(name.to_owned());
        self.phase_began = Instant::now();
        self.action = format!("{}/{} {action}", self.phases.len(), TIMES.len());
        self.traffic.record().begin_phase(self.phase());
        let line = format!("\n{}", self.action);
        self.screen.say(line)
    }

    /// The number of the phase that is being played.
    fn phase(&self) -> usize {
        self.phases.len() - 1
    }

    /// Plays on until `holds`, and notes how long after the phase began that was.
    async fn expect(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let asked = Instant::now();
        let mut holds_since = None;
        while holds_since.is_none_or(|since: Instant| since.elapsed() < STEADY) {
            self.look().await?;
            if !holds(self) {
                holds_since = None;
                if asked.elapsed() > LIMIT {
                    return self.conclude(what, false, format!("not within {LIMIT:?}"));
                }
            } else if holds_since.is_none() {
                holds_since = Some(Instant::now());
            }
        }
        let after = holds_since.unwrap_or(asked) - self.phase_began;
        self.conclude(what, true, format!("after {:.1} s", after.as_secs_f64()))
    }

    fn conclude(&mut self, what: &str, held: bool, found: String) -> Result<(), Failure> {
        let expectation = Expectation { what: what.to_owned(), held, found };
        self.screen.say(format!("    {expectation}"))?;
        self.expectations.push(expectation);
        Ok(())
    }

    /// Plays on until the phase's time is over, and shows how it ended.
    async fn rest(&mut self) -> Result<(), Failure> {
        while self.phase_began.elapsed() < self.length.mul_f64(TIMES[self.phase()]) {
            self.look().await?;
        }
        if self.screen.is_up_to_date() { Ok(()) } else { self.show() }
    }

    /// Lets a moment pass and looks what it brought.
    async fn look(&mut self) -> Result<(), Failure> {
        sleep(LOOK).await;
        self.stage.check()?;
        self.traffic.check()?;
        self.ranking = self.stage.gateway.ranking(SERVICE).await?.unwrap_or_default();
        if self.screen.wants_table() { self.show() } else { Ok(()) }
    }

    fn show(&mut self) -> Result<(), Failure> {
        let scene = Scene {
            time: self.began.elapsed(),
            length: self.length,
            action: &self.action,
            instances: &self.stage.instances,
            ranking: &self.ranking,
            record: &self.traffic.record(),
        };
        self.screen.table(&scene.lines())
    }
}
