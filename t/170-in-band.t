# Load reports that instances put into their responses: read for next to nothing,
# kept from the client, and as good as an exporter's.

use lib 't/lib';
use IpconfigTest 'no_plan';

# Instances a to d, which answer with the headers that /tell gave them.
my $INSTANCES = join "\n", map { <<"_EOC_" } 1 .. 4;
    server {
        listen 127.0.0.1:\$FREE_PORT_$_;
        location / {
            content_by_lua_block {
                local id = string.char(96 + $_)
                local told = ngx.shared.told
                for _, name in ipairs(told:get_keys()) do
                    local owner, header = name:match("^(%w+) (.*)")
                    if owner == id and header ~= "status" then
                        ngx.header[header] = told:get(name)
                    end
                end
                ngx.status = told:get(id .. " status") or 200
                ngx.say(id)
            }
        }
    }
_EOC_

my $LOCATIONS = <<'_EOC_';
    location = /tell {
        client_body_buffer_size 128k;
        content_by_lua_block {
            ngx.req.read_body()
            local name = ngx.var.arg_id .. " " .. ngx.var.arg_header
            ngx.shared.told:set(name, ngx.req.get_body_data())
            ngx.say("told")
        }
    }
    set $ipconfig_service chat;
    proxy_http_version 1.1;
    proxy_set_header   Connection "";
    proxy_buffer_size  128k;
    proxy_buffers      4 128k;
    location / { proxy_pass http://ipconfig; }
    location /shown {
        proxy_pass http://ipconfig;
        proxy_pass_header endpoint-load-metrics;
        proxy_pass_header endpoint-load-metrics-bin;
    }
    location /trap { proxy_pass http://ipconfig; proxy_hide_header X-Other; }
    location /cached {
        proxy_pass http://ipconfig;
        proxy_cache pages;
        proxy_cache_valid 200 1s;
        proxy_cache_use_stale http_500;
    }
    location /elsewhere {
        proxy_pass http://ipconfig;
        proxy_intercept_errors on;
        error_page 500 = @elsewhere;
    }
    location @elsewhere { proxy_pass http://127.0.0.1:$FREE_PORT_2; }
_EOC_

add_block_preprocessor(sub {
    my $block = shift;
    my $ids = $block->instances // 'abcd';
    my $instances = join ', ', map {
        sprintf '{ "id": "%s", "addr": "127.0.0.1:$FREE_PORT_%d" }', $_, ord($_) - 96
    } split //, $ids;
    $block->set_value(ipconfig => <<"_EOC_") if !defined $block->ipconfig;
{ "exporter": { "interval": "200ms" },
  "services": { "chat": { "balance": { "strategy": "random" }, "instances": [ $instances ] } } }
_EOC_
    $block->set_value(config => $LOCATIONS) if !defined $block->config;
    $block->set_value(http_config => "lua_shared_dict told 1m;\n"
        . "proxy_cache_path cache keys_zone=pages:1m;\n"
        . ($block->http_config // $INSTANCES));
});

package IpconfigTest::Script;

use MIME::Base64 qw(encode_base64);

use constant { TEXT => 'endpoint-load-metrics', BINARY => 'endpoint-load-metrics-bin' };

# The instance answers with that header from now on.
sub answers {
    my ($id, $header, $value) = @_;
    my $answer = HTTP::Tiny->new(proxy => undef)->post(
        url("/tell?id=$id&header=$header"), { content => $value });
    die "/tell: $answer->{status}\n" if $answer->{status} != 200;
}

# An OrcaLoadReport with this cpu_utilization, in base64.
sub orca { encode_base64("\x09" . pack('d<', shift), '') }

# Requests, some hundred a second, until something holds of who answered so far;
# who that was.
sub drive {
    my ($what, $holds) = @_;
    my %count;
    await($what, sub {
        $count{ get_anew('/') }++;
        sleep 0.003;
        return $holds->(\%count);
    });
    return \%count;
}

# The same until the instances have these states.
sub drive_to {
    my $states = shift;
    drive($states, sub { ranking_states('chat') eq $states });
    say $states;
}

# A figure of the metrics page.
sub metric {
    my $name = shift;
    my ($value) = fetch('/ipconfig/metrics')->{content} =~ /^$name (\S+)/m;
    return int($value // -1);
}

sub taken { metric('ipconfig_in_band_reports_total') }
sub refused { metric('ipconfig_in_band_reports_malformed_total') }

# Which of the headers a client sees.
sub shown {
    my $headers = fetch(shift)->{headers};
    return join(' ', grep { /endpoint/ } sort keys %$headers) || 'none';
}

package main;

run_tests();

__DATA__

=== TEST 1: a report in any format makes its instance a reporting one, until it stops
--- script
answers(a => TEXT, 'TEXT cpu_utilization=0.5,rps_fractional:100,named_metrics.foo=1');
answers(b => TEXT, 'JSON {"cpuUtilization": 0.5, "rps_fractional": 100}');
answers(c => TEXT, 'BIN ' . orca(0.5));
say ranking_states('chat');
drive_to('a:reporting b:reporting c:reporting d:unreported');
answers(d => BINARY, orca(0.5) =~ s/=//gr);
drive_to('a:reporting b:reporting c:reporting d:reporting');
say refused();
my $silent = 'a:unreported b:unreported c:unreported d:unreported';
await($silent, sub { ranking_states('chat') eq $silent });
say $silent;
--- response_body
a:unreported b:unreported c:unreported d:unreported
a:reporting b:reporting c:reporting d:unreported
a:reporting b:reporting c:reporting d:reporting
0
a:unreported b:unreported c:unreported d:unreported



=== TEST 2: who is busier by its responses weighs less, whichever worker they pass
--- workers: 2
--- script
answers(a => TEXT, 'TEXT cpu_utilization=0.9,rps_fractional=100,named_metrics.latency_ms=100');
answers($_ => TEXT, 'TEXT cpu_utilization=0.1,rps_fractional=100,named_metrics.latency_ms=5')
    for qw(b c d);
drive('b weighs more', sub {
    my $weight = weights('chat');
    return $weight->{b} > 1.2 * $weight->{a} && ranking('chat') =~ /a$/;
});
say 'b weighs more, and a is last';
--- response_body
b weighs more, and a is last



=== TEST 3: the client sees no report unless a location shows it
--- instances: a
--- script
answers(a => TEXT, 'TEXT cpu_utilization=0.5');
answers(a => BINARY, orca(0.5));
say shown($_) for qw(/ /shown /trap);
say taken() > 0 ? 'taken' : 'not taken';
--- response_body
none
endpoint-load-metrics endpoint-load-metrics-bin
endpoint-load-metrics endpoint-load-metrics-bin
taken



=== TEST 4: a report that cannot be read is counted, logged once, and changes nothing else
--- script
answers(a => TEXT, 'TEXT cpu_utilization=NaN');
answers(b => TEXT, 'TEXT cpu_utilization=0.5,cpu_utilization=0.5');
answers(c => TEXT, "JSON [\"\x01\xff");
answers(d => TEXT, 'TEXT cpu_utilization=0.5');
my $states = 'a:unreported b:unreported c:unreported d:reporting';
say names(drive('they are counted', sub {
    return keys %{ $_[0] } == 4 && refused() > 3 && ranking_states('chat') eq $states;
}));
say $states;
say logged(qr/has a load report that counts for nothing: /), ' line';
--- response_body
a b c d
a:unreported b:unreported c:unreported d:reporting
1 line
--- no_error_log
[error]
[crit]
[alert]



=== TEST 5: a header of 64 KB is refused, and its response is as any other
--- instances: ab
--- script
answers(a => TEXT, 'TEXT cpu_utilization=0.5,x=' . '1' x 65536);
answers(b => BINARY, 'A' x 65536);
say names(drive('both are counted', sub { keys %{ $_[0] } == 2 && refused() >= 2 }));
say ranking_states('chat');
say taken();
--- response_body
a b
a:unreported b:unreported
0



=== TEST 6: of both headers the binary one counts
--- instances: a
--- script
answers(a => TEXT, 'nonsense');
answers(a => BINARY, orca(0.5));
drive('some are taken', sub { taken() > 3 && ranking_states('chat') eq 'a:reporting' });
say refused();
--- response_body
0



=== TEST 7: an exporter's figures come first, and those of responses again when it is silent
--- ipconfig
{ "exporter": { "interval": "200ms" },
  "services": { "chat": { "balance": { "strategy": "random" } } } }
--- etcd
put instances/chat/a {"addr":"127.0.0.1:$FREE_PORT_1","status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"127.0.0.1:$FREE_PORT_2","status":"grpc://127.0.0.1:9"}
--- script
# By the exporter a is the slow one, by the responses it is b.
answers(a => TEXT, 'TEXT rps_fractional=100,named_metrics.latency_ms=5');
answers(b => TEXT, 'TEXT rps_fractional=100,named_metrics.latency_ms=100');
my $end = meanwhile(sub { get_anew('/'); sleep 0.003 });
my $ranked = sub {
    my $ids = shift;
    return ranking('chat') eq $ids && ranking_states('chat') eq 'a:reporting b:reporting';
};
await('the responses count', sub { $ranked->('a b') });
report_until('the exporter counts', sub { $ranked->('b a') },
             chat => (a => { latency_ms => 100 }, b => { latency_ms => 5 }));
await('the responses count again', sub { $ranked->('a b') });
say 'and back';
$end->();
--- response_body
and back



=== TEST 8: of a thousand responses without a report next to none is looked at
--- instances: a
--- hooks
    lua_shared_dict ipconfig 32m;
    init_by_lua_block {
        require("resty.ipconfig").init()
        local native = require "resty.ipconfig.native"
        local LOOK_DUE = require("resty.ipconfig.cdefs").LOOK_DUE
        looks = 0
        for _, name in ipairs { "finish", "finish_by_tries" } do
            local finish = native[name]
            native[name] = function(...)
                local code = finish(...)
                looks = looks + (code == LOOK_DUE and 1 or 0)
                return code
            end
        end
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
        keepalive 8;
    }
--- config
    location = /looks { content_by_lua_block { ngx.say(looks) } }
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
--- script
my $took = -time;
served(1000);
$took += time;
my $looks = get('/looks');
note("$looks looks in $took s");
# each one comes after twice the time of the one before, up to 6.4 s
say $looks >= 1 && $looks < 10 + $took / 6.4 ? 'few' : "$looks in $took s";
--- response_body
few



=== TEST 9: a report out of nginx's cache is an earlier one and counts for nothing
--- instances: a
--- script
answers(a => TEXT, 'TEXT cpu_utilization=0.5');
say get('/cached');
my $taken = taken();
answers(a => 'status', 500);
sleep 1.5;
for (1 .. 20) {
    die "not from the cache\n" if get('/cached') ne 'a';
    sleep 0.02;
}
say taken() - $taken;
--- response_body
a
0



=== TEST 10: a report of another upstream, where a request was redirected to, counts for nothing
--- instances: a
--- script
answers(a => 'status', 500);
answers(b => TEXT, 'TEXT cpu_utilization=0.5');
say names(served_anew(50, '/elsewhere'));
say taken();
--- response_body
b
0



=== TEST 11: a report in the trailer of a gRPC response counts
--- instances: a
--- http_config
server {
    listen 127.0.0.1:$FREE_PORT_1 http2;
    location / {
        default_type application/grpc;
        add_trailer endpoint-load-metrics-bin CQAAAAAAAOA/;
        return 200 "a";
    }
}
--- config
    location / {
        set $ipconfig_service chat;
        grpc_pass grpc://ipconfig;
    }
--- script
drive_to('a:reporting');
say refused();
--- response_body
a:reporting
0



=== TEST 12: looking at responses and taking their reports compiles to traces
--- instances: a
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
answers(a => TEXT, 'TEXT cpu_utilization=0.5');
# A branch is compiled after it was taken some ten times.
drive('they are taken', sub { taken() > 30 });
my @traces = split /\n/, slurp(IpconfigTest::Parts::servroot() . '/traces');
say 'given up: ', join ' ', given_up(sub { $_[0] =~ /\bbalancer\.lua:/ }, @traces);
--- response_body
given up: 
