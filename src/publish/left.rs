//! What an earlier writer left in the shared dict, made a ranking again: so that
//! weights go on from where they are when the writer changes, as on a reload.
//!
//! Whoever can write the dict can have written that. A value is taken whole or not
//! at all, as everywhere; of its instances, those are taken that can be this
//! service's, with weights that they can have.

use std::collections::BTreeMap;

use crate::govern::CourseLeft;
use crate::model::MAX_WEIGHT;
use crate::ranking::{self, Ability, Entry, Estimate, Left, Ranking};
use crate::value::{self, InstanceValue, RankingValue, Record, ServiceValue, ValueError};

/// The instances and their ranking.
pub type Values = (ServiceValue, RankingValue);

/// # Errors
/// What is wrong with the two values.
pub fn read(instances: &[u8], ranking: &[u8]) -> Result<Values, ValueError> {
    let (_, body) = value::open(ranking)?;
    let ranking = RankingValue::decode(body)?;
    let (found, body) = value::open(instances)?;
    let wanted = ranking.instances_version;
    if found != wanted {
        return Err(ValueError::Mismatch { wanted, found });
    }
    let service = ServiceValue::decode(body)?;
    let (count, records) = (service.instances.len(), ranking.records.len());
    if count != records {
        return Err(ValueError::Body(format!("{records} records for {count} instances")));
    }
    Ok((service, ranking))
}

/// The ranking that the values are of, as if made now: its weights were in force
/// until then. `requests` is what this host has sent to the instance of a slot.
///
/// What the values do not tell is what the ranking gave to an instance that was left
/// out, which begins at its prior, or to any while the weights were the operator's:
/// those begin anew.
pub fn ranking(
    (service, value): Values,
    is_ours: impl Fn(&InstanceValue) -> bool,
    requests: impl Fn(u32) -> u64,
    now_ms: u64,
) -> Ranking {
    let is_possible = |it: &InstanceValue| (0.0..=MAX_WEIGHT).contains(&it.weight) && is_ours(it);
    let is_told = !service.control.is_some_and(|control| control.is_manual);
    let left: Vec<(InstanceValue, Record)> = service
        .instances
        .into_iter()
        .zip(value.records)
        .filter(|(it, _)| is_told && is_possible(it))
        .collect();
    let priors: f64 = left.iter().map(|(it, _)| it.weight).sum();
    let count = left.len();
    let weight = |(it, record): &(InstanceValue, Record)| {
        // What it is left out for may be over; its weight begins anew then.
        let is_left_out = record.factor == 0.0;
        let base = if is_left_out { it.weight } else { record.weight / f64::from(record.factor) };
        ranking::possible_weight(base, it.weight, priors, count)
    };
    let weights: Vec<f64> = left.iter().map(weight).collect();
    let all: f64 = weights.iter().sum();

    let entry = |((instance, record), weight): ((InstanceValue, Record), f64)| {
        let rate_per_s = if all > 0.0 { value.rate_per_s * weight / all } else { 0.0 };
        let left = Left {
            ability: Ability {
                service_ms: record.service_ms.into(),
                capacity_per_s: record.capacity_per_s.into(),
            },
            reported_ms: 1000 * u64::from(record.reported_s),
            rate_per_s,
            own_rate: rate_per_s * value.own_part,
            requests: requests(instance.slot),
        };
        Entry {
            id: instance.id,
            addr: instance.addr,
            zone: instance.zone,
            score: record.score,
            weight,
            fallback_weight: instance.weight,
            state: record.state,
            max_in_flight: record.max_in_flight,
            ability: None,
            reported_ms: 0,
            estimate: Estimate::resumed(left, now_ms),
        }
    };
    let entries = left.into_iter().zip(weights).map(entry).collect();
    Ranking { entries, made_ms: now_ms, ..Ranking::default() }
}

/// How the service was governed. Of manual weights no zone's share is known.
pub fn course((service, value): Values) -> CourseLeft {
    let is_told = !service.control.is_some_and(|control| control.is_manual);
    // Divided first, so that no sum of finite weights overflows.
    let most = value.records.iter().map(|it| it.weight).fold(f64::MIN_POSITIVE, f64::max);
    let sum: f64 = value.records.iter().map(|it| it.weight / most).sum();
    let mut zones = BTreeMap::new();
    if is_told && sum > 0.0 {
        for (instance, record) in service.instances.into_iter().zip(&value.records) {
            *zones.entry(instance.zone).or_default() += record.weight / most / sum;
        }
    }
    CourseLeft { starts: service.starts, zones }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::board::{Board, monotonic_ms};
    use crate::config::ScoreConfig;
    use crate::model::Instance;
    use crate::publish::Publisher;
    use crate::publish::tests::{Dict, ungoverned};
    use crate::ranking::{Basis, Observed, State, rank};
    use crate::registry::Member;
    use crate::value::seal;
    use crate::window::Load;

    const IDS: [&str; 4] = ["a", "b", "c", "d"];

    fn instances(ids: &[&str]) -> Vec<Instance> {
        let instance = |id: &&str| Instance {
            id: (*id).into(),
            addr: ([127, 0, 0, 1], 9000 + u16::from(id.as_bytes()[0])).into(),
            weight: 1.0,
            zone: "z".into(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        };
        ids.iter().map(instance).collect()
    }

    /// `a` does less than one server could, and `d` differs from `c` by what may be
    /// chance.
    fn report(id: &str) -> Load {
        let (rate, latency_ms) = match id {
            "a" => (3.0, 8.0),
            "b" => (150.0, 20.0),
            "d" => (40.0, 60.0),
            _ => (40.0, 45.0),
        };
        Load {
            rate: Some(rate),
            utilization: Some(0.5),
            latency_ms: Some(latency_ms),
            errors: Some(0.0),
            ..Load::default()
        }
    }

    /// What a writer knows, and does.
    struct Writer<'a> {
        publisher: Publisher<&'a Dict>,
        last: Option<Ranking>,
    }

    impl<'a> Writer<'a> {
        fn new(dict: &'a Dict, board: Board) -> Self {
            Writer { publisher: Publisher::new(dict, board), last: None }
        }

        /// One that goes on from what is there.
        fn successor(dict: &'a Dict, board: Board, now_ms: u64) -> Self {
            let publisher = Publisher::new(dict, board);
            let last = publisher.left("chat", now_ms).expect("sound values");
            Writer { publisher, last: Some(last) }
        }

        /// Ranks and publishes.
        fn rank(&mut self, ids: &[&str], reports: bool, now_ms: u64) -> &Ranking {
            let instances = instances(ids);
            let state = if reports { State::Reporting } else { State::Unknown };
            let load = |instance: &Instance| reports.then(|| report(&instance.id));
            let member = |instance| Member {
                instance,
                state,
                load: load(instance),
                boot_id: None,
                report_age_ms: None,
            };
            let members: Vec<_> = instances.iter().map(member).collect();
            let observed: Vec<Observed> =
                instances.iter().map(|it| self.publisher.observed("chat", it, now_ms)).collect();
            let last = self.last.as_ref();
            let ranking = rank(&members, &ScoreConfig::default(), &observed, last, now_ms);
            self.publisher.publish("chat", &ungoverned(&ranking), 1, now_ms).expect("room");
            self.last.insert(ranking)
        }
    }

    fn weights(ranking: &Ranking) -> BTreeMap<String, f64> {
        ranking.entries.iter().map(|entry| (entry.id.clone(), entry.weight)).collect()
    }

    /// The largest factor between two weights of one instance.
    fn step(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> f64 {
        let factor = |(id, weight): (&String, &f64)| (weight / before[id]).max(before[id] / weight);
        after.iter().map(factor).fold(1.0, f64::max)
    }

    /// Two values of a service whose weights are learned, as of `now_ms`.
    fn learned(dict: &Dict, board: Board, now_ms: u64) -> BTreeMap<String, f64> {
        let mut writer = Writer::new(dict, board);
        for second in (0..30).rev() {
            writer.rank(&IDS, true, now_ms - 1000 * second);
        }
        weights(writer.rank(&IDS, true, now_ms))
    }

    #[test]
    fn weights_stay_where_they_are_when_the_writer_changes_and_go_on_from_there() {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        let now_ms = 100_000;
        let before = learned(&dict, board, now_ms);
        assert!(step(&before, &[("b".to_owned(), 1.0)].into()) > 1.5, "{before:?}");

        // Some time later, which is no reason for a longer step.
        let now_ms = now_ms + 20_000;
        let mut writer = Writer::successor(&dict, board, now_ms);
        let first = writer.rank(&IDS, false, now_ms);
        assert_eq!((weights(first), first.basis), (before.clone(), Basis::OldReports));
        assert!(first.is_moving, "what is known is forgotten one day");
        for second in 1..=10 {
            let later = writer.rank(&IDS, false, now_ms + 1000 * second);
            assert_eq!(later.basis, Basis::OldReports);
            assert!(step(&before, &weights(later)) < 1.02, "{later:?} after {before:?}");
        }
        let told = writer.rank(&IDS, true, now_ms + 11_000);
        assert_eq!(told.basis, Basis::Reports);
        assert!(step(&before, &weights(told)) < 1.1, "{told:?} after {before:?}");
    }

    #[test]
    fn without_reports_weights_leave_in_steps_when_what_is_known_is_a_minute_old() {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        let start_ms = 100_000;
        let mut before = learned(&dict, board, start_ms);
        let mut bases = Vec::new();
        for second in 1..=90 {
            let now_ms = start_ms + 1000 * second;
            // However often the writer changes.
            let mut writer = Writer::successor(&dict, board, now_ms - 500);
            let ranking = writer.rank(&IDS, false, now_ms);
            assert!(step(&before, &weights(ranking)) <= 4.0);
            before = weights(ranking);
            bases.push(ranking.basis);
        }
        assert!(bases[..58].iter().all(|it| *it == Basis::OldReports), "{bases:?}");
        assert!(bases[60..].iter().all(|it| *it == Basis::Priors), "{bases:?}");
        assert!(before.values().all(|weight| (weight - 1.0).abs() < 0.02), "{before:?}");
    }

    #[test]
    fn an_instance_that_left_is_not_brought_back_and_a_new_one_comes() {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        let before = learned(&dict, board, 100_000);
        let mut writer = Writer::successor(&dict, board, 100_000);
        let after = weights(writer.rank(&["b", "c", "e"], false, 100_000));
        assert_eq!(after.keys().collect::<Vec<_>>(), ["b", "c", "e"]);
        assert_eq!((after["b"], after["c"]), (before["b"], before["c"]));
    }

    #[test]
    fn what_this_host_sends_is_counted_on_and_its_part_is_known() {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        let mut writer = Writer::new(&dict, board);
        let send = |now_ms: u64| {
            for (slot, identity) in board.used_slots().collect::<Vec<_>>() {
                (0..20).for_each(|_| board.count_request(slot, identity, now_ms));
            }
        };
        for second in 0..30 {
            writer.rank(&IDS[1..3], true, 1000 + 1000 * second);
            send(1000 + 1000 * second);
        }
        let before = writer.rank(&IDS[1..3], true, 31_000).clone();
        assert!((0.1..0.6).contains(&before.own_part), "{before:?}");
        let mut writer = Writer::successor(&dict, board, 31_000);
        for second in 1..=3 {
            send(31_000 + 1000 * second);
            let after = writer.rank(&IDS[1..3], false, 31_000 + 1000 * second);
            assert!((after.rate_per_s / before.rate_per_s - 1.0).abs() < 1e-6, "{after:?}");
            assert!((after.own_part / before.own_part - 1.0).abs() < 0.5, "{after:?}");
        }
    }

    /// What is left when the values of a learned service are changed.
    fn left_of(
        change: impl FnOnce(&mut Vec<InstanceValue>, &mut RankingValue),
    ) -> Result<Ranking, ValueError> {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        learned(&dict, board, 100_000);
        let values = dict.values.borrow().clone();
        let (mut service, mut ranking) =
            read(&values["instances:chat"], &values["ranking:chat"]).unwrap();
        change(&mut service.instances, &mut ranking);
        let version = ranking.instances_version;
        let instances = seal(1, &service.encode());
        dict.values.borrow_mut().insert("instances:chat".into(), instances);
        dict.values.borrow_mut().insert("ranking:chat".into(), seal(version, &ranking.encode()));
        Publisher::new(&dict, board).left("chat", 100_000)
    }

    fn ids(ranking: &Ranking) -> Vec<&str> {
        ranking.entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn an_instance_that_cannot_be_the_services_is_left_out() {
        assert_eq!(ids(&left_of(|_, _| ()).unwrap()), IDS);
        let left = left_of(|instances, _| {
            instances[0].id = "z".into(); // another service's
            instances[1].slot += 1;
            instances[2].weight = -1.0;
            instances[3].weight = 1e9;
        });
        assert_eq!(ids(&left.unwrap()), [""; 0]);
        let moved = left_of(|instances, _| instances[0].addr = ([10, 0, 0, 1], 80).into());
        assert_eq!(ids(&moved.unwrap()), ["b", "c", "d"]);
    }

    #[test]
    fn a_weight_that_cannot_be_is_one_that_can() {
        let left = left_of(|_, ranking| {
            ranking.records[0].weight = 1e300;
            ranking.records[1].weight = f64::MIN_POSITIVE;
        });
        let weights = weights(&left.unwrap());
        assert_eq!((weights["a"], weights["b"]), (10.0, 0.005));
    }

    #[test]
    fn a_weight_is_the_rankings_not_what_the_factors_made_of_it() {
        let plain = weights(&left_of(|_, _| ()).unwrap());
        let governed = left_of(|_, ranking| {
            ranking.records[0].weight *= 0.5;
            ranking.records[0].factor = 0.5;
            ranking.records[1].weight = 0.0;
            ranking.records[1].factor = 0.0;
        });
        let governed = weights(&governed.unwrap());
        assert_eq!(governed["a"], plain["a"]);
        assert_eq!(governed["b"], 1.0, "it was left out: what it would get is not told");
    }

    #[test]
    fn where_zones_and_slow_starts_were_is_left_and_of_manual_weights_no_zone_is() {
        let (dict, board) = (Dict::default(), Board::map_for_tests());
        let mut writer = Writer::new(&dict, board);
        let ranking = writer.rank(&IDS, false, 1000).clone();
        let mut governed = ungoverned(&ranking);
        governed.starts = [("b".to_owned(), 900)].into();
        governed.shares.iter_mut().for_each(|share| share.factors.zone = 0.5);
        writer.publisher.publish("chat", &governed, 1, 1000).unwrap();
        let left = writer.publisher.course_left("chat").unwrap();
        assert_eq!(left.starts, [("b".to_owned(), 900)].into());
        assert_eq!(left.zones, [("z".to_owned(), 1.0)].into());

        let control =
            crate::wire::control::decode_control(br#"{"mode": "manual", "weights": {"a": 1}}"#)
                .unwrap();
        governed.control = Some(&control);
        governed.is_manual = true;
        writer.publisher.publish("chat", &governed, 1, 1000).unwrap();
        assert!(writer.publisher.course_left("chat").unwrap().zones.is_empty());
    }

    #[test]
    fn abilities_that_cannot_be_are_not_known_and_none_is_of_the_future() {
        let left = left_of(|_, ranking| {
            ranking.records[0].service_ms = 0.0;
            ranking.records[1].capacity_per_s = f32::MAX;
            ranking.records[2].reported_s = 0;
            ranking.records[3].reported_s = u32::MAX;
        });
        let left = left.unwrap();
        let reported: Vec<_> = left.entries.iter().map(|it| it.estimate.reported_ms()).collect();
        assert_eq!(reported, [0, 0, 0, 100_000]);
    }

    #[test]
    fn values_that_are_missing_torn_or_of_another_form_are_refused_whole() {
        let refused = |change: fn(&mut Vec<InstanceValue>, &mut RankingValue)| {
            left_of(change).unwrap_err().to_string()
        };
        assert!(refused(|_, it| it.records[0].weight = f64::NAN).contains("out of range"));
        assert!(refused(|_, it| it.instances_version = 7).contains("version 7"));
        assert!(refused(|it, _| drop(it.pop())).contains("4 records for 3 instances"));
        assert!(matches!(read(b"", b""), Err(ValueError::Missing)));
        let older = RankingValue::default().encode();
        let older = seal(1, &[older, vec![0; 32]].concat());
        assert!(
            read(&seal(0, b"[]"), &older).unwrap_err().to_string().contains("part of a record")
        );
    }

    #[test]
    fn one_that_was_left_out_begins_anew_and_one_that_weighed_less_goes_on_unchanged() {
        let whole = left_of(|_, _| ()).unwrap();
        let left = left_of(|_, ranking| {
            for (record, factor) in ranking.records.iter_mut().zip([0.0, 0.5, 1.0, 1.0]) {
                record.factor = factor;
                record.weight *= f64::from(factor);
            }
        });
        let (whole, left) = (weights(&whole), weights(&left.unwrap()));
        assert_eq!(left["a"], 1.0, "its prior");
        assert_eq!((left["b"], left["c"]), (whole["b"], whole["c"]));
    }

    /// One that is likely, or any that is not negative.
    fn figure(most: f64) -> impl Strategy<Value = f64> {
        prop_oneof![3 => 1e-3..1e4, 1 => Just(0.0), 1 => Just(most), 1 => 0.0..most]
    }

    proptest! {
        /// Whatever passes the checks of one record.
        #[test]
        fn whatever_is_left_the_next_rankings_are_sound(
            records in proptest::collection::vec(
                (figure(f64::MAX), figure(f32::MAX.into()), figure(f32::MAX.into()), any::<u32>()),
                4),
            rate_per_s in prop_oneof![Just(f64::MAX), 0.0..1e9],
            own_part in 0.0..=1.0,
            now_ms in monotonic_ms()..monotonic_ms() + 1000,
        ) {
            let (dict, board) = (Dict::default(), Board::map_for_tests());
            let mut writer = Writer::new(&dict, board);
            writer.rank(&IDS, false, now_ms);
            let instances = dict.values.borrow()["instances:chat"].clone();
            let (version, body) = value::open(&instances).unwrap();
            let service = ServiceValue::decode(body).unwrap();
            let record = |(weight, service_ms, capacity_per_s, reported_s)| Record {
                score: 0.0, weight, rank: 0, state: State::Reporting, concurrency: 1.0,
                service_ms: service_ms as f32, capacity_per_s: capacity_per_s as f32, reported_s, factor: service_ms as f32,
                max_in_flight: 0,
            };
            let value = RankingValue {
                instances_version: version, published_ms: now_ms, revision: 1,
                own_part, rate_per_s, basis: Basis::Reports,
                records: records.into_iter().map(record).collect(),
            };
            let requests = |_| u64::MAX;
            writer.last = Some(ranking((service, value), |_| true, requests, now_ms));
            for second in 0..8 {
                let ranking = writer.rank(&IDS, second > 4, now_ms + 1000 * second);
                let weights = weights(ranking);
                prop_assert!(weights.values().all(|it| it.is_finite() && *it > 0.0), "{weights:?}");
                prop_assert!(ranking.rate_per_s.is_finite() && ranking.own_part.is_finite());
            }
            let weights = weights(writer.rank(&IDS, true, now_ms + 30_000));
            prop_assert!(weights.values().all(|it| (0.001..=10.0).contains(it)), "{weights:?}");
        }
    }
}
