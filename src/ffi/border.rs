//! What every export passes through: one guard, one error, one way for bytes in
//! and text out.

use std::ffi::{c_char, c_int};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::Utf8Error;

use thiserror::Error;

use super::{AGAIN, ERROR, OK};
use crate::config::ConfigError;
use crate::value::ValueError;
use crate::wire::orca::HeaderError;

/// What goes wrong at the border; its text goes to the caller.
#[derive(Debug, Error)]
pub(super) enum BorderError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Value(#[from] ValueError),
    #[error("failed to map the board: {0}")]
    Board(#[source] io::Error),
    #[error("failed to start the plugin's thread: {0}")]
    Thread(#[source] io::Error),
    #[error("text is expected: {0}")]
    Text(#[from] Utf8Error),
    #[error("{0}")]
    Report(#[from] HeaderError),
    #[error("failed to write JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("failed to write the metrics page")]
    Metrics(#[from] std::fmt::Error),
    #[error("a pointer is NULL")]
    Null,
    #[error("this process is no worker: init_worker() has not run")]
    NotStarted,
}

/// Runs an export's body. Its error and its panic both become [`ERROR`] with the
/// text in `out`.
pub(super) fn guard(out: TextOut, body: impl FnOnce() -> Result<c_int, BorderError>) -> c_int {
    // A body that unwinds leaves at worst a half-done count behind; every
    // structure is replaced whole.
    let text = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            format!("panic: {}", text.unwrap_or("no text"))
        }
    };
    // An error's text is cut rather than lost.
    let _ = out.write_cut(&text);
    ERROR
}

/// Bytes that the caller lends for the length of the call; NULL is none.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(Option<&'a [u8]>);

impl<'a> Bytes<'a> {
    /// # Safety
    /// `ptr` is NULL or valid for reads of `len` bytes during the call.
    pub unsafe fn new(ptr: *const c_char, len: usize) -> Self {
        // SAFETY: the caller's promise.
        Bytes((!ptr.is_null()).then(|| unsafe { std::slice::from_raw_parts(ptr.cast(), len) }))
    }

    pub fn bytes(self) -> Option<&'a [u8]> {
        self.0
    }

    pub fn text(self) -> Result<&'a str, BorderError> {
        Ok(std::str::from_utf8(self.0.ok_or(BorderError::Null)?)?)
    }
}

/// The caller's buffer for text.
#[derive(Clone, Copy)]
pub(super) struct TextOut {
    text: *mut c_char,
    len: *mut usize,
}

impl TextOut {
    /// # Safety
    /// Both are NULL, or `len` is valid and `text` valid for writes of `*len`
    /// bytes during the call.
    pub unsafe fn new(text: *mut c_char, len: *mut usize) -> Self {
        TextOut { text, len }
    }

    /// For exports without text.
    pub fn none() -> Self {
        TextOut { text: std::ptr::null_mut(), len: std::ptr::null_mut() }
    }

    /// Writes all of the text, or says how much room it needs.
    pub fn write(self, text: &str) -> Result<c_int, BorderError> {
        let room = self.room().ok_or(BorderError::Null)?;
        if text.len() > room {
            self.set_len(text.len());
            return Ok(AGAIN);
        }
        self.write_cut(text)
    }

    /// Writes as much of the text as there is room for.
    pub fn write_cut(self, text: &str) -> Result<c_int, BorderError> {
        let room = self.room().ok_or(BorderError::Null)?;
        let len = text.floor_char_boundary(room);
        // SAFETY: `new`'s promise; `len` is at most the room, and our text never
        // overlaps the caller's buffer.
        unsafe { self.text.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), len) };
        self.set_len(len);
        Ok(OK)
    }

    fn room(self) -> Option<usize> {
        // SAFETY: `new`'s promise, for a `len` that is not NULL.
        (!self.text.is_null() && !self.len.is_null()).then(|| unsafe { *self.len })
    }

    fn set_len(self, len: usize) {
        // SAFETY: called after `room` found both pointers.
        unsafe { *self.len = len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(
        room: usize,
        body: impl FnOnce(TextOut) -> Result<c_int, BorderError>,
    ) -> (c_int, String) {
        let (mut buffer, mut len) = (vec![0u8; room], room);
        // SAFETY: both outlive the call, and `len` is the buffer's.
        let out = unsafe { TextOut::new(buffer.as_mut_ptr().cast(), &raw mut len) };
        let code = guard(out, || body(out));
        let text = String::from_utf8(buffer[..len.min(room)].to_vec()).unwrap();
        (code, if code == AGAIN { format!("{len} needed") } else { text })
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        let (code, text) = call(64, |_| panic!("lost my {}", "way"));
        assert_eq!((code, text.as_str()), (ERROR, "panic: lost my way"));
    }

    #[test]
    fn an_error_is_cut_to_the_buffer_and_a_result_never_is() {
        assert_eq!(call(9, |_| Err(BorderError::Null)), (ERROR, "a pointer".into()));
        assert_eq!(call(3, |out| out.write("four")), (AGAIN, "4 needed".into()));
        assert_eq!(call(4, |out| out.write("four")), (OK, "four".into()));
        assert_eq!(
            call(2, |out| out.write_cut("a\u{e9}")),
            (OK, "a".into()),
            "no half a character"
        );
    }

    #[test]
    fn without_a_buffer_an_error_is_its_code_alone() {
        assert_eq!(guard(TextOut::none(), || Err(BorderError::Null)), ERROR);
        assert_eq!(guard(TextOut::none(), || panic!("quiet")), ERROR);
    }
}
