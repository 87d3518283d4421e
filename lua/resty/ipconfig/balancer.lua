-- The request path: balance() and log(). A steady request makes one call into
-- the library here and one at its end, and reads no shared dict.

local base     = require "resty.core.base"
local balancer = require "ngx.balancer"
local cdefs    = require "resty.ipconfig.cdefs"
local cjson    = require "cjson.safe"
local fallback = require "resty.ipconfig.fallback"
local identity = require "resty.ipconfig.identity"
local native   = require "resty.ipconfig.native"
local rules    = require "resty.ipconfig.rules"


local get_request      = base.get_request
local get_last_failure = balancer.get_last_failure
local set_current_peer = balancer.set_current_peer
local set_more_tries   = balancer.set_more_tries
local exit             = ngx.exit
local gmatch           = string.gmatch
local log              = ngx.log
local min              = math.min
local now              = ngx.now
local sub              = string.sub
local tonumber         = tonumber
local ERR              = ngx.ERR
local WARN             = ngx.WARN


local OK       = cdefs.OK
local AGAIN    = cdefs.AGAIN
local OPEN     = cdefs.OPEN
local DECLINED = cdefs.DECLINED
local UNRANKED = cdefs.UNRANKED

local BY_RULE  = cdefs.BY_RULE
local BY_PANIC = cdefs.BY_PANIC

local LOOK_DUE  = cdefs.LOOK_DUE
local TRIES_DUE = cdefs.TRIES_DUE

-- the library is asked so often: what hinders it can come again, such as a new
-- ranking while one is loaded; then the fallback takes the request
local MAX_CALLS = 4

local HTTP_SERVICE_UNAVAILABLE = 503

local GRPC = "application/grpc"


local _M = {}


-- service -> the library's handle
local handles = {}
-- handle -> its rules in JSON, what says which take a request, and what is said
-- of requests that they took; nil where there are none
local routes = {}


-- Forgets what belongs to an earlier start.
function _M.reset()
    handles = {}
    routes = {}
end


-- What the log says of the library's reasons.
local WORDS = {
    no_instance   = "it has no instances",
    all_tried     = "all instances were tried",
    max_in_flight = "all instances have as many requests in flight as they may",
    retry_budget  = "too many requests have failed for one more try",
}


-- Lines about requests that are refused here, service by service: when the last
-- one was, and how many requests there were since. Any request may name a
-- service, so that there is an end to them.
local MAX_LINES = 1000

local lines, line_count = {}, 0


-- How many requests a line of the log is to tell of: one line a second and
-- service, 0 for none.
local function due_line(service)
    local line = lines[service]
    if not line then
        if line_count >= MAX_LINES then
            lines, line_count = {}, 0
        end

        line = { at = -1, count = 0 }
        lines[service] = line
        line_count = line_count + 1
    end

    line.count = line.count + 1

    -- below 0 the clock was put back
    local age = now() - line.at
    if age >= 0 and age < 1 then
        return 0
    end

    local count = line.count
    line.at, line.count = now(), 0

    return count
end


-- Logs that so many requests are refused, for this reason the last of them.
local function log_refusal(service, reason, count)
    if count > 0 then
        log(ERR, "[ipconfig] nothing to offer for service ", service, ": ",
            reason, count > 1 and " (" .. count .. " requests)" or "")
    end
end


-- Ends the request by a port of the plugin's thread that answers why, or with
-- 503 where there is none. nginx takes a status from balancer_by_lua only
-- with a patch that OpenResty applies and Debian does not (it makes it 500), so
-- the request is sent to such a port everywhere. It is no use while the thread
-- is silent.
local function end_at(self, port)
    if port and port ~= 0 and not self.fallen_back
        and set_current_peer("127.0.0.1", port)
    then
        return
    end

    return exit(HTTP_SERVICE_UNAVAILABLE)
end


-- Says in variables that the current request goes nowhere, and why.
local function tell_refusal(word, tries, mode)
    if identity.is_wanted() then
        identity.set("", tries, mode, "refused:" .. word)
    end
end


-- Refuses a request that the library knows nothing of; `word` says the reason
-- in $ipconfig_reason.
local function refuse(self, service, reason, word, tries, mode)
    log_refusal(service, reason, due_line(service))
    tell_refusal(word, tries, mode)

    return end_at(self, not self.fallen_back and native.refusal_port())
end


-- Returns whether the peer is set.
local function set_peer(self, service, host, port, more_tries, retry)
    if not retry and more_tries > 0 then
        local ok, err = set_more_tries(more_tries)
        if not ok then
            log(ERR, "[ipconfig] failed to allow more tries: ", err)
        end
    end

    local ok, err = set_current_peer(host, port)
    if not ok then
        return refuse(self, service, "failed to set the peer " .. host .. ":"
                                     .. port .. ": " .. err, "peer", 0, "")
    end

    return true
end


-- The addresses that this request has tried, whoever chose them, and how many
-- tries that were.
local function tried_of()
    local tried = {}
    local count = 0

    -- "10.0.0.5:8080, 10.0.0.6:8080, ipconfig": the try that is being made is
    -- there by the name of its upstream
    for addr in gmatch(ngx.var.upstream_addr or "", "[^, ]+:%d+") do
        tried[addr] = true
        count = count + 1
    end

    return tried, count
end


-- The way without the library. Requests of a key go together where the strategy
-- is to do so, and all others by chance.
local function balance_in_lua(self, service, retry, key, status)
    local list, mode = fallback.candidates(service, self.dict)
    if not list then
        return refuse(self, service, "the service is not known", "unknown", 0,
                      mode)
    end

    local settings = self.config.services[service]
    local balance = settings and settings.balance or {}
    local tried, tries = nil, 0
    if retry then
        tried, tries = tried_of()
    end

    local strategy = fallback.strategy(list, self.config, service)
    local instance, rule = fallback.choose(list, tried, key,
                                           strategy == "chash")
    if not instance then
        local is_empty = #list == 0
        return refuse(self, service, is_empty and "it has no instances"
                               or "all instances were tried",
                      is_empty and "no_instance" or "all_tried", tries,
                      mode)
    end

    self.dict:incr("fallback_requests", 1)

    if set_peer(self, service, instance.host, instance.port,
                min(balance.tries or 2, #list - 1), retry)
       and identity.is_wanted()
    then
        identity.set(instance.id, tries + 1, mode,
                     retry and identity.retry_reason(status)
                     or rule and "rule:" .. rule or "strategy")
    end
end


local function handle_of(service)
    local handle = handles[service]
    if not handle then
        handle = native.service(service)
        handles[service] = handle
    end

    return handle
end


-- Takes over the rules of a service's view, if they are others than before.
local function take_rules(handle)
    local text = native.rules(handle)
    local known = routes[handle]
    if text == (known and known.text) then
        return
    end

    local list = text and cjson.decode(text)
    if not list then
        routes[handle] = nil
        return
    end

    local reasons = {}
    for i = 1, #list do
        reasons[i] = "rule:" .. list[i].name
    end

    routes[handle] = {
        text     = text,
        rules_of = rules.compile(list),
        reasons  = reasons,
    }
end


-- Brings the view of a service up to date, and says once what hinders it.
local function refresh(self, service, handle)
    local ok, more = native.refresh(handle, service, self.dict)
    if not ok then
        log(ERR, "[ipconfig] the ranking of ", service, " in the shared dict ",
            "cannot be used, the one at hand stays: ", more)

    elseif more then
        take_rules(handle)
    end
end


-- Says in variables why the current request went where it did; `status` is that
-- of its last try that failed.
local function explain(handle, retry, status)
    local instance, tries, mode, decided, rule = native.explain()
    if not instance then
        return
    end

    local reason
    if retry then
        reason = identity.retry_reason(status)

    elseif decided == BY_RULE then
        reason = routes[handle].reasons[rule]

    elseif decided == BY_PANIC then
        reason = "panic"

    else
        reason = "strategy"
    end

    identity.set(instance, tries, mode, reason)
end


-- Ends a request that the library has nobody for; `reason` is its word.
local function refuse_by_library(self, service, reason, port, to_log)
    log_refusal(service, WORDS[reason] or reason, to_log)

    if identity.is_wanted() then
        local _, tries, mode = native.explain()
        tell_refusal(reason, tries or 0, mode or "")
    end

    return end_at(self, port)
end


-- The handle of a service, its view up to date; nil if it is not served.
function _M.view(self, service)
    local handle = handle_of(service)
    if handle then
        refresh(self, service, handle)
    end

    return handle
end


-- How the response of the current request's last try ended by gRPC's account,
-- which comes in the trailer, or in the header of a response without a body; 0
-- for one that is not gRPC's.
local function grpc_status_of(var)
    local status = tonumber(var.upstream_trailer_grpc_status
                            or var.upstream_http_grpc_status or 0)

    if not status or status == 0
        or sub(var.upstream_http_content_type or "", 1, #GRPC) ~= GRPC
    then
        return 0
    end

    return status
end


-- Ends the current request by what nginx says of its tries.
local function finish_by_tries(request, status)
    local var = ngx.var

    return native.finish_by_tries(request, status, var.upstream_addr or "",
                                  var.upstream_status or "",
                                  var.upstream_response_time or "",
                                  grpc_status_of(var))
end


-- Sends the current request, or its next try, to an instance of the service.
-- `self` is what resty.ipconfig knows: config, dict, fallen_back; `key` is what
-- consistent hashing keeps requests together by, or nil.
function _M.balance(self, service, key)
    local failure, status = get_last_failure()
    local retry = failure ~= nil

    if self.fallen_back then
        return balance_in_lua(self, service, retry, key, status)
    end

    local handle = handle_of(service)
    if not handle then
        return balance_in_lua(self, service, retry, key, status)
    end

    local request = get_request()
    -- nginx runs no log phase for a subrequest, unless log_subrequest says so
    local tried = ngx.is_subrequest
                  and (retry and ngx.var.upstream_addr or "") or nil

    for _ = 1, MAX_CALLS do
        -- those of the view at hand; with another one this begins anew
        local route = routes[handle]
        local taken_by = route and route.rules_of(key)

        local code, host, port, more_tries =
            native.balance(handle, request, failure, status, key, tried,
                           taken_by)
        if code == OK then
            if set_peer(self, service, host, port, more_tries, retry)
               and identity.is_wanted()
            then
                explain(handle, retry, status)
            end

            return
        end

        if code == AGAIN then
            refresh(self, service, handle)

        elseif code == OPEN then
            -- an internal redirect (error_page, X-Accel-Redirect) sent it here;
            -- without one, another request was at this address before and never
            -- came to its log phase
            finish_by_tries(request, 0)

        elseif code == UNRANKED then
            break

        elseif code == DECLINED then
            return refuse_by_library(self, service, host, port, more_tries)

        else
            return refuse(self, service, "an error of the library", "error",
                          0, "")
        end
    end

    return balance_in_lua(self, service, retry, key, status)
end


-- What of nginx's words on its cache says that the response came from the
-- instance: the others are of an earlier one.
local IS_FROM_INSTANCE = {
    MISS    = true,
    BYPASS  = true,
    EXPIRED = true,
}


-- Hands on the load report that the instance put into its response, if it did.
local function take_report()
    local var = ngx.var

    -- gRPC's come in the trailer
    local binary = var.upstream_http_endpoint_load_metrics_bin
                   or var.upstream_trailer_endpoint_load_metrics_bin
    local value = binary or var.upstream_http_endpoint_load_metrics
    if not value then
        return
    end

    local cache = var.upstream_cache_status
    if cache and not IS_FROM_INSTANCE[cache] then
        return
    end

    local addrs = var.upstream_addr or ""
    local ok, err = native.report(addrs, binary ~= nil, value)
    if not ok then
        log(WARN, "[ipconfig] a response of ", addrs, " has a load report ",
            "that counts for nothing: ", err)
    end
end


-- Counts the end of the current request.
function _M.log()
    local request = get_request()
    local status = ngx.status

    local code = native.finish(request, status)
    if code == TRIES_DUE then
        code = finish_by_tries(request, status)
    end

    if code == LOOK_DUE then
        take_report()
    end
end


return _M
