//! How much of a gateway's traffic each zone gets: its own first, and the others
//! what is too much for it.
//!
//! A zone's *natural* share is that of its instances in the ranking's weights. The
//! gateway's own zone gets no less than that, and as much more as it can bear:
//!
//! ```text
//! aim   = share * target * capacity / rate    where reports tell these
//!         1.4 * healthy part                  where none do (Envoy's factor)
//! local = clamp(aim, natural, 1 - floors)
//! ```
//!
//! with what the zone's instances can answer together and what they get from
//! everywhere, and the mean of the share over the seconds that reports look back.
//! All gateways of the zone scale by the same factor, so that what they send fits
//! without their knowing of each other: with a demand `D` of the zone's gateways,
//! the rate is `D * share`, and the aim `target * capacity / D` whatever the share
//! was; with a rate `X` from elsewhere on top, each step leaves `X / (target *
//! capacity)` of the error. Where all zones together are fuller than the target, the
//! target is how full they are.
//!
//! The others share the rest by what they have left, and a quarter of what they can
//! bear: by headroom alone, gateways that are told seconds late would all turn to
//! the emptiest. Without reports they share by weight.
//!
//! Shares move half of the way in a second. When instances of the gateway's zone
//! are lost, its share falls at once to what those that are left can bear, and does
//! not rise before reports tell of it.
//!
//! Source for the case without reports: Envoy, priority levels and overprovisioning
//! factor.

use std::collections::BTreeMap;

use crate::config::ZoneConfig;

/// How a service's traffic is shared out among zones, from ranking to ranking.
#[derive(Debug, Default)]
pub struct Flow {
    /// In force.
    shares: BTreeMap<String, f64>,
    /// The local zone's share, averaged over [`MEAN_S`].
    mean: f64,
    /// What the local zone got when it was looked at last, in requests a second.
    rate_per_s: f64,
    /// What the local zone's healthy instances weighed then.
    healthy: f64,
    /// Until when the local share does not rise, as instances were lost.
    held_until_ms: u64,
    made_ms: Option<u64>,
    is_moving: bool,
}

/// One zone of a service as of now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Zone<'a> {
    /// As its instances say.
    pub name: &'a str,
    /// Of the healthy instances' weights, the part of all zones' that is its own.
    pub natural: f64,
    /// Sum of its healthy instances' priors, and of all.
    pub healthy: f64,
    pub all: f64,
    /// What its healthy instances can answer together, a second.
    pub capacity_per_s: f64,
    /// What it gets from everywhere, a second.
    pub rate_per_s: f64,
}

/// What is known of how busy the zones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Capacities and rates, as of now.
    Reported,
    /// They were, lately.
    Once,
    /// Nothing.
    Nothing,
}

/// A zone is taken to bear so many times its healthy part of what it gets.
const OVERPROVISIONING: f64 = 1.4;

/// What a zone can bear counts by so much beside what it has left.
const BY_CAPACITY: f64 = 0.25;

/// So far back do reports look on average, in seconds: the default window's mean age,
/// an exporter's interval, and the way.
const MEAN_S: f64 = 2.5;

/// After a loss, reports tell of it when so much time has passed: the window's.
const HELD_MS: u64 = 5000;

/// Nearer than so to its aim a share stays where it is.
const ARRIVED: f64 = 0.005;

/// All floors together are no more than this.
const MOST_FLOORS: f64 = 0.5;

/// The time between two looks counts as no more than this, in seconds.
const LONGEST_STEP_S: f64 = 5.0;

impl Flow {
    /// As an earlier thread left it: the shares by what it published.
    pub fn resumed(shares: BTreeMap<String, f64>, local: &str, now_ms: u64) -> Self {
        let mean = shares.get(local).copied().unwrap_or(0.0);
        let made_ms = (!shares.is_empty()).then_some(now_ms);
        Flow { shares, mean, made_ms, ..Flow::default() }
    }

    /// The zones' shares, which sum to 1, or are all 0 where nobody is healthy.
    /// `local` is the gateway's zone.
    pub fn next(
        &mut self,
        zones: &[Zone<'_>],
        local: &str,
        config: &ZoneConfig,
        known: Known,
        now_ms: u64,
    ) -> Vec<f64> {
        let seconds = self
            .made_ms
            .map(|made_ms| (now_ms.saturating_sub(made_ms) as f64 / 1e3).min(LONGEST_STEP_S));
        self.made_ms = Some(now_ms);
        let here = zones.iter().position(|zone| zone.name == local && zone.natural > 0.0);
        let Some(here) = here else {
            let shares: Vec<f64> = zones.iter().map(|zone| zone.natural).collect();
            (self.mean, self.healthy, self.rate_per_s, self.is_moving) = (0.0, 0.0, 0.0, false);
            self.keep(zones, &shares);
            return shares;
        };
        let zone = &zones[here];
        let gain = seconds.map_or(1.0, |seconds| seconds / (seconds + 1.0));
        let before = |zone: &Zone<'_>| self.shares.get(zone.name).copied();
        let floor = floor_of(zones, here, config);

        let is_lost = zone.healthy < self.healthy * (1.0 - 1e-9);
        let target = target(zones, config);
        let able = target * zone.capacity_per_s;
        let mut aim = match known {
            Known::Nothing => OVERPROVISIONING * zone.healthy / zone.all.max(f64::MIN_POSITIVE),
            // By what the zone got before: who is lost tells no more.
            _ if is_lost => self.mean * able / self.rate_per_s.max(f64::MIN_POSITIVE),
            Known::Reported if seconds.is_none() => 1.0,
            Known::Reported => self.mean * able / zone.rate_per_s.max(f64::MIN_POSITIVE),
            Known::Once => before(zone).unwrap_or(1.0),
        };
        let last = before(zone).unwrap_or(0.0);
        if known != Known::Nothing && is_lost {
            self.held_until_ms = now_ms + HELD_MS;
        }
        if now_ms < self.held_until_ms && seconds.is_some() {
            aim = aim.min(last);
        }
        let most = 1.0 - floor * is_open(zones, here).count() as f64;
        let aim = aim.max(zone.natural).min(most);
        let share = match seconds {
            None => aim,
            _ if is_lost => last.min(aim),
            Some(_) if (aim - last).abs() < ARRIVED => last,
            Some(_) => last + gain * (aim - last),
        };
        let share = share.max(zone.natural).min(most);
        let mut is_moving = (aim - share).abs() >= ARRIVED;

        let aims = aims_of_others(zones, here, target, known);
        let old: f64 = zones
            .iter()
            .enumerate()
            .filter(|(it, _)| *it != here)
            .filter_map(|(_, it)| before(it))
            .sum();
        // Beyond their floors.
        let above = old - floor * is_open(zones, here).count() as f64;
        let mut parts = vec![0.0; zones.len()];
        for index in is_open(zones, here) {
            let aim = aims[index];
            let last = match before(&zones[index]) {
                Some(last) if above > ARRIVED => ((last - floor) / above).clamp(0.0, 1.0),
                None if above > ARRIVED => 0.0,
                _ => aim,
            };
            let part = last + gain * (aim - last);
            is_moving |= (aim - part).abs() * (1.0 - share) >= ARRIVED;
            parts[index] = part;
        }
        let mut shares = with_floors(&parts, is_open(zones, here), 1.0 - share, floor);
        shares[here] = 1.0 - shares.iter().sum::<f64>();

        let gain = seconds.map_or(1.0, |seconds| seconds / (seconds + MEAN_S));
        self.mean += gain * (shares[here] - self.mean);
        self.rate_per_s = zone.rate_per_s;
        self.healthy = zone.healthy;
        self.is_moving = is_moving;
        self.keep(zones, &shares);
        shares
    }

    /// Whether time alone changes the shares.
    pub fn is_moving(&self) -> bool {
        self.is_moving
    }

    fn keep(&mut self, zones: &[Zone<'_>], shares: &[f64]) {
        self.shares.clear();
        let shares = zones.iter().zip(shares);
        self.shares.extend(shares.map(|(zone, share)| (zone.name.to_owned(), *share)));
    }
}

/// The other zones that can get requests.
fn is_open(zones: &[Zone<'_>], here: usize) -> impl Iterator<Item = usize> + Clone {
    (0..zones.len()).filter(move |&index| index != here && zones[index].natural > 0.0)
}

/// What each of the others gets at the least.
fn floor_of(zones: &[Zone<'_>], here: usize, config: &ZoneConfig) -> f64 {
    let others = is_open(zones, here).count().max(1) as f64;
    let floor = (f64::from(config.floor) / 100.0).min(MOST_FLOORS / others);
    // Nor more than without zones: the gateway's own is not to lose by them.
    is_open(zones, here).map(|index| zones[index].natural).fold(floor, f64::min)
}

/// How full the local zone may become.
fn target(zones: &[Zone<'_>], config: &ZoneConfig) -> f64 {
    let sum = |of: fn(&Zone<'_>) -> f64| zones.iter().map(of).sum::<f64>();
    let capacity = sum(|zone| zone.capacity_per_s);
    let all = if capacity > 0.0 { sum(|zone| zone.rate_per_s) / capacity } else { 0.0 };
    all.clamp(f64::from(config.utilization) / 100.0, 1.0)
}

/// How the others share what they get together: parts of it.
fn aims_of_others(zones: &[Zone<'_>], here: usize, target: f64, known: Known) -> Vec<f64> {
    let by_headroom = |zone: &Zone<'_>| {
        let able = target * zone.capacity_per_s;
        (able - zone.rate_per_s).max(0.0) + BY_CAPACITY * able
    };
    let mut aims = vec![0.0; zones.len()];
    for index in is_open(zones, here) {
        let zone = &zones[index];
        aims[index] = if known == Known::Nothing { zone.natural } else { by_headroom(zone) };
    }
    let mut all: f64 = aims.iter().sum();
    if !(all > 0.0 && all.is_finite()) {
        is_open(zones, here).for_each(|index| aims[index] = zones[index].natural);
        all = aims.iter().sum();
    }
    if all > 0.0 {
        aims.iter_mut().for_each(|aim| *aim /= all);
    }
    aims
}

/// `rest` shared out by parts, with no less than the floor for each that is open.
fn with_floors(
    parts: &[f64],
    open: impl Iterator<Item = usize> + Clone,
    rest: f64,
    floor: f64,
) -> Vec<f64> {
    let count = open.clone().count() as f64;
    let all: f64 = open.clone().map(|index| parts[index]).sum();
    let above = (rest - count * floor).max(0.0);
    let mut shares = vec![0.0; parts.len()];
    for index in open {
        let part = if all > 0.0 { parts[index] / all } else { 1.0 / count };
        shares[index] = floor + part * above;
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const CONFIG: ZoneConfig = ZoneConfig { prefer: true, utilization: 80, floor: 1 };

    /// Zones a, b, … of so many healthy instances of all, each of which answers 100
    /// requests a second.
    fn zones(counts: &[(u32, u32)]) -> Vec<Zone<'static>> {
        let healthy: u32 = counts.iter().map(|(healthy, _)| healthy).sum();
        let names = ["a", "b", "c", "d"];
        let zone = |(name, &(count, all)): (&'static str, &(u32, u32))| Zone {
            name,
            natural: f64::from(count) / f64::from(healthy.max(1)),
            healthy: count.into(),
            all: all.into(),
            capacity_per_s: 100.0 * f64::from(count),
            rate_per_s: 0.0,
        };
        names.into_iter().zip(counts).map(zone).collect()
    }

    fn close(one: &[f64], other: &[f64]) -> bool {
        one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn without_reports_a_whole_zone_keeps_its_requests_and_the_others_their_floor() {
        let mut flow = Flow::default();
        let shares = flow.next(&zones(&[(3, 3), (3, 3), (6, 6)]), "a", &CONFIG, Known::Nothing, 0);
        assert!(close(&shares, &[0.98, 0.01, 0.01]), "{shares:?}");
        assert!(!flow.is_moving());
    }

    #[test]
    fn without_reports_a_zone_spills_when_more_than_two_of_seven_are_lost_and_at_once() {
        let mut flow = Flow::default();
        let mut at = |healthy, now_ms| {
            let zones = zones(&[(healthy, 10), (10, 10), (20, 20)]);
            flow.next(&zones, "a", &CONFIG, Known::Nothing, now_ms)
        };
        assert!(close(&at(10, 0), &[0.98, 0.01, 0.01]));
        assert!(close(&at(8, 10), &[0.98, 0.01, 0.01]));
        let shares = at(5, 20);
        // One third of what is above their floors is for b.
        assert!(close(&shares, &[0.7, 0.01 + 0.28 / 3.0, 0.01 + 0.56 / 3.0]), "{shares:?}");
        assert!(close(&at(0, 30), &[0.0, 1.0 / 3.0, 2.0 / 3.0]));
        // It comes back half of the way in a second, from what it would have without
        // zones.
        assert!(close(&at(10, 30)[..1], &[0.25]));
        let back: Vec<f64> = (1..=9).map(|second| at(10, 30 + 1000 * second)[0]).collect();
        assert!(back.is_sorted() && back[0] < 0.7 && back[8] > 0.97, "{back:?}");
    }

    #[test]
    fn where_the_gateway_is_in_no_zone_that_is_there_each_has_its_natural_share() {
        let mut flow = Flow::default();
        let shares = flow.next(&zones(&[(1, 1), (3, 3)]), "x", &CONFIG, Known::Nothing, 0);
        assert_eq!(shares, [0.25, 0.75]);
        assert!(flow.next(&[], "x", &CONFIG, Known::Nothing, 0).is_empty());
    }

    #[test]
    fn what_is_lost_spills_at_once_to_what_the_others_can_bear_and_no_report_is_awaited() {
        let mut flow = Flow::default();
        let with = |count, rate| {
            let mut zones = zones(&[(count, 4), (4, 4), (4, 4)]);
            zones[0].rate_per_s = rate;
            zones[1].rate_per_s = 300.0;
            zones[2].rate_per_s = 100.0;
            zones
        };
        for second in 0..10 {
            let shares = flow.next(&with(4, 280.0), "a", &CONFIG, Known::Reported, 1000 * second);
            assert!(close(&shares[..1], &[0.98]), "280 of 320 have room: {shares:?}");
        }
        // Half of it is gone, and what is left reports half of the requests.
        let shares = flow.next(&with(2, 140.0), "a", &CONFIG, Known::Reported, 9001);
        let able = 0.98 * 160.0 / 280.0;
        assert!((shares[0] - able).abs() < 1e-6, "{shares:?}");
        assert!(shares[2] > 2.5 * shares[1], "c has more room: {shares:?}");
        let later = flow.next(&with(2, 100.0), "a", &CONFIG, Known::Reported, 12_000);
        assert!((later[0] - able).abs() < 1e-6, "it waits for reports: {later:?}");
    }

    #[test]
    fn old_reports_move_nothing() {
        let mut flow = Flow::default();
        let mut full = zones(&[(1, 1), (1, 1)]);
        full[0].rate_per_s = 95.0;
        let step = |flow: &mut Flow, known, now_ms| flow.next(&full, "a", &CONFIG, known, now_ms);
        step(&mut flow, Known::Reported, 0);
        let shares = step(&mut flow, Known::Reported, 1000);
        assert!(flow.is_moving());
        for second in 2..10 {
            let later = step(&mut flow, Known::Once, 1000 * second);
            assert!(close(&later[..1], &shares[..1]), "{later:?} after {shares:?}");
        }
    }

    /// Gateways of zone a and what they send, beside what the others send from
    /// elsewhere. Reports tell of the last five seconds, newer ones more, a second
    /// late. Returns the local zone's utilization and the gateways' local shares,
    /// second by second.
    fn fed_back(
        gateways: usize,
        demand: f64,
        elsewhere: [f64; 3],
        capacity: f64,
    ) -> Vec<(f64, Vec<f64>)> {
        let mut flows: Vec<Flow> = (0..gateways).map(|_| Flow::default()).collect();
        let mut shares = vec![vec![0.0, 0.0, 0.0]; gateways];
        let mut window: VecDeque<[f64; 3]> = VecDeque::new();
        let mut past = Vec::new();
        for second in 0..240 {
            let mut told = zones(&[(4, 4), (4, 4), (4, 4)]);
            for (index, zone) in told.iter_mut().enumerate() {
                zone.capacity_per_s = capacity;
                let seen = window.iter().skip(1).zip([5.0, 4.0, 3.0, 2.0, 1.0]);
                let (sum, weights) = seen.fold((0.0, 0.0), |(sum, weights), (rates, weight)| {
                    (sum + weight * rates[index], weights + weight)
                });
                zone.rate_per_s = if weights > 0.0 { sum / weights } else { 0.0 };
            }
            let known = if window.len() > 1 { Known::Reported } else { Known::Nothing };
            for (number, flow) in flows.iter_mut().enumerate() {
                // Not all at the same time.
                let now_ms = 1000 * second + 1000 * number as u64 / gateways as u64;
                shares[number] = flow.next(&told, "a", &CONFIG, known, now_ms);
            }
            let rate = |zone: usize| {
                let of_gateways: f64 = shares.iter().map(|of| of[zone] * demand).sum();
                elsewhere[zone] + of_gateways / gateways as f64
            };
            let rates = [rate(0), rate(1), rate(2)];
            window.push_front(rates);
            window.truncate(6);
            past.push((rates[0] / capacity, shares.iter().map(|of| of[0]).collect()));
        }
        past
    }

    #[test]
    fn all_stays_local_where_there_is_headroom_however_many_gateways() {
        for gateways in [1, 4, 16] {
            let past = fed_back(gateways, 300.0, [0.0, 300.0, 300.0], 400.0);
            let last = &past.last().unwrap().1;
            assert!(last.iter().all(|share| (share - 0.98).abs() < 0.01), "{last:?}");
        }
    }

    #[test]
    fn what_is_too_much_spills_until_the_target_is_met_however_many_gateways() {
        for gateways in [1, 4, 16] {
            for elsewhere in [0.0, 100.0] {
                let past = fed_back(gateways, 500.0, [elsewhere, 100.0, 100.0], 400.0);
                // Soon, and without a swing: reports that are told late move nothing twice.
                let late: Vec<f64> = past[30..].iter().map(|(it, _)| *it).collect();
                assert!(late.iter().all(|it| (0.74..0.86).contains(it)), "{gateways}: {late:?}");
                let (utilization, shares) = past.last().unwrap();
                assert!((0.76..0.84).contains(utilization), "{gateways}: {utilization}");
                let spread =
                    shares.iter().fold(0.0, |most: f64, share| most.max((share - shares[0]).abs()));
                assert!(spread < 0.05, "{shares:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn shares_sum_to_1_and_floors_are_kept(
            counts in proptest::collection::vec((0..6u32, 0..6u32), 1..5),
            rates in proptest::collection::vec(
                proptest::collection::vec(0.0..1000.0f64, 4), 1..8),
            known in proptest::collection::vec(0..3usize, 8),
            floor in 0..=10u32, utilization in 10..=100u32, step_ms in 0..3000u64,
            left in 0..4usize,
        ) {
            let config = ZoneConfig { floor, utilization, ..CONFIG };
            let mut flow = Flow::default();
            for (round, rates) in rates.iter().enumerate() {
                let mut zones = zones(&counts.iter().enumerate().map(|(index, (healthy, more))| {
                    // Some zone is lost on the way, and comes back.
                    let is_lost = round == 3 && index == left;
                    (if is_lost { 0 } else { *healthy }, healthy + more)
                }).collect::<Vec<_>>());
                for (zone, rate) in zones.iter_mut().zip(rates) {
                    zone.rate_per_s = *rate;
                }
                let known = [Known::Reported, Known::Once, Known::Nothing][known[round]];
                let shares = flow.next(&zones, "a", &config, known, step_ms * round as u64);
                let sum: f64 = shares.iter().sum();
                let any = zones.iter().any(|zone| zone.natural > 0.0);
                prop_assert!((sum - f64::from(u8::from(any))).abs() < 1e-9, "{shares:?}");
                let open = zones[1..].iter().filter(|zone| zone.natural > 0.0).count();
                let least = (f64::from(floor) / 100.0).min(0.5 / open.max(1) as f64);
                let least = zones[1..].iter().map(|zone| zone.natural)
                    .filter(|natural| *natural > 0.0).fold(least, f64::min);
                for (index, (zone, share)) in zones.iter().zip(&shares).enumerate() {
                    // The gateway's own zone has no floor, but what it would get anyway.
                    let least = if index > 0 && zone.natural > 0.0 { least } else { 0.0 };
                    prop_assert!(*share >= least - 1e-9, "{shares:?} of {zones:?}");
                    prop_assert!(zone.natural > 0.0 || *share == 0.0);
                }
                prop_assert!(shares[0] >= zones[0].natural - 1e-9, "{shares:?} of {zones:?}");
            }
        }

        #[test]
        fn nothing_swings(
            gateways in 1..20usize, demand in 10.0..1000.0f64,
            elsewhere in proptest::collection::vec(0.0..380.0f64, 3),
        ) {
            let elsewhere = [elsewhere[0], elsewhere[1], elsewhere[2]];
            let past = fed_back(gateways, demand, elsewhere, 400.0);
            let late: Vec<f64> = past[180..].iter().map(|(_, shares)| shares[0]).collect();
            let most = late.iter().copied().fold(0.0, f64::max);
            let least = late.iter().copied().fold(1.0, f64::min);
            prop_assert!(most - least < 0.03, "{late:?}");
        }
    }
}
