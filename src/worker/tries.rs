//! What nginx says of a request's tries, when its final status does not say how
//! the last one that was balanced here ended: `error_page … =200` and a stale
//! cache cover failures up, gRPC tells them in a trailer, an internal redirect
//! goes on elsewhere, and a slow client makes the request longer than the try.
//!
//! Three variables have the tries in one order, `, ` between those of one
//! upstream and ` : ` where an internal redirect led to the next:
//!
//! ```text
//! $upstream_addr            10.0.0.5:80, 10.0.0.6:80 : 10.0.0.9:80
//! $upstream_status          502, 404 : 200
//! $upstream_response_time   0.000, 0.012 : 0.003
//! ```

use std::net::SocketAddr;

use crate::board::Outcome;
use crate::config::Statuses;

/// nginx's resolution, in milliseconds: it may have taken so much longer than
/// nginx says.
const RESOLUTION_MS: f64 = 1.0;

/// The tries of one request, as nginx's variables tell them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tries<'a> {
    /// `$upstream_addr`.
    pub addrs: &'a [u8],
    /// `$upstream_status`.
    pub statuses: &'a [u8],
    /// `$upstream_response_time`, in seconds.
    pub times: &'a [u8],
    /// `grpc-status` of the last one's response; 0 for one without.
    pub grpc_status: i32,
}

/// What became of a try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    /// How it ended; `None` if nginx does not say.
    pub outcome: Option<Outcome>,
    /// The most that it can have taken, in milliseconds, to the last byte that
    /// nginx read; `None` if it does not say.
    pub at_most_ms: Option<f64>,
}

impl Tries<'_> {
    /// What became of the last try that went to this address, where these statuses are
    /// failures; `None` if none did.
    pub(super) fn last_to(&self, addr: SocketAddr, failures: &Statuses) -> Option<Told> {
        let is_it = |text: &str| text.parse() == Ok(addr);
        let (index, _) = entries(self.addrs).enumerate().filter(|(_, text)| is_it(text)).last()?;
        let status = entries(self.statuses).nth(index).and_then(|text| text.parse().ok());
        let seconds = entries(self.times).nth(index).and_then(|text| text.parse::<f64>().ok());
        let is_last = entries(self.addrs).nth(index + 1).is_none();
        let outcome = match status {
            Some(200) if is_last && is_grpc_failure(self.grpc_status) => Some(Outcome::Failed),
            status => status.map(|status| outcome_of(status, failures)),
        };
        let at_most_ms = seconds.map(|seconds| seconds * 1e3 + RESOLUTION_MS);
        Some(Told { outcome, at_most_ms })
    }
}

/// The addresses of `$upstream_addr`, in the order of the tries.
pub(super) fn addrs(text: &[u8]) -> impl Iterator<Item = SocketAddr> + '_ {
    entries(text).filter_map(|text| text.parse().ok())
}

/// How a request of this status ended, or a try, as far as its instance is
/// concerned; status 0 is none. 502 and 504 are failures in any case: nginx says them
/// of a connection that failed and of an answer that did not come in time.
pub(super) fn outcome_of(status: u16, failures: &Statuses) -> Outcome {
    match status {
        0 => Outcome::Unseen,
        101 => Outcome::Upgraded,
        499 => Outcome::Aborted, // nginx's own: the client has closed the connection
        502 | 504 | 600.. => Outcome::Failed,
        _ if failures.has(status) => Outcome::Failed,
        _ => Outcome::Answered,
    }
}

/// Of gRPC's codes those that say of the instance that it could not: UNKNOWN,
/// DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE and DATA_LOSS. The
/// others say of the request that it was not to be had.
fn is_grpc_failure(code: i32) -> bool {
    matches!(code, 2 | 4 | 8 | 13 | 14 | 15)
}

fn entries(text: &[u8]) -> impl Iterator<Item = &str> {
    let text = str::from_utf8(text).unwrap_or_default();
    text.split(" : ").flat_map(|of_one_upstream| of_one_upstream.split(", "))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HERE: &str = "10.0.0.5:80";

    fn told(addrs: &str, statuses: &str, times: &str, grpc_status: i32) -> Option<Told> {
        let [addrs, statuses, times] = [addrs, statuses, times].map(str::as_bytes);
        Tries { addrs, statuses, times, grpc_status }
            .last_to(HERE.parse().unwrap(), &Statuses::of_classes(5..=5))
    }

    fn outcome(addrs: &str, statuses: &str) -> Option<Outcome> {
        told(addrs, statuses, "", 0)?.outcome
    }

    #[test]
    fn a_try_ended_as_its_own_status_says_wherever_it_stands() {
        for (addrs, statuses, expected) in [
            ("10.0.0.5:80", "502", Some(Outcome::Failed)),
            ("10.0.0.5:80", "404", Some(Outcome::Answered)),
            ("10.0.0.5:80", "304", Some(Outcome::Answered)),
            ("10.0.0.5:80", "101", Some(Outcome::Upgraded)),
            ("10.0.0.5:80", "499", Some(Outcome::Aborted)),
            ("10.0.0.5:80", "-", None),
            ("10.0.0.6:80, 10.0.0.5:80", "502, 200", Some(Outcome::Answered)),
            ("10.0.0.6:80, 10.0.0.5:80", "200, 502", Some(Outcome::Failed)),
            ("10.0.0.5:80 : 10.0.0.9:80", "503 : 200", Some(Outcome::Failed)),
            ("10.0.0.5:80 : 10.0.0.9:80", "404 : 502", Some(Outcome::Answered)),
            ("10.0.0.5:80, 10.0.0.6:80 : 10.0.0.5:80", "502, 502 : 200", Some(Outcome::Answered)),
            ("10.0.0.5:80 : ", "503 : -", Some(Outcome::Failed)), // while the next is chosen
            (" : 10.0.0.5:80", "502 : 200", Some(Outcome::Answered)), // one that went nowhere
            ("unix:/run/a.sock : 10.0.0.5:80", "502 : 200", Some(Outcome::Answered)),
            ("[::1]:80, 10.0.0.5:80", "502, 200", Some(Outcome::Answered)),
        ] {
            assert_eq!(outcome(addrs, statuses), expected, "{addrs} | {statuses}");
        }
    }

    #[test]
    fn which_statuses_are_failures_is_configured_but_for_those_of_connections_and_timeouts() {
        let failed = |list: &str| {
            let text = format!(r#"{{"services": {{"s": {{"health": {{"failures": {list}}}}}}}}}"#);
            let config = crate::config::Config::parse(&text).unwrap();
            let failures = config.services["s"].health.failures;
            let all = [0, 101, 200, 399, 400, 429, 499, 500, 501, 502, 503, 504, 599, 600];
            let is_failure = |it: &u16| outcome_of(*it, &failures) == Outcome::Failed;
            all.into_iter().filter(is_failure).collect::<Vec<_>>()
        };
        assert_eq!(failed("[]"), [502, 504, 600]);
        assert_eq!(failed(r#"["5xx"]"#), [500, 501, 502, 503, 504, 599, 600]);
        assert_eq!(failed(r#"["429", "503"]"#), [429, 502, 503, 504, 600]);
        assert_eq!(failed(r#"["4xx"]"#), [400, 429, 502, 504, 600], "499 is the client's");
    }

    #[test]
    fn of_a_try_that_went_elsewhere_nothing_is_told() {
        for addrs in ["", "10.0.0.6:80", "10.0.0.5:8080", "ipconfig", "10.0.0.50:80 : "] {
            assert_eq!(told(addrs, "200", "0.001", 0), None, "{addrs}");
        }
    }

    #[test]
    fn a_try_took_at_most_what_nginx_says_and_its_resolution() {
        let at_most_ms = |times| told("10.0.0.6:80, 10.0.0.5:80", "502, 200", times, 0)?.at_most_ms;
        assert_eq!(at_most_ms("3.000, 0.250"), Some(251.0));
        assert_eq!(at_most_ms("3.000, 0.000"), Some(1.0));
        assert_eq!(at_most_ms("3.000, -"), None);
        assert_eq!(at_most_ms("3.000"), None);
    }

    #[test]
    fn a_grpc_status_that_says_that_the_instance_could_not_is_a_failure() {
        let failures: Vec<i32> = (-1..20)
            .filter(|&code| told(HERE, "200", "", code).unwrap().outcome == Some(Outcome::Failed))
            .collect();
        assert_eq!(failures, [2, 4, 8, 13, 14, 15]);
        let addrs = "10.0.0.5:80 : 10.0.0.9:80";
        let before_redirect = told(addrs, "200 : 200", "", 14).unwrap();
        assert_eq!(before_redirect.outcome, Some(Outcome::Answered), "that was the other one's");
    }

    #[test]
    fn what_is_no_account_of_tries_tells_nothing() {
        let told = |addrs, statuses, times| {
            Tries { addrs, statuses, times, grpc_status: 0 }
                .last_to(HERE.parse().unwrap(), &Statuses::of_classes(5..=5))
        };
        let nothing = Some(Told { outcome: None, at_most_ms: None });
        assert_eq!(told(b"10.0.0.5:80", b"", b""), nothing);
        assert_eq!(told(b"10.0.0.5:80", b"99999999", b"much"), nothing);
        assert_eq!(told(b"10.0.0.5:80", b"\xff", b"\xff"), nothing);
        assert_eq!(told(b"\xff 10.0.0.5:80", b"200", b""), None);
        assert_eq!(told(b"10.0.0.5:80, ", b"502, ", b"").unwrap().outcome, Some(Outcome::Failed));
    }
}
