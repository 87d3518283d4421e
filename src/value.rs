//! The values in the shared dict: what the writer stores and workers read.
//!
//! Two values a service, so that the one that changes with every report stays
//! small: who the instances are (JSON, which Lua alone can read), and how they
//! rank (fixed-size records). Each begins with one line of text:
//!
//! ```text
//! ipconfig1 5d3c1f0a 000001f4 000000000000002a
//!           crc32    length   version
//! ```
//!
//! all in hexadecimal; the length is that of the body behind the line, and the
//! CRC-32 (IEEE, as `ngx.crc32_long`) covers all from the length to the body's
//! end. The body is padded with spaces up to a power of two, so that a value of
//! another version is written over the old one in place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{Rule, Strategy, rules};
use crate::ranking::{Basis, State};

/// `ipconfig1 ` + crc + ` ` + length + ` ` + version + `\n`.
const HEADER_LEN: usize = 10 + 9 + 9 + 17;
/// Where the part that the CRC covers begins.
const COVERED_FROM: usize = 10 + 9;
const MAGIC: &str = "ipconfig1";

/// Why a value of the shared dict cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueError {
    /// There is none: never stored, or evicted by somebody else's values.
    #[error("the value is missing from the shared dict")]
    Missing,
    /// Somebody else wrote the key.
    #[error("the value does not begin with {MAGIC}")]
    Foreign,
    /// A store was cut short.
    #[error("the value is cut short: {found} bytes where its header says {expected}")]
    Truncated { found: usize, expected: usize },
    /// A store was torn.
    #[error("the checksum is {found:08x} where the header says {expected:08x}")]
    Checksum { found: u32, expected: u32 },
    /// Whole, and yet not what this version writes.
    #[error("the body is not valid: {0}")]
    Body(String),
    /// The two values of the service belong to different versions; the next
    /// version heals that.
    #[error("the ranking is of instances version {wanted} and the instances are of {found}")]
    Mismatch { wanted: u64, found: u64 },
}

/// Puts a body into its envelope.
pub fn seal(version: u64, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity((HEADER_LEN + body.len()).next_power_of_two());
    value.extend_from_slice(
        format!("{MAGIC} 00000000 {:08x} {version:016x}\n", body.len()).as_bytes(),
    );
    value.extend_from_slice(body);
    let crc = crc32fast::hash(&value[COVERED_FROM..]);
    value[COVERED_FROM - 9..COVERED_FROM - 1].copy_from_slice(format!("{crc:08x}").as_bytes());
    value.resize(value.len().next_power_of_two(), b' ');
    value
}

/// Takes a body out of its envelope, with its version.
///
/// # Errors
/// Whatever [`ValueError`] names but `Body` and `Mismatch`; no bytes at all are a
/// value that is missing.
pub fn open(value: &[u8]) -> Result<(u64, &[u8]), ValueError> {
    if value.is_empty() {
        return Err(ValueError::Missing);
    }
    let header = value.get(..HEADER_LEN).and_then(|line| std::str::from_utf8(line).ok());
    let header = header.and_then(|line| line.strip_suffix('\n')).ok_or(ValueError::Foreign)?;
    let mut fields = header.split(' ');
    if fields.next() != Some(MAGIC) {
        return Err(ValueError::Foreign);
    }
    let mut number = || fields.next().and_then(|field| u64::from_str_radix(field, 16).ok());
    let (Some(crc), Some(len), Some(version)) = (number(), number(), number()) else {
        return Err(ValueError::Foreign);
    };
    let expected = HEADER_LEN.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
    let covered = value
        .get(COVERED_FROM..expected)
        .ok_or(ValueError::Truncated { found: value.len(), expected })?;
    let found = crc32fast::hash(covered);
    if u64::from(found) != crc {
        return Err(ValueError::Checksum { found, expected: crc as u32 });
    }
    Ok((version, &value[HEADER_LEN..expected]))
}

/// One instance in the value `instances:<service>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceValue {
    pub id: String,
    pub addr: std::net::SocketAddr,
    pub zone: String,
    /// The fallback weight.
    pub weight: f64,
    /// Where the board keeps its counters.
    pub slot: u32,
}

/// What an operator wants of a service, for whoever asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlValue {
    /// Whether the weights are the operator's.
    pub is_manual: bool,
    /// When it lapses, as in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Who wrote it.
    pub by: String,
    /// Why.
    pub why: String,
}

/// The body of the value `instances:<service>`: a service, but for how its instances
/// rank.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServiceValue {
    /// In place of the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The operator's, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlValue>,
    /// The instances in their slow start, with when it began, in milliseconds of
    /// [`monotonic_ms`](crate::board::monotonic_ms).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub starts: BTreeMap<String, u64>,
    /// Which requests go to which instances.
    #[serde(default, deserialize_with = "rules::rules", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The rules that select each instance, in the instances' order: bit 0 for the
    /// first. Empty where there are no rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u16>,
    /// By id.
    pub instances: Vec<InstanceValue>,
}

impl ServiceValue {
    /// As JSON, which Lua alone can read.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data always has a JSON form")
    }

    /// # Errors
    /// [`ValueError::Body`].
    pub fn decode(body: &[u8]) -> Result<Self, ValueError> {
        let value: Self =
            serde_json::from_slice(body).map_err(|cause| ValueError::Body(cause.to_string()))?;
        let expected = if value.rules.is_empty() { 0 } else { value.instances.len() };
        match value.groups.len() {
            found if found == expected => Ok(value),
            found => Err(ValueError::Body(format!("{found} groups, expected {expected}"))),
        }
    }
}

/// The body of the value `ranking:<service>`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RankingValue {
    /// The version of the instances that it ranks.
    pub instances_version: u64,
    /// [`monotonic_ms`](crate::board::monotonic_ms) when it was made.
    pub published_ms: u64,
    /// The source's revision that it was made from.
    pub revision: i64,
    /// This host's part of the requests that the service gets from everywhere, 0
    /// to 1; 0 is unknown.
    pub own_part: f64,
    /// Requests that the service gets from everywhere, a second; 0 is unknown.
    pub rate_per_s: f64,
    /// What the weights rest on.
    pub basis: Basis,
    /// One for each instance, in the instances' order.
    pub records: Vec<Record>,
}

/// How one instance ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    pub score: f64,
    pub weight: f64,
    /// 0 is the best.
    pub rank: u32,
    pub state: State,
    /// What one request takes while none waits, in milliseconds; 0 is unknown.
    pub service_ms: f32,
    /// Requests that it serves at once; 0 is unknown.
    pub concurrency: f32,
    /// Requests that it can answer, a second; 0 is unknown.
    pub capacity_per_s: f32,
    /// When a report of its own last confirmed what it can do, in whole seconds of
    /// [`monotonic_ms`](crate::board::monotonic_ms); 0 is never.
    pub reported_s: u32,
    /// What its weight was multiplied by, beside what the ranking says of it: 1 where
    /// nothing governs it, 0 where it is to get nothing.
    pub factor: f32,
    /// Requests that this host may have in flight on it; 0 for no limit.
    pub max_in_flight: u32,
}

const RANKING_HEAD: usize = 48;
const RECORD_LEN: usize = 48;

impl RankingValue {
    /// Whether too few were healthy to leave the others out: some are not, and get
    /// requests all the same.
    pub fn is_panic(&self) -> bool {
        let is_unhealthy = |state| matches!(state, State::Ejected | State::Failing);
        self.records.iter().any(|record| is_unhealthy(record.state) && record.factor > 0.0)
    }

    /// Little-endian: `instances_version published_ms revision own_part rate_per_s
    /// basis` of 8 bytes each, then records of `score weight` in 8 bytes each and
    /// `rank state service_ms concurrency capacity_per_s reported_s factor max_in_flight` in 4
    /// each.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(RANKING_HEAD + self.records.len() * RECORD_LEN);
        body.extend_from_slice(&self.instances_version.to_le_bytes());
        body.extend_from_slice(&self.published_ms.to_le_bytes());
        body.extend_from_slice(&self.revision.to_le_bytes());
        body.extend_from_slice(&self.own_part.to_le_bytes());
        body.extend_from_slice(&self.rate_per_s.to_le_bytes());
        body.extend_from_slice(&basis_code(self.basis).to_le_bytes());
        for record in &self.records {
            body.extend_from_slice(&record.score.to_le_bytes());
            body.extend_from_slice(&record.weight.to_le_bytes());
            body.extend_from_slice(&record.rank.to_le_bytes());
            body.extend_from_slice(&state_code(record.state).to_le_bytes());
            body.extend_from_slice(&record.service_ms.to_le_bytes());
            body.extend_from_slice(&record.concurrency.to_le_bytes());
            body.extend_from_slice(&record.capacity_per_s.to_le_bytes());
            body.extend_from_slice(&record.reported_s.to_le_bytes());
            body.extend_from_slice(&record.factor.to_le_bytes());
            body.extend_from_slice(&record.max_in_flight.to_le_bytes());
        }
        body
    }

    /// # Errors
    /// [`ValueError::Body`] for a wrong size, an unknown state, a rank out of
    /// range or a weight that is no weight.
    pub fn decode(body: &[u8]) -> Result<Self, ValueError> {
        let refuse = |what: &str| Err(ValueError::Body(what.to_owned()));
        let Some((head, rest)) = body.split_at_checked(RANKING_HEAD) else {
            return refuse("a ranking without its head");
        };
        let (records, []) = rest.as_chunks::<RECORD_LEN>() else {
            return refuse("a ranking with a part of a record");
        };
        let count = records.len();
        let records = records.iter().map(|record| {
            let record = Record {
                score: f64::from_le_bytes(bytes(record, 0)),
                weight: f64::from_le_bytes(bytes(record, 8)),
                rank: u32::from_le_bytes(bytes(record, 16)),
                state: state_of(u32::from_le_bytes(bytes(record, 20)))?,
                service_ms: f32::from_le_bytes(bytes(record, 24)),
                concurrency: f32::from_le_bytes(bytes(record, 28)),
                capacity_per_s: f32::from_le_bytes(bytes(record, 32)),
                reported_s: u32::from_le_bytes(bytes(record, 36)),
                factor: f32::from_le_bytes(bytes(record, 40)),
                max_in_flight: u32::from_le_bytes(bytes(record, 44)),
            };
            let is_figure = |figure: &f32| figure.is_finite() && *figure >= 0.0;
            let sound = record.score.is_finite()
                && record.weight.is_finite()
                && record.weight >= 0.0
                && [record.service_ms, record.concurrency, record.capacity_per_s, record.factor]
                    .iter()
                    .all(is_figure)
                && (record.rank as usize) < count;
            sound.then_some(record)
        });
        let Some(records) = records.collect::<Option<Vec<_>>>() else {
            return refuse("a record out of range");
        };
        let own_part = f64::from_le_bytes(bytes(head, 24));
        if !(0.0..=1.0).contains(&own_part) {
            return refuse("an own part that is no part");
        }
        let rate_per_s = f64::from_le_bytes(bytes(head, 32));
        if !(rate_per_s.is_finite() && rate_per_s >= 0.0) {
            return refuse("a rate that is none");
        }
        let Some(basis) = basis_of(u64::from_le_bytes(bytes(head, 40))) else {
            return refuse("an unknown basis");
        };
        Ok(RankingValue {
            instances_version: u64::from_le_bytes(bytes(head, 0)),
            published_ms: u64::from_le_bytes(bytes(head, 8)),
            revision: i64::from_le_bytes(bytes(head, 16)),
            own_part,
            rate_per_s,
            basis,
            records,
        })
    }
}

/// The `N` bytes at an offset that the caller knows to be inside.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| from[at + index])
}

/// Codes are append-only.
const STATES: [State; 7] = [
    State::Reporting,
    State::Unknown,
    State::Unreported,
    State::Unreachable,
    State::Ejected,
    State::Failing,
    State::Doubtful,
];

fn state_code(state: State) -> u32 {
    STATES.iter().position(|known| *known == state).map_or(u32::MAX, |code| code as u32)
}

/// Codes are append-only.
fn basis_code(basis: Basis) -> u64 {
    Basis::ALL.iter().position(|known| *known == basis).map_or(u64::MAX, |code| code as u64)
}

fn basis_of(code: u64) -> Option<Basis> {
    Basis::ALL.get(usize::try_from(code).ok()?).copied()
}

fn state_of(code: u32) -> Option<State> {
    STATES.get(code as usize).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranking() -> RankingValue {
        let record = Record {
            score: -0.25,
            weight: 1.5,
            rank: 0,
            state: State::Reporting,
            service_ms: 10.0,
            concurrency: 4.0,
            factor: 0.5,
            max_in_flight: 250,
            capacity_per_s: 400.0,
            reported_s: 86_400,
        };
        RankingValue {
            instances_version: 3,
            published_ms: 1000,
            revision: -1,
            own_part: 0.25,
            rate_per_s: 1200.0,
            basis: Basis::OldReports,
            records: vec![record, Record { rank: 1, state: State::Unreported, ..record }],
        }
    }

    #[test]
    fn the_first_line_of_a_value_is_what_lua_reads() {
        let value = seal(42, b"[]");
        let crc = crc32fast::hash(b"00000002 000000000000002a\n[]");
        let line = format!("ipconfig1 {crc:08x} 00000002 000000000000002a\n[]");
        assert!(value.starts_with(line.as_bytes()));
        assert_eq!(value.len(), 64, "padded to a power of two");
        assert_eq!(open(&value), Ok((42, &b"[]"[..])));
    }

    #[test]
    fn a_value_that_others_wrote_is_foreign() {
        for value in [&b"hello"[..], b"ipconfig2 ", &[0xff; 200]] {
            assert_eq!(open(value), Err(ValueError::Foreign));
        }
        assert_eq!(open(b""), Err(ValueError::Missing));
    }

    #[test]
    fn a_truncated_value_is_refused_and_so_is_a_torn_one() {
        let value = seal(1, &[b'x'; 100]);
        assert!(matches!(open(&value[..120]), Err(ValueError::Truncated { .. })));
        let mut torn = value.clone();
        torn[100] ^= 1;
        assert!(matches!(open(&torn), Err(ValueError::Checksum { .. })));
        let mut restamped = value;
        restamped[40] = b'7';
        assert!(
            matches!(open(&restamped), Err(ValueError::Checksum { .. })),
            "the version is covered"
        );
    }

    #[test]
    fn a_ranking_comes_back_as_it_went() {
        assert_eq!(RankingValue::decode(&ranking().encode()), Ok(ranking()));
        let empty = RankingValue::default();
        assert_eq!(RankingValue::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn a_ranking_with_a_value_out_of_range_is_refused_whole() {
        let with = |change: fn(&mut Record)| {
            let mut ranking = ranking();
            change(&mut ranking.records[0]);
            RankingValue::decode(&ranking.encode())
        };
        assert!(with(|record| record.weight = 0.0).is_ok());
        assert!(with(|record| record.weight = -1.0).is_err());
        assert!(with(|record| record.weight = f64::NAN).is_err());
        assert!(with(|record| record.score = f64::INFINITY).is_err());
        assert!(with(|record| record.rank = 2).is_err());
        assert!(with(|record| record.service_ms = f32::NAN).is_err());
        assert!(with(|record| record.concurrency = -1.0).is_err());
        assert!(with(|record| record.factor = f32::INFINITY).is_err());
        assert!(with(|record| record.capacity_per_s = f32::INFINITY).is_err());
        let with_byte = |at, byte| {
            let mut bytes = ranking().encode();
            bytes[at] = byte;
            RankingValue::decode(&bytes)
        };
        assert!(with_byte(RANKING_HEAD + 20, 9).is_err(), "a state that there is not");
        assert!(with_byte(31, 0xff).is_err(), "an own part of NaN");
        assert!(with_byte(39, 0xff).is_err(), "a negative rate");
        assert!(with_byte(40, 3).is_err(), "a basis that there is not");
        assert!(
            RankingValue::decode(&ranking().encode()[..RANKING_HEAD + RECORD_LEN - 1]).is_err()
        );
    }

    #[test]
    fn the_codes_of_the_states_never_change() {
        use State::*;
        let states = [Reporting, Unknown, Unreported, Unreachable, Ejected, Failing, Doubtful];
        for (code, state) in (0..).zip(states) {
            assert_eq!((state_code(state), state_of(code)), (code, Some(state)));
        }
        assert_eq!(state_of(7), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = open(&bytes);
            let _ = ServiceValue::decode(&bytes);
            let _ = RankingValue::decode(&bytes);
            let sealed = seal(1, &bytes);
            prop_assert_eq!(open(&sealed), Ok((1, &bytes[..])));
        }
    }
}
