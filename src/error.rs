//! What an error says, whatever it is.

use std::error::Error;

/// The error and what caused it, outermost first.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

/// The error and what caused it, in one line. What a cause only repeats is left
/// out: transports wrap one text many times.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in chain(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("failed to put a")]
    struct Outer(#[source] Middle);

    #[derive(Debug, Error)]
    #[error("connection refused")]
    struct Middle(#[source] Inner);

    #[derive(Debug, Error)]
    #[error("refused")]
    struct Inner(#[source] io::Error);

    #[test]
    fn an_error_is_told_with_its_causes_and_none_of_them_twice() {
        let error = Outer(Middle(Inner(io::Error::other("nobody listens"))));
        assert_eq!(with_causes(&error), "failed to put a: connection refused: nobody listens");
    }

    #[test]
    fn an_error_without_a_cause_is_its_own_text() {
        assert_eq!(with_causes(&io::Error::other("nobody listens")), "nobody listens");
    }
}
