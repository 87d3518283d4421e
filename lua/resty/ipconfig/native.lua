-- Finds, loads and calls libipconfig.so: the only module that does.

local ffi   = require "ffi"
local base  = require "resty.core.base"
local cdefs = require "resty.ipconfig.cdefs"


local C               = ffi.C
local ffi_new         = ffi.new
local ffi_string      = ffi.string
local get_string_buf  = base.get_string_buf
local get_size_ptr    = base.get_size_ptr
local byte            = string.byte
local ceil            = math.ceil
local concat          = table.concat
local gmatch          = string.gmatch
local gsub            = string.gsub
local match           = string.match
local open            = io.open
local pcall           = pcall
local sleep           = ngx.sleep
local tonumber        = tonumber
local type            = type


local OK       = cdefs.OK
local AGAIN    = cdefs.AGAIN
local UNRANKED = cdefs.UNRANKED
local DECLINED = cdefs.DECLINED

local RANKING_DUE = cdefs.RANKING_DUE

-- in the library's order
local MODES = { [0] = "live", "manual", "stale", "fallback", "static",
                "snapshot" }

local DASH = byte("-")

-- room for an error or a line of the log; results ask for what they need
local TEXT_SIZE = 4096


local _M = {}


local lib         -- kept here for good: a collected handle unmaps the library
local peer        = ffi_new("ipconfig_peer_t")
local explanation = ffi_new("ipconfig_explanation_t")
local number_out  = ffi_new("uint32_t[1]")
local level_out   = ffi_new("int[1]")


local function find_library()
    local tried = {}

    for pattern in gmatch(package.cpath, "[^;]+") do
        local path = gsub(pattern, "%?", "libipconfig")

        -- a pattern without ?, such as that of Lua's all-in-one loader, is not
        -- a place where our library could be
        if path ~= pattern and match(path, "%.so$") then
            local file = open(path, "rb")
            if file then
                file:close()
                return path
            end

            tried[#tried + 1] = path
        end
    end

    return nil, "libipconfig.so was not found along package.cpath; tried: "
                .. concat(tried, ", ")
end


-- Loads the library once a VM.
-- Returns true, or nil and why it cannot be used.
function _M.load()
    if lib then
        return true
    end

    local path, err = find_library()
    if not path then
        return nil, err
    end

    local ok, found = pcall(ffi.load, path)
    if not ok then
        return nil, "failed to load " .. path .. ": " .. found
    end

    local abi
    ok, abi = pcall(function()
        return tonumber(found.ipconfig_abi())
    end)
    if not ok then
        -- the message begins with a place in this file and the path
        return nil, path .. " is no libipconfig.so: "
                    .. match(abi, "undefined symbol.*") or abi
    end

    if abi ~= cdefs.ABI then
        return nil, path .. " has ABI " .. abi .. " and this Lua code needs "
                    .. cdefs.ABI .. ": install both from one release, and "
                    .. "restart nginx (a reload keeps the old library)"
    end

    lib = found

    return true
end


-- What each export's last text needed, and a quarter more, so that a page is
-- not made twice.
local rooms = {}


-- Calls an export that takes the text buffer last, with the room that it asks
-- for. Returns its code and the text.
local function call_for_text(name, ...)
    local export = lib[name]
    local size = get_size_ptr()
    local args = { n = select("#", ...), ... }

    while true do
        local room = rooms[name] or TEXT_SIZE
        local buf = get_string_buf(room)
        size[0] = room
        args[args.n + 1] = buf
        args[args.n + 2] = size

        local code = export(unpack(args, 1, args.n + 2))
        if code ~= AGAIN then
            return code, ffi_string(buf, size[0])
        end

        rooms[name] = ceil(tonumber(size[0]) * 1.25)
    end
end


local function done_or_error(code, text)
    if code ~= OK then
        return nil, text
    end

    return true
end


-- Checks the configuration (JSON text) and maps the board.
function _M.init(config)
    return done_or_error(call_for_text("ipconfig_init", config, #config))
end


-- Makes this process a worker.
function _M.worker_start(config)
    return done_or_error(
        call_for_text("ipconfig_worker_start", config, #config))
end


-- Starts the plugin's thread in this process, storing into `dict` and going on
-- from what an earlier one stored there.
-- Returns the start's number, or nil and why there is no thread.
function _M.plugin_start(config, dict)
    local zone = C.ngx_http_lua_ffi_shdict_udata_to_zone(dict[1])
    local store = ffi.cast("const void *", C.ngx_http_lua_ffi_shdict_store)
    local get = ffi.cast("const void *", C.ngx_http_lua_ffi_shdict_get)

    local ok, err = done_or_error(call_for_text("ipconfig_plugin_start",
                                                config, #config, zone, store,
                                                get, number_out))

    return ok and number_out[0], err
end


-- Stops the thread of that start, if it is the one that runs.
function _M.plugin_stop(start)
    lib.ipconfig_plugin_stop(start)
end


-- Beats of the plugin's thread so far, wherever it runs.
function _M.heartbeat()
    return tonumber(lib.ipconfig_heartbeat())
end


-- How long the thread may be silent before this worker falls back, in seconds.
function _M.fallback_after()
    return lib.ipconfig_fallback_after_ms() / 1000
end


-- The loopback port that answers 503 as for a service without instances, or
-- nil.
function _M.refusal_port()
    local port = lib.ipconfig_refusal_port()
    if port ~= 0 then
        return port
    end
end


-- The next line that the plugin's thread logged: its level and text, or nil.
function _M.next_log()
    local code, line = call_for_text("ipconfig_next_log", level_out)
    if code == OK then
        return level_out[0], line
    end
end


-- The handle of a service, or nil for one that is not served.
function _M.service(name)
    if lib.ipconfig_service(name, #name, number_out) == OK then
        return number_out[0]
    end
end


-- A value of the shared dict as the library takes it: text, empty for what is
-- missing, and for a number or a boolean what no value of ours looks like.
local function value_of(dict, key)
    local value = dict:get(key)
    if type(value) == "string" then
        return value
    end

    return value == nil and "" or type(value)
end


-- Brings a service's view up to what the shared dict holds.
-- Returns true and whether its rules may be others now, or nil and what is
-- wrong with the values there.
function _M.refresh(handle, name, dict)
    local due = lib.ipconfig_poll(handle)
    if due ~= AGAIN and due ~= RANKING_DUE then
        return true, false
    end

    -- in this order, as the writer stores the instances first: those of the
    -- ranking that is read, or newer ones, are never missing
    local ranking = value_of(dict, "ranking:" .. name)
    local instances = due == AGAIN and value_of(dict, "instances:" .. name)
                      or nil

    local ok, err = done_or_error(
        call_for_text("ipconfig_load", handle,
                      instances, instances and #instances or 0,
                      ranking, #ranking))
    if not ok then
        return nil, err
    end

    return true, due == AGAIN
end


-- The routing rules of a service's view as JSON, or nil where it has none.
function _M.rules(handle)
    local code, text = call_for_text("ipconfig_rules", handle)
    if code == OK then
        return text
    end
end


-- How a request's last try failed, in the library's words, from what
-- get_last_failure() says of it.
local function kind_of(failure, status)
    -- nginx's word for an answer of 403 or 404 that it moves on from
    if failure == "next" then
        return status
    end

    -- "0.003, - : " or "0.003, -, -": behind those that were made comes the try
    -- that is to be made; one without an answer has a dash
    local mark = byte(ngx.var.upstream_header_time or "", -4)
    if mark and mark ~= DASH then
        return 3
    end

    local kind = status == 504 and 2 or 1
    -- and so has one without a connection: the instance knows nothing of it
    if byte(ngx.var.upstream_connect_time or "", -4) == DASH then
        return kind + 3
    end

    return kind
end


-- Where a request goes; `failure` and `status` are what get_last_failure() says
-- of its last try, or nil; `key` is what consistent hashing keeps requests
-- together by, or nil; `tried` is nil for a request that comes to its log
-- phase, and for another where it was sent so far, $upstream_addr; `rules` are
-- those that take it. Returns a code, and with OK the host, the port and how
-- often the request may move on; with DECLINED the reason, the port that
-- answers with it (0 for none) and how many such requests a line of the log is
-- to tell of (0 for no line).
function _M.balance(handle, request, failure, status, key, tried, rules)
    local retry = failure and kind_of(failure, status) or 0
    local code = lib.ipconfig_balance(handle, request, retry,
                                      key, key and #key or 0,
                                      tried, tried and #tried or 0,
                                      rules or 0, peer)
    if code ~= OK and code ~= DECLINED then
        return code
    end

    return code, ffi_string(peer.host, peer.host_len), peer.port,
           peer.more_tries
end


-- Why the last request went where it did: its instance's id, the number of its
-- tries, the mode, what decided (a code), and its rule's number or 0. nil
-- before the first one.
function _M.explain()
    if lib.ipconfig_explain(explanation) ~= OK then
        return
    end

    return ffi_string(explanation.instance, explanation.instance_len),
           explanation.tries, MODES[explanation.mode], explanation.reason,
           explanation.rule
end


-- Ends a request that may have been balanced, of this final status.
-- Returns a code: TRIES_DUE when finish_by_tries() is to follow, LOOK_DUE when
-- its response is to be looked at for a load report.
function _M.finish(request, status)
    -- a tail call into C ends a trace that begins here
    local code = lib.ipconfig_finish(request, status)

    return code
end


-- The same by what nginx says of each of its tries, in $upstream_addr,
-- $upstream_status and $upstream_response_time; `status` is 0 where there is no
-- final one yet, `grpc_status` where there is none.
function _M.finish_by_tries(request, status, addrs, statuses, times,
                            grpc_status)
    local code = lib.ipconfig_finish_by_tries(request, status, addrs, #addrs,
                                              statuses, #statuses,
                                              times, #times, grpc_status)

    return code
end


-- Takes in the load report of that response, a header's value; `addrs` is where
-- nginx sent the request, $upstream_addr.
-- Returns true, or nil and why it was refused, which it says now and then.
function _M.report(addrs, is_binary, value)
    local buf = get_string_buf(TEXT_SIZE)
    local size = get_size_ptr()
    size[0] = TEXT_SIZE

    local code = lib.ipconfig_report(addrs, #addrs, is_binary and 1 or 0,
                                     value, #value, buf, size)
    if code ~= OK then
        return nil, ffi_string(buf, size[0])
    end

    return true
end


-- The best `n` of a service as JSON; nil while it has no ranking.
function _M.best(handle, n)
    local code, text = call_for_text("ipconfig_best", handle, n)
    if code == UNRANKED then
        return nil
    end

    return done_or_error(code, text) and text, text
end


-- How long the plugin's thread is given to explain, in steps of so many
-- seconds.
local STEPS, STEP = 60, 0.05


-- Has the plugin's thread explain the best `n` instances of a service, and
-- waits for it. Returns JSON, or nil and why there is none.
function _M.explanation(handle, name, dict, n)
    local key = "explain:" .. name
    local before = dict:get(key)

    lib.ipconfig_ask(handle, n)

    for _ = 1, STEPS do
        sleep(STEP)

        local value = dict:get(key)
        if type(value) == "string" and value ~= before then
            local code, text = call_for_text("ipconfig_open", value, #value)
            return done_or_error(code, text) and text, text
        end
    end

    return nil, "the plugin's thread does not answer"
end


-- The names of all services as a JSON array.
function _M.services()
    local code, text = call_for_text("ipconfig_services")
    return done_or_error(code, text) and text, text
end


-- The metrics page; `fallback` says whether this worker serves by fallback
-- weights, and `fallback_requests` how many requests all workers did.
function _M.metrics(dict, fallback, fallback_requests)
    local status = value_of(dict, "status")
    local code, text = call_for_text("ipconfig_metrics", status, #status,
                                     fallback and 1 or 0, fallback_requests)
    return done_or_error(code, text) and text, text
end


-- The plugin's own state as JSON.
function _M.status(dict)
    local status = value_of(dict, "status")
    local code, text = call_for_text("ipconfig_status", status, #status)
    return done_or_error(code, text) and text, text
end


return _M
