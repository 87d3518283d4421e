//! `faults`: what goes wrong in a scenario.

use std::time::Duration;

use serde::Deserialize;

use super::HOUR;
use super::servers::some_integer;
use crate::config::values::{Choice, choice, duration_ms, number};

/// `faults[]`: what goes wrong. Those that last begin at `from` (default: 0 s) and
/// end after `for` (default: never). `servers` names a group (default: all servers),
/// of which the first `count` (default: all) are hit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Work takes longer: speeds times `speed`.
    Slowdown(Slowdown),
    /// Others take from the servers: a `part` of them, drawn anew `every` so often,
    /// has its speed times `speed`.
    Antagonist(Antagonist),
    /// Servers are cold: their speed goes evenly from `speed` times what it is to all of
    /// it, as caches and compilers get warm.
    Cold(Cold),
    /// Servers answer a `part` of the requests with a failure, once they are served.
    Errors(Errors),
    /// Servers are restarted, one after the other `every` so often: each is crashed
    /// for `down`.
    RollingRestart(RollingRestart),
    /// Servers stand still, then go on with what they have. They cannot be asked.
    Pause(Outage),
    /// Servers accept requests and do not answer; what they have is lost. Asked, they
    /// say that nothing is done.
    BlackHole(Outage),
    /// Servers fail requests at once. Asked, they say that they are idle.
    Sinkhole(Outage),
    /// Servers refuse connections; what they have fails. They cannot be asked, and
    /// start as new processes.
    Crash(Outage),
    /// Servers register. Until then, they are not known.
    Join(Membership),
    /// Servers deregister, and go on serving.
    Leave(Membership),
    /// Servers do not tell the truth.
    Lie(Lie),
    /// Exporters write nothing.
    SilentExporter(Span),
    /// Gateways have no etcd, and exporters neither.
    SilentEtcd(Span),
    /// What is written takes `by` longer to gateways.
    LateWatch(Late),
    /// The clocks of the first so many `gateways` (default: all) jump.
    ClockJump(ClockJump),
    /// Batches of reports overtake each other, or come twice.
    Disorder(Disorder),
}

/// A time.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Span {
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub from: Duration,
    #[serde(rename = "for", deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub lasts: Duration,
}

/// Longer than any scenario.
const FOREVER: Duration = Duration::from_secs(HOUR);

impl Default for Span {
    fn default() -> Self {
        Self { from: Duration::ZERO, lasts: FOREVER }
    }
}

/// Defines a fault's keys: those of its own, beside whom and when.
macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $key:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$attr])* pub $key: $type,)*
            /// A group's name; `None` for all servers.
            #[serde(default)]
            pub servers: Option<String>,
            /// The first so many of them; `None` for all.
            #[serde(default, deserialize_with = "some_integer")]
            pub count: Option<u32>,
            /// When it begins.
            #[serde(default, deserialize_with = "duration_ms::<0, HOUR, _>")]
            pub from: Duration,
            /// How long it lasts.
            #[serde(rename = "for", default = "forever", deserialize_with = "duration_ms::<0, HOUR, _>")]
            pub lasts: Duration,
        }
    )*};
}

keys! {
    /// See [`Fault::Slowdown`].
    Slowdown {
        /// 0.001 to 1000.
        #[serde(deserialize_with = "number::<0, 1000, _>")]
        speed: f64,
    }
    /// See [`Fault::Antagonist`].
    Antagonist {
        /// 0 to 1.
        #[serde(deserialize_with = "number::<0, 1, _>")]
        part: f64,
        /// Above 0.
        #[serde(deserialize_with = "number::<0, 1000, _>")]
        speed: f64,
        /// Above 0.
        #[serde(deserialize_with = "duration_ms::<1, HOUR, _>")]
        every: Duration,
    }
    /// See [`Fault::Cold`].
    Cold {
        /// 0.001 to 1000.
        #[serde(deserialize_with = "number::<0, 1000, _>")]
        speed: f64,
    }
    /// See [`Fault::Errors`].
    Errors {
        /// 0 to 1.
        #[serde(deserialize_with = "number::<0, 1, _>")]
        part: f64,
    }
    /// Of servers that do not do their work.
    Outage {}
    /// See [`Fault::Lie`].
    Lie {
        #[serde(deserialize_with = "choice")]
        tells: Tale,
    }
}

/// See [`Fault::Join`] and [`Fault::Leave`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// A group's name; `None` for all servers.
    #[serde(default)]
    pub servers: Option<String>,
    /// The first so many of them; `None` for all.
    #[serde(default, deserialize_with = "some_integer")]
    pub count: Option<u32>,
    /// When.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub at: Duration,
}

/// See [`Fault::RollingRestart`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollingRestart {
    /// A group's name; `None` for all servers.
    #[serde(default)]
    pub servers: Option<String>,
    /// The first so many of them; `None` for all.
    #[serde(default, deserialize_with = "some_integer")]
    pub count: Option<u32>,
    /// When the first one is restarted.
    #[serde(default, deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub from: Duration,
    /// From one to the next; above 0.
    #[serde(deserialize_with = "duration_ms::<1, HOUR, _>")]
    pub every: Duration,
    /// How long each is away; above 0.
    #[serde(deserialize_with = "duration_ms::<1, HOUR, _>")]
    pub down: Duration,
}

/// What is told instead of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tale {
    /// Nothing is ever busy: utilization 0.
    Idle,
    /// A billion requests a second were answered.
    Rate,
    /// Utilization is not a number.
    Nan,
    /// Answers take no time.
    Instant,
}

impl Choice for Tale {
    const ALL: &'static [(&'static str, Self)] = &[
        ("idle", Self::Idle),
        ("rate", Self::Rate),
        ("nan", Self::Nan),
        ("instant", Self::Instant),
    ];
}

/// See [`Fault::LateWatch`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Late {
    /// When it begins.
    #[serde(default, deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub from: Duration,
    /// How long it lasts.
    #[serde(rename = "for", default = "forever", deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub lasts: Duration,
    /// How much longer.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub by: Duration,
}

/// See [`Fault::ClockJump`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockJump {
    /// When.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub at: Duration,
    /// How far.
    #[serde(deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub by: Duration,
    /// Where to. Default: forward.
    #[serde(default, deserialize_with = "choice")]
    pub direction: Direction,
    /// How many gateways; `None` for all.
    #[serde(default, deserialize_with = "some_integer")]
    pub gateways: Option<u32>,
}

/// Of a clock's jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    #[default]
    Forward,
    Back,
}

impl Choice for Direction {
    const ALL: &'static [(&'static str, Self)] =
        &[("forward", Self::Forward), ("back", Self::Back)];
}

/// See [`Fault::Disorder`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disorder {
    /// When it begins.
    #[serde(default, deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub from: Duration,
    /// How long it lasts.
    #[serde(rename = "for", default = "forever", deserialize_with = "duration_ms::<0, HOUR, _>")]
    pub lasts: Duration,
    /// The part of the batches that comes after its successor, 0 to 1. Default: 0.
    #[serde(default, deserialize_with = "number::<0, 1, _>")]
    pub reordered: f64,
    /// The part of the batches that comes twice, 0 to 1. Default: 0.
    #[serde(default, deserialize_with = "number::<0, 1, _>")]
    pub duplicated: f64,
}

fn forever() -> Duration {
    FOREVER
}

impl Fault {
    /// Its name in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Slowdown(_) => "slowdown",
            Fault::Antagonist(_) => "antagonist",
            Fault::Cold(_) => "cold",
            Fault::Errors(_) => "errors",
            Fault::RollingRestart(_) => "rolling_restart",
            Fault::Pause(_) => "pause",
            Fault::BlackHole(_) => "black_hole",
            Fault::Sinkhole(_) => "sinkhole",
            Fault::Crash(_) => "crash",
            Fault::Join(_) => "join",
            Fault::Leave(_) => "leave",
            Fault::Lie(_) => "lie",
            Fault::SilentExporter(_) => "silent_exporter",
            Fault::SilentEtcd(_) => "silent_etcd",
            Fault::LateWatch(_) => "late_watch",
            Fault::ClockJump(_) => "clock_jump",
            Fault::Disorder(_) => "disorder",
        }
    }

    /// The group that it hits; `None` for all, or for none.
    pub fn servers(&self) -> Option<&str> {
        match self {
            Fault::Slowdown(Slowdown { servers, .. })
            | Fault::Antagonist(Antagonist { servers, .. })
            | Fault::Cold(Cold { servers, .. })
            | Fault::Errors(Errors { servers, .. })
            | Fault::RollingRestart(RollingRestart { servers, .. })
            | Fault::Pause(Outage { servers, .. })
            | Fault::BlackHole(Outage { servers, .. })
            | Fault::Sinkhole(Outage { servers, .. })
            | Fault::Crash(Outage { servers, .. })
            | Fault::Join(Membership { servers, .. })
            | Fault::Leave(Membership { servers, .. })
            | Fault::Lie(Lie { servers, .. }) => servers.as_deref(),
            _ => None,
        }
    }

    /// When it begins, and after how long it ends.
    pub fn span(&self) -> Span {
        match self {
            Fault::Slowdown(Slowdown { from, lasts, .. })
            | Fault::Antagonist(Antagonist { from, lasts, .. })
            | Fault::Cold(Cold { from, lasts, .. })
            | Fault::Errors(Errors { from, lasts, .. })
            | Fault::Pause(Outage { from, lasts, .. })
            | Fault::BlackHole(Outage { from, lasts, .. })
            | Fault::Sinkhole(Outage { from, lasts, .. })
            | Fault::Crash(Outage { from, lasts, .. })
            | Fault::Lie(Lie { from, lasts, .. })
            | Fault::LateWatch(Late { from, lasts, .. })
            | Fault::Disorder(Disorder { from, lasts, .. })
            | Fault::SilentExporter(Span { from, lasts })
            | Fault::SilentEtcd(Span { from, lasts }) => Span { from: *from, lasts: *lasts },
            Fault::Join(Membership { at, .. })
            | Fault::Leave(Membership { at, .. })
            | Fault::RollingRestart(RollingRestart { from: at, .. })
            | Fault::ClockJump(ClockJump { at, .. }) => Span { from: *at, lasts: FOREVER },
        }
    }
}
