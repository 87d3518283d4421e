-- The cost of a pick inside nginx: loops over it and over what else a gateway
-- could do in its place, each timed by the CPU time that it took.

local base   = require "resty.core.base"
local cdefs  = require "resty.ipconfig.cdefs"
local native = require "resty.ipconfig.native"


local ITERATIONS = 1e6
local SLOW_ONES  = 1e5
local READS      = 200

local SIZES = { 10, 100, 1000, 10000 }


local clock  = os.clock
local exp    = math.exp
local floor  = math.floor
local now    = ngx.now
local random = math.random
local dict   = ngx.shared.ipconfig


-- Nanoseconds of one iteration of `loop`.
local function time(iterations, loop)
    loop(iterations / 10) -- compiles it

    local start = clock()
    loop(iterations)

    return (clock() - start) / iterations * 1e9
end


local OK        = cdefs.OK
local AGAIN     = cdefs.AGAIN
local TRIES_DUE = cdefs.TRIES_DUE


local function pick_loop(service)
    local handle = assert(native.service(service))
    assert(native.refresh(handle, service, dict))
    local request = base.get_request()

    return function(iterations)
        for _ = 1, iterations do
            local code, host = native.balance(handle, request)
            while code == AGAIN do -- a new ranking, as there is each second
                assert(native.refresh(handle, service, dict))
                code, host = native.balance(handle, request)
            end
            if code ~= OK or not host then
                error("no instance of " .. service .. ": code " .. code)
            end
            if native.finish(request, 200) == TRIES_DUE then
                native.finish_by_tries(request, 200, "10.0.0.0:8080", "200",
                                       "0.001", 0)
            end
        end
    end
end


local function round_robin_loop()
    local peers = {}
    for i = 1, 10 do
        peers[i] = { host = "10.0.0." .. i, port = 8000 + i }
    end

    local turn = 0
    local ports = 0

    return function(iterations)
        for _ = 1, iterations do
            turn = turn % #peers + 1
            local peer = peers[turn]
            ports = ports + peer.port + #peer.host
        end
    end
end


local function dict_get_loop()
    local shared = ngx.shared.bench
    shared:set("peer", "10.0.0.1:8001")

    return function(iterations)
        for _ = 1, iterations do
            if not shared:get("peer") then
                error("the peer is gone")
            end
        end
    end
end


local function dict_round_robin_loop()
    local shared = ngx.shared.bench
    local keys = {}
    for i = 1, 10 do
        keys[i] = "peer" .. i
        shared:set(keys[i], "10.0.0." .. i .. ":8000")
    end

    return function(iterations)
        for _ = 1, iterations do
            local turn = shared:incr("turn", 1, 0)
            if not shared:get(keys[turn % 10 + 1]) then
                error("the peer is gone")
            end
        end
    end
end


-- The better of two by a peak-less EWMA of latency over 10 s, in a dict of all
-- workers: what ingress-nginx and APISIX call ewma. A pick reads two peers, and
-- feedback reads and writes one. Both values of a peer, its average and when it
-- was last touched, are in one entry here; they have two dicts and, for the
-- feedback, a lock, so that theirs cost more.
local function dict_ewma_loop(size)
    local shared = ngx.shared.bench
    local start = floor(now())

    local function touched()
        return floor((now() - start) * 1000)
    end

    local keys = {}
    for i = 1, size do
        keys[i] = "ewma" .. size .. ":10.0.0." .. i .. ":8000"
        shared:set(keys[i], 0.01 * random(), 0, touched())
    end

    local function score(key, at)
        local ewma, last = shared:get(key)

        return ewma * exp(-(at - last) / 10000)
    end

    local function pick()
        local one = random(size)
        local other = random(size - 1)
        if other >= one then
            other = other + 1
        end

        local at = touched()
        if score(keys[other], at) < score(keys[one], at) then
            one = other
        end

        return keys[one]
    end

    local function feed_back(key, latency)
        local at = touched()
        local ewma, last = shared:get(key)
        local weight = exp(-(at - last) / 10000)
        shared:set(key, ewma * weight + latency * (1 - weight), 0, at)
    end

    return function(iterations)
        for _ = 1, iterations do
            feed_back(pick(), 0.01)
        end
    end
end


local function values_loop(service)
    return function(iterations)
        for _ = 1, iterations do
            local instances = dict:get("instances:" .. service)
            local ranking = dict:get("ranking:" .. service)
            if not instances or not ranking then
                error("the values are gone")
            end
        end
    end
end


-- In the order of the rows that the bench prints.
local result = {}

for _, size in ipairs(SIZES) do
    result[#result + 1] = time(ITERATIONS, pick_loop("fleet-" .. size))
end

for _, size in ipairs(SIZES) do
    result[#result + 1] = time(SLOW_ONES, dict_ewma_loop(size))
end

result[#result + 1] = time(ITERATIONS, round_robin_loop())
result[#result + 1] = time(ITERATIONS, dict_get_loop())
result[#result + 1] = time(ITERATIONS, dict_round_robin_loop())
result[#result + 1] = time(READS, values_loop("fleet-10000"))

ngx.print(table.concat(result, " "))
