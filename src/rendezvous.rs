//! Who of several sees to an instance: the one that hashes highest with it
//! (rendezvous hashing, Thaler and Ravishankar 1998). Nobody has to agree on
//! anything, and who comes or leaves moves no instance between two others.

use xxhash_rust::xxh64::Xxh64;

/// The owner of an instance among those of these names; `None` if there are none.
pub fn owner<'a>(
    names: impl IntoIterator<Item = &'a String>,
    service: &str,
    id: &str,
) -> Option<&'a String> {
    let height = |name: &&String| {
        let mut hash = Xxh64::new(0);
        for part in [name.as_str(), " ", service, "/", id] {
            hash.update(part.as_bytes());
        }
        hash.digest()
    };
    names.into_iter().max_by_key(height)
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh64::xxh64;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("gateway-{number}")).collect()
    }

    #[test]
    fn the_owner_is_who_hashes_highest_on_every_machine() {
        let names = names(5);
        for id in (0..100).map(|id| format!("chat-{id}")) {
            let height = |name: &&String| xxh64(format!("{name} chat/{id}").as_bytes(), 0);
            assert_eq!(owner(&names, "chat", &id), names.iter().max_by_key(height));
        }
        assert_eq!(owner(&[], "chat", "a"), None);
    }

    #[test]
    fn each_owns_about_as_many_and_who_leaves_moves_no_other_s() {
        let (all, ids) = (names(4), (0..1000).map(|id| format!("chat-{id}")));
        let mut counts = [0; 4];
        for id in ids {
            let before = owner(&all, "chat", &id).unwrap();
            counts[all.iter().position(|name| name == before).unwrap()] += 1;
            if *before != all[3] {
                assert_eq!(owner(&all[..3], "chat", &id), Some(before));
            }
        }
        assert!(counts.iter().all(|count| (200..300).contains(count)), "{counts:?}");
    }
}
