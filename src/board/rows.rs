//! Rows: each worker's part of the in-flight, so that it can be given back when
//! the worker is gone. A row is written by its owner alone, which takes no atomic
//! addition, and no other core's cache line.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use rustix::io::Errno;
use rustix::process::Pid;

use super::memory::AtomicU32;
use super::{Board, MAX_ROWS, MAX_SERVICES, MAX_SLOTS, ServiceId};

#[repr(C)]
#[cfg_attr(loom, derive(Default))]
pub(super) struct Row {
    /// Pid of the worker; 0 while the row is free.
    owner: AtomicU32,
    of_services: [AtomicU32; MAX_SERVICES],
    of_slots: [AtomicU32; MAX_SLOTS],
}

/// One worker's row, claimed by [`Board::claim_row`].
#[derive(Clone, Copy)]
pub struct RowId(usize);

impl Board {
    /// A row for a worker. `None` when 256 workers live already: the worker's
    /// in-flight then stays if it is killed.
    pub fn claim_row(&self, pid: u32) -> Option<RowId> {
        self.reclaim_rows();
        let rows = &self.layout.rows;
        let row = (0..MAX_ROWS)
            .find(|&row| rows[row].owner.compare_exchange(0, pid, AcqRel, Relaxed).is_ok())?;
        self.layout.header.rows_used.fetch_max(row as u32 + 1, AcqRel);
        Some(RowId(row))
    }

    /// Gives back the in-flight of workers that are gone.
    pub fn reclaim_rows(&self) {
        for row in &self.layout.rows {
            let owner = row.owner.load(Acquire);
            if owner != 0 && !is_alive(owner) {
                self.reclaim(row, owner);
            }
        }
    }

    fn reclaim(&self, row: &Row, owner: u32) {
        // The row's new owner is this process until it is empty, so that two
        // workers that start at once do not both give it back.
        if row.owner.compare_exchange(owner, std::process::id(), AcqRel, Relaxed).is_err() {
            return;
        }
        for part in &row.of_services {
            part.store(0, Relaxed);
        }
        for (slot, part) in (0..self.slots_used()).zip(&row.of_slots) {
            let open = part.swap(0, Relaxed);
            if open != 0 {
                self.give_back(slot, open);
            }
        }
        row.owner.store(0, Release);
    }

    /// Adds to a worker's own row. `slot` is one that the board has; `service` may be
    /// what somebody scribbled.
    pub(super) fn add_to_row(&self, row: Option<RowId>, slot: u32, service: u32, change: i32) {
        let Some(row) = row.map(|row| &self.layout.rows[row.0]) else { return };
        let parts = [row.of_slots.get(slot as usize), row.of_services.get(service as usize)];
        for part in parts.into_iter().flatten() {
            part.store(part.load(Relaxed).wrapping_add_signed(change), Relaxed);
        }
    }

    /// Requests that all workers of this host have open on a service's instances, as far
    /// as those have slots and the workers rows. A word a worker is read for it.
    pub fn service_in_flight(&self, id: ServiceId) -> u64 {
        let used = self.layout.header.rows_used.load(Relaxed) as usize;
        let rows = self.layout.rows.iter().take(used);
        rows.map(|row| row.of_services[id.0].load(Relaxed)).map(u64::from).sum()
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // One of another user's is alive, too.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::board::Outcome;

    #[test]
    fn in_flight_of_a_killed_worker_is_given_back_to_the_instance_and_to_its_service() {
        let board = Board::map().unwrap();
        let (mail, chat) = (board.service("mail").unwrap(), board.service("chat").unwrap());
        let slot = board.claim_slot(1, mail, 0, 0).unwrap();
        let other = board.claim_slot(2, chat, 0, 0).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let theirs = board.claim_row(child.id());
        let ours = board.claim_row(std::process::id());
        board.begin_request(theirs, slot, 1, 0);
        board.begin_request(theirs, slot, 1, 0);
        board.begin_request(theirs, other, 2, 0);
        let open = board.begin_request(ours, slot, 1, 0);
        let in_flight = || {
            let of_services = [mail, chat].map(|id| board.service_in_flight(id));
            ([slot, other].map(|slot| board.in_flight(slot)), of_services)
        };
        assert_eq!(in_flight(), ([3, 1], [3, 1]));

        child.wait().unwrap();
        board.reclaim_rows();
        assert_eq!(in_flight(), ([1, 0], [1, 0]), "ours is still open");
        board.end_request(ours, open, Outcome::Answered, 0);
        assert_eq!(in_flight(), ([0, 0], [0, 0]));
        board.reclaim_rows();
        assert_eq!(in_flight(), ([0, 0], [0, 0]), "once");
    }
}
