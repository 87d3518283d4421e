# Limits of the requests that instances have in flight: who is full is passed over,
# and when all are full the client is told so.

use lib 't/lib';
use IpconfigTest 'no_plan';

# `ipconfig` has the strategy and the instances, each with its limit: "adaptive: a=2 b=0".
add_block_preprocessor(sub ($) {
    my $block = shift;
    if ($block->ipconfig && $block->ipconfig =~ /^(\w+): (.*)/) {
        my ($strategy, $instances) = ($1, $2);
        $instances = join ', ', map {
            my ($letter, $max) = split /=/;
            my $addr = $letter =~ /\d/ ? "DEAD_$letter" : uc "BACKEND_$letter";
            qq({ "id": "$letter", "addr": "\$$addr", "max_in_flight": $max });
        } split ' ', $instances;
        $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "$strategy" },
                          "instances": [$instances] } } }
_EOC_
    }
    $block->set_value(config => $block->config // <<'_EOC_');
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_next_upstream   error timeout;
        add_header            Tries $upstream_addr always;
    }
_EOC_
});

package IpconfigTest::Script;

# So many requests of 2 s each, each by a client of its own, under way.
my @ends;
sub hold {
    my $n = shift;
    push @ends, map { meanwhile(sub { get_anew('/slow?ms=2000') }) } 1 .. $n;
    return;
}

sub let_go { $_->() for splice @ends; return }

# id -> requests in flight
sub open_on {
    return counts({ map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} } });
}

sub limits {
    return counts({ map { ($_->{id} => $_->{max_in_flight} // 0) } @{ service('chat')->{instances} } });
}

sub refused {
    my $reason = shift;
    my ($value) = fetch('/ipconfig/metrics')->{content}
        =~ /^ipconfig_refused_total\{service="chat",reason="$reason"\} (\d+)/m;
    return $value;
}

sub told {
    my $answer = shift;
    my $headers = $answer->{headers};
    return join ' ', $answer->{status}, $headers->{'ipconfig-reason'} // '-',
        $headers->{'retry-after'} // '-';
}

package main;

run_tests();

__DATA__

=== TEST 1: an instance at its limit is passed over, by every strategy
--- ipconfig: adaptive: a=1 b=0
--- workers: 1
--- script
for my $strategy (qw(best weighted_random round_robin random least_conn p2c adaptive chash)) {
    write_ipconfig(ipconfig() =~ s/"strategy": "\w+"/"strategy": "$strategy"/r);
    reload();
    # a has its one request, whoever else is asked on the way
    await("$strategy sends to a", sub {
        hold(1);
        await('it is open', sub { in_flight('chat') >= 1 });
        return open_on() =~ /a:1/ || do { let_go(); 0 };
    }, 60);
    say "$strategy: ", counts(served(20));
    let_go();
    await('none is in flight', sub { in_flight('chat') == 0 }, 10);
}
--- response_body
best: b:20
weighted_random: b:20
round_robin: b:20
random: b:20
least_conn: b:20
p2c: b:20
adaptive: b:20
chash: b:20
--- no_error_log
[crit]
[alert]



=== TEST 2: all at their limit: 503, with when to come again and why, and counted
--- ipconfig: round_robin: a=2 b=1
--- script
hold(3);
await('all are full', sub { open_on() eq 'a:2 b:1' });
say told(fetch('/')) for 1 .. 2;
say told(fetch_post('/'));
say refused('max_in_flight');
say open_on();
let_go();
await('none is in flight', sub { in_flight('chat') == 0 }, 10);
say names(served(20));
say limits();
--- response_body
503 max_in_flight 1
503 max_in_flight 1
503 max_in_flight 1
3
a:2 b:1
a b
a:2 b:1
--- error_log
nothing to offer for service chat: all instances have as many requests in flight as they may



=== TEST 3: workers together never exceed a limit, and use it all
--- ipconfig: adaptive: a=3 b=2
--- workers: 2
--- script
my $most = 0;
my @clients = map { meanwhile(sub { $_[0]{ get_anew('/slow?ms=20') }++ }) } 1 .. 12;
my $end = time + 3;
while (time < $end) {
    my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
    $most = max($most, $open{a} - 3, $open{b} - 2);
}
my %all;
for my $client (@clients) {
    my $count = $client->();
    $all{$_} += $count->{$_} for keys %$count;
}
say $most <= 0 ? 'never' : "$most too many";
say names(\%all);
await('none is in flight', sub { in_flight('chat') == 0 }, 10);
say in_flight('chat');
--- response_body
never
503 a b
0
--- error_log
nothing to offer



=== TEST 4: a registration has its limit, and a report can lower it and not raise it
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","max_in_flight":10,"status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"$BACKEND_B","max_in_flight":10,"status":"grpc://127.0.0.1:9"}
put instances/chat/c {"addr":"$BACKEND_C","status":"grpc://127.0.0.1:9"}
--- script
ready('chat', 'a b c');
say limits();
my %status = (boot_id => 1, seq => 1, requests => 1);
put_status('test', 'chat', a => { %status, max_in_flight => 4 },
           b => { %status, max_in_flight => 40 }, c => { %status, max_in_flight => 5 });
await('the reports count', sub { limits() =~ /c:5/ });
say limits();
put('instances/chat/a', '{"addr":"$BACKEND_A","max_in_flight":3,"status":"grpc://127.0.0.1:9"}');
await('the registration counts', sub { limits() =~ /a:3/ });
say limits();
--- response_body
a:10 b:10 c:0
a:4 b:10 c:5
a:3 b:10 c:5



=== TEST 5: a retry does not go to an instance at its limit
--- ipconfig: best: 1=0 a=1
--- script
hold(1);
await('a is full', sub { open_on() =~ /a:1/ });
say told(fetch('/'));
let_go();
await('none is in flight', sub { in_flight('chat') == 0 }, 10);
say get('/');
--- response_body
503 max_in_flight 1
a
--- error_log
connect() failed



=== TEST 6: requests that the limits keep out do not go to an instance of weight 0
--- ipconfig
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "$BACKEND_A", "max_in_flight": 1 },
    { "id": "b", "addr": "$BACKEND_B", "weight": 0 } ] } } }
--- script
hold(1);
await('a is full', sub { open_on() =~ /a:1/ });
say told(fetch('/'));
let_go();
--- response_body
503 max_in_flight 1
--- error_log
nothing to offer



=== TEST 7: a service without instances has its reason too
--- ipconfig
{ "services": { "chat": {} } }
--- script
say told(fetch('/'));
say refused('no_instance');
--- response_body
503 no_instance 1
1
--- error_log
it has no instances



=== TEST 8: a worker that is killed leaves no place taken
--- ipconfig: adaptive: a=2
--- workers: 2
--- script
hold(2);
await('a is full', sub { open_on() eq 'a:2' });
kill KILL => $_ for worker_pids();
let_go();
await('its places are free', sub { my $view = eval { open_on() }; ($view // '') eq 'a:0' }, 10);
await('it serves', sub { get_anew('/') eq 'a' }, 10);
say 'served';
--- response_body
served
--- error_log
exited on signal 9
--- no_error_log
[crit]



=== TEST 9: a limit out of range is refused with its path
--- ipconfig
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "$BACKEND_A", "max_in_flight": 1000001 } ] } } }
--- must_die
--- no_wait
--- error_log
services.chat.instances[0].max_in_flight
