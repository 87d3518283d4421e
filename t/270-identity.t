# Why a request went where it did, in variables; and W3C Trace Context.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# The lines of the access log, once there are so many.
sub logged_requests {
    my ($n, $name) = @_;
    my $file = IpconfigTest::Parts::servroot() . '/logs/' . ($name // 'identity') . '.log';
    my @lines;
    await("$n lines in the log", sub { @lines = split /\n/, slurp($file); @lines >= $n });
    return @lines;
}

sub control {
    my ($by, $text) = @_;
    put('control/chat', $text);
    await("$by is in force", sub { (service('chat')->{control}{by} // '') eq $by });
}

# What is sent on for these headers: "<traceparent> <tracestate>".
sub sent_on { my %headers = @_; get('/trace', headers => \%headers) }

package main;

our $Logged = <<'_EOC_';
    log_format identity "$uri [$ipconfig_instance] $ipconfig_tries $ipconfig_mode $ipconfig_reason $status";
_EOC_

our $Location = <<'_EOC_';
    access_log logs/identity.log identity;
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        proxy_next_upstream error timeout http_503 http_404;
        add_header Reason $ipconfig_reason always;
        location /slow {
            set $ipconfig_service chat;
            proxy_pass http://ipconfig;
            proxy_read_timeout 200ms;
        }
    }
_EOC_

our $Trace = <<'_EOC_';
    location = /trace {
        proxy_pass http://127.0.0.1:$SERVER_PORT/echo;
        proxy_set_header traceparent $ipconfig_traceparent;
        proxy_set_header tracestate $ipconfig_tracestate;
    }
    location = /echo {
        content_by_lua_block {
            local headers = ngx.req.get_headers()
            ngx.say(headers.traceparent, " ", headers.tracestate or "none")
        }
    }
_EOC_

run_tests();

__DATA__

=== TEST 1: the log has the instance, the tries, the mode and what decided, of each request
--- http_config eval: $main::Logged
--- config eval: $main::Location
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" }, "rules": [
    { "name": "beta", "to": { "version": "2" }, "header": { "X-Beta": "1" } } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B","labels":{"version":"2"}}
--- script
ready('chat', 'a b');
my $answer = fetch('/one');
say $answer->{headers}{reason};
fetch('/two', headers => { 'X-Beta' => 1 });
control('ann', '{"mode":"manual","weights":{"a":1},"by":"ann"}');
fetch('/three');
fetch('/four', headers => { 'X-Beta' => 1 });
say($_) for logged_requests(4);
--- response_body
strategy
/one [a] 1 live strategy 200
/two [b] 1 live rule:beta 200
/three [a] 1 manual strategy 200
/four [a] 1 manual strategy 200



=== TEST 2: after retries it has the last try, and why there was another one
--- http_config eval: $main::Logged
--- config eval: $main::Location
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" } } } }
--- etcd
put instances/chat/1 {"addr":"$DEAD_1","weight":3}
put instances/chat/2 {"addr":"$DEAD_2","weight":2}
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', '1 2 a');
fetch('/error');
del('instances/chat/1');
del('instances/chat/2');
ready('chat', 'a');
put('instances/chat/b', '{"addr":"$BACKEND_B","weight":0.5}');
ready('chat', 'a b');
fetch('/slow?ms=600000');
fetch('/code?code=503');
fetch('/code?code=404');
say($_) for logged_requests(4);
--- response_body
/error [a] 3 live retry:error 200
/slow [b] 2 live retry:timeout 504
/code [b] 2 live retry:503 503
/code [b] 2 live retry:404 404
--- error_log
connect() failed



=== TEST 3: a refused request has no instance, and the reason of its refusal
--- http_config eval: $main::Logged
--- config eval
$main::Location . <<'_EOC_'
    location /who { set $ipconfig_service who; proxy_pass http://ipconfig; }
_EOC_
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/1 {"addr":"$DEAD_1"}
--- script
ready('chat', '1 a');
fetch('/who');
del('instances/chat/a');
ready('chat', '1');
fetch('/one');
put('instances/chat/2', '{"addr":"$DEAD_2"}');
ready('chat', '1 2');
fetch('/two');
del('instances/chat/1');
del('instances/chat/2');
ready('chat', '');
fetch('/three');
my @lines = logged_requests(4);
$lines[1] =~ s/\[1\]/[n]/;
$lines[2] =~ s/\[[12]\]/[n]/;
say($_) for @lines;
--- response_body
/who [] 0 static refused:unknown 503
/one [n] 1 live strategy 502
/two [n] 2 live retry:error 502
/three [] 0 live refused:no_instance 503
--- error_log
nothing to offer for service



=== TEST 4: an instance of weight 0 serves where the others failed
--- http_config eval: $main::Logged
--- config eval: $main::Location
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best", "tries": 2 } } } }
--- etcd
put instances/chat/1 {"addr":"$DEAD_1"}
put instances/chat/a {"addr":"$BACKEND_A","weight":0}
--- script
ready('chat', '1 a');
fetch('/one');
say($_) for logged_requests(1);
--- response_body
/one [a] 2 live retry:error 200
--- error_log
connect() failed



=== TEST 5: without the library it is told too, and the mode says by what
--- hooks
    lua_shared_dict ipconfig 32m;
    map "" $ipconfig_instance { default ""; }
    map "" $ipconfig_tries    { default 0; }
    map "" $ipconfig_mode     { default ""; }
    map "" $ipconfig_reason   { default ""; }
    init_by_lua_block {
        require("resty.ipconfig.native").load = function() return nil, "broken on purpose" end
        require("resty.ipconfig").init()
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- http_config eval: $main::Logged
--- config eval: $main::Location
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "beta", "to": { "version": "2" }, "query": { "beta": true } },
    { "name": "dead", "to": { "version": "3" }, "query": { "dead": true } } ],
    "instances": [ { "id": "a", "addr": "$BACKEND_A" },
                   { "id": "b", "addr": "$BACKEND_B", "labels": { "version": "2" } },
                   { "id": "1", "addr": "$DEAD_1", "labels": { "version": "3" } } ] } } }
--- no_wait
--- script
fetch('/one');
fetch('/two?beta=1');
fetch('/three?dead=1');
say($_) for logged_requests(3);
--- response_body
/one [a] 1 static strategy 200
/two [b] 1 static rule:beta 200
/three [a] 2 static retry:error 200
--- error_log
connect() failed



=== TEST 6: variables that nothing uses are not set, and those that are used are alone
--- http_config
    log_format identity "$ipconfig_reason";
--- config eval: $main::Location =~ s/add_header.*//r
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', 'a');
fetch('/one');
say($_) for logged_requests(1);
--- response_body
strategy



=== TEST 7: a subrequest leaves the variables to the request that it belongs to
--- http_config eval: $main::Logged
--- config eval
$main::Location . <<'_EOC_'
    location = /auth {
        internal;
        set $ipconfig_service other;
        proxy_pass http://ipconfig;
    }
    location /with {
        auth_request /auth;
        content_by_lua_block { ngx.say("here") }
    }
_EOC_
--- ipconfig
{ "services": { "other": {} } }
--- etcd
put instances/other/b {"addr":"$BACKEND_B"}
--- script
ready('other', 'b');
say get('/with');
say($_) for logged_requests(1);
--- response_body
here
/with [] 0   200



=== TEST 8: a trace goes on in a new span, with its id, its flags and its state
--- config eval: $main::Trace
--- script
my ($id, $span) = ('0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331');
my %span;
for my $flags (qw(01 00 02 03 ff 09)) {
    my $sent = sent_on(traceparent => "00-$id-$span-$flags", tracestate => 'a=1,b=2');
    my ($new) = $sent =~ /^00-$id-([0-9a-f]{16})-/ or say "$flags: $sent";
    $span{$new}++;
    say $flags, ' ', $sent =~ s/$id/ID/r =~ s/$new/SPAN/r;
}
say keys %span == 6 && !$span{$span} ? 'a span for each hop' : names(\%span);
say sent_on(traceparent => "01-$id-$span-01-what.ever") =~ /^00-$id-\w{16}-01 none$/ ? 'a later version' : 'lost';
say sent_on(traceparent => "fe-$id-$span-01") =~ /^00-$id-\w{16}-01 none$/ ? 'and a much later one' : 'lost';
--- response_body
01 00-ID-SPAN-01 a=1,b=2
00 00-ID-SPAN-00 a=1,b=2
02 00-ID-SPAN-02 a=1,b=2
03 00-ID-SPAN-03 a=1,b=2
ff 00-ID-SPAN-03 a=1,b=2
09 00-ID-SPAN-01 a=1,b=2
a span for each hop
a later version
and a much later one



=== TEST 9: where there is no trace, or none that can be, a new one begins and no state is sent on
--- config eval: $main::Trace
--- script
my ($id, $span) = ('0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331');
my %id;
for my $given (
    undef, '', "00-$id-$span", "00-$id-$span-01-", "00-$id-$span-01-x", "00-$id-$span-1",
    "ff-$id-$span-01", "0-$id-$span-01", "00-\U$id\E-$span-01", "00-$id-\U$span\E-01",
    "00-" . '0' x 32 . "-$span-01", "00-$id-" . '0' x 16 . '-01', "00-$id-$span-0G",
    "01-$id-$span-01x", "00-${id}0-$span-01", " -$id-$span-01", "00_${id}_${span}_01",
) {
    my $sent = sent_on(defined $given ? (traceparent => $given) : (), tracestate => 'a=1');
    say(($given // 'none') . ": $sent")
        if $sent !~ /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-01 none$/;
    $id{$1 // ''}++;
}
say keys %id == 17 && !$id{$id} && !$id{''} ? 'a trace for each' : counts(\%id);
--- response_body
a trace for each



=== TEST 10: another part of the new traces is sampled with a block of one's own
--- http_config
    split_clients $request_id $ipconfig_trace_new { 0.01% 01; * 00; }
--- config eval: $main::Trace
--- script
say substr(sent_on(), 53);
say substr(sent_on(traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'), 53);
--- response_body
00 none
01 none



=== TEST 11: where too few are healthy to leave an instance out, that is the reason
--- http_config eval: $main::Logged
--- config eval: $main::Location
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', 'a');
await('panic', sub { get('/?fail=a'); service('chat')->{panic} });
say fetch('/')->{headers}{reason};
--- response_body
panic
