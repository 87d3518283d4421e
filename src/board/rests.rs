//! Instances that rest after a failure, where a service's `failure.mode` is
//! `failcache`: this host sends them nothing until then, as long as there are others.
//!
//! The service knows the latest of its instances' rests, so that while none rests
//! that is one word to be read.

use std::sync::atomic::Ordering::Relaxed;

use super::{Board, Open, ServiceId};

impl Board {
    /// Has the instance of a request that failed rest until then, or longer if it does
    /// already.
    pub fn rest(&self, open: &Open, until_ms: u64) {
        let Some(slot) = self.slot_of(open.slot, open.identity) else { return };
        slot.resting_until_ms.fetch_max(until_ms, Relaxed);
        if let Some(service) = self.layout.services.get(open.service as usize) {
            service.hot.0.resting_until_ms.fetch_max(until_ms, Relaxed);
        }
    }

    /// Whether the slot's instance rests.
    pub fn is_resting(&self, slot: u32, now_ms: u64) -> bool {
        self.slot(slot).is_some_and(|slot| slot.resting_until_ms.load(Relaxed) > now_ms)
    }

    /// Whether any of the service's instances may rest.
    pub fn has_resting(&self, id: ServiceId, now_ms: u64) -> bool {
        self.layout.services[id.0].hot.0.resting_until_ms.load(Relaxed) > now_ms
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_instance_rests_until_then_and_its_service_knows() {
        let board = Board::map_for_tests();
        let (chat, mail) = (board.service("chat").unwrap(), board.service("mail").unwrap());
        let [a, b] = [1, 2].map(|identity| board.claim_slot(identity, chat, 0, 0).unwrap());
        let open = board.begin_request(None, a, 1, 0);
        assert!(!board.has_resting(chat, 0));
        board.rest(&open, 500);
        board.rest(&open, 400);
        assert!(board.is_resting(a, 499) && board.has_resting(chat, 499));
        assert!(!board.is_resting(b, 499) && !board.has_resting(mail, 499));
        assert!(!board.is_resting(a, 500) && !board.has_resting(chat, 500));
    }

    #[test]
    fn a_slot_that_is_anothers_by_now_does_not_rest() {
        let board = Board::map_for_tests();
        let chat = board.service("chat").unwrap();
        let slot = board.claim_slot(1, chat, 0, 0).unwrap();
        let open = board.begin_request(None, slot, 1, 0);
        board.rest(&open, 500);
        board.give_back(slot, 1);
        assert!(board.release_slot(slot));
        assert_eq!(board.claim_slot(2, chat, 0, 0), Some(slot));
        assert!(!board.is_resting(slot, 0), "it begins anew");
        board.rest(&open, 500);
        assert!(!board.is_resting(slot, 0));
    }
}
