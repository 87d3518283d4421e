//! The C border: what LuaJIT calls. `lua/resty/ipconfig/cdefs.lua` declares the
//! same, and a test compares the two.
//!
//! The contract, for every export:
//! - It returns one of the codes below, or a plain number that is said to be
//!   one. Codes have OpenResty's numbers and are never given another meaning.
//! - A panic never crosses: it becomes [`ERROR`] with the panic's text.
//! - Text goes into the caller's buffer: `len` holds its size, then the length
//!   of the text. Too small a buffer gives [`AGAIN`] and the size that is needed.
//! - Pointers that are read are valid for the call and may be NULL where the
//!   export says so; a NULL elsewhere gives [`ERROR`].
//! - Nothing is handed over: no side frees what the other has allocated.
//!
//! All but `ipconfig_abi` are for the thread that runs nginx's event loop.

#![allow(unsafe_code, reason = "a border to C")]

mod border;
mod shdict;
mod thread;

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::time::{SystemTime, UNIX_EPOCH};

use border::{BorderError, Bytes, TextOut, guard};
use thread::PluginThread;

use crate::board::{self, Board, Refusal};
use crate::config::Config;
use crate::metrics::{self, Fallback};
use crate::picker;
use crate::plugin;
use crate::value;
use crate::worker::{self, Choice, Due, End, Reason, ReportHeader, Request, Tries, Worker};

/// The version of this border. It grows with every change of a declaration, and
/// the Lua side refuses another.
pub const ABI: u32 = 5;

/// Done.
pub const OK: c_int = 0;
/// Failed; the error's text says why.
pub const ERROR: c_int = -1;
/// Do what the export's comment says, then call again.
pub const AGAIN: c_int = -2;
/// There is nothing to give.
pub const DECLINED: c_int = -5;
/// The service has no ranking yet.
pub const UNRANKED: c_int = -6;
/// The ranking alone is to be loaded.
pub const RANKING_DUE: c_int = 1;
/// The request is open already.
pub const OPEN: c_int = 2;
/// The response is to be looked at for a load report.
pub const LOOK_DUE: c_int = 3;

/// The request's end is to be told by [`ipconfig_finish_by_tries`].
pub const TRIES_DUE: c_int = 4;

/// Where a request goes, written by [`ipconfig_balance`]; or how it is refused.
#[repr(C)]
pub struct Peer {
    /// Not terminated; valid until the next call. Of a refusal, its reason.
    pub host: *const c_char,
    pub host_len: u32,
    /// Of a refusal, the port on 127.0.0.1 that answers so; 0 for none.
    pub port: u32,
    /// How often the request may move on if this try fails. Of a refusal, how many a
    /// line of the log is to tell of; 0 for no line.
    pub more_tries: u32,
}

/// Why a request went where it did, or nowhere, written by [`ipconfig_explain`].
#[repr(C)]
pub struct Explanation {
    /// The id of its instance, not terminated; valid until the next call.
    pub instance: *const c_char,
    pub instance_len: u32,
    /// The tries that it has had, this one included.
    pub tries: u32,
    /// One of the modes, from 0: live, manual, stale, fallback, static, snapshot.
    pub mode: u32,
    /// The rule that it went by, from 1; 0 for none.
    pub rule: u32,
    /// [`BY_STRATEGY`], [`BY_RULE`], [`BY_PANIC`] or [`BY_NOTHING`].
    pub reason: u32,
}

/// The strategy decided, among all or those that no rule selects.
pub const BY_STRATEGY: u32 = 0;
/// It decided among those of a rule.
pub const BY_RULE: u32 = 1;
/// Too few are healthy for this one to be left out.
pub const BY_PANIC: u32 = 2;
/// There was none to send it to.
pub const BY_NOTHING: u32 = 3;

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
    static PLUGIN: RefCell<Plugin> = const { RefCell::new(Plugin { starts: 0, thread: None }) };
}

/// The plugin's thread in this process.
struct Plugin {
    /// Starts so far. Each has its number, so that whoever made an earlier one
    /// cannot stop a later: a process without a master keeps the old Lua VM for
    /// a while after a reload.
    starts: u32,
    thread: Option<PluginThread>,
}

fn with_worker<T>(
    call: impl FnOnce(&mut Worker) -> Result<T, BorderError>,
) -> Result<T, BorderError> {
    WORKER.with_borrow_mut(|worker| call(worker.as_mut().ok_or(BorderError::NotStarted)?))
}

/// What each start begins with: the configuration, valid, and the board.
fn config_and_board(config: Bytes<'_>) -> Result<(Config, Board), BorderError> {
    let config = Config::parse(config.text()?)?;
    Ok((config, Board::open().map_err(BorderError::Board)?))
}

/// The version of this border.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_abi() -> u32 {
    ABI
}

/// Checks a configuration and maps the board; for `init_by_lua`. Starts nothing.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_init(
    config: *const c_char,
    config_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (config, out) = unsafe { (Bytes::new(config, config_len), TextOut::new(text, text_len)) };
    guard(out, || {
        config_and_board(config)?;
        Ok(OK)
    })
}

/// Makes this process a worker, or one with another configuration; for
/// `init_worker_by_lua`.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_worker_start(
    config: *const c_char,
    config_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (config, out) = unsafe { (Bytes::new(config, config_len), TextOut::new(text, text_len)) };
    guard(out, || {
        let (config, board) = config_and_board(config)?;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = clock.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32);
        WORKER.with_borrow_mut(|worker| {
            *worker = Some(match worker.take() {
                Some(worker) => worker.reconfigured(&config, seed),
                None => Worker::new(board, &config, seed),
            });
        });
        Ok(OK)
    })
}

/// Starts the plugin's thread in this process, in place of one that runs, and
/// writes the start's number; for worker 0 alone. `zone` is the shared dict's,
/// `store` is `ngx_http_lua_ffi_shdict_store`, `get` is
/// `ngx_http_lua_ffi_shdict_get`.
///
/// # Safety
/// As the module says; `zone`, `store` and `get` stay valid until
/// [`ipconfig_plugin_stop`] returns or the process exits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_plugin_start(
    config: *const c_char,
    config_len: usize,
    zone: *mut c_void,
    store: *const c_void,
    get: *const c_void,
    start: *mut u32,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (config, out) = unsafe { (Bytes::new(config, config_len), TextOut::new(text, text_len)) };
    guard(out, || {
        let (config, board) = config_and_board(config)?;
        // SAFETY: the caller's promise.
        let dict = unsafe { shdict::SharedDict::new(zone, store, get) }.ok_or(BorderError::Null)?;
        // SAFETY: the caller's promise; NULL is told apart.
        let start = unsafe { start.as_mut() }.ok_or(BorderError::Null)?;
        PLUGIN.with_borrow_mut(|plugin| {
            drop(plugin.thread.take()); // stops the one before
            plugin.starts = plugin.starts.wrapping_add(1);
            *start = plugin.starts;
            let thread = PluginThread::start(config, dict, board).map_err(BorderError::Thread)?;
            plugin.thread = Some(thread);
            Ok(OK)
        })
    })
}

/// Stops the plugin's thread of one start and waits for it; nothing is stored
/// afterwards. Harmless when it has ended, or another one has taken its place.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_plugin_stop(start: u32) -> c_int {
    guard(TextOut::none(), || {
        // A process may exit while its thread-locals are being destroyed.
        let thread = PLUGIN.try_with(|plugin| {
            let mut plugin = plugin.borrow_mut();
            if plugin.starts == start { plugin.thread.take() } else { None }
        });
        drop(thread);
        Ok(OK)
    })
}

/// Beats of the plugin's thread so far, wherever it runs: a number, not a code;
/// a worker that sees it stand still falls back. 0 before the board is mapped.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_heartbeat() -> u64 {
    Board::open().map_or(0, |board| board.heartbeat())
}

/// How long the heartbeat may stand still before a worker falls back, a number of
/// milliseconds; 0 before [`ipconfig_worker_start`].
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_fallback_after_ms() -> u32 {
    WORKER.with_borrow(|worker| worker.as_ref().map_or(0, Worker::patience_ms))
}

/// The port on 127.0.0.1 that answers 503 as for a service without instances, a number;
/// 0 while there is none.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_refusal_port() -> u32 {
    Board::open().map_or(0, |board| port_of(board, Refusal::NoInstance))
}

fn port_of(board: Board, reason: Refusal) -> u32 {
    board.refusal_port(reason).unwrap_or(0).into()
}

/// The next line that the plugin's thread logged: [`OK`] with the text and its
/// nginx log level (4 error, 5 warn, 6 notice …), [`DECLINED`] when there is none.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_next_log(
    level: *mut c_int,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let out = unsafe { TextOut::new(text, text_len) };
    guard(out, || {
        // SAFETY: the caller's promise; NULL is told apart.
        let level = unsafe { level.as_mut() }.ok_or(BorderError::Null)?;
        let Some(line) = plugin::log::next() else { return Ok(DECLINED) };
        *level = line.level;
        out.write_cut(&line.text)
    })
}

/// The handle of a service, written to `handle`; [`DECLINED`] for a service that
/// is not served here.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_service(
    name: *const c_char,
    name_len: usize,
    handle: *mut u32,
) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { Bytes::new(name, name_len) };
    guard(TextOut::none(), || {
        // SAFETY: the caller's promise; NULL is told apart.
        let handle = unsafe { handle.as_mut() }.ok_or(BorderError::Null)?;
        let name = name.bytes().ok_or(BorderError::Null)?;
        let Ok(name) = std::str::from_utf8(name) else { return Ok(DECLINED) };
        with_worker(|worker| {
            let Some(service) = worker.service(name) else { return Ok(DECLINED) };
            *handle = service;
            Ok(OK)
        })
    })
}

/// What of a service's values is to be loaded: [`OK`] for nothing,
/// [`RANKING_DUE`] for the ranking alone, [`AGAIN`] for the instances too.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_poll(service: u32) -> c_int {
    guard(TextOut::none(), || {
        with_worker(|worker| {
            Ok(match worker.due(service) {
                Due::Nothing => OK,
                Due::Ranking => RANKING_DUE,
                Due::Both => AGAIN,
            })
        })
    })
}

/// Takes in a service's values from the shared dict. A value that is missing is
/// empty; `instances` is NULL where they were not asked for. On [`ERROR`] the worker keeps the ranking that it has.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_load(
    service: u32,
    instances: *const c_char,
    instances_len: usize,
    ranking: *const c_char,
    ranking_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (instances, ranking, out) = unsafe {
        (
            Bytes::new(instances, instances_len),
            Bytes::new(ranking, ranking_len),
            TextOut::new(text, text_len),
        )
    };
    guard(out, || {
        with_worker(|worker| {
            worker.load(service, instances.bytes(), ranking.bytes().ok_or(BorderError::Null)?)?;
            Ok(OK)
        })
    })
}

/// Chooses where a request goes. `request` is its address, `is_retry` is 1 when
/// its last try failed without an answer, 2 when it timed out, 4 and 5 when it did so
/// before there was a connection, 3 when it was answered with a status that is a failure,
/// and the status itself when nginx moves on from that though it is none; `key`, which may be NULL, is what consistent hashing keeps
/// requests together by; `tried` is NULL when [`ipconfig_finish`] will follow, else
/// `$upstream_addr`; `rules` are those whose conditions hold for it, bit 0 for the
/// first.
/// [`OK`] with `peer` written; [`AGAIN`] when the service's values are to be loaded
/// first; [`OPEN`] when the request is to be finished first, as it was sent
/// somewhere before and that try did not fail; [`UNRANKED`] while the service has
/// no ranking; [`DECLINED`] when the request is refused, with `peer` written.
///
/// # Safety
/// As the module says; `request` is never read through.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_balance(
    service: u32,
    request: *const c_void,
    is_retry: c_int,
    key: *const c_char,
    key_len: usize,
    tried: *const c_char,
    tried_len: usize,
    rules: u32,
    peer: *mut Peer,
) -> c_int {
    // SAFETY: the caller's promise.
    let (key, tried) = unsafe { (Bytes::new(key, key_len), Bytes::new(tried, tried_len)) };
    guard(TextOut::none(), || {
        // SAFETY: the caller's promise; NULL is told apart.
        let peer = unsafe { peer.as_mut() }.ok_or(BorderError::Null)?;
        let request = Request {
            address: request as usize,
            is_retry: is_retry != 0,
            moved_on_from: u16::try_from(is_retry).ok().filter(|&it| it >= 100).unwrap_or(0),
            failed_by: match is_retry {
                2 | 5 => Refusal::Timeout,
                1 | 4 => Refusal::Error,
                _ => Refusal::Status,
            },
            has_reached: !matches!(is_retry, 4 | 5),
            // Of an empty key nothing can be told apart: as if there were none.
            key: key.bytes().filter(|key| !key.is_empty()).map(picker::hash_of_key),
            tried: tried.bytes(),
            rules: rules as u16,
        };
        with_worker(|worker| {
            let board = worker.board();
            match worker.balance(service, request) {
                Choice::Load => Ok(AGAIN),
                Choice::Open => Ok(OPEN),
                Choice::Unranked => Ok(UNRANKED),
                Choice::Refused { reason, to_log } => {
                    let text = reason.as_str();
                    *peer = Peer {
                        host: text.as_ptr().cast(),
                        host_len: u32::try_from(text.len()).unwrap_or(0),
                        port: port_of(board, reason),
                        more_tries: u32::try_from(to_log).unwrap_or(u32::MAX),
                    };
                    Ok(DECLINED)
                }
                Choice::Peer { host, port, more_tries } => {
                    *peer = Peer {
                        host: host.as_ptr().cast(),
                        host_len: u32::try_from(host.len()).unwrap_or(0),
                        port: port.into(),
                        more_tries,
                    };
                    Ok(OK)
                }
            }
        })
    })
}

/// Why the last request that was balanced went where it did: [`OK`] with
/// `explanation` written, [`DECLINED`] before the first one.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_explain(explanation: *mut Explanation) -> c_int {
    guard(TextOut::none(), || {
        // SAFETY: the caller's promise; NULL is told apart.
        let explanation = unsafe { explanation.as_mut() }.ok_or(BorderError::Null)?;
        with_worker(|worker| {
            let Some(found) = worker.explain(board::monotonic_ms()) else { return Ok(DECLINED) };
            let mode = worker::MODES.iter().position(|known| *known == found.mode);
            *explanation = Explanation {
                instance: found.instance.as_ptr().cast(),
                instance_len: u32::try_from(found.instance.len()).unwrap_or(0),
                tries: found.tries,
                mode: mode.unwrap_or(0) as u32,
                rule: found.rule.map_or(0, |rule| rule + 1),
                reason: match found.reason {
                    Reason::Strategy => BY_STRATEGY,
                    Reason::Rule => BY_RULE,
                    Reason::Panic => BY_PANIC,
                    Reason::Nothing => BY_NOTHING,
                },
            };
            Ok(OK)
        })
    })
}

/// The routing rules of a service, as JSON; [`DECLINED`] where it has none. They change
/// with what [`ipconfig_load`] takes in of its instances.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_rules(
    service: u32,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let out = unsafe { TextOut::new(text, text_len) };
    guard(out, || {
        with_worker(|worker| match worker.rules(service) {
            Some(json) => out.write(&json),
            None => Ok(DECLINED),
        })
    })
}

/// Ends a request that may have been balanced, by its final status. [`TRIES_DUE`]
/// when [`ipconfig_finish_by_tries`] is to follow, as that does not tell enough;
/// [`LOOK_DUE`] when [`ipconfig_report`] is to follow if the response has a load
/// report, else [`OK`].
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_finish(request: *const c_void, status: c_int) -> c_int {
    guard(TextOut::none(), || {
        with_worker(|worker| Ok(code_of(worker.finish(request as usize, status_of(status)))))
    })
}

/// Ends a request that may have been balanced, by what nginx says of its tries:
/// `$upstream_addr`, `$upstream_status` and `$upstream_response_time`. `status` is its
/// final one, 0 where it has none yet, and `grpc_status` that of a gRPC response, else
/// 0. The codes are those of [`ipconfig_finish`], but for [`TRIES_DUE`].
///
/// # Safety
/// As the module says; `request` is never read through.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_finish_by_tries(
    request: *const c_void,
    status: c_int,
    addrs: *const c_char,
    addrs_len: usize,
    statuses: *const c_char,
    statuses_len: usize,
    times: *const c_char,
    times_len: usize,
    grpc_status: c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let (addrs, statuses, times) = unsafe {
        (
            Bytes::new(addrs, addrs_len),
            Bytes::new(statuses, statuses_len),
            Bytes::new(times, times_len),
        )
    };
    guard(TextOut::none(), || {
        let tries = Tries {
            addrs: addrs.bytes().ok_or(BorderError::Null)?,
            statuses: statuses.bytes().ok_or(BorderError::Null)?,
            times: times.bytes().ok_or(BorderError::Null)?,
            grpc_status,
        };
        with_worker(|worker| {
            Ok(code_of(worker.finish_by_tries(request as usize, status_of(status), &tries)))
        })
    })
}

/// One that is none counts as one that nobody saw.
fn status_of(status: c_int) -> u16 {
    u16::try_from(status).unwrap_or(0)
}

fn code_of(end: End) -> c_int {
    match end {
        End::Done => OK,
        End::Look => LOOK_DUE,
        End::Unclear => TRIES_DUE,
    }
}

/// Takes in the load report of the response that [`ipconfig_finish`] asked to look
/// at: a header's value, of `endpoint-load-metrics-bin` if `is_binary` is not 0,
/// else of `endpoint-load-metrics`. `addrs` is `$upstream_addr`, whose last one the
/// response came from. [`ERROR`] when it was refused and that is to be logged.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_report(
    addrs: *const c_char,
    addrs_len: usize,
    is_binary: c_int,
    value: *const c_char,
    value_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (addrs, value, out) = unsafe {
        (Bytes::new(addrs, addrs_len), Bytes::new(value, value_len), TextOut::new(text, text_len))
    };
    guard(out, || {
        let addrs = addrs.bytes().ok_or(BorderError::Null)?;
        let value = value.bytes().ok_or(BorderError::Null)?;
        let header = match is_binary {
            0 => ReportHeader::Any(value),
            _ => ReportHeader::Binary(value),
        };
        with_worker(|worker| {
            worker.report(addrs, header)?;
            Ok(OK)
        })
    })
}

/// The best `n` of a service as JSON; [`UNRANKED`] while it has no ranking.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_best(
    service: u32,
    n: u32,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let out = unsafe { TextOut::new(text, text_len) };
    guard(out, || {
        with_worker(|worker| match worker.best(service, n as usize, board::monotonic_ms()) {
            Some(json) => out.write(&json),
            None => Ok(UNRANKED),
        })
    })
}

/// Asks the plugin's thread to explain `n` instances of a service: it stores the
/// value `explain:<service>` soon. [`DECLINED`] for a service that is not served here.
#[unsafe(no_mangle)]
pub extern "C" fn ipconfig_ask(service: u32, n: u32) -> c_int {
    guard(TextOut::none(), || {
        with_worker(|worker| Ok(if worker.ask(service, n) { OK } else { DECLINED }))
    })
}

/// What a value of the shared dict holds: [`OK`] with its body, which is text.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_open(
    value: *const c_char,
    value_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (value, out) = unsafe { (Bytes::new(value, value_len), TextOut::new(text, text_len)) };
    guard(out, || {
        let (_, body) = value::open(value.bytes().ok_or(BorderError::Null)?)?;
        out.write(&String::from_utf8_lossy(body))
    })
}

/// The names of all services that are served here, as a JSON array.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_services(text: *mut c_char, text_len: *mut usize) -> c_int {
    // SAFETY: the caller's promise.
    let out = unsafe { TextOut::new(text, text_len) };
    guard(out, || {
        with_worker(|worker| {
            let names = worker.service_names();
            out.write(&serde_json::Value::from(names).to_string())
        })
    })
}

/// The gateway's metrics as OpenMetrics text. `status` is the shared dict's
/// value of that name, empty if there is none; `fallback` is not 0 while this worker serves
/// without the plugin's thread, `fallback_requests` how many all workers did.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_metrics(
    status: *const c_char,
    status_len: usize,
    fallback: c_int,
    fallback_requests: f64,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (status, out) = unsafe { (Bytes::new(status, status_len), TextOut::new(text, text_len)) };
    guard(out, || {
        with_worker(|worker| {
            let status = plugin::Status::decode(status.bytes().unwrap_or_default());
            let fallback = Fallback { active: fallback != 0, requests: fallback_requests };
            let now_ms = board::monotonic_ms();
            let page = metrics::gateway_page(worker, status.ok().as_ref(), fallback, now_ms)?;
            out.write(&page)
        })
    })
}

/// The plugin's own state as JSON, from the shared dict's value of that name.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipconfig_status(
    status: *const c_char,
    status_len: usize,
    text: *mut c_char,
    text_len: *mut usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let (status, out) = unsafe { (Bytes::new(status, status_len), TextOut::new(text, text_len)) };
    guard(out, || {
        let status = plugin::Status::decode(status.bytes().unwrap_or_default())?;
        out.write(&serde_json::to_string(&status).map_err(BorderError::Json)?)
    })
}
