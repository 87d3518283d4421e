//! What is to happen, and when.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Nanoseconds of simulated time.
pub type Ns = u64;

/// A second.
pub const SECOND: Ns = 1_000_000_000;

/// In seconds.
pub fn to_s(ns: Ns) -> f64 {
    ns as f64 * 1e-9
}

/// From seconds; what is not a positive number is 0, what is too large the end of
/// time.
pub fn from_s(seconds: f64) -> Ns {
    (seconds * 1e9).round() as Ns
}

/// From a duration.
pub fn from_duration(time: std::time::Duration) -> Ns {
    Ns::try_from(time.as_nanos()).unwrap_or(Ns::MAX)
}

/// What happens. Arrivals and timeouts are not among these: each of them has an
/// order of its own that costs less than a heap's.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A slot is through with its request, unless its `epoch` has passed.
    Served { server: u32, slot: u32, epoch: u32 },
    /// A failure that a sinkhole answers with reaches the gateway.
    Sunk { request: u32, try_no: u32 },
    /// A request comes to a server past the gateways.
    Other { server: u32 },
    /// An exporter asks its servers.
    Export { exporter: u32 },
    /// A message reaches a gateway.
    Deliver { gateway: u32, message: u32 },
    /// A gateway looks at what changes by time alone.
    Round { gateway: u32 },
    /// A gateway looks at health, as often as the plugin's thread.
    Beat { gateway: u32 },
    /// A fault begins.
    Begin { fault: u32 },
    /// A fault draws anew, or goes one step on.
    Redraw { fault: u32 },
    /// A server that was restarted is back.
    Restarted { server: u32 },
    /// A fault ends.
    End { fault: u32 },
    /// What happens from now on counts.
    Warm,
}

struct Entry {
    at: Ns,
    /// Of two at one time, the one that was entered first comes first.
    number: u64,
    event: Event,
}

/// Events in the order of their times.
#[derive(Default)]
pub struct Agenda {
    heap: BinaryHeap<Entry>,
    entered: u64,
}

impl Agenda {
    /// Enters an event.
    pub fn add(&mut self, at: Ns, event: Event) {
        self.entered += 1;
        self.heap.push(Entry { at, number: self.entered, event });
    }

    /// When the next one is.
    pub fn next_at(&self) -> Option<Ns> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// The next one.
    pub fn take(&mut self) -> Option<Event> {
        self.heap.pop().map(|entry| entry.event)
    }
}

impl Ord for Entry {
    /// The earliest is the greatest, for `BinaryHeap`.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
