//! Rankings into the shared dict: who writes, in which order, and when not.
//!
//! What did not change is not stored. Nothing is stored once a newer writer has begun.

use std::collections::HashMap;
use std::net::SocketAddr;

use thiserror::Error;

mod left;
pub(crate) mod store;

pub use store::{PublishError, Store, StoreError};
use store::{Values, set};

use crate::board::{self, Board, NO_SLOT, ServiceId, Vouched};
use crate::govern::{CourseLeft, Governed, Share};
use crate::model::Instance;
use crate::ranking::{Entry, Observed, Ranking};
use crate::value::{ControlValue, InstanceValue, RankingValue, Record, ServiceValue, ValueError};

/// How long the board keeps the counters of an instance that is gone, so that
/// one that comes back goes on from them and late log phases still count.
const SLOT_REST_MS: u64 = 60_000;

/// The key of the plugin's own state.
pub const STATUS_KEY: &str = "status";

/// More instances than the board has slots for.
#[derive(Debug, Error)]
#[error(
    "no room to count {uncounted} of the {of} instances of service {service}: the board has \
     {max} slots for all services of this host; those instances are served without in-flight, \
     latency and failures until there is room: serve fewer services here (`services`, \
     `discover`), or remove instances that are gone",
    max = board::MAX_SLOTS
)]
struct NoSlots<'a> {
    service: &'a str,
    uncounted: usize,
    of: usize,
}

/// Publishes rankings for one writer's epoch.
pub struct Publisher<S> {
    store: S,
    board: Board,
    epoch: u64,
    services: HashMap<String, Published>,
    slots: Slots,
}

/// What the shared dict holds of a service.
struct Published {
    id: ServiceId,
    /// Of the version that follows.
    value: ServiceValue,
    instances_version: u64,
    /// `None`: unknown, store whatever comes.
    records: Option<Vec<Record>>,
    /// Instances of it that the board has no slots for.
    uncounted: usize,
}

impl<S: Store> Publisher<S> {
    /// Begins a new epoch on the board: older writers store nothing any more.
    pub fn new(store: S, board: Board) -> Self {
        let epoch = board.begin_epoch();
        let slots = Slots::adopt(board, epoch, board::monotonic_ms());
        Publisher { store, board, epoch, services: HashMap::new(), slots }
    }

    /// Publishes a service's ranking if it differs from what is published.
    ///
    /// # Errors
    /// After an error the old ranking stays in force, and the next call stores
    /// everything again.
    pub fn publish(
        &mut self,
        service: &str,
        governed: &Governed<'_>,
        revision: i64,
        now_ms: u64,
    ) -> Result<(), PublishError> {
        let published = match self.services.get_mut(service) {
            Some(published) => published,
            None => {
                let id = self
                    .board
                    .service(service)
                    .ok_or_else(|| PublishError::TooManyServices(service.to_owned()))?;
                self.services.entry(service.to_owned()).or_insert(Published {
                    id,
                    value: ServiceValue::default(),
                    instances_version: 0,
                    records: None,
                    uncounted: 0,
                })
            }
        };
        let id = published.id;
        let acquire = |identity, entry: &Entry| {
            let slot = self.slots.acquire(identity, id, now_ms);
            // What is not known here is on the board already.
            if entry.reported_ms > 0 {
                self.board.set_reported(slot, entry.reported_ms);
            }
            slot
        };
        let (value, records) = values_of(service, governed, acquire);
        let known = published.records.is_some() && !self.board.is_damaged(published.id);
        let same_instances = known && published.value == value;
        if same_instances && published.records.as_ref() == Some(&records) {
            return Ok(());
        }

        let version = self.board.version(published.id) + 1;
        let instances_version = if same_instances { published.instances_version } else { version };
        let body = (!same_instances).then(|| value.encode());
        let ranking = governed.ranking;
        let ranking = RankingValue {
            instances_version,
            published_ms: now_ms,
            revision,
            own_part: ranking.own_part,
            rate_per_s: ranking.rate_per_s,
            basis: ranking.basis,
            records,
        };
        let ranking_body = ranking.encode();
        let values = Values {
            service,
            version,
            instances_version,
            instances: body.as_deref(),
            ranking: &ranking_body,
        };
        let stored = values.store(&self.store, self.board, self.epoch, published.id);
        match stored {
            None => Err(PublishError::Superseded),
            Some(Err(error)) => {
                published.records = None;
                // Who has counters from now on and is not published may never be.
                let (old, new) = (&value.instances, &published.value.instances);
                self.slots.retire_missing(service, old, new, now_ms);
                self.board.count_publish_error();
                Err(error)
            }
            Some(Ok(())) => {
                if !same_instances {
                    let (old, new) = (&published.value.instances, &value.instances);
                    self.slots.retire_missing(service, old, new, now_ms);
                    published.value = value;
                    published.instances_version = version;
                }
                published.records = Some(ranking.records);
                if !same_instances {
                    self.show_uncounted(service);
                }
                Ok(())
            }
        }
    }

    /// Says once that a service has instances without slots, and counts those of
    /// all services.
    fn show_uncounted(&mut self, service: &str) {
        let Some(published) = self.services.get_mut(service) else { return };
        let without = |instance: &&InstanceValue| instance.slot == NO_SLOT;
        let uncounted = published.value.instances.iter().filter(without).count();
        if uncounted > 0 && published.uncounted == 0 {
            let of = published.value.instances.len();
            tracing::error!("{}", NoSlots { service, uncounted, of });
        }
        published.uncounted = uncounted;
        let all = self.services.values().map(|published| published.uncounted as u64).sum();
        self.board.set_uncounted(all);
    }

    /// Says that all that the source said up to a revision is in what is published.
    pub fn vouch(&self, revision: i64, now_ms: u64) {
        let vouched = Vouched { revision, at_ms: now_ms };
        // A newer writer vouches for its own.
        let _ = self.board.fenced(self.epoch, || self.board.vouch(vouched));
    }

    /// Publishes the plugin's own state: any text.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_status(&mut self, status: &[u8]) -> Result<(), PublishError> {
        let store = &self.store;
        match self.board.fenced(self.epoch, || set(store, STATUS_KEY.to_owned(), 0, status)) {
            None => Err(PublishError::Superseded),
            Some(result) => result.inspect_err(|_| self.board.count_publish_error()),
        }
    }

    /// Publishes a service's explanation, any text; each one is another value.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_explanation(
        &mut self,
        service: &str,
        text: &[u8],
        now_ms: u64,
    ) -> Result<(), PublishError> {
        let store = &self.store;
        let key = format!("explain:{service}");
        match self.board.fenced(self.epoch, || set(store, key, now_ms, text)) {
            None => Err(PublishError::Superseded),
            Some(result) => result.inspect_err(|_| self.board.count_publish_error()),
        }
    }

    /// Where the board counts an instance; [`NO_SLOT`] where it does not.
    pub fn slot(&self, service: &str, id: &str, addr: &SocketAddr) -> u32 {
        let identity = board::identity(service, id, addr);
        self.slots.by_identity.get(&identity).map_or(NO_SLOT, |tenant| tenant.slot)
    }

    /// The instances that are published: service, id, and slot on the board.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        self.services.iter().flat_map(|(service, published)| {
            published.value.instances.iter().map(|it| (service.as_str(), it.id.as_str(), it.slot))
        })
    }

    /// The services that are published, each with its instances.
    pub fn published(&self) -> impl Iterator<Item = (&str, ServiceId, &[InstanceValue])> + Clone {
        let services = self.services.iter();
        services.map(|(name, it)| (name.as_str(), it.id, it.value.instances.as_slice()))
    }

    /// Whether an instance is ejected on this host.
    pub fn is_ejected(&self, service: &str, id: &str, addr: &SocketAddr) -> bool {
        let identity = board::identity(service, id, addr);
        let tenant = self.slots.by_identity.get(&identity);
        tenant.is_some_and(|tenant| self.board.ejection(tenant.slot).is_some())
    }

    /// Whether any instance of a service is.
    pub fn has_ejected(&self, service: &str) -> bool {
        self.board.find_service(service).is_some_and(|id| self.board.ejected(id) > 0)
    }

    /// Services whose values some worker could not read, or that could not be
    /// stored: they are to be published again.
    pub fn unsound(&self) -> Vec<String> {
        let unsound = |published: &Published| {
            published.records.is_none() || self.board.is_damaged(published.id)
        };
        self.services.iter().filter(|(_, p)| unsound(p)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether some ranking of the service is in the shared dict, from this
    /// writer or one before it.
    pub fn has_ranking(&self, service: &str) -> bool {
        self.board.find_service(service).is_some_and(|id| self.board.version(id) > 0)
    }

    /// The ranking of the service that is in the shared dict, as of now, to go on
    /// from: an earlier writer's. What of it cannot be is not in it.
    ///
    /// # Errors
    /// What is wrong with the values.
    pub fn left(&self, service: &str, now_ms: u64) -> Result<Ranking, ValueError> {
        let value = |kind| self.store.get(&format!("{kind}:{service}")).unwrap_or_default();
        let left = left::read(&value("instances"), &value("ranking"))?;
        let is_ours = |instance: &InstanceValue| {
            let identity = board::identity(service, &instance.id, &instance.addr);
            let known = self.slots.by_identity.get(&identity).map(|tenant| tenant.slot);
            instance.slot == known.unwrap_or(NO_SLOT)
        };
        let requests = |slot| self.board.counters(slot).0;
        Ok(left::ranking(left, is_ours, requests, now_ms))
    }

    /// How the service in the shared dict was governed.
    ///
    /// # Errors
    /// What is wrong with the values.
    pub fn course_left(&self, service: &str) -> Result<CourseLeft, ValueError> {
        let value = |kind| self.store.get(&format!("{kind}:{service}")).unwrap_or_default();
        left::read(&value("instances"), &value("ranking")).map(left::course)
    }

    /// What this host has seen of an instance.
    pub fn observed(&self, service: &str, instance: &Instance, now_ms: u64) -> Observed {
        let identity = board::identity(service, &instance.id, &instance.addr);
        let Some(tenant) = self.slots.by_identity.get(&identity) else {
            return Observed::default();
        };
        let (requests, _) = self.board.counters(tenant.slot);
        let latency_ms = self.board.seen(tenant.slot, now_ms).latency_ms.map(f64::from);
        Observed { requests, latency_ms }
    }

    /// Whether another writer has taken over.
    pub fn is_superseded(&self) -> bool {
        self.board.is_superseded(self.epoch)
    }

    /// Gives back what workers that are gone had open, and the counters of instances
    /// that are gone for good.
    pub fn tidy(&mut self, now_ms: u64) {
        self.board.reclaim_rows();
        // What an older writer gives back, the newer one may have taken over.
        let _ = self.board.fenced(self.epoch, || self.slots.release_rested(now_ms));
    }
}

/// A service as the two values hold it: by id, each instance with its rank.
fn values_of(
    service: &str,
    governed: &Governed<'_>,
    mut acquire: impl FnMut(u64, &Entry) -> u32,
) -> (ServiceValue, Vec<Record>) {
    let (instances, records) = by_id(governed)
        .into_iter()
        .map(|(share, record)| {
            let entry = share.entry;
            let instance = InstanceValue {
                id: entry.id.clone(),
                addr: entry.addr,
                zone: entry.zone.clone(),
                weight: share.prior,
                slot: acquire(board::identity(service, &entry.id, &entry.addr), entry),
            };
            (instance, record)
        })
        .unzip();
    let control = governed.control.map(|control| ControlValue {
        is_manual: governed.is_manual,
        expires: control.expires.map(|time| humantime::format_rfc3339_seconds(time).to_string()),
        by: control.by.clone(),
        why: control.why.clone(),
    });
    let strategy = governed.control.and_then(|control| control.strategy);
    let rules = governed.rules.to_vec();
    let groups = match rules.is_empty() {
        true => Vec::new(),
        false => by_id(governed).iter().map(|(share, _)| share.groups).collect(),
    };
    let starts = governed.starts.clone();
    (ServiceValue { strategy, control, starts, rules, groups, instances }, records)
}

/// The shares in the order in which they are published, by id, each with its record.
pub fn by_id<'a>(governed: &'a Governed<'_>) -> Vec<(&'a Share<'a>, Record)> {
    let mut ranked: Vec<_> = governed.shares.iter().zip(0..).collect();
    ranked.sort_unstable_by(|(a, _), (b, _)| a.entry.id.cmp(&b.entry.id));
    let record = |(share, rank): &(&Share<'_>, u32)| Record {
        score: share.entry.score,
        weight: share.weight(),
        rank: *rank,
        state: share.state,
        service_ms: share.entry.ability.map_or(0.0, |it| it.service_ms as f32),
        concurrency: share.entry.ability.map_or(0.0, |it| it.concurrency() as f32),
        capacity_per_s: share.entry.ability.map_or(0.0, |it| it.capacity_per_s as f32),
        reported_s: u32::try_from(share.entry.estimate.reported_ms() / 1000).unwrap_or(u32::MAX),
        factor: share.factor() as f32,
        max_in_flight: share.entry.max_in_flight,
    };
    ranked.iter().map(|ranked| (ranked.0, record(ranked))).collect()
}

/// Which instance's counters are in which slot of the board.
struct Slots {
    board: Board,
    /// The writer's.
    epoch: u64,
    by_identity: HashMap<u64, Tenant>,
    /// No slot before this one is free, unless one was given back.
    next: u32,
    /// No slot is free, unless one was given back.
    full: bool,
}

struct Tenant {
    slot: u32,
    /// When the instance went.
    gone_since_ms: Option<u64>,
}

impl Slots {
    /// Takes over what an earlier writer left on the board.
    fn adopt(board: Board, epoch: u64, now_ms: u64) -> Self {
        let tenant = |slot| Tenant { slot, gone_since_ms: Some(now_ms) };
        let by_identity = board.used_slots().map(|(slot, id)| (id, tenant(slot))).collect();
        Slots { board, epoch, by_identity, next: 0, full: false }
    }

    fn acquire(&mut self, identity: u64, service: ServiceId, now_ms: u64) -> u32 {
        if let Some(tenant) = self.by_identity.get_mut(&identity) {
            tenant.gone_since_ms = None;
            return tenant.slot;
        }
        if self.full {
            return NO_SLOT;
        }
        let (board, from) = (self.board, self.next);
        let claim = || board.claim_slot(identity, service, from, now_ms);
        // What an older writer takes, the newer one, which took over what there was when
        // it began, would never give back.
        let Some(claimed) = board.fenced(self.epoch, claim) else { return NO_SLOT };
        let Some(slot) = claimed else {
            self.full = true;
            return NO_SLOT;
        };
        self.next = slot + 1;
        self.by_identity.insert(identity, Tenant { slot, gone_since_ms: None });
        slot
    }

    fn retire_missing(
        &mut self,
        service: &str,
        old: &[InstanceValue],
        new: &[InstanceValue],
        now_ms: u64,
    ) {
        let identity = |i: &InstanceValue| board::identity(service, &i.id, &i.addr);
        let kept: std::collections::HashSet<u64> = new.iter().map(identity).collect();
        for gone in old.iter().map(identity).filter(|identity| !kept.contains(identity)) {
            if let Some(tenant) = self.by_identity.get_mut(&gone) {
                tenant.gone_since_ms = Some(now_ms);
            }
        }
    }

    fn release_rested(&mut self, now_ms: u64) {
        let (board, before) = (self.board, self.by_identity.len());
        self.by_identity.retain(|_, tenant| {
            let rested = tenant
                .gone_since_ms
                .is_some_and(|since| now_ms.saturating_sub(since) > SLOT_REST_MS);
            !(rested && board.release_slot(tenant.slot))
        });
        if self.by_identity.len() < before {
            self.next = 0;
            self.full = false;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::board::{MAX_SLOTS, Outcome};
    use crate::govern::{Facts, govern};
    use crate::ranking::{Entry, Estimate, Ranking, State};
    use crate::value;

    #[derive(Default)]
    pub(super) struct Dict {
        pub(super) values: RefCell<HashMap<String, Vec<u8>>>,
        full: Cell<bool>,
        stores: Cell<u32>,
    }

    impl Store for Dict {
        fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
            if self.full.get() {
                return Err(StoreError("no memory".into()));
            }
            self.stores.set(self.stores.get() + 1);
            self.values.borrow_mut().insert(key.into(), value.to_vec());
            Ok(())
        }

        fn get(&self, key: &str) -> Option<Vec<u8>> {
            self.values.borrow().get(key).cloned()
        }
    }

    impl Dict {
        fn instances(&self) -> (u64, Vec<InstanceValue>) {
            let values = self.values.borrow();
            let (version, body) = value::open(&values["instances:chat"]).unwrap();
            (version, ServiceValue::decode(body).unwrap().instances)
        }

        fn ranking(&self) -> (u64, RankingValue) {
            let values = self.values.borrow();
            let (version, body) = value::open(&values["ranking:chat"]).unwrap();
            (version, RankingValue::decode(body).unwrap())
        }
    }

    /// Entries in rank order, all of weight 1 but the first.
    fn ranking(ids: &[&str], first_weight: f64) -> Ranking {
        let entry = |(id, index): (&&str, u16)| Entry {
            id: (*id).into(),
            addr: ([127, 0, 0, 1], 9000 + index).into(),
            zone: String::new(),
            score: 0.0,
            weight: if index == 0 { first_weight } else { 1.0 },
            fallback_weight: 1.0,
            ability: None,
            reported_ms: 0,
            estimate: Estimate::default(),
            state: State::Reporting,
            max_in_flight: 0,
        };
        Ranking { entries: ids.iter().zip(0..).map(entry).collect(), ..Ranking::default() }
    }

    pub(super) fn ungoverned(ranking: &Ranking) -> Governed<'_> {
        govern(ranking, None, &vec![Facts::default(); ranking.entries.len()], 0)
    }

    fn board() -> Board {
        Board::map_for_tests()
    }

    #[test]
    fn instances_are_stored_by_id_with_their_rank() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["b", "a"], 3.0)), 17, 5).unwrap();
        let ids: Vec<_> = dict.instances().1.into_iter().map(|i| i.id).collect();
        assert_eq!(ids, ["a", "b"]);
        let (version, value) = dict.ranking();
        assert_eq!((version, value.revision, value.published_ms), (1, 17, 5));
        assert_eq!(
            value.records.iter().map(|r| (r.rank, r.weight)).collect::<Vec<_>>(),
            [(1, 1.0), (0, 3.0)]
        );
        assert_eq!(board.version(board.find_service("chat").unwrap()), 1);
    }

    #[test]
    fn what_did_not_change_is_not_stored() {
        let dict = Dict::default();
        let mut publisher = Publisher::new(&dict, board());
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 1, 0).unwrap();
        assert_eq!(dict.stores.get(), 2);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 2, 9).unwrap();
        assert_eq!(dict.stores.get(), 2);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 2.0)), 3, 9).unwrap();
        assert_eq!(dict.stores.get(), 3, "the ranking alone");
        assert_eq!((dict.instances().0, dict.ranking().0), (1, 2));
        assert_eq!(dict.ranking().1.instances_version, 1);
    }

    #[test]
    fn a_store_that_fails_leaves_the_version_and_is_made_up_for() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        dict.full.set(true);
        let error =
            publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 2, 0).unwrap_err();
        assert!(
            error.to_string().starts_with("failed to store instances:chat (256 bytes)"),
            "{error}"
        );
        assert_eq!(board.version(board.find_service("chat").unwrap()), 1);
        assert_eq!(board.publish_errors(), 1);
        assert_eq!(publisher.unsound(), ["chat"]);
        dict.full.set(false);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 2, 0).unwrap();
        assert!(publisher.unsound().is_empty());
        assert_eq!(dict.instances().1.len(), 2);
    }

    #[test]
    fn a_value_that_a_worker_could_not_read_is_stored_again() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        let id = board.find_service("chat").unwrap();
        dict.values.borrow_mut().clear();
        board.report_damaged(id, 1);
        assert_eq!(publisher.unsound(), ["chat"]);
        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        assert_eq!((dict.instances().0, dict.ranking().0, board.version(id)), (2, 2, 2));
    }

    #[test]
    fn an_older_writer_publishes_nothing_and_versions_go_on() {
        let (old_dict, new_dict, board) = (Dict::default(), Dict::default(), board());
        let mut old = Publisher::new(&old_dict, board);
        old.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        let mut new = Publisher::new(&new_dict, board);
        assert_eq!(
            old.publish("chat", &ungoverned(&ranking(&["b"], 1.0)), 2, 0),
            Err(PublishError::Superseded)
        );
        new.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 2, 0).unwrap();
        assert_eq!(new_dict.ranking().0, 2);
    }

    #[test]
    fn counters_stay_with_their_instance_over_writers_and_leave_after_a_rest() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 1, 0).unwrap();
        let slots: Vec<_> = dict.instances().1.iter().map(|i| i.slot).collect();
        let identity = board.used_slots().find(|(slot, _)| *slot == slots[0]).unwrap().1;
        let open = board.begin_request(None, slots[0], identity, 0);
        board.end_request(None, open, Outcome::Answered, 0);

        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 1, 0).unwrap();
        assert_eq!(dict.instances().1.iter().map(|i| i.slot).collect::<Vec<_>>(), slots);
        assert_eq!(board.counters(slots[0]), (1, 0));

        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 1000).unwrap();
        publisher.tidy(1000 + SLOT_REST_MS);
        assert_eq!(board.used_slots().count(), 2);
        publisher.tidy(1001 + SLOT_REST_MS);
        assert_eq!(board.used_slots().count(), 1);
    }

    #[test]
    fn an_older_writer_neither_takes_counters_nor_gives_them_back() {
        let (dict, board) = (Dict::default(), board());
        let mut old = Publisher::new(&dict, board);
        old.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 1, 0).unwrap();
        old.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 2, 0).unwrap();
        let _new = Publisher::new(&dict, board);
        let late = old.publish("chat", &ungoverned(&ranking(&["a", "c"], 1.0)), 3, 0);
        assert_eq!(late, Err(PublishError::Superseded));
        assert_eq!(board.used_slots().count(), 2, "none for c");
        old.tidy(1 + SLOT_REST_MS);
        assert_eq!(board.used_slots().count(), 2, "that of b is the newer writer's");
    }

    #[test]
    fn counters_of_who_could_not_be_published_and_left_are_given_back() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        dict.full.set(true);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 2, 0).unwrap_err();
        dict.full.set(false);
        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 3, 0).unwrap();
        publisher.tidy(1 + SLOT_REST_MS);
        assert_eq!(board.used_slots().count(), 1);
    }

    #[test]
    fn instances_past_the_room_are_published_without_slots_counted_and_get_the_next_free_ones() {
        let (dict, board) = (Dict::default(), board());
        let mail = board.service("mail").unwrap();
        for identity in 1..MAX_SLOTS as u64 {
            board.claim_slot(identity, mail, identity as u32 - 1, 0).unwrap();
        }
        let mut publisher = Publisher::new(&dict, board);
        let slots = || dict.instances().1.iter().map(|i| i.slot).collect::<Vec<_>>();
        let last = MAX_SLOTS as u32 - 1;

        publisher.publish("chat", &ungoverned(&ranking(&["a"], 1.0)), 1, 0).unwrap();
        assert_eq!((slots(), board.uncounted()), (vec![last], 0));
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b", "c"], 1.0)), 2, 0).unwrap();
        assert_eq!((slots(), board.uncounted()), (vec![last, NO_SLOT, NO_SLOT], 2));
        assert_eq!(dict.ranking().1.records.len(), 3, "all of them are served");

        // What an earlier writer left is given back after a rest.
        publisher.tidy(board::monotonic_ms() + SLOT_REST_MS + 1);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b", "c"], 1.0)), 2, 0).unwrap();
        assert_eq!((slots(), board.uncounted()), (vec![last, 0, 1], 0));
    }

    #[test]
    fn the_line_about_missing_slots_names_the_service_the_room_and_what_to_do() {
        let line = NoSlots { service: "chat", uncounted: 2, of: 3 }.to_string();
        for part in ["2 of the 3 instances of service chat", "65536 slots", "remove instances"] {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn what_a_worker_that_is_gone_had_open_is_given_back_before_its_slots_are() {
        let (dict, board) = (Dict::default(), board());
        let mut publisher = Publisher::new(&dict, board);
        publisher.publish("chat", &ungoverned(&ranking(&["a", "b"], 1.0)), 1, 0).unwrap();
        let (slot, identity) = board.used_slots().find(|(slot, _)| *slot == 0).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let row = board.claim_row(child.id());
        board.begin_request(row, slot, identity, 0);
        publisher.publish("chat", &ungoverned(&ranking(&["b"], 1.0)), 2, 0).unwrap();
        publisher.tidy(SLOT_REST_MS + 1);
        assert_eq!(board.used_slots().count(), 2, "it may still end");
        child.wait().unwrap();
        publisher.tidy(SLOT_REST_MS + 1);
        assert_eq!(board.used_slots().count(), 1);
    }
}
