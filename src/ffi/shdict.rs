//! The shared dict, written from the plugin's thread, and read where that begins.
//!
//! nginx's zone lock keeps two threads of one process apart as it keeps two
//! processes apart. What it does not survive is a process that ends while one
//! of its threads holds it, so each access passes a gate that `atexit` closes.

use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_void};
use std::ptr::NonNull;
use std::sync::Once;

use parking_lot::Mutex;

use crate::publish::{Store, StoreError};

/// `ngx_http_lua_ffi_shdict_store`, the same from ngx_lua 0.10.23 on.
type StoreFn = unsafe extern "C" fn(
    zone: *mut c_void,
    op: c_int,
    key: *const c_uchar,
    key_len: usize,
    value_type: c_int,
    str_value_buf: *const c_uchar,
    str_value_len: usize,
    num_value: f64,
    exptime_ms: c_long,
    user_flags: c_int,
    errmsg: *mut *mut c_char,
    forcible: *mut c_int,
) -> c_int;

/// `ngx_http_lua_ffi_shdict_get`, the same from ngx_lua 0.10.23 on. A string that
/// is longer than `*str_value_len` is put where `malloc` says, for the caller to
/// free.
type GetFn = unsafe extern "C" fn(
    zone: *mut c_void,
    key: *const c_uchar,
    key_len: usize,
    value_type: *mut c_int,
    str_value_buf: *mut *mut c_uchar,
    str_value_len: *mut usize,
    num_value: *mut f64,
    user_flags: *mut c_int,
    get_stale: c_int,
    is_stale: *mut c_int,
    errmsg: *mut *mut c_char,
) -> c_int;

/// `op`: set, and fail rather than evict other values (`safe_set`).
const SAFE_SET: c_int = 4;
/// `value_type`: a string, as Lua's `LUA_TSTRING`.
const STRING: c_int = 4;
const NGX_OK: c_int = 0;

/// One `lua_shared_dict`.
pub(super) struct SharedDict {
    zone: NonNull<c_void>,
    store: StoreFn,
    get: GetFn,
}

// SAFETY: the zone is shared memory with a lock of its own, and the functions
// take that lock.
unsafe impl Send for SharedDict {}

/// `false` once the process exits. Held during each access.
static GATE: Mutex<bool> = Mutex::new(true);
static CLOSE_AT_EXIT: Once = Once::new();

extern "C" fn close_gate() {
    *GATE.lock() = false;
}

impl SharedDict {
    /// `None` when a pointer is NULL.
    ///
    /// # Safety
    /// `zone` is a shared dict's zone, `store` is `ngx_http_lua_ffi_shdict_store` and
    /// `get` is `ngx_http_lua_ffi_shdict_get`, all valid for as long as this lives.
    pub unsafe fn new(zone: *mut c_void, store: *const c_void, get: *const c_void) -> Option<Self> {
        let zone = NonNull::new(zone)?;
        let store = NonNull::new(store.cast_mut())?;
        let get = NonNull::new(get.cast_mut())?;
        CLOSE_AT_EXIT.call_once(|| {
            // SAFETY: registers a function that stays mapped (`-z nodelete`).
            unsafe { libc::atexit(close_gate) };
        });
        // SAFETY: the caller's promise of what it points to.
        let store = unsafe { std::mem::transmute::<*mut c_void, StoreFn>(store.as_ptr()) };
        // SAFETY: the same.
        let get = unsafe { std::mem::transmute::<*mut c_void, GetFn>(get.as_ptr()) };
        Some(SharedDict { zone, store, get })
    }
}

impl Store for SharedDict {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let open = GATE.lock();
        if !*open {
            return Err(StoreError("the process is exiting".into()));
        }
        let mut message = std::ptr::null_mut();
        let mut evicted: c_int = 0; // must be there, and stays 0 for a safe set
        // SAFETY: `new`'s promise; the buffers are valid for the call, which
        // copies them, and the last two are ours.
        let code = unsafe {
            (self.store)(
                self.zone.as_ptr(),
                SAFE_SET,
                key.as_ptr(),
                key.len(),
                STRING,
                value.as_ptr(),
                value.len(),
                0.0,
                0,
                0,
                &raw mut message,
                &raw mut evicted,
            )
        };
        drop(open);
        if code == NGX_OK { Ok(()) } else { Err(StoreError(error_text(message))) }
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let open = GATE.lock();
        if !*open {
            return None;
        }
        // Room for a boolean, which is never put elsewhere.
        let mut room = [0u8; 8];
        let (mut bytes, mut len) = (room.as_mut_ptr(), room.len());
        let (mut value_type, mut number, mut flags, mut is_stale) = (0, 0.0, 0, 0);
        let mut message = std::ptr::null_mut();
        // SAFETY: `new`'s promise; the key is valid for the call, and all that is
        // written is ours.
        let code = unsafe {
            (self.get)(
                self.zone.as_ptr(),
                key.as_ptr(),
                key.len(),
                &raw mut value_type,
                &raw mut bytes,
                &raw mut len,
                &raw mut number,
                &raw mut flags,
                0,
                &raw mut is_stale,
                &raw mut message,
            )
        };
        drop(open);
        let is_found = code == NGX_OK && value_type == STRING && !bytes.is_null();
        // SAFETY: a string that is found is `len` bytes, in `room` or allocated.
        let value = is_found.then(|| unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec());
        if bytes != room.as_mut_ptr() {
            // SAFETY: it was allocated by `malloc` for this call, or is NULL.
            unsafe { libc::free(bytes.cast()) };
        }
        value
    }
}

fn error_text(message: *const c_char) -> String {
    if message.is_null() {
        return "no reason given".into();
    }
    // SAFETY: ngx_lua's messages are string literals.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}
