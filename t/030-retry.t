use lib 't/lib';
use IpconfigTest 'no_plan';

# Each block's instances are those that its `ipconfig` names by letter: a to e,
# and 1 to 3 for addresses that refuse connections. Nobody is ejected, so that each
# request meets what is dead, and the retry budget, which t/250 is about, is large.

add_block_preprocessor(sub ($) {
    my $block = shift;
    my ($strategy, $tries, $letters) = $block->ipconfig =~ /^(\w+) tries (\d+): (.*)/;
    my $instances = join ', ', map {
        sprintf '{ "id": "%s", "addr": "$%s" }', $_, /\d/ ? "DEAD_$_" : uc "BACKEND_$_"
    } split ' ', $letters;
    $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "$strategy", "tries": $tries },
                          "health": { "max_ejected": 0 },
                          "failure": { "budget": { "percent": 1000 } },
                          "instances": [$instances] } } }
_EOC_

    my $config = $block->config // <<'_EOC_';
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_http_version    1.1;
        proxy_set_header      Connection "";
        add_header            Tries $upstream_addr always;
    }
_EOC_
    $block->set_value(config => $config);
});

run_tests();

__DATA__

=== TEST 1: a refused connection costs its request nothing
--- ipconfig: round_robin tries 2: a b 1
--- script
my $count = served(200);
say names($count), ', ', sum0(values %$count);
--- response_body
a b, 200
--- error_log
connect() failed



=== TEST 2: so it is with every strategy
--- ipconfig: round_robin tries 2: 1 a b
--- workers: 1
--- script
for my $strategy (qw(best weighted_random random p2c adaptive)) {
    write_ipconfig(ipconfig() =~ s/"strategy": "\w+"/"strategy": "$strategy"/r);
    reload();
    ready('chat', '1 a b');
    my $count = served_anew(60);
    my $failed = sum0(map { $count->{$_} } grep { !/^[ab]$/ } keys %$count);
    say "$strategy: $failed failed";
}
--- response_body
best: 0 failed
weighted_random: 0 failed
random: 0 failed
p2c: 0 failed
adaptive: 0 failed
--- error_log
connect() failed



=== TEST 3: a request goes to no instance twice
--- ipconfig: adaptive tries 16: a b c d
--- script
my %seen;
for (1 .. 50) {
    my $answer = fetch('/drop');
    my @tries = tries($answer);
    $seen{"$answer->{status} after " . @tries . ' tries at ' . uniq(@tries) . ' instances'}++;
}
say counts(\%seen);
--- response_body
502 after 4 tries at 4 instances:50
--- error_log
upstream prematurely closed connection



=== TEST 4: it moves no more often than balance.tries says
--- ipconfig: weighted_random tries 1: a b c d
--- script
my %seen;
$seen{ scalar tries(fetch('/drop')) }++ for 1 .. 50;
say counts(\%seen);
--- response_body
2:50
--- error_log
upstream prematurely closed connection



=== TEST 5: with tries 0 it does not move
--- ipconfig: round_robin tries 0: a 1
--- script
my $count = served(40);
say counts($count);
--- response_body
502:20 a:20
--- error_log
connect() failed



=== TEST 6: where all instances refuse, the request ends with an error, having asked each once
--- ipconfig: adaptive tries 2: 1 2 3
--- script
my %seen;
for (1 .. 20) {
    my $answer = fetch('/');
    $seen{"$answer->{status} after " . uniq(tries($answer))}++;
}
say counts(\%seen);
--- response_body
502 after 3:20
--- error_log
connect() failed



=== TEST 7: an answer of an instance is an answer, whatever its status
--- ipconfig: round_robin tries 2: a b
--- script
my %seen;
for (1 .. 20) {
    my $answer = fetch('/code?code=503');
    $seen{"$answer->{status} after " . tries($answer)}++;
}
say counts(\%seen);
--- response_body
503 after 1:20



=== TEST 8: unless proxy_next_upstream names the status
--- ipconfig: round_robin tries 2: a b
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_next_upstream   error http_503;
        add_header            Tries $upstream_addr always;
    }
--- script
my %seen;
for (1 .. 20) {
    my $answer = fetch('/code?code=503');
    $seen{"$answer->{status} after " . uniq(tries($answer))}++;
}
say counts(\%seen);
--- response_body
503 after 2:20



=== TEST 9: an upstream of one's own with keepalive moves on as well
--- ipconfig: round_robin tries 2: a b 1
--- http_config
    upstream own {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance("chat") }
        keepalive 8;
    }
--- config
    location / {
        proxy_pass         http://own;
        proxy_http_version 1.1;
        proxy_set_header   Connection "";
    }
--- script
my $count = served(200);
say names($count), ', ', sum0(values %$count);
say in_flight('chat'), ' in flight';
--- response_body
a b, 200
0 in flight
--- error_log
connect() failed



=== TEST 10: an instance that dies takes no request with it
--- ipconfig: round_robin tries 2: a b c
--- script
say names(served(30));
kill_backend('b');
my $count = served(100);
say names($count), ', ', sum0(values %$count);
start_backend('b');
await('b serves again', sub { served(3)->{b} });
--- response_body
a b c
a c, 100
--- error_log
connect() failed



=== TEST 11: a POST that was not sent moves on
--- ipconfig: round_robin tries 2: a 1
--- script
my %count;
$count{ post('/') }++ for 1 .. 40;
say counts(\%count);
--- response_body
a:40
--- error_log
connect() failed



=== TEST 12: a POST that was sent does not, and a GET does
--- ipconfig: round_robin tries 2: a b
--- script
my (%post, %get);
$post{ scalar tries(fetch_post('/drop')) }++ for 1 .. 20;
$get{ scalar tries(fetch('/drop')) }++ for 1 .. 20;
say counts(\%post);
say counts(\%get);
--- response_body
1:20
2:20
--- error_log
upstream prematurely closed connection



=== TEST 13: whatever becomes of requests, none stays in flight
--- ipconfig: adaptive tries 2: a b 1
--- script
my @ends = map { meanwhile(sub { get('/slow?ms=50') }) } 1 .. 3;
await('some are in flight', sub { in_flight('chat') > 0 });
served(30);
fetch('/drop') for 1 .. 10;
post('/drop') for 1 .. 10;
$_->() for @ends;
abandon('/slow?ms=1000') for 1 .. 3;
await('none is in flight', sub { in_flight('chat') == 0 });
say 'none in flight';
--- response_body
none in flight
--- error_log
connect() failed



=== TEST 14: each failed try is counted with its instance, the last one too
--- ipconfig: round_robin tries 2: a 1
--- script
sub failed {
    my $page = fetch('/ipconfig/metrics')->{content};
    return { $page =~ /^ipconfig_failed_tries_total\{.*?instance="(\w)".*?\} (\d+)/mg };
}

my $before = failed();
my $moved = grep { tries(fetch('/')) == 2 } 1 .. 20;
fetch('/drop') for 1 .. 5;
my $after = failed();
my %counted = map { $_ => $after->{$_} - $before->{$_} } '1', 'a';
say $moved > 0 && $counted{1} == $moved + 5 && $counted{a} == 5 ? 'counted'
    : "$moved moved, counted " . counts(\%counted);
--- response_body
counted
--- error_log
connect() failed



=== TEST 15: a subrequest, which has no log phase, leaves nothing in flight
--- ipconfig: adaptive tries 2: a b 1
--- config
    location / {
        auth_request /auth;
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
    location = /auth {
        internal;
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
    }
--- script
say names(served(60));
say in_flight('chat'), ' in flight';
--- response_body
a b
0 in flight
--- error_log
connect() failed
