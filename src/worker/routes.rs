//! Where requests of routing rules go: a picker for each group of instances.
//!
//! A *group* is who a rule selects, and the *rest* is who no rule selects. A request
//! goes to the first group, of the rules that take it, that has somebody left for it;
//! else to the rest; else to any instance there is. So a rule never costs a request:
//! where its instances are gone, ejected or were tried, the next ones serve.
//!
//! All pickers are over the same instances by the same indexes: to a group's picker
//! those who are not in it have weight 0, and were tried.

use rand::rngs::SmallRng;

use crate::board::RuleId;
use crate::config::BalanceConfig;
use crate::config::Rule;
use crate::picker::{self, Live, Memory, Moment, Picker, Ranked};
use crate::value::Record;

/// Of the rules of a request and the groups of an instance: bit 0 is the first rule.
pub type Rules = u16;

/// In larger groups it is not counted what is in flight on them all.
const MAX_SUMMED: usize = 256;

/// The groups of one ranking.
pub struct Routes {
    /// By rule.
    groups: Vec<Group>,
    rest: Group,
}

/// The rules of one version of the instances.
#[derive(Debug, Default)]
pub struct Plan {
    pub rules: Vec<Rule>,
    /// By rule.
    pub counters: Vec<Option<RuleId>>,
    /// By instance.
    pub groups: Vec<Rules>,
}

/// Some of the instances.
struct Group {
    /// `None` where no member has a weight: it has nobody to offer.
    picker: Option<Picker>,
    /// By instance: whether it is one, and has a weight.
    is_member: Vec<bool>,
    members: Vec<usize>,
}

/// What the pickers of groups keep from one ranking to the next.
#[derive(Default)]
pub struct Memories(Vec<Memory>);

impl Memories {
    fn take(&mut self, at: usize) -> Memory {
        self.0.get_mut(at).map(std::mem::take).unwrap_or_default()
    }
}

impl Plan {
    /// How many instances a rule selects.
    pub fn selected(&self, rule: usize) -> usize {
        self.groups.iter().filter(|&&groups| groups & (1 << rule) != 0).count()
    }
}

impl Routes {
    /// The groups over a ranking; `None` where nothing is routed. `memories` is that
    /// of the same rules, or empty.
    pub fn new(
        plan: &Plan,
        balance: &BalanceConfig,
        ranked: Ranked<'_>,
        mut memories: Memories,
        rng: &mut SmallRng,
    ) -> Option<Self> {
        if plan.rules.is_empty() {
            return None;
        }
        let mut group = |at: usize, is_in: &dyn Fn(Rules) -> bool| {
            Group::new(&plan.groups, is_in, balance, ranked, memories.take(at), rng)
        };
        // First, as the number of rules may change.
        let rest = group(0, &|groups| groups == 0);
        let of_rule = |rule: usize| group(1 + rule, &|groups: Rules| groups & (1 << rule) != 0);
        Some(Routes { groups: (0..plan.rules.len()).map(of_rule).collect(), rest })
    }

    /// The instance for a request that these rules take, and the rule that it is by;
    /// `None` where neither they nor the rest have one.
    pub fn pick(
        &mut self,
        rules: Rules,
        now: &impl Moment,
        rng: &mut SmallRng,
    ) -> Option<(usize, Option<usize>)> {
        for (rule, group) in self.groups.iter_mut().enumerate() {
            if rules & (1 << rule) != 0
                && let Some(index) = group.pick(now, rng)
            {
                return Some((index, Some(rule)));
            }
        }
        self.rest.pick(now, rng).map(|index| (index, None))
    }

    pub fn into_memories(self) -> Memories {
        let groups = std::iter::once(self.rest).chain(self.groups);
        let memory = |group: Group| group.picker.map_or(Memory::Nothing, Picker::into_memory);
        Memories(groups.map(memory).collect())
    }
}

impl Group {
    fn new(
        groups: &[Rules],
        is_in: &dyn Fn(Rules) -> bool,
        balance: &BalanceConfig,
        ranked: Ranked<'_>,
        memory: Memory,
        rng: &mut SmallRng,
    ) -> Self {
        let is_member = |(record, &groups): (&Record, &Rules)| record.weight > 0.0 && is_in(groups);
        let is_member: Vec<bool> = ranked.records.iter().zip(groups).map(is_member).collect();
        let members: Vec<usize> = (0..is_member.len()).filter(|&index| is_member[index]).collect();
        let mut records = ranked.records.to_vec();
        let mut priors = ranked.priors.to_vec();
        for index in (0..is_member.len()).filter(|&index| !is_member[index]) {
            (records[index].weight, priors[index]) = (0.0, 0.0);
        }
        // A chash goes by priors alone.
        if members.iter().all(|&index| priors[index] == 0.0) {
            members.iter().for_each(|&index| priors[index] = 1.0);
        }
        let sum = |records: &[Record]| records.iter().map(|it| it.weight).sum::<f64>();
        let part = sum(&records) / sum(ranked.records);
        let ranked = Ranked {
            identities: ranked.identities,
            priors: &priors,
            records: &records,
            own_part: ranked.own_part,
            // What each member is planned to get stays what the ranking planned.
            rate_per_s: if part.is_finite() { ranked.rate_per_s * part } else { 0.0 },
        };
        let picker = (!members.is_empty()).then(|| picker::rebuild(balance, ranked, memory, rng));
        Group { picker, is_member, members }
    }

    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        let (is_member, members) = (&self.is_member[..], &self.members[..]);
        self.picker.as_mut()?.pick(&Within { now, is_member, members }, rng)
    }
}

/// A moment as a group's picker sees it.
struct Within<'a, M> {
    now: &'a M,
    is_member: &'a [bool],
    members: &'a [usize],
}

impl<M: Moment> Moment for Within<'_, M> {
    fn is_retry(&self) -> bool {
        self.now.is_retry()
    }

    fn is_barred(&self, index: usize) -> bool {
        !self.is_member[index] || self.now.is_barred(index)
    }

    fn key(&self) -> Option<u64> {
        self.now.key()
    }

    fn in_flight(&self, index: usize) -> u32 {
        self.now.in_flight(index)
    }

    /// Of many members, that of the service, which bounds less.
    fn total_in_flight(&self) -> u64 {
        if self.members.len() > MAX_SUMMED {
            return self.now.total_in_flight();
        }
        self.members.iter().map(|&index| u64::from(self.now.in_flight(index))).sum()
    }

    fn prepare(&self, index: usize) {
        self.now.prepare(index);
    }

    fn live(&self, index: usize) -> Live {
        self.now.live(index)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
