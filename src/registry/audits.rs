//! What audits find: lists of what was known already, in which nothing is to differ.
//! What does was lost on the way, by a fault of etcd or of this library.

use serde::{Deserialize, Serialize};

use crate::printable;

/// Keys that one audit names in the log.
const MAX_LOGGED: u64 = 5;

/// Of all audits since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Audits that came to their end.
    pub complete: u64,
    /// Keys that were missing, old, or gone, and were put right by that.
    pub differences: u64,
}

/// The audits of a registry.
#[derive(Debug, Default)]
pub struct Audits {
    pub figures: Figures,
    /// The differences of the audit under way.
    now: Option<u64>,
}

impl Audits {
    /// The next list is one.
    pub fn begin(&mut self) {
        self.now = Some(0);
    }

    /// A list differs at this key, and `how` the registry was wrong. Nothing to note
    /// if it is no audit.
    pub fn differs(&mut self, key: &[u8], how: &str) {
        let Some(count) = &mut self.now else { return };
        *count += 1;
        if *count <= MAX_LOGGED {
            let key = printable::key(key);
            tracing::warn!(key, "an audit found a key that was {how} here");
        }
    }

    /// The list is complete.
    pub fn end(&mut self) {
        let Some(count) = self.now.take() else { return };
        self.figures.complete += 1;
        self.figures.differences += count;
        if count > 0 {
            tracing::warn!(count, "an audit put right what differed from etcd");
        }
    }
}
