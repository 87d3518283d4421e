//! Looking up names, which no timeout can break off: the system is asked by a
//! call that blocks a thread until it ends.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How many names are looked up at once. While the system does not answer, more
/// would only pile up, and be in the way of the rest when it answers again.
const AT_ONCE: usize = 32;

/// The room for lookups, the same for all instances.
pub(super) struct Lookups(Arc<Semaphore>);

impl Lookups {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// The addresses of `host`. Whoever gives up while there is no room leaves
    /// nothing behind.
    pub async fn of(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        self.run(move || Ok((host.as_str(), 0).to_socket_addrs()?.collect())).await
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let room = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let called = spawn_blocking(move || {
            // Taken for as long as the call lasts, also if nobody waits for it.
            let _room = room;
            call()
        });
        called.await?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn lookups_that_were_given_up_take_their_room_until_they_end_and_no_more() {
        let lookups = Lookups::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let (system, calls): (Vec<_>, Vec<_>) =
            (0..3 * AT_ONCE).map(|_| mpsc::channel::<()>()).unzip();
        for answer in calls {
            let begun = Arc::clone(&begun);
            let call = lookups.run(move || {
                begun.fetch_add(1, Ordering::Relaxed);
                // It ends when the system answers, here by going away.
                Ok(answer.recv().is_err())
            });
            assert!(timeout(Duration::from_millis(1), call).await.is_err());
        }
        assert!(begun.load(Ordering::Relaxed) <= AT_ONCE);
        assert_eq!(lookups.0.available_permits(), 0);

        drop(system);
        assert!(!lookups.of("127.0.0.1").await.unwrap().is_empty());
        let all = lookups.0.acquire_many(AT_ONCE as u32).await;
        assert_eq!(begun.load(Ordering::Relaxed), AT_ONCE, "who gave up in time never began");
        drop(all);
    }
}
