# A request is in flight from its choice to its end, exactly once, by whatever
# path it ends: what the service's page and the metrics page show goes up while
# it is open and is 0 afterwards.

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

# All are over, and soon.
sub over {
    await('none in flight', sub { !grep { flying($_) ne '0' } @_ ? @_ : 'chat' }, 2);
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

# A request that is under way: its connection.
sub begin {
    my ($path, @headers) = @_;
    my $connection = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1', PeerPort => IpconfigTest::Parts::server_port(), Timeout => 5,
    ) or die "failed to connect: $!\n";
    @headers = 'Connection: close' if !@headers;
    print {$connection} join("\r\n", "GET $path HTTP/1.1", 'Host: test', @headers), "\r\n\r\n";
    return $connection;
}

# The status of its answer, once it is complete.
sub status_of {
    my $connection = shift;
    my $answer = do { local $/; <$connection> } // '';
    return $answer =~ m{^HTTP/1\.1 (\d+)} ? $1 : 'none';
}

package main;

my $Best = '{ "services": { "chat": { "balance": { "strategy": "best" }, "instances": [ %s ] } } }';

add_block_preprocessor(sub ($) {
    my $block = shift;
    my $ipconfig = $block->ipconfig // 'a';

    # "1 a": best of the instances of these names, in this order
    if ($ipconfig =~ /^[\da-e ]+$/) {
        my $instances = join ', ', map {
            sprintf '{ "id": "%s", "addr": "$%s" }', $_, /\d/ ? "DEAD_$_" : uc "BACKEND_$_"
        } split ' ', $ipconfig;
        $block->set_value(ipconfig => sprintf $Best, $instances);
    }

});

run_tests();

__DATA__

=== TEST 1: a request is in flight until it is answered
--- script
my @open = map { begin('/slow?ms=500') } 1 .. 3;
held(3);
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
my $open = begin('/slow?ms=500');
held(1);
say join ' ', map { "$_->{id}:$_->{in_flight}" }
    sort { $a->{id} cmp $b->{id} } @{ service('chat')->{instances} };
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
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        proxy_next_upstream error timeout http_503;
    }
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
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        proxy_read_timeout 400ms;
    }
--- script
my $open = begin('/slow?ms=5000');
held(1);
say status_of($open);
over();
say counted('a');
--- response_body
1 in flight
504
none in flight
1 sent, 1 failed
--- error_log
upstream timed out



=== TEST 6: a request whose connection is never made is over, and failed
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "full", "addr": "127.0.0.1:$FREE_PORT_1" } ] } } }
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        proxy_connect_timeout 400ms;
    }
--- script
# Nobody accepts, and there is no room to wait in.
my $port = IpconfigTest::Parts::expand('$FREE_PORT_1');
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1);
my @waiting = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Blocking => 0) } 1 .. 8;
my $open = begin('/');
held(1);
say status_of($open);
over();
say counted('full');
--- response_body
1 in flight
504
none in flight
1 sent, 1 failed
--- error_log
upstream timed out



=== TEST 7: a request whose client goes away while it waits is over, and has not failed
--- script
my $open = begin('/slow?ms=5000');
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
my $open = begin('/stream?n=50&ms=100');
my $line = <$open>;
held(1);
close $open;
over();
say counted('a');
--- response_body
1 in flight
none in flight
1 sent, 0 failed



=== TEST 9: an answer that comes in pieces is in flight to its last one
--- script
my $open = begin('/stream?n=8&ms=100');
<$open> =~ /^HTTP/ or die "no answer\n";
held(1);
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
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_http_version    1.1;
        proxy_set_header      Connection Upgrade;
        proxy_set_header      Upgrade lines;
    }
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
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] },
                "mail": { "instances": [ { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        proxy_intercept_errors on;
        error_page 404 500 502 = /mail;
    }
    location = /mail {
        set $ipconfig_service mail;
        rewrite ^ /slow?ms=400? break;
        proxy_pass http://ipconfig;
    }
--- script
for my $path ('/drop', '/code?code=500', '/code?code=404') {
    my $open = begin($path);
    held(1, 'mail');
    say flying('chat'), ' at chat';
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
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] },
                "mail": { "instances": [ { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
    location /tried { try_files /none @mail; }
    location @mail {
        set $ipconfig_service mail;
        rewrite ^ /slow?ms=400? break;
        proxy_pass http://ipconfig;
    }
--- script
for my $path ('/accel?to=@mail', '/tried') {
    my $open = begin($path);
    held(1, 'mail');
    say flying('chat'), ' at chat';
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
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
    location = /parent {
        access_by_lua_block {
            ngx.location.capture("/slow?ms=400")
            ngx.location.capture_multi { { "/slow?ms=10" }, { "/code?code=503" } }
        }
        set $ipconfig_service chat;
        rewrite ^ /slow?ms=400? break;
        proxy_pass http://ipconfig;
    }
--- script
my $open = begin('/parent');
await('the first is sent', sub { counted('a') =~ /^1 sent/ });
say flying();
held(1);
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
--- config
    log_subrequest on;
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
    location = /parent {
        content_by_lua_block { ngx.print(ngx.location.capture("/slow?ms=400").body) }
    }
--- script
my $open = begin('/parent');
await('it is sent', sub { counted('a') =~ /^1 sent/ });
say flying();
say status_of($open);
over();
say counted('a');
--- response_body
0
200
none in flight
0 sent, 0 failed



=== TEST 15: without the log hook a request stays in flight until its place in memory serves another
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
    location = /unlogged {
        set $ipconfig_service chat;
        rewrite ^ /slow?ms=100? break;
        proxy_pass http://ipconfig;
        log_by_lua_block { }
    }
--- script
# At the same time, so that each has a place of its own.
my @open = map { begin('/unlogged') } 1 .. 8;
status_of($_) for @open;
my $before = in_flight('chat');
say $before > 1 ? 'some in flight' : $before;
# Which places come back is malloc's to say: rounds of many sizes meet one.
my $round = 0;
await('fewer', sub {
    my @others = map { begin('/slow?ms=20') } 1 .. 1 + 5 * $round++ % 32;
    status_of($_) for @others;
    return in_flight('chat') < $before;
}, 15);
say 'fewer';
--- response_body
some in flight
fewer



=== TEST 16: what a killed worker had in flight is given back
--- workers: 2
--- script
my @open = map { begin('/slow?ms=5000') } 1 .. 6;
held(6);
kill KILL => worker_pids();
status_of($_) for @open;
await('new workers serve', sub { get_anew('/') eq 'a' });
over();
my $open = begin('/slow?ms=500');
held(1);
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
my @open = map { begin('/slow?ms=2500') } 1 .. 4;
held(4);
reload();
held(4);
my $new = begin('/slow?ms=2500');
held(5);
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
