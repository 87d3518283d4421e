use super::*;

#[test]
fn a_service_has_one_entry_however_often_it_is_asked_for() {
    let board = Board::map().unwrap();
    let chat = board.service("chat").unwrap();
    let chatter = board.service("chatter").unwrap();
    assert_ne!(chat, chatter);
    assert_eq!(board.service("chat"), Some(chat));
}

#[test]
fn two_workers_that_ask_at_the_same_moment_get_the_same_entry() {
    let board = Board::map().unwrap();
    let together = std::sync::Barrier::new(2);
    let ask_for_all = || -> Vec<_> {
        let ask = |index| {
            together.wait();
            // Long, so that writing it takes a while.
            board.service(&format!("{index:0>100}"))
        };
        (0..MAX_SERVICES).map(ask).collect()
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(ask_for_all);
        (ask_for_all(), other.join().unwrap())
    });
    assert_eq!(one, other);
}

#[test]
fn names_that_do_not_fit_and_services_past_the_room_are_refused() {
    let board = Board::map().unwrap();
    assert_eq!(board.service(""), None);
    assert_eq!(board.service(&"x".repeat(MAX_NAME + 1)), None);
    for index in 0..MAX_SERVICES {
        assert!(board.service(&format!("s{index}")).is_some());
    }
    assert_eq!(board.service("one-too-many"), None);
    assert!(board.service("s17").is_some(), "a full board still finds what it has");
}

#[test]
fn an_older_writer_stores_nothing_once_a_newer_one_has_begun() {
    let board = Board::map().unwrap();
    let old = board.begin_epoch();
    assert_eq!(board.fenced(old, || 1), Some(1));
    let new = board.begin_epoch();
    assert_eq!(board.fenced(old, || 1), None);
    assert_eq!(board.fenced(new, || 2), Some(2));
    assert!(board.is_superseded(old) && !board.is_superseded(new));
}

#[test]
fn a_writer_that_was_killed_inside_a_store_does_not_stop_the_next() {
    let board = Board::map().unwrap();
    let killed = Writers { newest: 7, inside: 7 };
    board.layout.header.writers.store(killed.pack(), Relaxed);
    let epoch = board.begin_epoch();
    assert_eq!(board.fenced(epoch, || ()), Some(()));
    assert_eq!(Writers::load(&board.layout.header.writers), Writers { newest: 8, inside: 0 });
}

#[test]
fn damage_is_that_of_the_current_version_alone() {
    let board = Board::map().unwrap();
    let id = board.service("chat").unwrap();
    board.set_version(id, 3, 3);
    board.report_damaged(id, 3);
    assert!(board.is_damaged(id));
    board.set_version(id, 4, 3);
    assert!(!board.is_damaged(id));
}

#[test]
fn a_board_that_was_cleared_is_as_new() {
    let board = Board::map().unwrap();
    let chat = board.service("chat").unwrap();
    let slot = board.claim_slot(7, chat, 0, 0).unwrap();
    let _open = board.begin_request(None, slot, 7, 0);
    assert!(board.eject((slot, 7), 1, Reason::SuccessRate, 0, |_| 1000));
    board.clear().unwrap();
    assert_eq!((board.service_names().count(), board.used_slots().count()), (0, 0));
    assert_eq!((board.ejection(slot), board.in_flight(slot)), (None, 0));
    let mail = board.service("mail").unwrap();
    assert_eq!((mail, board.ejected(mail)), (chat, 0), "the first entry");
}
