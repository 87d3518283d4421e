-- The HTTP API under /ipconfig: read-only.

local cjson    = require "cjson.safe"
local ipconfig = require "resty.ipconfig"


local match = string.match


local _M = {}


local JSON        = "application/json"
local OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
local TEXT        = "text/plain; version=0.0.4; charset=utf-8"

local MAX_N = 65536


local function send(status, body, content_type)
    ngx.status = status
    ngx.header["Content-Type"] = content_type or JSON
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(body, "\n")
    return ngx.exit(ngx.HTTP_OK)
end


-- A JSON object whose members of these names are lists. cjson takes an empty
-- Lua table for an object, so the lists are put together here.
local function with_lists(object, names)
    local members = {}

    for i, name in ipairs(names) do
        local items = {}
        for j, item in ipairs(object[name]) do
            items[j] = cjson.encode(item)
        end

        object[name] = nil
        members[i] = '"' .. name .. '":[' .. table.concat(items, ",") .. "]"
    end

    local head = cjson.encode(object)
    local comma = next(object) and "," or ""

    return head:sub(1, -2) .. comma .. table.concat(members, ",") .. "}"
end


local function send_error(status, message)
    return send(status, cjson.encode({ error = message }))
end


local function services()
    local list = {}

    for _, name in ipairs(ipconfig.services()) do
        local view = ipconfig.describe(name, 0)

        -- one that was discovered and is gone is no service any more
        if view and (view.count > 0 or ipconfig.is_configured(name)) then
            list[#list + 1] = {
                service   = name,
                mode      = view.mode,
                freshness = view.freshness,
                instances = view.count,
                age_ms    = view.age_ms,
            }
        end
    end

    return send(200, with_lists({ services = list }, { "services" }))
end


local function service(name)
    local arg = ngx.var.arg_n
    local n = arg and tonumber(match(arg, "^%d+$")) or nil
    if arg and (not n or n > MAX_N) then
        return send_error(400, "n: found '" .. arg .. "', expected a whole "
                               .. "number from 0 to " .. MAX_N)
    end

    local json = ipconfig.ranked_json(name, n or MAX_N)
    if json then
        return send(200, json)
    end

    local view, err = ipconfig.describe(name, n or MAX_N)
    if not view then
        return send_error(404, err)
    end

    return send(200, with_lists(view, { "instances" }))
end


-- The most instances that are explained at once (src/explain.rs), and how many
-- are unless ?n= says.
local MAX_EXPLAINED = 1000
local EXPLAINED     = 100


local function explain(name)
    local arg = ngx.var.arg_n
    local n = arg and tonumber(match(arg, "^%d+$")) or nil
    if arg and (not n or n < 1 or n > MAX_EXPLAINED) then
        return send_error(400, "n: found '" .. arg .. "', expected a whole "
                               .. "number from 1 to " .. MAX_EXPLAINED)
    end

    local json, err, status = ipconfig.explanation(name, n or EXPLAINED)
    if not json then
        return send_error(status, err)
    end

    return send(200, json)
end


-- With ?fresh the status says whether it is fresh, too: a question of monitors.
-- Who asks whether to send requests here asks without: an old ranking serves.
local function healthz()
    local status = ipconfig.status()
    local is_well = status.ready
                    and (status.fresh or not ngx.req.get_uri_args().fresh)

    return send(is_well and 200 or 503,
                with_lists(status, { "not_fresh", "not_ready" }))
end


local function metrics()
    local page, err = ipconfig.metrics()
    if page then
        return send(200, page:sub(1, -2), OPENMETRICS)
    end

    -- without the library there is one thing to say
    return send(200, "# " .. err:gsub("\n", " ") .. "\n"
                     .. "# TYPE ipconfig_library_loaded gauge\n"
                     .. "ipconfig_library_loaded 0\n"
                     .. "# TYPE ipconfig_fallback_requests_total counter\n"
                     .. "ipconfig_fallback_requests_total "
                     .. ipconfig.fallback_requests(), TEXT)
end


-- Answers the current request; for content_by_lua.
function _M.serve()
    local method = ngx.req.get_method()
    if method ~= "GET" and method ~= "HEAD" then
        ngx.header["Allow"] = "GET, HEAD"
        return send_error(405, "the API is read-only: " .. method
                               .. " is not allowed")
    end

    local uri = ngx.var.uri

    if uri == "/ipconfig/v1/services" then
        return services()
    end

    local name = match(uri, "^/ipconfig/v1/services/([^/]+)$")
    if name then
        return service(name)
    end

    name = match(uri, "^/ipconfig/v1/services/([^/]+)/explain$")
    if name then
        return explain(name)
    end

    if uri == "/ipconfig/healthz" then
        return healthz()
    end

    if uri == "/ipconfig/metrics" then
        return metrics()
    end

    return send_error(404, "no such page: " .. uri)
end


return _M
