//! Choosing among the servers that a request may go to: any, any two, or the
//! one that costs least.

use rand::RngExt;
use rand::rngs::SmallRng;

use super::World;

/// Draws that may hit a server that is not open before all are looked at.
const DRAWS: usize = 16;

/// Whether the request may go there: registered, and not tried.
pub fn is_open(world: &dyn World, server: usize) -> bool {
    world.is_member(server) && !world.is_tried(server)
}

/// The servers that the request may go to.
pub fn open(world: &dyn World) -> impl Iterator<Item = usize> {
    (0..world.servers()).filter(move |&server| is_open(world, server))
}

/// One of the open servers, all alike.
pub fn any(world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
    any_but(None, world, rng)
}

/// Two different open servers, all pairs and both orders alike; the same one twice
/// where only one is open.
pub fn any_two(world: &dyn World, rng: &mut SmallRng) -> Option<(usize, usize)> {
    let first = any(world, rng)?;
    let second = any_but(Some(first), world, rng).unwrap_or(first);
    Some((first, second))
}

fn any_but(not: Option<usize>, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
    let fits = |server: usize| is_open(world, server) && Some(server) != not;
    let servers = world.servers();
    if servers == 0 {
        return None;
    }
    // Nearly always the first draw hits; what the loop leaves is drawn from a list.
    for _ in 0..DRAWS {
        let server = rng.random_range(..servers);
        if fits(server) {
            return Some(server);
        }
    }
    let fitting: Vec<usize> = (0..servers).filter(|&server| fits(server)).collect();
    (!fitting.is_empty()).then(|| fitting[rng.random_range(..fitting.len())])
}

/// The open server that costs least; among those that cost the same, any. What is
/// not a number costs more than all.
pub fn least(world: &dyn World, rng: &mut SmallRng, cost: impl Fn(usize) -> f64) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    let mut ties = 0_u32;
    for server in open(world) {
        let cost = cost(server);
        let cost = if cost.is_nan() { f64::INFINITY } else { cost };
        match best {
            Some((_, least)) if cost > least => continue,
            Some((_, least)) if cost == least => ties += 1,
            _ => ties = 1,
        }
        // The n-th of the equal ones takes the place with odds of 1 in n.
        if rng.random_range(..ties) == 0 {
            best = Some((server, cost));
        }
    }
    best.map(|(server, _)| server)
}
