//! The values that are in force, as they were put: what a snapshot is made of.

use std::collections::BTreeMap;

use crate::snapshot::{Record, Records};

/// What a key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Instance,
    Control,
}

/// The last value of each key that was taken, for as long as the key exists.
#[derive(Debug, Default)]
pub struct Kept {
    is_on: bool,
    by_key: BTreeMap<Vec<u8>, (String, Kind, Record)>,
    changes: u64,
}

impl Kept {
    /// One that keeps nothing unless it `is_on`.
    pub fn new(is_on: bool) -> Self {
        Self { is_on, ..Self::default() }
    }

    /// A value was taken.
    pub fn put(&mut self, key: &[u8], service: &str, kind: Kind, value: &[u8], mod_revision: i64) {
        if !self.is_on {
            return;
        }
        // A name is text, and so is whatever counts in a value that was taken.
        let (text, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        if let Some((_, _, known)) = self.by_key.get_mut(key)
            && *known.value == *value
        {
            known.mod_revision = mod_revision;
            return;
        }
        let record = Record { key: (*text).into(), mod_revision, value: (*value).into() };
        self.by_key.insert(key.to_vec(), (service.to_owned(), kind, record));
        self.changes += 1;
    }

    /// A key does not exist any more.
    pub fn remove(&mut self, key: &[u8]) {
        if self.by_key.remove(key).is_some() {
            self.changes += 1;
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Another number for other values.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// All values by service, in the order of the keys.
    pub fn by_service(&self) -> BTreeMap<String, Records> {
        let mut services = BTreeMap::<String, Records>::new();
        for (service, kind, record) in self.by_key.values() {
            if !services.contains_key(service) {
                services.insert(service.clone(), Records::default());
            }
            let Some(records) = services.get_mut(service) else { continue };
            match kind {
                Kind::Instance => records.instances.push(record.clone()),
                Kind::Control => records.controls.push(record.clone()),
            }
        }
        services
    }
}
