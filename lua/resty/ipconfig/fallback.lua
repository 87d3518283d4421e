-- What serves when the library does not: weighted random over the fallback
-- weights, or by key where the strategy is chash, in Lua alone. Its instances
-- are those of the last ranking in the shared dict, or the configuration file's
-- where there is none.

local bit        = require "bit"
local cjson      = require "cjson.safe"
local arithmetic = require "resty.ipconfig.hash"
local rules      = require "resty.ipconfig.rules"


local band     = bit.band
local bxor     = bit.bxor
local crc32    = ngx.crc32_long
local floor    = math.floor
local huge     = math.huge
local ln       = math.log
local lshift   = bit.lshift
local match    = string.match
local mixed    = arithmetic.mixed
local now      = ngx.now
local pairs    = pairs
local pcall    = pcall
local random   = math.random
local rshift   = bit.rshift
local sub      = string.sub
local tobit    = bit.tobit
local tonumber = tonumber
local tostring = tostring
local type     = type


local _M = {}


-- the first line of a value in the shared dict (src/value.rs):
--   "ipconfig1 5d3c1f0a 000001f4 000000000000002a\n"
local HEADER     = "^ipconfig1 (%x+) (%x+) (%x+)\n()"
local CRC_OFFSET = 20

-- how long candidates are used before the shared dict is read again, in seconds
local RECHECK = 0.25


-- service -> { raw = the value it was made from, candidates }
local rankings = {}
-- service -> candidates of the configuration file
local configured = {}


-- Candidates to pick from: a list of instances with the sums of their weights
-- up to each, and who owns each bucket of keys, as far as it was asked for. All
-- weights 0 means all equal, as in the rankings.
local function candidates_of(instances)
    local list = { total = 0, sums = {}, owners = {} }

    for i = 1, #instances do
        list[i] = instances[i]
        list.total = list.total + instances[i].weight
        list.sums[i] = list.total
    end

    if list.total <= 0 then
        list.is_weightless = true
        list.total = #list
        for i = 1, #list do
            list.sums[i] = i
        end
    end

    return list
end


-- A permutation of the numbers below 65536: hash16_xm2.
local function shuffled(x)
    x = band(bxor(x, rshift(x, 8)) * 0x88b5, 0xffff)
    x = band(bxor(x, rshift(x, 7)) * 0xdb2d, 0xffff)
    return bxor(x, rshift(x, 9))
end


-- What an instance draws its numbers by, out of the halves of its identity.
local function draws_of(crc_name, crc_addr)
    local first = mixed(bxor(mixed(crc_name), crc_addr))
    local second = mixed(bxor(first, crc_name))

    return {
        keys   = { rshift(first, 16), band(first, 0xffff), rshift(second, 16) },
        chance = second,
    }
end


-- An instance out of JSON, or nil if it has no address. What cannot be trusted
-- is checked here, for nobody else has.
local function instance_of(record, service)
    local host, port = match(tostring(record.addr), "^(.+):(%d+)$")
    port = tonumber(port)
    if not host or port < 1 or port > 65535 or record.drain == true then
        return nil
    end

    local weight = tonumber(record.weight) or 1

    return {
        id     = record.id,
        addr   = record.addr,
        zone   = record.zone or "",
        weight = (weight >= 0 and weight <= 1000) and weight or 1,
        host   = host,
        port   = port,
        labels = type(record.labels) == "table" and record.labels or {},

        -- by the two halves of its identity (src/board.rs)
        draws = draws_of(crc32(service .. "\0" .. tostring(record.id)),
                         crc32(tostring(record.addr))),
    }
end


local function instances_of(records, service)
    local instances = {}

    if type(records) ~= "table" then
        return instances
    end

    for i, record in ipairs(records) do
        if type(record) == "table" then
            local instance = instance_of(record, service)
            if instance then
                instance.place = i
                instances[#instances + 1] = instance
            end
        end
    end

    return instances
end


-- Has the requests of each rule go to those that it selects: `groups_of` says
-- by which rules an instance is selected, as bits. As in src/worker/routes.rs.
local function route(list, list_of_rules, groups_of)
    local names, groups, rest = {}, {}, {}

    for i = 1, #list_of_rules do
        names[i], groups[i] = list_of_rules[i].name, {}
    end

    for i = 1, #list do
        local one = list[i]
        local selected = groups_of(one)

        if one.weight > 0 then
            for j = 1, #groups do
                if band(selected, lshift(1, j - 1)) ~= 0 then
                    groups[j][#groups[j] + 1] = one
                end
            end

            if selected == 0 then
                rest[#rest + 1] = one
            end
        end
    end

    for i = 1, #groups do
        groups[i] = candidates_of(groups[i])
    end

    list.routes = {
        rules_of = rules.compile(list_of_rules),
        names    = names,
        groups   = groups,
        rest     = candidates_of(rest),
    }
end


-- The rules that select an instance of these labels, as bits.
local function groups_by_labels(list_of_rules, labels)
    local groups = 0

    for i = 1, #list_of_rules do
        local is_selected = true
        for label, value in pairs(list_of_rules[i].to) do
            is_selected = is_selected and labels[label] == value
        end

        if is_selected then
            groups = groups + 2 ^ (i - 1)
        end
    end

    return groups
end


-- The same where neither the rules nor the labels have been checked: what
-- cannot be used routes nothing.
local function route_or_not(list, list_of_rules, groups_of)
    if type(list_of_rules) ~= "table" or #list_of_rules == 0 then
        return
    end

    local ok, err = pcall(route, list, list_of_rules, groups_of)
    if not ok then
        ngx.log(ngx.ERR, "[ipconfig] rules that cannot be used: ", err)
    end
end


-- Takes the configuration file's instances, for services without a ranking.
function _M.configure(config)
    configured = {}
    rankings = {}

    for name, service in pairs(config.services) do
        local list = candidates_of(instances_of(service.instances, name))
        configured[name] = list
        route_or_not(list, service.rules, function(one)
            return groups_by_labels(service.rules, one.labels)
        end)
    end
end


-- The candidates in a value of the shared dict, or nil and what is wrong with
-- it.
local function decode(value, service)
    if type(value) ~= "string" then
        return nil, "the value is foreign"
    end

    local crc, len, version, body = match(value, HEADER)
    if not crc then
        return nil, "the value is foreign"
    end

    local last = body + tonumber(len, 16) - 1
    if #value < last then
        return nil, "the value is cut short"
    end

    if crc32(sub(value, CRC_OFFSET, last)) ~= tonumber(crc, 16) then
        return nil, "the checksum is wrong"
    end

    local content, err = cjson.decode(sub(value, body, last))
    if type(content) ~= "table" then
        return nil, err or "it is no object"
    end

    local list = candidates_of(instances_of(content.instances, service))
    list.version = tonumber(version, 16)
    list.strategy = content.strategy

    route_or_not(list, content.rules, function(one)
        return content.groups[one.place]
    end)

    return list
end


-- The last ranking's candidates. A value may be large and read by each request,
-- so it is looked at again only after a while, and decoded when it is another.
local function ranked(service, dict)
    local known = rankings[service]
    if known then
        -- below 0 the clock was put back
        local age = now() - known.checked_at
        if age >= 0 and age < RECHECK then
            return known.candidates
        end
    end

    local value = dict:get("instances:" .. service)
    if value == nil then
        return known and known.candidates
    end

    if known and known.raw == value then
        known.checked_at = now()
        return known.candidates
    end

    local candidates, err = decode(value, service)
    if not candidates then
        ngx.log(ngx.ERR, "[ipconfig] the last ranking of ", service,
                " cannot be used: ", err)
    end

    -- a value that cannot be used leaves what was known, and is not read again
    rankings[service] = {
        raw        = value,
        checked_at = now(),
        candidates = candidates or known and known.candidates,
    }

    return rankings[service].candidates
end


-- A service's candidates and the mode that they stand for; nil for a service
-- that is neither ranked nor configured.
function _M.candidates(service, dict)
    local list = ranked(service, dict)
    if list then
        return list, "fallback"
    end

    return configured[service], "static"
end


-- The strategy of a service with these candidates: the operator's, or else the
-- configured one.
function _M.strategy(list, config, service)
    local settings = config.services[service]
    local balance = settings and settings.balance

    return list.strategy or balance and balance.strategy or "adaptive"
end


-- The configured services.
function _M.services()
    return configured
end


-- An instance's number in (0, 1) for a bucket.
local function number(draws, bucket)
    local keys = draws.keys
    local rank = shuffled(bxor(shuffled(bxor(bucket, keys[1])), keys[2]))
    local chance = mixed(bxor(draws.chance, bucket)) % 2 ^ 32

    return (bxor(rank, keys[3]) + (chance + 0.5) / 2 ^ 32) / 2 ^ 16
end


-- The candidate, of those that `tried` (a set of addresses, or nil) does not
-- hold, that owns a key: the same that src/picker/chash.rs finds, by the same
-- functions. O(n), once for each bucket while nothing was tried. nil when none
-- with a weight is left.
function _M.owner(list, tried, key)
    local bucket = rshift(mixed(tobit(crc32(key))), 16)
    local all_equal = list.is_weightless
    local least, owner = huge, nil

    if not tried and list.owners[bucket] then
        return list.owners[bucket]
    end

    for i = 1, #list do
        local one = list[i]
        local weight = all_equal and 1 or one.weight

        if weight > 0 and not (tried and tried[one.addr]) then
            local wait = -ln(1 - number(one.draws, bucket)) / weight

            if wait < least or not owner then
                least, owner = wait, one
            end
        end
    end

    if not tried then
        list.owners[bucket] = owner
    end

    return owner
end


-- Draws by weight among the candidates that `tried` (a set of addresses) does
-- not hold. Returns an instance, or nil when all were tried.
function _M.pick(list, tried)
    if not tried then
        local point = random() * list.total
        local low, high = 1, #list

        while low < high do
            local middle = floor((low + high) / 2)
            if list.sums[middle] > point then
                high = middle
            else
                low = middle + 1
            end
        end

        return list[low]
    end

    local left = {}
    for i = 1, #list do
        if not tried[list[i].addr] then
            left[#left + 1] = list[i]
        end
    end

    if #left > 0 then
        return _M.pick(candidates_of(left))
    end
end


-- The instance for the current request, of those that it has not tried, and the
-- name of the rule that it is by, if it is; nil when all were tried. Requests
-- of a key go together where `is_hashed`.
function _M.choose(list, tried, key, is_hashed)
    is_hashed = is_hashed and key and key ~= ""

    local function from(some)
        return is_hashed and _M.owner(some, tried, key) or _M.pick(some, tried)
    end

    local routes = list.routes
    if routes then
        local taken = routes.rules_of(key)

        for i = 1, #routes.names do
            local one = band(taken, lshift(1, i - 1)) ~= 0
                        and from(routes.groups[i])
            if one then
                return one, routes.names[i]
            end
        end

        local one = from(routes.rest)
        if one then
            return one
        end
    end

    return from(list)
end


return _M
