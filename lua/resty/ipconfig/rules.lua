-- Routing rules, made a function that says which of them take the current
-- request. The library says who their instances are, and has checked them.

local bit  = require "bit"
local hash = require "resty.ipconfig.hash"


local bxor    = bit.bxor
local tobit   = bit.tobit
local concat  = table.concat
local crc32   = ngx.crc32_long
local format  = string.format
local gsub    = string.gsub
local lower   = string.lower
local match   = string.match
local mixed   = hash.mixed
local pairs   = pairs
local random  = math.random
local type    = type


local _M = {}


-- The variable that has a header, a cookie or an argument of the query.
local function variable_of(kind, name)
    if kind == "header" then
        return "http_" .. gsub(lower(name), "-", "_")
    end

    return (kind == "cookie" and "cookie_" or "arg_") .. name
end


-- Whether a rule takes the requests of this value, or else of this key, or else
-- this one by chance. Of all hashes those below `below` are taken, so that more
-- of them take in all that fewer do; `salt` has rules choose independently.
local function is_taken(value, key, salt, below)
    if not value or value == "" then
        value = key
    end

    if not value or value == "" then
        return random() * 2 ^ 32 < below
    end

    return mixed(bxor(tobit(crc32(value)), salt)) % 2 ^ 32 < below
end


-- A set of what a condition wants, which is one value or a list.
local function set_of(wanted)
    local set = {}

    for _, value in pairs(type(wanted) == "table" and wanted or { wanted }) do
        set[value] = true
    end

    return set
end


-- Adds one kind of conditions to `tests`, as Lua text.
local function add_tests(tests, sets, kind, conditions)
    for name, wanted in pairs(conditions or {}) do
        local value = format("var[%q]", variable_of(kind, name))

        if type(wanted) == "boolean" then
            tests[#tests + 1] = value .. (wanted and " ~= nil" or " == nil")

        else
            sets[#sets + 1] = set_of(wanted)
            tests[#tests + 1] = format("is[%d][%s or false]", #sets, value)
        end
    end
end


local function add_percent(tests, rule)
    if rule.percent == nil or rule.percent == 100 then
        return
    end

    local value = "nil"
    local kind, name = match(rule.key or "", "^(%a+):(.+)$")
    if kind then
        value = format("var[%q]", variable_of(kind, name))
    end

    tests[#tests + 1] = format("is_taken(%s, key, %d, %.0f)", value,
                               tobit(crc32(rule.name)),
                               rule.percent / 100 * 2 ^ 32)
end


-- The function that returns the rules whose conditions hold for the current
-- request, as bits, the lowest for the first; its argument is the key that the
-- request is balanced by, or nil. It is put together as text, so that it has no
-- loops: those make a trace of each way through them.
function _M.compile(rules)
    local sets = {}
    local lines = {
        "local is, is_taken, ngx = ...",
        "return function(key)",
        "local var, rules = ngx.var, 0",
    }

    for i = 1, #rules do
        local rule = rules[i]
        local tests = {}
        add_tests(tests, sets, "header", rule.header)
        add_tests(tests, sets, "cookie", rule.cookie)
        add_tests(tests, sets, "query", rule.query)
        add_percent(tests, rule)

        lines[#lines + 1] = format("if %s then rules = rules + %d end",
                                   tests[1] and concat(tests, " and ")
                                   or "true", 2 ^ (i - 1))
    end

    lines[#lines + 1] = "return rules end"

    local chunk = assert(loadstring(concat(lines, "\n"), "=ipconfig_rules"))

    return chunk(sets, is_taken, ngx)
end


return _M
