//! Where a service loses most of its instances at once, the registry keeps them until it
//! is sure: what [`guard`] decides, done to what exists.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::guard::{self, Loss, Outcome};
use super::service::{Service, Settled};
use super::{Registry, in_force};
use crate::config::CheckConfig;
use crate::model::Instance;
use crate::wire::control::Control;

impl Registry {
    /// The instances of a service that etcd lost and that are kept for now, and how the
    /// service's instances are checked otherwise, if they are. May change with what
    /// [`take_urgent`](Self::take_urgent) names.
    pub fn doubtful(&self, name: &str) -> Option<(&CheckConfig, impl Iterator<Item = &Instance>)> {
        let service = self.services.get(name)?;
        Some((service.check(), service.doubtful()))
    }

    /// Lets a doubtful instance go that is found dead at this address.
    pub fn refute(&mut self, name: &str, id: &str, addr: SocketAddr, outcome: Outcome) {
        self.settle();
        let Some(service) = self.services.get_mut(name) else { return };
        if service.doubtful().any(|it| it.id == id && it.addr == addr) {
            service.end_doubt(id, outcome);
            self.note_ends(name, 1, outcome);
        }
    }

    /// Whether a list of all keys, soon, would tell more of those that are doubtful.
    pub fn wants_list(&self) -> bool {
        let wants = |(name, service): (&String, &Service)| {
            service.wants_list(in_force(&self.controls, name))
        };
        !self.guards.doubtful.is_empty() && self.services.iter().any(wants)
    }

    /// Takes in instances that an earlier thread doubted, once there is a list.
    pub fn recall(&mut self, name: &str, doubtful: Vec<Instance>, now: Instant) {
        if !self.services.contains_key(name) && !self.discover.allows(name) {
            return;
        }
        let loss = Loss { at_ms: self.clock_ms(now), list: self.list };
        let service = self
            .services
            .entry(name.to_owned())
            .or_insert_with(|| Service::discovered(self.interval_ms));
        let mut count = 0;
        for instance in doubtful.into_iter().filter(|it| self.allow.check(it).is_ok()) {
            count += usize::from(service.recall(instance, loss, &self.window));
        }
        if count > 0 {
            tracing::warn!("{name}: instances that are still doubtful: {count}");
            self.note_doubts(name);
            self.note_change(name);
        } else if service.is_gone() {
            self.services.remove(name);
        }
    }

    /// What the guards against mass loss did.
    pub fn guards(&self) -> &guard::Figures {
        &self.guards
    }

    /// Weighs what was lost since this was last called: a service that lost most of its
    /// instances has them back.
    pub(super) fn settle(&mut self) {
        for name in std::mem::take(&mut self.unsettled) {
            let Some(service) = self.services.get_mut(&name) else { continue };
            let before = service.doubts();
            let settled = service.settle(in_force(&self.controls, &name), self.now_ms);
            let Settled { back, of, moved } = settled;
            if back > 0 && before == 0 {
                tracing::warn!(
                    "{name}: etcd lost {back} of {of} instances at once; they are kept, doubtful, \
                     until a second list and a probe agree"
                );
                self.guards.trips += 1;
            }
            if back > 0 {
                self.hold_control(&name);
                self.note_doubts(&name);
            }
            self.note_ends(&name, moved, Outcome::Replaced);
            self.forget_gone(&name);
        }
    }

    /// Who is kept is used as its operator wished, where that was lost with it: who was
    /// drained is not to get requests by a fault of etcd.
    fn hold_control(&mut self, name: &str) {
        if let Some((control, _)) = self.lost_controls.remove(name)
            && !self.controls.contains_key(name)
        {
            self.controls.insert(name.to_owned(), control);
            self.held_controls.insert(name.to_owned());
            self.note_change(name);
        }
    }

    /// Has each service let go who is no longer in doubt.
    pub(super) fn end_doubts(
        &mut self,
        end: impl Fn(&mut Service, Option<&Control>) -> usize,
        outcome: Outcome,
    ) {
        for name in self.guards.doubtful.keys().cloned().collect::<Vec<_>>() {
            let Some(service) = self.services.get_mut(&name) else { continue };
            let count = end(service, in_force(&self.controls, &name));
            self.note_ends(&name, count, outcome);
        }
    }

    /// So many of a service's instances are no longer in doubt.
    pub(super) fn note_ends(&mut self, name: &str, count: usize, outcome: Outcome) {
        if count == 0 {
            return;
        }
        *self.guards.outcomes.entry(outcome.as_str().to_owned()).or_default() += count as u64;
        self.note_doubts(name);
        self.note_change(name);
        self.forget_gone(name);
    }

    /// Shows how many of a service's instances are in doubt, and says when none are any
    /// more.
    fn note_doubts(&mut self, name: &str) {
        let Some(service) = self.services.get_mut(name) else { return };
        match service.doubts() as u64 {
            0 => {
                self.guards.doubtful.remove(name);
                if self.held_controls.remove(name) && self.controls.remove(name).is_some() {
                    self.dirty.insert(name.to_owned());
                    self.urgent.insert(name.to_owned());
                }
            }
            count => _ = self.guards.doubtful.insert(name.to_owned(), count),
        }
        if let Some(tally) = service.take_tally() {
            tracing::info!("{name}: no instance is doubtful any more ({tally})");
        }
    }
}
