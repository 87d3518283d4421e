# The request path is compiled: what stays in the interpreter costs each request
# several times as much. Nor does it read the shared dict, which has a lock.

use strict;
use warnings;
use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# The lines that jit.v wrote: "[TRACE  11 ipconfig.lua:281 return]".
sub traces { split /\n/, slurp(IpconfigTest::Parts::folder() . '/traces') }

# Whether a trace enters this function, wherever it begins: what was hot first is
# chance, and may be a caller.
sub is_entered {
    my $function = shift;
    return grep { $_ eq $function }
        split /\n/, slurp(IpconfigTest::Parts::folder() . '/entries');
}

# What the compiler makes of the request path, which $requests takes.
sub say_what_is_compiled {
    my $requests = shift;
    $requests->();

    # Where the request path is, line by line; the rest of these files runs once a
    # ranking, or in timers.
    my %is_on_the_path;
    my %functions = (
        'ipconfig.lua' => [qw(check_init check_service _M.balance _M.log)],
        'ipconfig/balancer.lua' => [qw(set_peer handle_of explain grpc_status_of finish_by_tries
                                        _M.balance _M.log)],
        'ipconfig/native.lua' => [qw(_M.balance _M.explain _M.finish _M.finish_by_tries)],
        'ipconfig/identity.lua' => [qw(_M.is_wanted _M.set _M.retry_reason)],
        'ipconfig/rules.lua' => [qw(is_taken)],
    );
    for my $path (sort keys %functions) {
        my $names = join '|', map { quotemeta } @{ $functions{$path} };
        my ($file) = $path =~ m{([^/]+)$};
        open my $source, '<', "$LUA/resty/$path" or die "no source: $!";
        while (<$source>) {
            $is_on_the_path{"$file:$."}++ if /^(?:local )?function (?:$names)\b/ .. /^end$/;
            next if $path ne 'ipconfig.lua' || !/^function _M\.(balance|log)\b/;
            my ($name, $entry) = ($1, "$file:$.");
            await("$name is compiled", sub { $requests->(); is_entered($entry) })
                if !is_entered($entry);
            say("$name: compiled");
        }
    }
    # what rules.lua makes of a service's rules is of no file
    my $is_ours = sub {
        $_[0] =~ /\bipconfig_rules:/ || grep { $is_on_the_path{$_} } $_[0] =~ /\b(\w+\.lua:\d+)/g
    };
    say('given up: ', join ' ', given_up($is_ours, traces()));
}

package main;

our $Traced = <<'_EOC_' =~ s/FOLDER/IpconfigTest::Parts::folder()/ger;
    lua_shared_dict ipconfig 32m;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block {
        require("resty.ipconfig").init_worker()

        -- jit.v says where a trace begins and not what it enters
        local funcinfo = require("jit.util").funcinfo
        local out, attach, entered = io.open("FOLDER/entries", "w"), jit.attach
        local function enter(func)
            local info = funcinfo(func)
            if info.source then
                local name = info.source:match("[^/]+$") .. ":" .. info.linedefined
                entered[name] = true
            end
        end
        jit.attach = function(say)
            attach(function(what, tr, func, pc, parent, ...)
                if what == "start" then
                    entered = {}
                    if not parent then enter(func) end
                end
                for name in pairs(what == "stop" and entered or {}) do
                    out:write(name, "\n")
                end
                out:flush()
                say(what, tr, func, pc, parent, ...)
            end, "trace")
            attach(function(_, func, pc)
                if pc == 0 then enter(func) end
            end, "record")
        end
        require("jit.v").on("FOLDER/traces")
        jit.attach = attach
    }
    log_by_lua_block { require("resty.ipconfig").log() }
_EOC_

run_tests();

__DATA__

=== TEST 1: balance() and log() compile to traces
--- hooks eval
$main::Traced . <<'_EOC_'
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
        keepalive 8;
    }
_EOC_
--- script
say_what_is_compiled(sub { served(2000) });
--- response_body
balance: compiled
log: compiled
given up: 



=== TEST 2: so they do with keys, with tries that fail and requests that are given up
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [
    { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" },
    { "id": "c", "addr": "$BACKEND_C" }, { "id": "d", "addr": "$BACKEND_D" },
    { "id": "e", "addr": "$BACKEND_E" }, { "id": "1", "addr": "$DEAD_1" },
    { "id": "2", "addr": "$DEAD_2" } ] } } }
--- hooks eval
$main::Traced . <<'_EOC_'
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block {
            require("resty.ipconfig").balance("chat", { key = ngx.var.request_uri })
        }
        # without keepalive: a connection that turns out closed is a try too many
    }
_EOC_
--- script
say_what_is_compiled(sub {
    for my $round (1 .. 40) {
        served(40, "/?key=$round");
        get('/code?code=503') for 1 .. 10;
        get('/drop') for 1 .. 5;
        abandon('/slow?ms=500') if $round % 8 == 0;
    }
    await('none in flight', sub { in_flight('chat') == 0 });
});
--- response_body
balance: compiled
log: compiled
given up: 
--- error_log
connect() failed



=== TEST 3: so they do with rules, and where variables say why
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "a", "to": { "v": "2" }, "header": { "X-A": ["1", "2"] }, "cookie": { "b": true } },
    { "name": "b", "to": { "v": "2" }, "percent": 10, "key": "query:k" },
    { "name": "c", "to": { "v": "3" }, "percent": 50, "query": { "c": "1", "d": false } } ],
    "instances": [ { "id": "a", "addr": "$BACKEND_A" }, { "id": "1", "addr": "$DEAD_1" },
                   { "id": "b", "addr": "$BACKEND_B", "labels": { "v": "2" } },
                   { "id": "c", "addr": "$BACKEND_C", "labels": { "v": "3" } } ] } } }
--- hooks eval
$main::Traced . <<'_EOC_'
    map "" $ipconfig_instance { default ""; }
    map "" $ipconfig_tries    { default 0; }
    map "" $ipconfig_mode     { default ""; }
    map "" $ipconfig_reason   { default ""; }
    log_format why "$ipconfig_instance $ipconfig_tries $ipconfig_mode $ipconfig_reason";
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
_EOC_
--- config eval
"access_log logs/why.log why;" . $IpconfigTest::SERVICE_LOCATION
--- script
say_what_is_compiled(sub {
    for my $round (1 .. 40) {
        served(20, "/?k=$round");
        served(20, "/?c=1");
        get('/', headers => { 'X-A' => 1 + $_ % 3, Cookie => 'b=1' }) for 1 .. 20;
    }
});
--- response_body
balance: compiled
log: compiled
given up: 
--- error_log
connect() failed



=== TEST 4: a steady request reads and writes no shared dict
--- hooks
    lua_shared_dict ipconfig 32m;
    init_by_lua_block {
        require("resty.ipconfig").init()

        calls = 0
        local methods = getmetatable(ngx.shared.ipconfig).__index
        for name, method in pairs(methods) do
            methods[name] = type(method) ~= "function" and method or function(...)
                calls = calls + 1
                return method(...)
            end
        end
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- config eval
$IpconfigTest::SERVICE_LOCATION . <<'_EOC_'
    location = /calls { content_by_lua_block { ngx.say(calls) } }
_EOC_
--- script
served(10);
my $before = get('/calls');
served(200);
get('/code?code=500');
say $before > 0 ? 'a load is seen' : 'none is seen';
say get('/calls') - $before;
--- response_body
a load is seen
0
