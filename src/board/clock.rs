//! The host's monotonic clock, which no process and no operator sets back: the
//! same in every process. Callers subtract saturating all the same, since what
//! they subtract from was read in another process, or scribbled on.

/// Milliseconds, to the millisecond. 30 ns.
pub fn monotonic_ms() -> u64 {
    let now = read(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The same clock as the kernel last noted it: behind [`monotonic_ms`] by a tick
/// at most (1 to 10 ms, commonly 4). For the request path, as it costs 5 ns.
pub fn coarse_ms() -> u64 {
    let now = read(libc::CLOCK_MONOTONIC_COARSE);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Nanoseconds of [`monotonic_ms`]'s clock, for requests that are timed.
pub(super) fn precise_ns() -> u64 {
    let now = read(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[allow(unsafe_code, reason = "the C library has the clock")]
fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the timespec that it is given and nothing else.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_is_the_precise_one_of_a_moment_ago() {
        for _ in 0..1000 {
            let (coarse, precise) = (coarse_ms(), monotonic_ms());
            assert!(coarse <= precise, "{coarse} is ahead of {precise}");
        }
        // Preempted between the two, an attempt says nothing.
        assert!((0..100).any(|_| monotonic_ms() - coarse_ms() <= 10));
    }
}
