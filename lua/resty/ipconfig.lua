-- Load-aware balancing for OpenResty: the API that users require.

local cjson    = require "cjson.safe"
local ffi      = require "ffi"
local balancer = require "resty.ipconfig.balancer"
local fallback = require "resty.ipconfig.fallback"
local native   = require "resty.ipconfig.native"


-- which others may have declared
pcall(ffi.cdef, "int usleep(unsigned int microseconds);")


local C      = ffi.C
local error  = error
local floor  = math.floor
local huge   = math.huge
local open   = io.open
local type   = type
local log    = ngx.log
local ERR    = ngx.ERR
local NOTICE = ngx.NOTICE


local _M = { _VERSION = "0.1.0" }


local DICT         = "ipconfig"
local DEFAULT_PATH = "/etc/ipconfig/ipconfig.json"

-- what the shared dict holds beside the instances, and what one of them may
-- take in its two values: enough to refuse a dict that cannot work
local DICT_BASE     = 128 * 1024
local DICT_INSTANCE = 512

-- how often a worker looks whether the plugin's thread is alive, in seconds
local TICK = 0.25

-- how long a worker waits for the thread's first heartbeat, in milliseconds:
-- longer than the thread waits for the disk
local FIRST_BEAT_WITHIN = 800

local MAX_NAME = 128

-- the modes, from the least that is known to the most
local FRESHNESS = { static = 1, fallback = 2, snapshot = 3, stale = 4,
                    manual = 5, live = 6 }


-- a ranking that the plugin's thread has not vouched for in so many ms is not
-- known to be the newest: it vouches four times a second
local CONFIRMED_WITHIN = 10000


-- what this VM knows
local self = {
    config      = nil,    -- the configuration, decoded
    text        = nil,    -- and as JSON
    dict        = nil,
    load_error  = nil,    -- why the library cannot be used
    fallen_back = false,  -- whether requests are served without the library
    silent_for  = 0,      -- how long the plugin's thread is silent, in seconds
}


local function read_file(path)
    local file, err = open(path, "rb")
    if not file then
        return nil, "failed to open the configuration: " .. err
    end

    local text = file:read("*a")
    file:close()

    if not text then
        return nil, "failed to read the configuration " .. path
    end

    return text
end


local function check_dict(config)
    local dict = ngx.shared[DICT]
    if not dict then
        return nil, "no shared dict: add 'lua_shared_dict " .. DICT
                    .. " 32m;' to the http block"
    end

    local instances = 0
    for _, service in pairs(config.services) do
        instances = instances + #(service.instances or {})
    end

    local needed = DICT_BASE + instances * DICT_INSTANCE
    if dict:capacity() < needed then
        return nil, "lua_shared_dict " .. DICT .. " is too small: "
                    .. floor(dict:capacity() / 1024) .. "k for "
                    .. instances .. " configured instances, which need at "
                    .. "least " .. floor(needed / 1024) .. "k"
    end

    return dict
end


-- syntax: ipconfig.init(path_or_table?)
-- context: init_by_lua*
--
-- Reads and checks the configuration, loads the library and starts nothing. The
-- argument is the path of the configuration file (default: the environment
-- variable IPCONFIG_CONFIG, else /etc/ipconfig/ipconfig.json) or the
-- configuration itself as a table.
--
-- Throws when the configuration or the shared dict cannot be used, so that
-- nginx does not start, or on reload goes on as it was. A library that cannot
-- be loaded is logged instead, and Lua alone serves the configured instances.
function _M.init(config)
    local where = ""
    local text, err

    if config == nil or type(config) == "string" then
        local path = config or os.getenv("IPCONFIG_CONFIG") or DEFAULT_PATH
        where = path .. ": "
        text, err = read_file(path)

    elseif type(config) == "table" then
        text, err = cjson.encode(config)

    else
        error("init() takes a path or a table, not a " .. type(config), 2)
    end

    if not text then
        error(err, 2)
    end

    local ok, load_error = native.load()
    if ok then
        ok, err = native.init(text)
        if not ok then
            error(where .. err, 2)
        end

    else
        log(ERR, "[ipconfig] serving the configured instances without ",
            "ranking: ", load_error)
    end

    local decoded
    decoded, err = cjson.decode(text)
    if type(decoded) ~= "table" or type(decoded.services) ~= "table" then
        error(where .. (err or "services: expected an object"), 2)
    end

    local dict
    dict, err = check_dict(decoded)
    if not dict then
        error(err, 2)
    end

    -- made here, for a counter that is made when it is needed evicts rankings
    -- from a dict that is full
    dict:safe_add("fallback_requests", 0)

    self.config      = decoded
    self.text        = text
    self.dict        = dict
    self.load_error  = load_error
    self.fallen_back = load_error ~= nil

    fallback.configure(decoded)
    balancer.reset()

    -- loaded by the master, for workers that may not read the files
    require "resty.ipconfig.api"
end


local function check_init(level)
    if not self.config then
        error("init() must run first, in init_by_lua", level + 1)
    end
end


local function fall_back(yes)
    if self.fallen_back == yes then
        return
    end

    self.fallen_back = yes

    if yes then
        log(ERR, "[ipconfig] mode fallback: the plugin's thread is silent; ",
            "serving by fallback weights")
    else
        log(NOTICE, "[ipconfig] mode normal: the plugin's thread is back; ",
            "serving by ranking")
    end
end


-- Waits for what the thread reads from the disk: the first requests after
-- nginx's start are to find it published. Only then: on a reload the heart has
-- beaten before. The event loop does not run yet.
local function await_first_beat()
    local snapshot = self.config.snapshot
    if not snapshot or (snapshot.path or "") == "" then
        return
    end

    for _ = 1, FIRST_BEAT_WITHIN do
        if native.heartbeat() ~= 0 then
            return
        end
        C.usleep(1000)
    end
end


-- `start` is the number of the thread's start, in the worker that has it.
local function watch_thread(start)
    local after = native.fallback_after()
    local last_beat = native.heartbeat()

    local function write_log()
        local level, line = native.next_log()
        while level do
            log(level, "[ipconfig] ", line)
            level, line = native.next_log()
        end
    end

    local function tick(premature)
        if premature then
            if start then
                native.plugin_stop(start)
                write_log()
            end
            return
        end

        local beat = native.heartbeat()
        self.silent_for = beat == last_beat and self.silent_for + TICK or 0
        last_beat = beat
        fall_back(self.silent_for >= after)

        if start then
            write_log()
        end
    end

    return ngx.timer.every(TICK, tick)
end


-- syntax: ok, err = ipconfig.init_worker()
-- context: init_worker_by_lua*
--
-- Makes this worker ready; in worker 0 it starts the plugin's thread. Throws if
-- init() has not run. When the library cannot be used, returns nil and why; the
-- worker then serves without it.
function _M.init_worker()
    check_init(2)

    math.randomseed(ngx.now() * 1000 + ngx.worker.pid())

    if self.load_error then
        return nil, self.load_error
    end

    -- the privileged agent and nginx's cache processes have no worker id
    if not ngx.worker.id() then
        return true
    end

    local ok, err = native.worker_start(self.text)
    local start

    if ok and ngx.worker.id() == 0 then
        start, err = native.plugin_start(self.text, self.dict)
        ok = start

        -- stops the thread on every normal exit, one without timers included
        self.sentinel = newproxy(true)
        getmetatable(self.sentinel).__gc = function()
            if start then
                native.plugin_stop(start)
            end
        end
    end

    if ok then
        await_first_beat()
        ok, err = watch_thread(start)
    end

    if not ok then
        err = "failed to start in this worker: " .. err
        log(ERR, "[ipconfig] ", err)
        self.fallen_back = true
        return nil, err
    end

    return true
end


local function check_service(service, level)
    if type(service) ~= "string" or service == "" or #service > MAX_NAME then
        error("service must be a name of 1 to " .. MAX_NAME .. " bytes, not "
              .. (type(service) == "string" and "'" .. service .. "'"
                  or "a " .. type(service)), level + 1)
    end

    check_init(level + 1)
end


-- syntax: ipconfig.balance(service?, opts?)
-- context: balancer_by_lua*
--
-- Sends the request to an instance of the service, by the service's strategy;
-- called again by nginx when that try failed, it moves on to another. Without a
-- service it takes the variable $ipconfig_service. A service with nothing to
-- offer ends the request with 503 and a line in the log.
--
-- `opts.key`, a string or a number, is what the strategy `chash` keeps requests
-- together by; nil or empty for a request that may go anywhere.
function _M.balance(service, opts)
    if service == nil then
        service = ngx.var.ipconfig_service
    end

    check_service(service, 2)

    if opts ~= nil and type(opts) ~= "table" then
        error("opts must be a table, not a " .. type(opts), 2)
    end

    local key = opts and opts.key

    if key ~= nil and type(key) ~= "string" then
        if type(key) ~= "number" then
            error("opts.key must be a string or a number, not a "
                  .. type(key), 2)
        end

        key = tostring(key)
    end

    return balancer.balance(self, service, key)
end


-- syntax: ipconfig.log()
-- context: log_by_lua*
--
-- Counts the end of the request. For any request, balanced here or not.
function _M.log()
    if self.config and not self.load_error then
        balancer.log()
    end
end


-- What GET /ipconfig/v1/services/<service> shows, from Lua alone.
local function describe_in_lua(service, n)
    local list, mode = fallback.candidates(service, self.dict)
    if not list then
        return nil, "no such service: " .. service
    end

    local instances = {}
    for i = 1, #list do
        local one = list[i]
        instances[i] = {
            id        = one.id,
            addr      = one.addr,
            zone      = one.zone,
            score     = 0,
            weight    = one.weight,
            share     = (list.sums[i] - (list.sums[i - 1] or 0)) / list.total,
            in_flight = 0,
            state     = "unknown",
        }
    end

    table.sort(instances, function(a, b)
        if a.weight ~= b.weight then
            return a.weight > b.weight
        end
        return a.id < b.id
    end)

    local best = {}
    for i = 1, math.min(n, #instances) do
        best[i] = instances[i]
        best[i].rank = i
    end

    return {
        service   = service,
        mode      = mode,
        freshness = mode,
        strategy  = fallback.strategy(list, self.config, service),
        basis     = "priors",
        version   = list.version or 0,
        revision  = 0,
        age_ms    = self.silent_for * 1000,
        count     = #instances,
        instances = best,
    }
end


-- A service as the HTTP API shows it, with its best `n` instances, as the
-- library's JSON; nil where there is none.
function _M.ranked_json(service, n)
    if not self.fallen_back then
        local handle = balancer.view(self, service)
        return handle and native.best(handle, n)
    end
end


-- The same as a table, from the library or from Lua, or nil and why there is
-- none.
function _M.describe(service, n)
    local json = _M.ranked_json(service, n)
    if json then
        return cjson.decode(json)
    end

    return describe_in_lua(service, n)
end


-- syntax: instances, err = ipconfig.best(service, n?)
-- context: any but init_by_lua*
--
-- The best `n` (default: all) instances of a service in rank order: a list of
-- tables with id, addr, zone, rank, score, weight, share, in_flight, state and,
-- of one that ever reported, status_age_ms. nil and a message for a service
-- that is not known.
function _M.best(service, n)
    check_service(service, 2)

    if n ~= nil and (type(n) ~= "number" or n < 0 or n ~= floor(n)) then
        error("n must be a whole number, 0 or more, not " .. tostring(n), 2)
    end

    local view, err = _M.describe(service, math.min(n or 65536, 65536))
    if not view then
        return nil, err
    end

    for _, instance in ipairs(view.instances) do
        if instance.status_age_ms == cjson.null then
            instance.status_age_ms = nil
        end
    end

    return view.instances
end


-- Why the best `n` instances of a service get what they get, as the library's
-- JSON, or nil, why there is none and the status that says so. Waits for the
-- thread.
function _M.explanation(service, n)
    local handle = not self.load_error and balancer.view(self, service)
    if not handle then
        return nil, "no such service: " .. service, 404
    end

    if self.fallen_back then
        return nil, "the plugin's thread is silent", 503
    end

    local json, err = native.explanation(handle, service, self.dict, n)

    return json, err, 503
end


-- The names of all services.
function _M.services()
    if not self.load_error then
        local json = native.services()
        if json then
            return cjson.decode(json)
        end
    end

    local names = {}
    for name in pairs(fallback.services()) do
        names[#names + 1] = name
    end
    table.sort(names)

    return names
end


-- Whether the configuration names the service.
function _M.is_configured(service)
    return self.config.services[service] ~= nil
end


-- Whether a service is served by all that its instances promise to report, as
-- of now. One whose instances promise nothing is.
local function is_fresh(view)
    return (view.mode == "live" or view.mode == "manual")
           and (view.freshness == "fresh" or view.reports.expected == 0)
           and view.confirmed_age_ms <= CONFIRMED_WITHIN
end


-- Adds to a status how fresh one of the services is.
local function add_freshness(status, service, view)
    view = view or { mode = "static", freshness = "static" }

    if not is_fresh(view) then
        status.fresh = false
        status.not_fresh[#status.not_fresh + 1] = {
            service          = service,
            mode             = view.mode,
            freshness        = view.freshness,
            confirmed_age_ms = view.confirmed_age_ms,
        }
    end

    -- Lua alone does not know of these
    if view.applied_revision then
        for _, age in ipairs({ "ranking_age_ms", "confirmed_age_ms" }) do
            status[age] = math.max(status[age] or 0, view[age])
        end

        status.applied_revision = math.min(view.applied_revision,
                                           status.applied_revision or huge)
    end
end


-- syntax: status = ipconfig.status()
-- context: any but init_by_lua*
--
-- How this worker serves: a table with mode (of the service that is served by
-- the oldest knowledge), ready, not_ready (the services
-- that have neither a ranking nor configured instances), fresh, not_fresh (the
-- services that are served by less than their instances promise to report, each
-- with its service, mode, freshness and confirmed_age_ms), worker (its id and
-- pid), error (why the library is not used) and, while the library is used,
-- plugin (the thread's own state) and, of the rankings that this worker picks
-- by, ranking_age_ms, confirmed_age_ms (each of the oldest one) and
-- applied_revision (the lowest one).
function _M.status()
    check_init(2)

    local status = {
        mode      = "live",
        error     = self.load_error,
        ready     = true,
        not_ready = {},
        fresh     = true,
        not_fresh = {},
        worker    = { id = ngx.worker.id(), pid = ngx.worker.pid() },
    }

    for name in pairs(fallback.services()) do
        local view = _M.describe(name, 0)

        if not view or (view.version == 0 and view.count == 0) then
            status.ready = false
            status.not_ready[#status.not_ready + 1] = name
        end

        local mode = view and view.mode or "static"
        if FRESHNESS[mode] < FRESHNESS[status.mode] then
            status.mode = mode
        end

        add_freshness(status, name, view)
    end

    for _, name in ipairs(_M.services()) do
        local view = not _M.is_configured(name) and _M.describe(name, 0)

        -- one that was discovered and is gone is no service any more
        if view and view.count > 0 then
            add_freshness(status, name, view)
        end
    end

    if not self.load_error then
        local json = native.status(self.dict)
        status.plugin = json and cjson.decode(json)
    end

    return status
end


-- The metrics page, or nil and why there is none.
function _M.metrics()
    check_init(2)

    if self.load_error then
        return nil, self.load_error
    end

    for _, name in ipairs(_M.services()) do
        balancer.view(self, name)
    end

    return native.metrics(self.dict, self.fallen_back, _M.fallback_requests())
end


-- Requests served by the fallback, in all workers.
function _M.fallback_requests()
    return self.dict:get("fallback_requests") or 0
end


return _M
