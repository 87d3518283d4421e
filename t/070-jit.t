# The request path is compiled: what stays in the interpreter costs each request
# several times as much. Nor does it read the shared dict, which has a lock.

use strict;
use warnings;
use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# What the compiler made of the request path, by the file that jit.v wrote:
# "[TRACE  11 ipconfig.lua:281 return]", and with --- for a number where it gave
# up.
sub say_what_is_compiled {
    open my $file, '<', IpconfigTest::Parts::folder() . '/traces' or die "no traces: $!";
    my @traces = <$file>;

    # Where the request path is, line by line; the rest of these files runs once a
    # ranking, or in timers.
    my %is_on_the_path;
    my %functions = (
        'ipconfig.lua' => [qw(check_init check_service _M.balance _M.log)],
        'ipconfig/balancer.lua' => [qw(set_peer handle_of grpc_status_of finish_by_tries
                                        _M.balance _M.log)],
        'ipconfig/native.lua' => [qw(_M.balance _M.finish _M.finish_by_tries)],
    );
    for my $path (sort keys %functions) {
        my $names = join '|', map { quotemeta } @{ $functions{$path} };
        my ($file) = $path =~ m{([^/]+)$};
        open my $source, '<', "$LUA/resty/$path" or die "no source: $!";
        while (<$source>) {
            $is_on_the_path{"$file:$."}++ if /^(?:local )?function (?:$names)\b/ .. /^end$/;
            say("$1: ", (grep { /\[TRACE\s+\d+ ipconfig\.lua:$. / } @traces) ? 'compiled' : 'NOT compiled')
                if $path eq 'ipconfig.lua' && /^function _M\.(balance|log)\b/;
        }
    }
    my $is_ours = sub { grep { $is_on_the_path{$_} } $_[0] =~ /\b(\w+\.lua:\d+)/g };
    say('given up: ', join ' ', grep { /TRACE ---/ && $is_ours->($_) } @traces);

    # A function that cannot be compiled is called between two traces.
    say('left in between: ', join ' ', grep { / stitch / && $is_ours->($_) } @traces);
}

package main;

our $Traced = <<'_EOC_' =~ s/FOLDER/IpconfigTest::Parts::folder()/er;
    lua_shared_dict ipconfig 32m;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block {
        require("resty.ipconfig").init_worker()
        require("jit.v").on("FOLDER/traces")
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
served(2000);
say_what_is_compiled();
--- response_body
balance: compiled
log: compiled
given up: 
left in between: 



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
for my $round (1 .. 40) {
    served(40, "/?key=$round");
    get('/code?code=503') for 1 .. 10;
    get('/drop') for 1 .. 5;
    abandon('/slow?ms=500') if $round % 8 == 0;
}
await('none in flight', sub { in_flight('chat') == 0 });
say_what_is_compiled();
--- response_body
balance: compiled
log: compiled
given up: 
left in between: 
--- error_log
connect() failed



=== TEST 3: a steady request reads and writes no shared dict
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
