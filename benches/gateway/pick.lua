-- The cost of a pick inside nginx: loops over it and over what else a gateway
-- could do in its place, each timed by the CPU time that it took.

local base   = require "resty.core.base"
local native = require "resty.ipconfig.native"


local ITERATIONS = 1e6
local READS      = 200


local clock = os.clock
local dict  = ngx.shared.ipconfig


-- Nanoseconds of one iteration of `loop`.
local function time(iterations, loop)
    loop(iterations / 10) -- compiles it

    local start = clock()
    loop(iterations)

    return (clock() - start) / iterations * 1e9
end


local function pick_loop(service)
    local handle = assert(native.service(service))
    assert(native.refresh(handle, service, dict))
    local request = base.get_request()

    return function(iterations)
        for _ = 1, iterations do
            local code, host = native.balance(handle, request, false, true)
            if code ~= 0 or not host then
                error("no instance of " .. service .. ": code " .. code)
            end
            native.finish(request, false)
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
local result = {
    time(ITERATIONS, pick_loop("small")),
    time(ITERATIONS, pick_loop("large")),
    time(ITERATIONS, round_robin_loop()),
    time(ITERATIONS, dict_get_loop()),
    time(ITERATIONS, dict_round_robin_loop()),
    time(READS, values_loop("large")),
}

ngx.print(table.concat(result, " "))
