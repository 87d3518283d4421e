//! Probes of instances that etcd lost together with most of their service
//! (`registry::guard`): whether anybody is there at all. Each gateway makes its own,
//! at once and then again and again: by the service's check if it has one, else by a
//! connection. One failure is enough, for etcd has already said that it is gone.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::probe::{self, Failure};
use crate::config::CheckConfig;
use crate::model::Instance;

/// How often an instance is probed that has no check of its own.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long its connection may take: as long as it takes if the first packet is lost,
/// which is sent again after a second (RFC 6298), and some more.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes at once. Each takes a file descriptor of nginx's worker.
const AT_ONCE: usize = 32;

/// Makes the probes.
#[derive(Default)]
pub struct Prober {
    targets: HashMap<u64, Target>,
    waiting: BTreeSet<(Instant, u64)>,
    under_way: JoinSet<(u64, Result<(), Failure>)>,
    /// The number of the last target.
    last: u64,
}

/// An instance that is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub service: String,
    pub id: String,
    pub addr: SocketAddr,
}

struct Target {
    who: Probed,
    config: Arc<CheckConfig>,
    started: Instant,
}

impl Prober {
    /// Probes these instances of a service from now on, and no other ones of it; by
    /// `check`, if that is on.
    pub fn follow<'a>(
        &mut self,
        service: &str,
        check: &CheckConfig,
        instances: impl Iterator<Item = &'a Instance>,
    ) {
        let config = Arc::new(match check.is_on() {
            true => check.clone(),
            false => {
                let (interval, timeout) = (INTERVAL, TIMEOUT);
                CheckConfig { tcp: true, interval, timeout, ..CheckConfig::default() }
            }
        });
        let of_service = self.targets.iter().filter(|(_, it)| it.who.service == service);
        let mut known: HashMap<(String, SocketAddr), u64> =
            of_service.map(|(number, it)| ((it.who.id.clone(), it.who.addr), *number)).collect();
        let now = Instant::now();
        for Instance { id, addr, .. } in instances {
            if known.remove(&(id.clone(), *addr)).is_some() {
                continue;
            }
            let who = Probed { service: service.to_owned(), id: id.clone(), addr: *addr };
            self.last += 1;
            let config = Arc::clone(&config);
            self.targets.insert(self.last, Target { who, config, started: now });
            self.waiting.insert((now, self.last));
        }
        for number in known.into_values() {
            self.targets.remove(&number);
        }
    }

    /// Probes no instance of a service any more.
    pub fn forget(&mut self, service: &str) {
        self.targets.retain(|_, target| target.who.service != service);
    }

    /// Goes on probing until some of those that it follows are dead, and does not follow
    /// these any more. May be dropped and called again.
    pub async fn dead(&mut self) -> Vec<Probed> {
        loop {
            let now = Instant::now();
            self.start(now);
            let due = self.waiting.first().map(|(due, _)| *due);
            let has_room = self.under_way.len() < AT_ONCE;
            tokio::select! {
                Some(ended) = self.under_way.join_next() => {
                    let mut dead = Vec::from_iter(self.finish(ended));
                    while let Some(ended) = self.under_way.try_join_next() {
                        dead.extend(self.finish(ended));
                    }
                    if !dead.is_empty() {
                        return dead;
                    }
                }
                () = sleep_until(due.unwrap_or(now)), if due.is_some() && has_room => {}
                else => std::future::pending().await,
            }
        }
    }

    fn start(&mut self, now: Instant) {
        while self.under_way.len() < AT_ONCE
            && let Some(&(due, number)) = self.waiting.first().filter(|(due, _)| *due <= now)
        {
            self.waiting.remove(&(due, number));
            let Some(target) = self.targets.get_mut(&number) else { continue };
            target.started = now;
            let (mut addr, config) = (target.who.addr, Arc::clone(&target.config));
            if config.port != 0 {
                addr.set_port(config.port);
            }
            self.under_way.spawn(async move { (number, probe::check(addr, &config).await) });
        }
    }

    fn finish(&mut self, ended: Result<(u64, Result<(), Failure>), JoinError>) -> Option<Probed> {
        let (number, result) = match ended.map_err(JoinError::try_into_panic) {
            Ok(ended) => ended,
            // For the thread to start anew with, as with any other panic.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_)) => return None,
        };
        let is_dead = result.is_err_and(|failure| !matches!(failure, Failure::NotMade(_)));
        if is_dead {
            return self.targets.remove(&number).map(|target| target.who);
        }
        let target = self.targets.get(&number)?;
        self.waiting.insert((target.started + target.config.interval, number));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    fn instance(id: &str, addr: SocketAddr) -> Instance {
        Instance {
            id: id.into(),
            addr,
            weight: 1.0,
            zone: String::new(),
            labels: BTreeMap::new(),
            status: None,
            drain: false,
            max_in_flight: 0,
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn who_refuses_is_dead_at_once_and_who_accepts_is_asked_again() {
        let (alive, alive_addr) = listener().await;
        let (gone, gone_addr) = listener().await;
        drop(gone);
        let mut prober = Prober::default();
        let both = [instance("a", alive_addr), instance("b", gone_addr)];
        prober.follow("chat", &CheckConfig::default(), both.iter());
        let begin = Instant::now();
        let dead = prober.dead().await;
        assert_eq!(dead, [Probed { service: "chat".into(), id: "b".into(), addr: gone_addr }]);
        assert!(begin.elapsed() < Duration::from_millis(500), "at once");
        prober.follow("chat", &CheckConfig::default(), both[..1].iter());
        timeout(Duration::from_millis(100), prober.dead()).await.unwrap_err();
        drop(alive);
        assert_eq!(timeout(2 * INTERVAL, prober.dead()).await.unwrap()[0].id, "a");
        assert!(prober.targets.is_empty() && prober.waiting.is_empty());
    }

    #[tokio::test]
    async fn who_is_followed_no_longer_is_not_told_of() {
        let (gone, addr) = listener().await;
        drop(gone);
        let mut prober = Prober::default();
        prober.follow("chat", &CheckConfig::default(), [instance("a", addr)].iter());
        prober.follow("mail", &CheckConfig::default(), [instance("a", addr)].iter());
        prober.follow("chat", &CheckConfig::default(), [].iter());
        assert_eq!(prober.dead().await[0].service, "mail");
        timeout(Duration::from_millis(300), prober.dead()).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_service_with_a_check_is_probed_by_that() {
        let (silent, addr) = listener().await;
        let timeout = Duration::from_millis(50);
        let check = CheckConfig { http: "/".into(), timeout, ..CheckConfig::default() };
        let mut prober = Prober::default();
        prober.follow("chat", &check, [instance("a", addr)].iter());
        assert_eq!(prober.dead().await[0].id, "a", "it takes connections and answers nothing");
        drop(silent);
    }
}
