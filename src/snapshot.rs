//! The last good view of etcd on disk: what a start begins with while etcd cannot be
//! reached.
//!
//! The file holds the keys that are in force, as etcd had them: registrations and
//! control values whose value was taken, each with its revision. Reading it back goes
//! through the same decoders and checks as etcd's own bytes. Nothing that was reported
//! is in it: by the time that it is read, that is old.
//!
//! It begins with one line of text, and the rest is JSON, for `tail -n +2 | jq`:
//!
//! ```text
//! ipconfig-snapshot 1 5d3c1f0a 00000000000001f4
//!             format  crc32    length
//! {"as_of_ms":1700000000000,"revision":17,"prefix":"/ipconfig/v1","services":{"chat":
//!  {"instances":[["/ipconfig/v1/instances/chat/a",17,"{\"addr\":…}"]],"controls":[]}}}
//! ```
//!
//! The length is that of the JSON, and the CRC-32 covers all from the length to the
//! end. Two generations are kept, `PATH` and the one before it, `PATH.1` ([`load`],
//! [`save`]). [`Keeper`] says when they are written; none of the writing is done on the
//! thread that follows etcd, let alone on nginx's.

mod disk;
mod keeper;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::registry::guard::is_mass_loss;

pub use self::disk::{Generation, Loaded, SaveError, Saved, load, save};
pub use self::keeper::{Keeper, LOADED, Missed, RESULTS_OF_A_WRITE, Report, Timing};

const MAGIC: &str = "ipconfig-snapshot";

/// What this version writes, and reads.
const FORMAT: u32 = 1;

/// `ipconfig-snapshot ` + format + ` ` + crc + ` ` + length + `\n`.
const HEADER_LEN: usize = 18 + 2 + 9 + 17;

/// Where the part that the CRC covers begins: with the length.
const COVERED_FROM: usize = 18 + 2 + 9;

/// What a service may lose, in percent, and the file with it.
const MAX_LOSS: u32 = 50;

/// The longest file that is written or read, in bytes: some 300,000 instances.
pub const MAX_LEN: usize = 64 << 20;

/// What etcd held.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Unix time at which it was etcd's state.
    pub as_of_ms: u64,
    /// The revision that was applied last.
    pub revision: i64,
    /// What the keys of the gateway's own cluster begin with.
    pub prefix: String,
    /// By the services' names.
    pub services: BTreeMap<String, Records>,
    /// Services that had more instances not long ago: how many, and the Unix time since
    /// when there are fewer, ever fewer and ever later.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub had: BTreeMap<String, Vec<(usize, u64)>>,
    /// Services that have lost more than half of their instances and keep them here for
    /// now, each with the number that etcd has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub doubted: BTreeMap<String, usize>,
}

/// The keys of one service, in order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// Registrations.
    pub instances: Vec<Record>,
    /// What the operator wants; one at most.
    pub controls: Vec<Record>,
}

/// A key with the last value of it that was taken. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Record {
    /// The whole key, with its prefix.
    pub key: Arc<str>,
    /// When the value was written.
    pub mod_revision: i64,
    /// What it held.
    pub value: Arc<str>,
}

/// Revisions do not count: a value that is written anew is the same value.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.value == other.value
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (&*self.key, self.mod_revision, &*self.value).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (key, mod_revision, value) = <(String, i64, String)>::deserialize(from)?;
        Ok(Record { key: key.into(), mod_revision, value: value.into() })
    }
}

/// Why a file is not a snapshot to begin with.
#[derive(Debug, Error)]
pub enum Miss {
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// The system does not let it be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// A folder, a pipe or the like.
    #[error("it is no regular file")]
    NoFile,
    /// Longer than any that is written.
    #[error("it has {0} bytes, and {MAX_LEN} at most are read")]
    TooLarge(u64),
    /// Somebody else's file.
    #[error("it does not begin with {MAGIC}")]
    Foreign,
    /// Another version's.
    #[error("it is of format {0:?}, and this version reads {FORMAT}")]
    Format(String),
    /// It was cut short, or something was appended.
    #[error("it has {found} bytes where its header says {expected}")]
    Length { found: usize, expected: usize },
    /// Its bytes are not those that were written.
    #[error("its checksum is {found:08x} where its header says {expected}")]
    Checksum { found: u32, expected: String },
    /// Whole, and yet not what this version writes.
    #[error("its body is not valid: {0}")]
    Body(#[source] serde_json::Error),
    /// Of a gateway that reads other keys.
    #[error("it is of the prefix {found:?}, and this gateway's is {wanted:?}")]
    Prefix { found: String, wanted: String },
}

impl Miss {
    /// The name in the metrics and the API.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unreadable(_) => "unreadable",
            Self::NoFile => "no_file",
            Self::TooLarge(_) => "too_large",
            Self::Foreign => "foreign",
            Self::Format(_) => "format",
            Self::Length { found, expected } if found < expected => "truncated",
            Self::Length { .. } => "overlong",
            Self::Checksum { .. } => "checksum",
            Self::Body(_) => "body",
            Self::Prefix { .. } => "prefix",
        }
    }
}

impl Snapshot {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![b' '; HEADER_LEN];
        serde_json::to_writer(&mut bytes, self).expect("plain data has a JSON form");
        let len = format!("{:016x}\n", bytes.len() - HEADER_LEN);
        bytes[COVERED_FROM..HEADER_LEN].copy_from_slice(len.as_bytes());
        let crc = crc32fast::hash(&bytes[COVERED_FROM..]);
        let header = format!("{MAGIC} {FORMAT} {crc:08x} ");
        bytes[..COVERED_FROM].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Reads a file's bytes.
    ///
    /// # Errors
    /// Any [`Miss`] from `Foreign` to `Body`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Miss> {
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic != &MAGIC.as_bytes()[..magic.len()] {
            return Err(Miss::Foreign);
        }
        let Some(header) = bytes.get(..HEADER_LEN) else {
            return Err(Miss::Length { found: bytes.len(), expected: HEADER_LEN });
        };
        let header = String::from_utf8_lossy(&header[MAGIC.len()..HEADER_LEN - 1]);
        let mut fields = header.strip_prefix(' ').ok_or(Miss::Foreign)?.split(' ');
        // The format is told apart first: others may have other headers.
        let format = fields.next().unwrap_or_default();
        if format != FORMAT.to_string() {
            return Err(Miss::Format(format.to_owned()));
        }
        let crc = fields.next().unwrap_or_default();
        let len = fields.next().and_then(|len| usize::from_str_radix(len, 16).ok());
        let expected = HEADER_LEN.saturating_add(len.unwrap_or(usize::MAX));
        if bytes.len() != expected && len.is_some() {
            return Err(Miss::Length { found: bytes.len(), expected });
        }
        let found = crc32fast::hash(&bytes[COVERED_FROM..]);
        // As text, so that there is one form of it.
        if format!("{found:08x}") != crc || len.is_none() {
            return Err(Miss::Checksum { found, expected: crc.to_owned() });
        }
        serde_json::from_slice(&bytes[HEADER_LEN..]).map_err(Miss::Body)
    }

    /// Gives services that have lost more than half of their instances those that
    /// `known` has, unless the loss has stood for so long. What counts is the largest
    /// number in that time, so that many small losses are as one. Who was scaled down is
    /// tried in vain for a while after a start without etcd; whose keys were lost by a
    /// fault is served, as the operator last wished. A service that this gateway does not
    /// serve is not read, and so nothing is known of its loss.
    pub fn hold_losses(&mut self, known: &Self, stands: Duration, serves: impl Fn(&str) -> bool) {
        let now_ms = self.as_of_ms;
        for (service, records) in known.services.iter().filter(|(service, _)| serves(service)) {
            let there = self.services.get(service).map_or(0, |it| it.instances.len());
            let last = known.doubted.get(service).copied().unwrap_or(records.instances.len());
            let had = known.had.get(service).into_iter().flatten().copied();
            let had: Vec<_> = had
                .chain([(last, now_ms)])
                // The clock may have been put back.
                .map(|(count, since_ms)| (count, since_ms.min(now_ms)))
                .filter(|&(count, since_ms)| {
                    count > there && Duration::from_millis(now_ms - since_ms) < stands
                })
                .collect();
            let Some(most) = had.iter().map(|(count, _)| *count).max() else { continue };
            self.had.insert(service.clone(), had);
            if !is_mass_loss(most - there, most, MAX_LOSS) {
                continue;
            }
            self.doubted.insert(service.clone(), there);
            let held = self.services.entry(service.clone()).or_default();
            if held.controls.is_empty() {
                held.controls.clone_from(&records.controls);
            }
            let instances = &mut held.instances;
            let there: HashSet<_> = instances.iter().map(|it| Arc::clone(&it.key)).collect();
            let lost = records.instances.iter().filter(|it| !there.contains(&it.key)).cloned();
            instances.extend(lost);
            instances.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        }
    }

    /// How many instances there are, and of how many services.
    pub fn size(&self) -> (usize, usize) {
        let counts = self.services.values().map(|it| it.instances.len()).filter(|it| *it > 0);
        counts.fold((0, 0), |(instances, services), it| (instances + it, services + 1))
    }
}

#[cfg(test)]
mod tests;
