//! What operators are given: metrics pages, alert rules, a dashboard, units, and
//! no secrets. The pages are those of programs that run, and what is checked is
//! checked by the tools that will read it.

mod dashboard;
mod live;
mod pages;
#[path = "../exporter/parts.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod parts;
mod promql;
mod rules;
mod secrets;
#[path = "../support/mod.rs"]
mod support;
mod units;
