//! Rows: each worker's part of the in-flight, so that it can be given back when
//! the worker is gone.

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::{Board, MAX_ROWS, MAX_SLOTS};

#[repr(C)]
pub(super) struct Row {
    /// Pid of the worker; 0 while the row is free.
    owner: AtomicU32,
    in_flight: [AtomicU32; MAX_SLOTS],
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
        (0..MAX_ROWS)
            .find(|&row| rows[row].owner.compare_exchange(0, pid, AcqRel, Relaxed).is_ok())
            .map(RowId)
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
        for (slot, part) in (0..self.slots_used()).zip(&row.in_flight) {
            let open = part.swap(0, Relaxed);
            if open != 0 {
                self.give_back(slot, open);
            }
        }
        row.owner.store(0, Release);
    }

    /// A row is written by its owner alone, so that it takes no atomic addition.
    /// `slot` is one that the board has.
    pub(super) fn add_to_row(&self, row: Option<RowId>, slot: u32, change: i32) {
        if let Some(row) = row {
            let part = &self.layout.rows[row.0].in_flight[slot as usize];
            part.store(part.load(Relaxed).wrapping_add_signed(change), Relaxed);
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 asks whether the process exists and sends nothing.
    let exists = unsafe { libc::kill(pid, 0) } == 0;
    exists || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

#[cfg(test)]
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
