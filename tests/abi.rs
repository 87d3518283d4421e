//! The two sides of the C border: what `cdefs.lua` declares, read by the LuaJIT
//! that nginx runs, beside what the library has.

#![allow(unsafe_code, reason = "a test calls what is not safe")]

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::Command;

use ipconfig::ffi::{self, Explanation, Peer};
use mlua::{Lua, Table};

const CDEFS: &str = include_str!("../lua/resty/ipconfig/cdefs.lua");

/// The library, which cargo builds beside the executable of this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.with_file_name("libipconfig.so");
    assert!(path.exists(), "{} is not there: is the cdylib still built?", path.display());
    path
}

/// A LuaJIT that has read `cdefs.lua`, and what the file returns.
fn luajit() -> (Lua, Table) {
    // SAFETY: it runs the scripts of this file, which need LuaJIT's `ffi`.
    let lua = unsafe { Lua::unsafe_new() };
    let cdefs: Table = lua.load(CDEFS).set_name("cdefs.lua").eval().expect("cdefs.lua is valid");
    lua.globals().set("ffi", lua.load("require 'ffi'").eval::<Table>().unwrap()).unwrap();
    (lua, cdefs)
}

// === types and numbers ===

#[test]
fn the_peer_has_the_same_layout_on_both_sides() {
    let (lua, _) = luajit();
    let measure = |call: &str| -> usize { lua.load(format!("ffi.{call}")).eval().expect(call) };
    assert_eq!(measure("sizeof('ipconfig_peer_t')"), size_of::<Peer>());
    assert_eq!(measure("alignof('ipconfig_peer_t')"), align_of::<Peer>());
    let offsets = ["host", "host_len", "port", "more_tries"]
        .map(|field| measure(&format!("offsetof('ipconfig_peer_t', '{field}')")));
    assert_eq!(
        offsets,
        [
            offset_of!(Peer, host),
            offset_of!(Peer, host_len),
            offset_of!(Peer, port),
            offset_of!(Peer, more_tries)
        ]
    );
}

#[test]
fn the_explanation_has_the_same_layout_on_both_sides() {
    let (lua, _) = luajit();
    let measure = |call: &str| -> usize { lua.load(format!("ffi.{call}")).eval().expect(call) };
    assert_eq!(measure("sizeof('ipconfig_explanation_t')"), size_of::<Explanation>());
    let offsets = ["instance", "instance_len", "tries", "mode", "rule", "reason"]
        .map(|field| measure(&format!("offsetof('ipconfig_explanation_t', '{field}')")));
    assert_eq!(
        offsets,
        [
            offset_of!(Explanation, instance),
            offset_of!(Explanation, instance_len),
            offset_of!(Explanation, tries),
            offset_of!(Explanation, mode),
            offset_of!(Explanation, rule),
            offset_of!(Explanation, reason)
        ]
    );
}

#[test]
fn the_codes_and_the_version_are_the_same_on_both_sides_and_there_are_no_others() {
    let (_lua, cdefs) = luajit();
    let mut declared: Vec<(String, i64)> = cdefs.pairs().map(Result::unwrap).collect();
    declared.sort_unstable();
    let of_the_library = [
        ("ABI", i64::from(ffi::ABI)),
        ("AGAIN", ffi::AGAIN.into()),
        ("BY_NOTHING", ffi::BY_NOTHING.into()),
        ("BY_PANIC", ffi::BY_PANIC.into()),
        ("BY_RULE", ffi::BY_RULE.into()),
        ("BY_STRATEGY", ffi::BY_STRATEGY.into()),
        ("DECLINED", ffi::DECLINED.into()),
        ("ERROR", ffi::ERROR.into()),
        ("LOOK_DUE", ffi::LOOK_DUE.into()),
        ("OK", ffi::OK.into()),
        ("OPEN", ffi::OPEN.into()),
        ("RANKING_DUE", ffi::RANKING_DUE.into()),
        ("TRIES_DUE", ffi::TRIES_DUE.into()),
        ("UNRANKED", ffi::UNRANKED.into()),
    ];
    assert_eq!(declared, of_the_library.map(|(name, value)| (name.to_owned(), value)));
}

// === functions ===

/// A type as C writes it.
trait CType {
    const NAME: &'static str;
}

macro_rules! c_types {
    ($($rust:ty => $c:literal,)*) => { $(impl CType for $rust { const NAME: &'static str = $c; })* };
}

c_types! {
    c_int => "int",
    u32 => "uint32_t",
    u64 => "uint64_t",
    usize => "size_t",
    f64 => "double",
    *const c_char => "const char *",
    *mut c_char => "char *",
    *mut c_int => "int *",
    *mut u32 => "uint32_t *",
    *mut usize => "size_t *",
    *const c_void => "const void *",
    *mut c_void => "void *",
    *mut Peer => "ipconfig_peer_t *",
    *mut Explanation => "ipconfig_explanation_t *",
}

/// A function's types as C writes them: `int (const char *, size_t)`.
trait CFunction {
    fn types(self) -> String;
}

macro_rules! c_functions {
    ($(($($parameter:ident)*))*) => { $(
        impl<R: CType, $($parameter: CType),*> CFunction
            for unsafe extern "C" fn($($parameter),*) -> R
        {
            fn types(self) -> String {
                let parameters: &[&str] = &[$($parameter::NAME),*];
                let parameters = if parameters.is_empty() { &["void"] } else { parameters };
                format!("{} ({})", R::NAME, parameters.join(", "))
            }
        }
    )* };
}

c_functions! { () (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G)
(A B C D E F G H) (A B C D E F G H I) }

macro_rules! exports {
    ($($name:ident($($any:tt)*),)*) => {
        BTreeSet::from([$((
            stringify!($name).to_owned(),
            (ffi::$name as unsafe extern "C" fn($($any)*) -> _).types(),
        )),*])
    };
}

/// Name and types of each export, as the compiler knows them.
fn exports() -> BTreeSet<(String, String)> {
    exports! {
        ipconfig_abi(),
        ipconfig_init(_, _, _, _),
        ipconfig_worker_start(_, _, _, _),
        ipconfig_plugin_start(_, _, _, _, _, _, _, _),
        ipconfig_plugin_stop(_),
        ipconfig_heartbeat(),
        ipconfig_fallback_after_ms(),
        ipconfig_refusal_port(),
        ipconfig_next_log(_, _, _),
        ipconfig_service(_, _, _),
        ipconfig_poll(_),
        ipconfig_load(_, _, _, _, _, _, _),
        ipconfig_balance(_, _, _, _, _, _, _, _, _),
        ipconfig_explain(_),
        ipconfig_rules(_, _, _),
        ipconfig_finish(_, _),
        ipconfig_finish_by_tries(_, _, _, _, _, _, _, _, _),
        ipconfig_report(_, _, _, _, _, _, _),
        ipconfig_ask(_, _),
        ipconfig_open(_, _, _, _),
        ipconfig_best(_, _, _, _),
        ipconfig_services(_, _),
        ipconfig_metrics(_, _, _, _, _, _),
        ipconfig_status(_, _, _, _),
    }
}

/// Name and types of each function that `cdefs.lua` declares.
fn declarations() -> BTreeSet<(String, String)> {
    let (_, cdef) = CDEFS.split_once("ffi.cdef [[").expect("cdefs.lua has a cdef");
    let (cdef, _) = cdef.split_once("]]").expect("the cdef ends");
    let functions = cdef.split(';').filter_map(|declaration| {
        let (head, parameters) = declaration.trim().strip_suffix(')')?.split_once('(')?;
        let (result, name) = head.rsplit_once(char::is_whitespace).expect("a type and a name");
        let parameters: Vec<_> = parameters.split(',').map(parameter_type).collect();
        Some((name.to_owned(), format!("{result} ({})", parameters.join(", "))))
    });
    functions.collect()
}

/// `const char *config` without its name.
fn parameter_type(parameter: &str) -> &str {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match parameter.trim() {
        "void" => "void",
        named => named.trim_end_matches(is_name).trim_end(),
    }
}

#[test]
fn each_function_is_declared_with_the_types_that_it_has() {
    let (declared, exported) = (declarations(), exports());
    let differences: Vec<_> = declared.symmetric_difference(&exported).collect();
    assert!(differences.is_empty(), "on one side alone: {differences:#?}");
}

#[test]
fn what_is_declared_is_exported_and_what_is_exported_is_declared() {
    let symbols = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output();
    let symbols = symbols.expect("nm comes with the linker");
    let exported: BTreeSet<_> = String::from_utf8_lossy(&symbols.stdout)
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .filter(|name| name.starts_with("ipconfig_"))
        .map(str::to_owned)
        .collect();
    let declared: BTreeSet<_> = declarations().into_iter().map(|(name, _)| name).collect();
    assert_eq!(declared, exported);
}

// === calls ===

/// Runs a script in a LuaJIT that has loaded the library as `lib`. Each test has
/// a thread of its own, and with that a worker's state of its own.
fn run(script: &str) {
    let (lua, cdefs) = luajit();
    lua.globals().set("cdefs", cdefs).unwrap();
    lua.globals().set("path", library().to_str().expect("a UTF-8 path")).unwrap();
    let prelude = r##"
        lib = ffi.load(path)
        len = ffi.new("size_t[1]")

        -- an export that takes the text last, with a buffer of `room` bytes:
        -- the code, the length that it leaves, and the text
        function call(room, export, ...)
            local buf = ffi.new("char[?]", room + 1, 0x7e)
            len[0] = room
            local args = { n = select("#", ...), ... }
            args[args.n + 1], args[args.n + 2] = buf, len
            local code = export(unpack(args, 1, args.n + 2))
            assert(ffi.cast("uint8_t *", buf)[room] == 0x7e, "written past the buffer")
            local left = tonumber(len[0])
            return code, left, ffi.string(buf, math.min(left, room))
        end

        function equal(found, expected)
            if found ~= expected then
                error("found " .. tostring(found) .. ", expected " .. tostring(expected), 2)
            end
        end

        config = [[{"services": {"chat": {"instances": [{"id": "a", "addr": "127.0.0.1:1"}]}}}]]
    "##;
    lua.load(prelude).exec().expect("the library loads");
    if let Err(error) = lua.load(script).set_name("script").exec() {
        panic!("{error}");
    }
}

#[test]
fn each_declared_function_resolves_in_luajit() {
    for (name, _) in declarations() {
        run(&format!("assert(lib.{name})"));
    }
    run("equal(pcall(function() return lib.ipconfig_no_such_function end), false)");
    run("equal(lib.ipconfig_abi(), cdefs.ABI)");
}

#[test]
fn null_for_a_pointer_is_an_error_and_not_a_crash() {
    run(r#"
        local ERROR = cdefs.ERROR
        equal(lib.ipconfig_init(nil, 0, nil, nil), ERROR)
        equal(lib.ipconfig_worker_start(nil, 0, nil, nil), ERROR)
        equal(lib.ipconfig_plugin_start(nil, 0, nil, nil, nil, nil, nil, nil), ERROR)
        equal(lib.ipconfig_next_log(nil, nil, nil), ERROR)

        local code, _, text = call(100, lib.ipconfig_init, nil, 0)
        equal(code, ERROR)
        equal(text, "a pointer is NULL")
        local code, _, text = call(100, lib.ipconfig_plugin_start, config, #config, nil, nil, nil, nil)
        equal(code, ERROR)
        equal(text, "a pointer is NULL")

        equal(call(100, lib.ipconfig_worker_start, config, #config), cdefs.OK)
        equal(lib.ipconfig_service("chat", 4, nil), ERROR)
        equal(lib.ipconfig_balance(0, nil, 0, nil, 0, nil, 0, 0, nil), ERROR)
        equal(lib.ipconfig_explain(nil), ERROR)
        equal(lib.ipconfig_rules(0, nil, nil), cdefs.DECLINED)
        equal(lib.ipconfig_explain(ffi.new("ipconfig_explanation_t")), cdefs.DECLINED)
        equal(lib.ipconfig_services(nil, nil), ERROR)
        equal(lib.ipconfig_services(ffi.new("char[10]"), nil), ERROR)
        equal(lib.ipconfig_services(nil, len), ERROR)
        equal(lib.ipconfig_metrics(nil, 0, 0, 0, nil, nil), ERROR)
        equal(lib.ipconfig_status(nil, 0, nil, nil), ERROR)
        equal(lib.ipconfig_load(0, nil, 0, nil, 0, nil, nil), ERROR)
        equal(lib.ipconfig_finish_by_tries(nil, 200, nil, 0, nil, 0, nil, 0, 0), ERROR)
        for _, status in ipairs { -1, 0, 200, 503, 70000 } do -- a request that is none of ours
            equal(lib.ipconfig_finish(nil, status), cdefs.OK)
            equal(lib.ipconfig_finish_by_tries(nil, status, "", 0, "", 0, "", 0, 0), cdefs.OK)
        end
    "#);
}

#[test]
fn no_service_has_the_name_null() {
    run(r#"
        equal(call(100, lib.ipconfig_worker_start, config, #config), cdefs.OK)
        local handle = ffi.new("uint32_t[1]", 7)
        assert(lib.ipconfig_service(nil, 0, handle) ~= cdefs.OK)
        equal(lib.ipconfig_service("chat", 3, handle), cdefs.DECLINED) -- "cha"
        equal(lib.ipconfig_service("", 0, handle), cdefs.DECLINED)
        equal(lib.ipconfig_service("\xff\xfe", 2, handle), cdefs.DECLINED)
        equal(handle[0], 7)
        equal(lib.ipconfig_service("chat", 4, handle), cdefs.OK)
        assert(handle[0] ~= 7)
    "#);
}

#[test]
fn a_result_that_does_not_fit_says_how_much_room_it_needs_and_writes_nothing() {
    run(r#"
        equal(call(100, lib.ipconfig_worker_start, config, #config), cdefs.OK)
        local names = '["chat"]'
        for room = 0, #names - 1 do
            local code, needed, text = call(room, lib.ipconfig_services)
            equal(code, cdefs.AGAIN)
            equal(needed, #names)
            equal(text, ("\x7e"):rep(room))
        end
        local code, written, text = call(#names, lib.ipconfig_services)
        equal(code, cdefs.OK)
        equal(written, #names)
        equal(text, names)
    "#);
}

#[test]
fn an_error_that_does_not_fit_is_cut_short() {
    run(r#"
        for room = 0, 20 do
            local code, written, text = call(room, lib.ipconfig_init, "{", 1)
            equal(code, cdefs.ERROR)
            equal(written, room)
            equal(text, ("not JSON: EOF while parsing"):sub(1, room))
        end
    "#);
}

#[test]
fn a_process_that_is_no_worker_is_told_so() {
    run(r#"
        local code, _, text = call(100, lib.ipconfig_services)
        equal(code, cdefs.ERROR)
        equal(text, "this process is no worker: init_worker() has not run")
        equal(lib.ipconfig_poll(0), cdefs.ERROR)
        equal(lib.ipconfig_balance(0, nil, 0, nil, 0, nil, 0, 0, ffi.new("ipconfig_peer_t")), cdefs.ERROR)
        equal(lib.ipconfig_finish(nil, 0), cdefs.ERROR)
        equal(lib.ipconfig_plugin_stop(1), cdefs.OK) -- there is none
    "#);
}

#[test]
fn before_anything_is_published_there_is_no_peer_and_no_ranking() {
    run(r#"
        equal(call(100, lib.ipconfig_worker_start, config, #config), cdefs.OK)
        local peer = ffi.new("ipconfig_peer_t", { port = 7 })
        for _, handle in ipairs { 0, 99, 0xffffffff } do
            equal(lib.ipconfig_poll(handle), cdefs.OK)
            equal(lib.ipconfig_balance(handle, nil, 0, nil, 0, nil, 0, 0, peer), cdefs.UNRANKED)
            equal(call(100, lib.ipconfig_best, handle, 10), cdefs.UNRANKED)
        end
        equal(peer.port, 7)

        local code, _, text = call(100, lib.ipconfig_load, 0, "", 0, "", 0)
        equal(code, cdefs.ERROR)
        equal(text, "the value is missing from the shared dict")
        local code, _, text = call(100, lib.ipconfig_status, "foreign", 7)
        equal(code, cdefs.ERROR)
        equal(text, "the value does not begin with ipconfig1")
    "#);
}
