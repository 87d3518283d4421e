//! Waiting for what is to happen, where it is a finding that it did not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Asks `condition` until it holds; false if it did not within `limit`.
pub async fn until(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition().await {
        if Instant::now() > deadline {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}
