use super::*;
use crate::wire::checks::Follows;

const SECOND: Duration = Duration::from_secs(1);

/// Some gateways that see the same etcd, which is told by hand.
struct Fixture {
    sharers: Sharers,
    now: Instant,
    revision: i64,
}

/// One of them.
struct Gateway {
    sharing: Sharing,
    wanted: watch::Receiver<Notices>,
    tenancy: watch::Sender<Tenancy>,
}

const IDS: [&str; 16] = [
    "i10", "i11", "i12", "i13", "i14", "i15", "i16", "i17", "i18", "i19", "i20", "i21", "i22",
    "i23", "i24", "i25",
];

fn addr() -> SocketAddr {
    ([10, 0, 0, 1], 80).into()
}

fn instances() -> Vec<(Arc<str>, SocketAddr)> {
    IDS.map(|id| (Arc::from(id), addr())).into()
}

fn failing(ids: &[&str]) -> BTreeMap<String, Failing> {
    let failing = || Failing { addr: addr(), since_unix_ms: 7, reason: "refused".into() };
    ids.iter().map(|id| ((*id).to_owned(), failing())).collect()
}

/// What a gateway says that follows all of them.
fn followed() -> Option<Follows> {
    let config = config("gw-0", r#"{"tcp": true, "by": "one"}"#);
    let mut peers = Peers::new(&config.services["chat"].check);
    peers.follow(&instances(), Instant::now(), SECOND);
    Some(peers.here())
}

fn config(id: &str, check: &str) -> Config {
    let text =
        format!(r#"{{"gateway": {{"id": "{id}"}}, "services": {{"chat": {{"check": {check}}}}}}}"#);
    Config::parse(&text).unwrap()
}

impl Gateway {
    fn new(id: &str) -> Self {
        Self::with(&config(id, r#"{"tcp": true, "by": "one"}"#)).unwrap()
    }

    fn with(config: &Config) -> Option<Self> {
        let (sender, wanted) = watch::channel(Notices::default());
        let sought = Tenancy { standing: Standing::Sought, written: 0, failures: 0 };
        let (tenancy, receiver) = watch::channel(sought);
        let sharing = Sharing::new(config, sender, receiver)?;
        Some(Self { sharing, wanted, tenancy })
    }

    fn stand(&self, standing: Standing) {
        self.tenancy.send_modify(|tenancy| tenancy.standing = standing);
    }

    /// What it says was written, whoever has seen that.
    fn wrote(&self) {
        let version = self.wanted.borrow().version;
        self.tenancy.send_modify(|tenancy| tenancy.written = version);
    }

    /// What it wants to be in etcd, and how often anew.
    fn says(&self) -> (Option<Checks>, u64) {
        let wanted = self.wanted.borrow();
        let value = wanted.keys.values().next();
        (value.map(|it| crate::wire::checks::decode_checks(it).unwrap()), wanted.round)
    }
}

impl Fixture {
    fn new() -> Self {
        Self { sharers: Sharers::default(), now: Instant::now(), revision: 100 }
    }

    /// A gateway's key is written.
    fn put(&mut self, gateway: &str, checks: Checks) {
        self.revision += 1;
        if self.sharers.checks.insert(gateway.to_owned(), checks).is_none() {
            self.sharers.since = self.revision;
        }
    }

    /// It is gone.
    fn delete(&mut self, gateway: &str) {
        self.revision += 1;
        self.sharers.checks.remove(gateway);
        self.sharers.since = self.revision;
    }

    /// A gateway that has written its key, and holds it.
    fn join(&mut self, id: &str) -> Gateway {
        let mut gateway = Gateway::new(id);
        self.put(id, Checks { revision: self.revision, follows: followed(), ..Checks::default() });
        gateway.stand(Standing::Held { until: self.now + 3600 * SECOND });
        self.look(&mut gateway);
        assert_eq!(gateway.sharing.state(), State::Shared);
        gateway
    }

    fn look(&self, gateway: &mut Gateway) -> bool {
        gateway.sharing.look(true, self.revision, self.now)
    }

    fn divide(&self, gateway: &mut Gateway) -> BTreeMap<&'static str, Duty<'_>> {
        let duties = gateway.sharing.divide("chat", &self.sharers, instances(), self.now);
        let duties: HashMap<_, _> = duties.unwrap().into_iter().collect();
        IDS.into_iter().map(|id| (id, duties[id])).collect()
    }

    fn ours(&self, gateway: &mut Gateway) -> Vec<&'static str> {
        let is_ours = |(id, duty)| (duty == Duty::Ours).then_some(id);
        self.divide(gateway).into_iter().filter_map(is_ours).collect()
    }

    /// Who fails by another gateway's word, and of whom nothing was said yet.
    fn heard(&self, gateway: &mut Gateway) -> [Vec<&'static str>; 2] {
        let duties = self.divide(gateway);
        let of = |wanted: fn(Word<'_>) -> bool| {
            let is_it = |duty: &Duty<'_>| matches!(duty, Duty::Theirs(_, word) if wanted(*word));
            duties.iter().filter(|(_, duty)| is_it(duty)).map(|(id, _)| *id).collect()
        };
        [of(|word| matches!(word, Word::Fails(_))), of(|word| word == Word::None)]
    }

    fn tell(&self, gateway: &mut Gateway, ids: &[&str]) {
        gateway.sharing.tell("chat", &self.sharers, failing(ids), self.revision, self.now);
    }

    /// What it says now is written.
    fn write(&mut self, gateway: &Gateway) {
        let checks = gateway.says().0.unwrap();
        gateway.wrote();
        self.put(&gateway.sharing.me.clone(), checks);
    }
}

#[test]
fn each_instance_is_one_gateway_s_and_all_agree_whose() {
    let mut fixture = Fixture::new();
    let mut gateways = ["gw-1", "gw-2", "gw-3"].map(|id| fixture.join(id));
    let mut all: Vec<_> = gateways.iter_mut().flat_map(|it| fixture.ours(it)).collect();
    all.sort_unstable();
    assert_eq!(all, IDS);
    let [one, two, three] = &mut gateways;
    let before = fixture.ours(one);
    assert!(!before.is_empty() && before.len() < IDS.len());

    fixture.delete("gw-2");
    let (one_s, three_s) = (fixture.ours(one), fixture.ours(three));
    assert_eq!(one_s.len() + three_s.len(), IDS.len());
    assert!(before.iter().all(|id| one_s.contains(id)), "nobody else's moved");
    // Who is not seen by the others is alone.
    assert_eq!(fixture.ours(two), IDS);
}

#[test]
fn who_holds_no_key_or_hears_nothing_for_a_lease_s_time_checks_all() {
    let mut fixture = Fixture::new();
    let (_other, mut gateway) = (fixture.join("gw-2"), fixture.join("gw-1"));
    let few = fixture.ours(&mut gateway);
    assert!(few.len() < IDS.len());
    assert_eq!(gateway.sharing.ttl(), 6 * SECOND, "three intervals");

    // The watch is lost, and the lease renewed.
    assert!(!gateway.sharing.look(false, fixture.revision, fixture.now));
    fixture.now += 5 * SECOND;
    assert!(!gateway.sharing.look(false, fixture.revision, fixture.now));
    assert_eq!(fixture.ours(&mut gateway), few);
    fixture.now += 2 * SECOND;
    assert!(gateway.sharing.look(false, fixture.revision, fixture.now), "that is news");
    assert_eq!(
        (gateway.sharing.state(), fixture.ours(&mut gateway).len()),
        (State::Alone, IDS.len())
    );
    assert!(fixture.look(&mut gateway));
    assert_eq!(fixture.ours(&mut gateway), few);

    // The lease is not renewed, and the watch stands.
    gateway.stand(Standing::Held { until: fixture.now + SECOND });
    assert!(!fixture.look(&mut gateway));
    fixture.now += SECOND;
    assert!(fixture.look(&mut gateway));
    assert_eq!(fixture.ours(&mut gateway).len(), IDS.len());
    gateway.stand(Standing::Refused);
    assert!(fixture.look(&mut gateway));
    assert_eq!(
        (gateway.sharing.state(), fixture.ours(&mut gateway).len()),
        (State::Refused, IDS.len())
    );
}

#[test]
fn a_gateway_that_never_heard_of_etcd_checks_all() {
    let fixture = Fixture::new();
    let mut gateway = Gateway::new("gw-1");
    gateway.stand(Standing::Held { until: fixture.now + 3600 * SECOND });
    assert!(!gateway.sharing.look(false, 0, fixture.now));
    assert_eq!(fixture.ours(&mut gateway).len(), IDS.len());
}

#[test]
fn what_a_gateway_says_counts_for_its_own_instances_at_their_address() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.join("gw-1"), fixture.join("gw-2"));
    fixture.look(&mut one);
    let (ones, twos) = (fixture.ours(&mut one), fixture.ours(&mut two));
    // It names all, and is heard of its own.
    fixture.tell(&mut two, &IDS);
    fixture.write(&two);
    assert_eq!(fixture.heard(&mut one), [twos.clone(), vec![]]);
    assert_eq!(fixture.ours(&mut one), ones);

    let moved = vec![(Arc::from(twos[0]), SocketAddr::from(([10, 0, 0, 2], 80)))];
    let duties = one.sharing.divide("chat", &fixture.sharers, moved, fixture.now).unwrap();
    assert_eq!(duties[0].1, Duty::Theirs("gw-2", Word::Passes));
    let is_failing = |id| one.sharing.is_failing("chat", &fixture.sharers, id, addr());
    assert!(is_failing(twos[0]) && !is_failing(ones[0]));
}

#[test]
fn until_the_next_owner_has_spoken_what_was_known_stands_for_a_lease_s_time_at_most() {
    let mut fixture = Fixture::new();
    let mut gateways = ["gw-1", "gw-2", "gw-3"].map(|id| fixture.join(id));
    let [one, two, three] = &mut gateways;
    fixture.look(one);
    fixture.divide(one);
    let (twos, threes) = (fixture.ours(two), fixture.ours(three));
    fixture.tell(two, &twos);
    fixture.write(two);
    fixture.tell(three, &threes[..1]);
    fixture.write(three);
    fixture.now += 7 * SECOND;
    let expected: Vec<_> =
        IDS.into_iter().filter(|id| twos.contains(id) || threes[0] == *id).collect();
    assert_eq!(fixture.heard(one), [expected, vec![]]);

    fixture.delete("gw-2");
    let taken: Vec<_> = fixture.ours(three).into_iter().filter(|id| twos.contains(id)).collect();
    assert!(!taken.is_empty());
    assert_eq!(fixture.heard(one), [vec![threes[0]], taken.clone()]);
    // Written after that, and before its writer knew of it.
    let stale =
        Checks { revision: fixture.revision - 1, follows: followed(), failing: failing(&[]) };
    fixture.put("gw-3", stale);
    assert_eq!(fixture.heard(one), [vec![], taken.clone()]);
    fixture.tell(three, &taken[..1]);
    fixture.write(three);
    assert_eq!(fixture.heard(one), [vec![taken[0]], vec![]]);

    // One that never writes is waited for no longer than that.
    fixture.delete("gw-3");
    let four = fixture.join("gw-4");
    drop(four);
    let waits = fixture.heard(one)[1].len();
    assert!(waits > 0);
    fixture.now += 5 * SECOND;
    assert!(!fixture.look(one));
    assert_eq!(fixture.heard(one)[1].len(), waits);
    fixture.now += SECOND;
    assert!(fixture.look(one), "that is to be taken in");
    assert_eq!(fixture.heard(one), [vec![], Vec::<&str>::new()]);
    assert!(!fixture.look(one));
}

#[test]
fn after_an_outage_words_from_before_it_wait() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.join("gw-1"), fixture.join("gw-2"));
    let twos = fixture.ours(&mut two);
    fixture.tell(&mut two, &[]);
    fixture.write(&two);
    fixture.now += 10 * SECOND;
    one.sharing.look(false, fixture.revision, fixture.now);
    fixture.now += 10 * SECOND;
    assert!(one.sharing.look(false, fixture.revision, fixture.now));
    fixture.revision += 10;
    assert!(fixture.look(&mut one));
    assert_eq!(fixture.heard(&mut one), [vec![], twos.clone()]);
    fixture.tell(&mut two, &twos[..1]);
    fixture.write(&two);
    assert_eq!(fixture.heard(&mut one), [vec![twos[0]], vec![]]);
}

#[test]
fn after_a_restore_words_of_its_lower_revisions_count() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.join("gw-1"), fixture.join("gw-2"));
    let twos = fixture.ours(&mut two);
    fixture.revision = 5;
    fixture.sharers.since = 5;
    for gateway in [&mut one, &mut two] {
        assert!(!fixture.look(gateway), "it is shared as before");
    }
    fixture.tell(&mut two, &twos[..1]);
    fixture.write(&two);
    assert_eq!(fixture.heard(&mut one), [vec![twos[0]], vec![]]);
}

#[test]
fn news_is_told_once_and_again_to_who_comes_or_where_it_was_lost() {
    let mut fixture = Fixture::new();
    let mut one = fixture.join("gw-1");
    fixture.tell(&mut one, &[]);
    let nobody = one.says();
    assert_eq!(nobody.0.unwrap().failing, failing(&[]), "it is there, and that is news");
    fixture.write(&one);
    let mut two = fixture.join("gw-2");
    fixture.tell(&mut one, &[]);
    assert!(one.says().0.unwrap().revision < fixture.sharers.since, "nobody fails: not again");

    fixture.tell(&mut one, &["a"]);
    let told = one.says().0.unwrap();
    assert_eq!((told.revision, &told.failing), (fixture.revision, &failing(&["a"])));
    fixture.write(&one);
    fixture.revision += 10;
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().0.unwrap(), told);
    fixture.delete("gw-2");
    fixture.look(&mut two);
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().0.unwrap().revision, fixture.sharers.since);
    fixture.write(&one);

    // Somebody deletes it. What is under way is not lost yet.
    fixture.delete("gw-1");
    fixture.tell(&mut one, &["a"]);
    one.wrote();
    assert_eq!(one.says().1, 0);
    fixture.now += SECOND;
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().1, 0);
    fixture.now += SECOND;
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().1, 1);
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().1, 1);
}

#[test]
fn what_is_not_written_yet_is_not_lost() {
    let mut fixture = Fixture::new();
    let mut one = fixture.join("gw-1");
    fixture.tell(&mut one, &["a"]);
    let told = one.says();
    for _ in 0..10 {
        fixture.now += SECOND;
        fixture.tell(&mut one, &["a"]);
    }
    assert_eq!(one.says(), told);
    // Written, and not seen.
    one.wrote();
    fixture.now += SECOND;
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says(), told);
    fixture.now += SECOND;
    fixture.tell(&mut one, &["a"]);
    assert_eq!(one.says().1, 1);
}

#[test]
fn who_overwrites_a_gateway_s_key_again_and_again_has_its_name() {
    let mut fixture = Fixture::new();
    let mut one = fixture.join("gw-1");
    let overwrite = |fixture: &mut Fixture, one: &mut Gateway| {
        fixture.tell(one, &["a"]);
        fixture.write(one);
        fixture.tell(one, &["a"]);
        fixture.put("gw-1", Checks::default());
        fixture.now += 2 * SECOND;
        fixture.tell(one, &["a"]);
        one.sharing.is_contested
    };
    // Now and then, that may be a hand.
    for _ in 0..5 {
        assert!(!overwrite(&mut fixture, &mut one));
        fixture.now += 6 * SECOND;
    }
    let said = [(); 4].map(|()| overwrite(&mut fixture, &mut one));
    assert_eq!(said, [false, false, true, true]);
}

#[test]
fn what_is_followed_is_told_though_not_at_each_change() {
    let mut fixture = Fixture::new();
    let mut one = fixture.join("gw-1");
    fixture.ours(&mut one);
    fixture.tell(&mut one, &[]);
    fixture.write(&one);
    let told = one.says().0.unwrap();
    assert_eq!(told.follows, followed());
    let fewer = instances()[1..].to_vec();
    one.sharing.divide("chat", &fixture.sharers, fewer, fixture.now);
    fixture.now += SECOND;
    fixture.tell(&mut one, &[]);
    assert_eq!(one.says().0.unwrap(), told);
    fixture.now += SECOND;
    fixture.tell(&mut one, &[]);
    let (now_told, round) = one.says();
    assert_eq!(now_told.unwrap().follows.unwrap().count, told.follows.unwrap().count - 1);
    assert_eq!(round, 0, "nothing was lost");
}

#[test]
fn who_follows_others_is_believed_for_those_that_fail_alone_and_its_part_is_checked_here() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.join("gw-1"), fixture.join("gw-2"));
    fixture.look(&mut one);
    let (ones, twos) = (fixture.ours(&mut one), fixture.ours(&mut two));
    let (fails, silent) = (vec![twos[0]], twos[1..].to_vec());
    let other = followed().map(|it| Follows { digest: it.digest ^ 1, ..it });
    let say = |fixture: &mut Fixture, follows| {
        let revision = fixture.revision;
        fixture.put("gw-2", Checks { revision, follows, failing: failing(&twos[..1]) });
    };
    for follows in [other, None] {
        // A difference may be on its way to the one or the other.
        say(&mut fixture, follows);
        assert_eq!(fixture.heard(&mut one), [fails.clone(), silent.clone()]);
        fixture.now += 5 * SECOND;
        assert!(!fixture.look(&mut one));
        assert_eq!(fixture.heard(&mut one), [fails.clone(), silent.clone()]);
        fixture.now += SECOND;
        assert!(fixture.look(&mut one), "that is to be taken in");
        assert_eq!(fixture.heard(&mut one), [fails.clone(), vec![]]);
        assert_eq!(fixture.ours(&mut one).len(), ones.len() + silent.len());

        // It has learnt of them, and is given time to check them.
        say(&mut fixture, followed());
        assert_eq!(fixture.heard(&mut one), [vec![], twos.clone()]);
        fixture.now += 5 * SECOND;
        assert!(!fixture.look(&mut one));
        say(&mut fixture, followed());
        assert_eq!(fixture.heard(&mut one), [fails.clone(), vec![]]);
        assert_eq!(fixture.ours(&mut one), ones);
        fixture.now += SECOND;
        fixture.look(&mut one);
    }
}

#[test]
fn what_was_followed_here_within_a_lease_s_time_is_no_difference() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.join("gw-1"), fixture.join("gw-2"));
    fixture.look(&mut one);
    let twos = fixture.ours(&mut two);
    fixture.tell(&mut two, &[]);
    fixture.write(&two);
    assert_eq!(fixture.heard(&mut one), [vec![], Vec::<&str>::new()]);
    // One more is registered, of which the other one does not say that it knows.
    let sharers = fixture.sharers.clone();
    let divide = |fixture: &Fixture, one: &mut Gateway| {
        let more = instances().into_iter().chain([(Arc::from("new"), addr())]).collect();
        let duties = one.sharing.divide("chat", &sharers, more, fixture.now).unwrap();
        let silent = duties.into_iter().filter(|(id, _)| twos.contains(&&**id));
        let mut all: Vec<_> = silent.map(|(_, duty)| duty).collect();
        all.dedup();
        all
    };
    assert_eq!(divide(&fixture, &mut one), [Duty::Theirs("gw-2", Word::Passes)]);
    fixture.now += 6 * SECOND;
    assert!(fixture.look(&mut one));
    assert_eq!(divide(&fixture, &mut one), [Duty::Theirs("gw-2", Word::None)]);
    fixture.now += 6 * SECOND;
    assert!(fixture.look(&mut one));
    assert_eq!(divide(&fixture, &mut one), [Duty::Ours]);
}

#[test]
fn no_more_are_told_than_are_read() {
    let (fixture, mut one) = (Fixture::new(), Gateway::new("gw-1"));
    let failing: BTreeMap<_, _> =
        (0..MAX_FAILING + 3).map(|n| (format!("chat-{n}"), failing(&["a"])["a"].clone())).collect();
    one.sharing.tell("chat", &fixture.sharers, failing, 1, fixture.now);
    assert_eq!(one.says().0.unwrap().failing.len(), MAX_FAILING);
}

#[test]
fn a_lease_is_as_long_as_three_of_the_shortest_intervals_within_bounds() {
    let ttl = |interval: &str| {
        let check = format!(r#"{{"tcp": true, "by": "one", "interval": "{interval}"}}"#);
        Gateway::with(&config("gw-1", &check)).unwrap().sharing.ttl()
    };
    assert_eq!(["100ms", "4s", "1m"].map(ttl), [3 * SECOND, 12 * SECOND, 30 * SECOND]);
    assert!(Gateway::with(&config("gw-1", r#"{"tcp": true}"#)).is_none(), "by all");
    assert!(Gateway::with(&config("gw-1", "{}")).is_none());
}
