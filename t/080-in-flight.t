# A request is in flight from its choice to its end, exactly once, by whatever
# path it ends: what the service's page and the metrics page show goes up while
# it is open and is 0 afterwards. It counts as its last try ended, and as long as
# the instance took.
#
# Of its own a block has, all optional:
#
#   --- ipconfig        "1 a": best of the instances of these names, in this order;
#                       "1 a | b": the same, and another service, `mail`
#   --- proxy           more directives in the location of `chat`, which is /
#   --- locations       more locations

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# What is in flight on a service, by both pages.
sub flying {
    my $service = shift // 'chat';
    my $shown = in_flight($service);
    my $page = fetch_anew('/ipconfig/metrics')->{content};
    my $counted = sum0($page =~ /^ipconfig_in_flight\{service="$service",.*?\} (\d+)/mg);
    return $shown == $counted ? $shown : "$shown or $counted";
}

sub held {
    my ($count, $service) = @_;
    await("$count in flight", sub { flying($service) eq $count });
    say "$count in flight";
}

# All are over.
sub over {
    my @services = @_ ? @_ : 'chat';
    await('none in flight', sub { !grep { flying($_) ne '0' } @services });
    say 'none in flight';
}

# An instance's requests and those of them that failed, since the last time in
# this block.
my %before;

sub counted {
    my ($id, $service) = (@_, 'chat');
    my $page = fetch_anew('/ipconfig/metrics')->{content};
    my @now = map { $page =~ /^ipconfig_${_}_total\{service="$service",instance="$id"\} (\d+)/m }
        qw(requests failed_tries);
    my $last = \$before{ join ' ', master_pid(), $service, $id };
    my @new = map { $now[$_] - ($$last // [0, 0])->[$_] } 0, 1;
    $$last = \@now;
    return sprintf '%d sent, %d failed', @new;
}

package main;

add_block_preprocessor(sub ($) {
    my $block = shift;

    my $ipconfig = $block->ipconfig // 'a';
    if ($ipconfig =~ /^[\da-e |]+$/) {
        my ($chat, $mail) = split /\|/, $ipconfig;
        my %instances = (chat => $chat, defined $mail ? (mail => $mail) : ());
        my $services = join ', ', map { service_of($_, $instances{$_}) } sort keys %instances;
        $block->set_value(ipconfig => "{ \"services\": { $services } }");
    }

    return if !defined $block->proxy && !defined $block->locations;
    my ($proxy, $locations) = ($block->proxy // '', $block->locations // '');
    $block->set_value(config => <<"_EOC_");
    location / {
        set \$ipconfig_service chat;
        proxy_pass http://ipconfig;
        $proxy
    }
$locations
_EOC_
});

sub service_of {
    my ($name, $ids) = @_;
    my $instances = join ', ', map {
        sprintf '{ "id": "%s", "addr": "$%s" }', $_, /\d/ ? "DEAD_$_" : uc "BACKEND_$_"
    } split ' ', $ids;
    return qq("$name": { "balance": { "strategy": "best" }, "instances": [ $instances ] });
}

run_tests();

__DATA__

=== TEST 1: a request is in flight until it is answered
--- script
my @open = map { begin('/gate') } 1 .. 3;
held(3);
release(3);
say join ' ', map { status_of($_) } @open;
over();
say counted('a');
--- response_body
3 in flight
200 200 200
none in flight
3 sent, 0 failed



=== TEST 2: so is each request of a connection that is kept alive
--- script
for (1 .. 2) {
    my $end = meanwhile(sub { my $count = shift; get('/slow?ms=100') for 1 .. 5; $count->{rounds}++ });
    held(1);
    $end->();
    over();
}
--- response_body
1 in flight
none in flight
1 in flight
none in flight



=== TEST 3: a request that moves on is in flight where it went, and no more where it failed
--- ipconfig: 1 2 a
--- script
my $open = begin('/gate');
held(1);
say join ' ', map { "$_->{id}:$_->{in_flight}" }
    sort { $a->{id} cmp $b->{id} } @{ service('chat')->{instances} };
release();
say status_of($open);
over();
say counted($_) for 1, 2, 'a';
--- response_body
1 in flight
1:0 2:0 a:1
200
none in flight
1 sent, 1 failed
1 sent, 1 failed
1 sent, 0 failed
--- error_log
connect() failed



=== TEST 4: a request whose tries all fail is over
--- ipconfig: 1 a b
--- proxy: proxy_next_upstream error timeout http_503;
--- script
say get('/drop');
over();
say get('/code?code=503');
over();
say counted($_) for 1, 'a', 'b';
--- response_body
502
none in flight
503
none in flight
2 sent, 2 failed
2 sent, 2 failed
2 sent, 2 failed
--- error_log
connect() failed



=== TEST 5: a request that times out is over, and failed
--- proxy: proxy_read_timeout 400ms;
--- script
say status_of(begin('/slow?ms=600000'));
over();
say counted('a');
--- response_body
504
none in flight
1 sent, 1 failed
--- error_log
upstream timed out



=== TEST 6: a request whose connection is never made is over, and failed
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "full", "addr": "127.0.0.1:$FREE_PORT_1" } ] } } }
--- proxy: proxy_connect_timeout 400ms;
--- script
# Nobody accepts, and there is no room to wait in.
my $port = IpconfigTest::Parts::expand('$FREE_PORT_1');
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1);
my @waiting = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Blocking => 0) } 1 .. 8;
say status_of(begin('/'));
over();
say counted('full');
--- response_body
504
none in flight
1 sent, 1 failed
--- error_log
upstream timed out



=== TEST 7: a request whose client goes away while it waits is over, and has not failed
--- script
my $open = begin('/slow?ms=600000');
held(1);
close $open;
over();
say counted('a');
--- response_body
1 in flight
none in flight
1 sent, 0 failed



=== TEST 8: so is one whose client goes away in the middle of the answer
--- script
my $open = begin('/gate?n=50');
my $line = <$open>;
held(1);
close $open;
over();
release();
say counted('a');
--- response_body
1 in flight
none in flight
1 sent, 0 failed



=== TEST 9: an answer that comes in pieces is in flight to its last one
--- script
my $open = begin('/gate?n=7');
<$open> =~ /^HTTP/ or die "no answer\n";
held(1);
release();
my $rest = do { local $/; <$open> };
say scalar(() = $rest =~ /^a$/mg), ' pieces';
over();
say counted('a');
--- response_body
1 in flight
8 pieces
none in flight
1 sent, 0 failed



=== TEST 10: a connection that the instance took over is in flight until it is closed
--- proxy
        proxy_http_version 1.1;
        proxy_set_header   Connection Upgrade;
        proxy_set_header   Upgrade lines;
--- script
my $open = begin('/upgrade', 'Connection: Upgrade', 'Upgrade: lines');
my $status = <$open>;
1 while <$open> ne "\r\n";
for my $line ('one', 'two') {
    print {$open} "$line\n";
    my $echo = <$open>;
    say $echo =~ s/\s+\z//r;
    held(1);
}
close $open;
over();
say counted('a');
--- response_body
a: one
1 in flight
a: two
1 in flight
none in flight
1 sent, 0 failed



=== TEST 11: a request that error_page sends to another service leaves the one where it failed
--- ipconfig: a | b
--- proxy
        proxy_intercept_errors on;
        error_page 404 500 502 = /mail;
--- locations
    location = /mail {
        set $ipconfig_service mail;
        rewrite ^ /gate? break;
        proxy_pass http://ipconfig;
    }
--- script
for my $path ('/drop', '/code?code=500', '/code?code=404') {
    my $open = begin($path);
    held(1, 'mail');
    say flying('chat'), ' at chat';
    release();
    say status_of($open);
    over('chat', 'mail');
    say counted('a'), '; ', counted('b', 'mail');
}
--- response_body
1 in flight
0 at chat
200
none in flight
1 sent, 1 failed; 1 sent, 0 failed
1 in flight
0 at chat
200
none in flight
1 sent, 1 failed; 1 sent, 0 failed
1 in flight
0 at chat
200
none in flight
1 sent, 0 failed; 1 sent, 0 failed
--- error_log
upstream prematurely closed connection



=== TEST 12: so does one that X-Accel-Redirect or try_files sends on
--- ipconfig: a | b
--- locations
    location /tried { try_files /none @mail; }
    location @mail {
        set $ipconfig_service mail;
        rewrite ^ /gate? break;
        proxy_pass http://ipconfig;
    }
--- script
for my $path ('/accel?to=@mail', '/tried') {
    my $open = begin($path);
    held(1, 'mail');
    say flying('chat'), ' at chat';
    release();
    say status_of($open);
    over('chat', 'mail');
    say counted('a'), '; ', counted('b', 'mail');
}
--- response_body
1 in flight
0 at chat
200
none in flight
1 sent, 0 failed; 1 sent, 0 failed
1 in flight
0 at chat
200
none in flight
0 sent, 0 failed; 1 sent, 0 failed



=== TEST 13: a subrequest is counted and never in flight, as its end is not seen; its parent is
--- locations
    location = /parent {
        access_by_lua_block {
            ngx.location.capture("/gate")
            ngx.location.capture_multi { { "/slow?ms=10" }, { "/code?code=503" } }
        }
        set $ipconfig_service chat;
        rewrite ^ /gate? break;
        proxy_pass http://ipconfig;
    }
--- script
my $open = begin('/parent');
await('the first is sent', sub { counted('a') =~ /^1 sent/ });
say flying();
release();
held(1);
release();
say status_of($open);
over();
say counted('a');
--- response_body
0
1 in flight
200
none in flight
3 sent, 0 failed



=== TEST 14: with log_subrequest its end is seen and counted once, and it is still not in flight
--- locations
    log_subrequest on;
    location = /parent {
        content_by_lua_block { ngx.print(ngx.location.capture("/gate").body) }
    }
--- script
my $open = begin('/parent');
await('it is sent', sub { counted('a') =~ /^1 sent/ });
say flying();
release();
say status_of($open);
over();
say counted('a');
--- response_body
0
200
none in flight
0 sent, 0 failed



=== TEST 15: without the log hook a request stays in flight until its place in memory serves another
--- locations
    location = /unlogged {
        set $ipconfig_service chat;
        rewrite ^ /gate? break;
        proxy_pass http://ipconfig;
        log_by_lua_block { }
    }
--- script
# At the same time, so that each has a place of its own.
my $all_at_once = sub {
    my ($n, $path) = @_;
    my @open = map { begin($path) } 1 .. $n;
    release($n);
    status_of($_) for @open;
};
$all_at_once->(32, '/unlogged');
my $before = in_flight('chat');
say "$before in flight";
# Which places come back is malloc's to say: rounds of many sizes meet one.
my $round = 0;
await('fewer', sub {
    $all_at_once->(1 + 5 * $round++ % 64, '/gate');
    return in_flight('chat') < $before;
});
say 'fewer';
--- response_body
32 in flight
fewer



=== TEST 16: what a killed worker had in flight is given back
--- workers: 2
--- script
my @open = map { begin('/slow?ms=600000') } 1 .. 6;
held(6);
kill KILL => worker_pids();
status_of($_) for @open;
await('new workers serve', sub { get_anew('/') eq 'a' });
over();
my $open = begin('/gate');
held(1);
release();
say status_of($open);
over();
--- response_body
6 in flight
none in flight
1 in flight
200
none in flight
--- error_log
exited on signal 9



=== TEST 17: a reload neither loses nor repeats what is in flight
--- workers: 2
--- script
my @open = map { begin('/gate') } 1 .. 4;
held(4);
reload();
held(4);
my $new = begin('/gate');
held(5);
release(5);
say join ' ', map { status_of($_) } @open, $new;
over();
say counted('a');
--- response_body
4 in flight
4 in flight
5 in flight
200 200 200 200 200
none in flight
5 sent, 0 failed



=== TEST 18: a subrequest tries no instance twice, though nothing of it is kept
--- ipconfig: 1 2 a
--- locations
    location = /parent {
        content_by_lua_block {
            for _ = 1, 3 do ngx.print(ngx.location.capture("/").body) end
        }
    }
--- script
say get('/parent');
say counted($_) for 1, 2, 'a';
--- response_body
a
a
a
3 sent, 0 failed
3 sent, 0 failed
3 sent, 0 failed
--- error_log
connect() failed



=== TEST 19: a failure counts, whatever the client is told instead
--- http_config
    proxy_cache_path cache keys_zone=pages:1m;
--- locations
    location /sorry { return 200 "sorry\n"; }
    location /other {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /code break;
        proxy_intercept_errors on;
        error_page 500 502 =200 @other;
    }
    location @other { rewrite ^ / break; proxy_pass http://$BACKEND_B; }
    location /covered {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /code break;
        proxy_intercept_errors on;
        error_page 500 =200 /sorry;
    }
    location /dropped {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /drop break;
        error_page 502 =200 /sorry;
    }
    location /cached {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /code break;
        proxy_cache pages;
        proxy_cache_key $uri;
        proxy_cache_valid 200 1s;
        proxy_cache_use_stale http_500;
    }
    location /filtered {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /code break;
        header_filter_by_lua_block { ngx.status = 200 }
    }
--- script
get('/cached?code=200');
sleep 2.1;
counted('a');
for my $path (qw(other covered dropped cached filtered)) {
    my %statuses;
    $statuses{ fetch("/$path?code=500")->{status} }++ for 1 .. 30;
    say "$path: ", counts(\%statuses), ', ', counted('a');
}
--- response_body
other: 200:30, 30 sent, 30 failed
covered: 200:30, 30 sent, 30 failed
dropped: 200:30, 30 sent, 30 failed
cached: 200:30, 30 sent, 30 failed
filtered: 200:30, 30 sent, 30 failed
--- error_log
upstream prematurely closed connection



=== TEST 20: an answer is none, whatever the client is told instead
--- proxy
        proxy_intercept_errors on;
        error_page 404 = @dead;
--- locations
    location @dead { proxy_pass http://$DEAD_1; }
    location /filtered {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        rewrite ^ /slow?ms=1? break;
        header_filter_by_lua_block { ngx.status = 503 }
    }
--- script
for my $path ('/code?code=404', '/filtered') {
    my %statuses;
    $statuses{ fetch($path)->{status} }++ for 1 .. 30;
    say counts(\%statuses), ', ', counted('a');
}
--- response_body
502:30, 30 sent, 0 failed
503:30, 30 sent, 0 failed
--- error_log
connect() failed



=== TEST 21: a failure among many answers is found, and then each one is
--- proxy
        proxy_intercept_errors on;
        error_page 500 =200 /sorry;
--- locations
    location /sorry { return 200 "sorry\n"; }
--- script
served(500);
counted('a');
my %count = (a => 0, sorry => 0);
$count{ get(rand() < 0.5 ? '/' : '/code?code=500') }++ for 1 .. 600;
my ($sent, $failed) = counted('a') =~ /(\d+) sent, (\d+) failed/;
note("$failed of $count{sorry}");
say names(\%count);
say $failed > $count{sorry} ? 'too many' : $failed > 0.7 * $count{sorry} ? 'most' : $failed;
--- response_body
a sorry
most



=== TEST 22: a gRPC failure counts, in a trailer and without a body
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:$FREE_PORT_1" } ] } } }
--- http_config
    server {
        listen 127.0.0.1:$FREE_PORT_1 http2;
        default_type application/grpc;
        location / { add_trailer grpc-status $arg_code; return 200 "body"; }
        location /short { add_header grpc-status $arg_code; return 200; }
        location /page {
            default_type text/plain;
            add_header grpc-status $arg_code;
            return 200 "body";
        }
    }
--- locations
    location ~ /(long|short|page) {
        set $ipconfig_service chat;
        grpc_pass grpc://ipconfig;
    }
--- script
for my $path (qw(long short page)) {
    my @counted = map {
        my %statuses;
        my $code = $_;
        $statuses{ fetch("/$path?code=$code")->{status} }++ for 1 .. 20;
        "$code: " . counts(\%statuses) . ', ' . counted('a');
    } 14, 5, 0;
    say "$path $_" for @counted;
}
--- response_body
long 14: 200:20, 20 sent, 20 failed
long 5: 200:20, 20 sent, 0 failed
long 0: 200:20, 20 sent, 0 failed
short 14: 200:20, 20 sent, 20 failed
short 5: 200:20, 20 sent, 0 failed
short 0: 200:20, 20 sent, 0 failed
page 14: 200:20, 20 sent, 0 failed
page 5: 200:20, 20 sent, 0 failed
page 0: 200:20, 20 sent, 0 failed



=== TEST 23: a client that reads slowly does not make the instance look slow
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:$FREE_PORT_1" } ] } } }
--- http_config
    server {
        listen 127.0.0.1:$FREE_PORT_1;
        location / {
            content_by_lua_block {
                ngx.sleep((ngx.var.arg_ms or 0) / 1000)
                local piece = ("x"):rep(100000)
                for _ = 1, ngx.var.arg_pieces do
                    ngx.print(piece)
                    ngx.flush(true)
                end
            }
        }
    }
--- script
sub latency {
    my $page = fetch_anew('/ipconfig/metrics')->{content};
    my ($seconds) = $page =~ /^ipconfig_latency_seconds\{service="chat",instance="a"\} (\S+)/m;
    return $seconds // 'none';
}
say latency();

my ($length, $piece) = (0);
my $open = begin('/?pieces=200');
my $start = time;
while (time - $start < 3) {
    $length += read $open, $piece, 10_000;
    sleep 0.1;
}
held(1);
$length += length $piece while read $open, $piece, 1_000_000;
my $took = time - $start;
say $length > 20_000_000 ? 'all of it' : $length;
over();
my $seconds = latency();
note("$seconds s beside a client that takes $took s");
say $seconds > 0 && $seconds < 0.5 * $took ? 'quick' : $seconds;

fetch('/?pieces=1&ms=900') for 1 .. 2;
$seconds = latency();
note("$seconds s with a slow instance");
say $seconds > 0.25 ? 'slow' : $seconds;
--- response_body
none
1 in flight
all of it
none in flight
quick
slow
