//! How far a history was delivered, and how it is known again.

use std::error::Error;
use std::ops::Range;

use super::{Change, Event, Head, Message, Problem};

/// Every change of this history up to this revision was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub head: Head,
    /// By which the history is known again; `None` if nothing was ever seen of it.
    pub witness: Option<Witness>,
}

/// The last change that was seen, or one of several at its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    key: Vec<u8>,
    mod_revision: i64,
    mark: u64,
}

/// Whether a stream that resumes is of the history that the cursor is of.
#[derive(Debug, Default)]
pub struct Proof {
    /// The cursor's witness is still to come.
    pub is_due: bool,
    /// After the witness and up to the cursor, where nothing was seen to change. What
    /// a stream finds there is of another history; or it came and went before the
    /// list that the cursor is of, which is as rare and not to be told from that.
    quiet: Range<i64>,
}

impl Head {
    /// Whether what is at `later` can have been here: revisions never go back, but
    /// where a source was restored from a backup or wiped.
    pub(super) fn may_precede(self, later: Head) -> bool {
        later.cluster_id == self.cluster_id && later.revision >= self.revision
    }
}

impl Cursor {
    /// Takes the change for the witness if it is the newest.
    pub fn see(&mut self, key: &[u8], mod_revision: i64, mark: u64) {
        if self.witness.as_ref().is_none_or(|witness| witness.mod_revision <= mod_revision) {
            self.witness = Some(Witness { key: key.to_vec(), mod_revision, mark });
        }
    }

    /// The revision that a watch of what is new begins with.
    pub fn next(&self) -> i64 {
        self.head.revision.saturating_add(1)
    }

    /// The revision that a watch that resumes begins with.
    pub fn proven_at(&self) -> i64 {
        self.witness.as_ref().map_or(self.head.revision, |witness| witness.mod_revision)
    }

    /// What `message` says on a stream that has delivered everything up to this
    /// cursor, and moves the cursor. Nothing but what the stream itself
    /// delivered does that: a header's revision is the source's, not the
    /// stream's, and a change between the two would be lost by a resume.
    pub fn advance<E: Error>(
        &mut self,
        message: Message,
        progress_is_exact: bool,
        proof: &mut Proof,
    ) -> Result<Vec<Event>, Problem<E>> {
        let Message { cluster_id, revision, compact_revision, canceled, created, changes } =
            message;
        let known = self.head;
        if compact_revision != 0 {
            let wanted = if proof.is_due { self.proven_at() } else { self.next() };
            return Err(Problem::Compacted { wanted, compact_revision });
        }
        if let Some(reason) = canceled {
            return Err(Problem::Canceled(reason));
        }
        if cluster_id != known.cluster_id {
            let found = Head { cluster_id, revision };
            return Err(Problem::Restored { known, found });
        }
        if revision < known.revision {
            // The source itself is not: it was asked when this was connected.
            return Err(Problem::Behind { known: known.revision, found: revision });
        }
        if changes.is_empty() {
            if created {
                return Ok(vec![]);
            }
            if progress_is_exact {
                if proof.is_due {
                    return Err(Problem::Foreign(self.proven_at()));
                }
                self.head.revision = revision;
            }
            return Ok(vec![Event::Progress { revision: self.head.revision }]);
        }
        proof.check(&changes, self.witness.as_ref()).map_err(Problem::Foreign)?;
        let mut events = Vec::with_capacity(changes.len());
        // Some versions of etcd send a change twice, or older ones than were asked
        // for.
        for change in changes.into_iter().filter(|it| it.mod_revision > known.revision) {
            let Change { key, value, mod_revision, mark } = change;
            self.see(&key, mod_revision, mark);
            self.head.revision = self.head.revision.max(mod_revision);
            events.push(match value {
                Some(value) => Event::Put { key, value, mod_revision },
                None => Event::Delete { key, mod_revision },
            });
        }
        Ok(events)
    }
}

impl Proof {
    /// What a stream that resumes at the cursor's witness has to show.
    pub fn of(cursor: &Cursor) -> Self {
        Self { is_due: true, quiet: cursor.proven_at().saturating_add(1)..cursor.next() }
    }

    /// Compares what a stream says with what was seen.
    ///
    /// # Errors
    /// The revision that is not what it was.
    fn check(&mut self, changes: &[Change], witness: Option<&Witness>) -> Result<(), i64> {
        let is_strange = |change: &&Change| self.quiet.contains(&change.mod_revision);
        if let Some(strange) = changes.iter().find(is_strange) {
            return Err(strange.mod_revision);
        }
        let Some(witness) = witness.filter(|_| self.is_due) else { return Ok(()) };
        let is_witness = |it: &Change| it.key == witness.key && it.mark == witness.mark;
        let due = witness.mod_revision;
        if changes.iter().any(|it| it.mod_revision == due && is_witness(it)) {
            self.is_due = false;
        } else if changes.iter().any(|it| it.mod_revision >= due) {
            return Err(due);
        }
        Ok(())
    }
}
