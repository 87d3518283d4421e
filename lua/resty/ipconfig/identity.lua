-- The variables that say why a request went where it did, for log_format and
-- add_header: $ipconfig_instance, $ipconfig_tries, $ipconfig_mode and
-- $ipconfig_reason. nginx lets a variable be set that something in its
-- configuration uses; the others cost nothing.

local ngx   = ngx
local pcall = pcall


local _M = {}


-- whether each is in use; nil until the first request is balanced
local in_use


-- Throws for a variable that cannot be set, and changes none.
local function assign(name)
    local var = ngx.var
    var[name] = var[name]
end


local function detect()
    in_use = {
        instance = pcall(assign, "ipconfig_instance"),
        tries    = pcall(assign, "ipconfig_tries"),
        mode     = pcall(assign, "ipconfig_mode"),
        reason   = pcall(assign, "ipconfig_reason"),
    }
    in_use.any = in_use.instance or in_use.tries or in_use.mode
                 or in_use.reason
end


-- Whether the current request is to be explained. Variables are those of the
-- main request, which a subrequest shares: it has none of its own.
function _M.is_wanted()
    if in_use == nil then
        detect()
    end

    return in_use.any and not ngx.is_subrequest
end


function _M.set(instance, tries, mode, reason)
    local var = ngx.var

    if in_use.instance then
        var.ipconfig_instance = instance
    end

    if in_use.tries then
        var.ipconfig_tries = tries
    end

    if in_use.mode then
        var.ipconfig_mode = mode
    end

    if in_use.reason then
        var.ipconfig_reason = reason
    end
end


-- Why a request moved on, by what get_last_failure() says of its last try.
function _M.retry_reason(status)
    if status == 504 then
        return "retry:timeout"
    end

    if status == 502 then
        return "retry:error"
    end

    return "retry:" .. status
end


return _M
