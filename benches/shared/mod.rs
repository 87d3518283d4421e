//! What the benches on real parts have in common.
#![allow(dead_code, reason = "each bench that includes this file uses a part of it")]

pub mod choice;
pub mod http;
pub mod machine;
pub mod nginx;
pub mod table;
pub mod usage;
