# The request path is compiled: what stays in the interpreter costs each request
# several times as much.

use strict;
use warnings;
use lib 't/lib';
use IpconfigTest 'no_plan';

run_tests();

__DATA__

=== TEST 1: balance() and log() compile to traces
--- hooks
    lua_shared_dict ipconfig 32m;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block {
        require("resty.ipconfig").init_worker()
        require("jit.v").on(ngx.config.prefix() .. "/traces")
    }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
        keepalive 8;
    }
--- script
served(2000);

# "[TRACE  11 ipconfig.lua:281 return]", and with --- for a number where the
# compiler gave up.
open my $traces, '<', IpconfigTest::Parts::servroot() . '/traces' or die "no traces: $!";
my @traces = <$traces>;

open my $source, '<', "$LUA/resty/ipconfig.lua" or die "no source: $!";
while (<$source>) {
    next if !/^function _M\.(balance|log)\b/;
    my $function = $1;
    say "$function: ", (grep { /\[TRACE\s+\d+ ipconfig\.lua:$. / } @traces) ? 'compiled' : 'NOT compiled';
}

# Few calls come upon a text: a request's that loads a new ranking, and a timer's
# that reads the log. A recording that does is dropped, and taken up again later.
my %texts;
open my $native, '<', "$LUA/resty/ipconfig/native.lua" or die "no source: $!";
while (<$native>) {
    $texts{$.}++ if /^local function call_for_text\b/ .. /^end$/;
}
say 'given up: ', join ' ',
    grep { !(/\bnative\.lua:(\d+)\]$/ && $texts{$1}) }
    grep { /TRACE ---.*(ipconfig|balancer|native)\.lua/ } @traces;
--- response_body
balance: compiled
log: compiled
given up: 
