# What becomes of a request whose try failed: failover, failfast, failback and
# failcache, and the retry budget.

use lib 't/lib';
use IpconfigTest 'no_plan';

# `ipconfig` has the strategy, `failure` as JSON and the instances by letter, as
# in t/030-retry.t; 8 and 9 take a request and close the connection. Nobody is
# ejected.
add_block_preprocessor(sub ($) {
    my $block = shift;
    if ($block->ipconfig && $block->ipconfig =~ /^(\w+) (\{.*\}) tries (\d+): (.*)/) {
        my ($strategy, $failure, $tries, $letters) = ($1, $2, $3, $4);
        my $instances = join ', ', map {
            sprintf '{ "id": "%s", "addr": "%s" }', $_,
                { 8 => '127.0.0.1:$FREE_PORT_1', 9 => '127.0.0.1:$FREE_PORT_2' }->{$_}
                    // (/\d/ ? "\$DEAD_$_" : "\$BACKEND_" . uc)
        } split ' ', $letters;
        $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "$strategy", "tries": $tries },
                          "health": { "max_ejected": 0 },
                          "failure": $failure, "instances": [$instances] } } }
_EOC_
    }

    $block->set_value(http_config => ($block->http_config // '') . <<'_EOC_');
    server { listen 127.0.0.1:$FREE_PORT_1; listen 127.0.0.1:$FREE_PORT_2; return 444; }
_EOC_

    my $next = $block->next_upstream // 'error timeout';
    $block->set_value(config => $block->config // <<"_EOC_");
    location / {
        set \$ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_http_version    1.1;
        proxy_set_header      Connection "";
        proxy_next_upstream   $next;
        add_header            Tries \$upstream_addr always;
        location /slow {
            set \$ipconfig_service chat;
            proxy_pass         http://ipconfig;
            proxy_read_timeout 300ms;
        }
    }
_EOC_
});

package IpconfigTest::Script;

# One of the service's counters on the metrics page; of one reason where there are
# several.
sub counter {
    my ($name, $reason) = @_;
    my $labels = $reason ? qr/service="chat",reason="$reason"/ : qr/service="chat"/;
    my ($value) = fetch('/ipconfig/metrics')->{content} =~ /^ipconfig_$name\_total\{$labels\} (\d+)/m;
    return $value;
}

# Status, reason and Retry-After of an answer, and how often it was tried.
sub told {
    my $answer = shift;
    my $headers = $answer->{headers};
    return join ' ', $answer->{status}, $headers->{'ipconfig-reason'} // '-',
        $headers->{'retry-after'} // '-', scalar tries($answer);
}

package main;

run_tests();

__DATA__

=== TEST 1: failover is the default: another instance answers, balance.tries times at most
--- ipconfig: round_robin {} tries 2: a b 1
--- script
my $count = served(60);
say names($count), ' ', sum0(values %$count);
say counter('retries');
--- response_body
a b 60
20
--- error_log
connect() failed



=== TEST 2: a POST that was sent is not sent again
--- ipconfig: round_robin {} tries 2: a b
--- script
my %seen;
$seen{ scalar tries(fetch_post('/drop')) }++ for 1 .. 20;
say counts(\%seen);
say counter('retries');
--- response_body
1:20
0
--- error_log
upstream prematurely closed connection



=== TEST 3: one whose connection is refused goes elsewhere
--- ipconfig: round_robin {} tries 2: a 1
--- script
my %seen;
$seen{ post('/') }++ for 1 .. 20;
say counts(\%seen);
--- response_body
a:20
--- error_log
connect() failed



=== TEST 4: where the location declares its requests idempotent, a POST is sent again
--- ipconfig: round_robin {} tries 2: a b
--- next_upstream: error timeout non_idempotent
--- script
my %seen;
$seen{ scalar tries(fetch_post('/drop')) }++ for 1 .. 20;
say counts(\%seen);
--- response_body
2:20
--- error_log
upstream prematurely closed connection



=== TEST 5: an instance that is killed with requests open costs no GET
--- ipconfig: round_robin {} tries 2: a b c
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_next_upstream   error timeout;
    }
--- script
sub sent {
    my ($sent) = fetch('/ipconfig/metrics')->{content}
        =~ /^ipconfig_requests_total\{service="chat",instance="$_[0]"\} (\d+)/m;
    return $sent // 0;
}

my @ends = map { meanwhile(sub { $_[0]{ get_anew('/slow?ms=100') }++ }) } 1 .. 4;
await('b serves, too', sub { sent('b') > 6 });
kill_backend('b');
my %before = map { $_ => sent($_) } qw(a c);
await('the others serve', sub { !grep { sent($_) < $before{$_} + 10 } qw(a c) });
my %all;
for my $end (@ends) {
    my $count = $end->();
    $all{$_} += $count->{$_} for keys %$count;
}
say names(\%all);
start_backend('b');
--- response_body
a b c
--- error_log eval
qr/connect\(\) failed|prematurely closed|reset by peer/



=== TEST 6: failfast: a request that failed has failed
--- ipconfig: round_robin {"mode":"failfast"} tries 2: a 1
--- script
my %seen;
$seen{ told(fetch('/')) }++ for 1 .. 20;
say counts(\%seen);
say counter('retries');
--- response_body
200 - - 1:10 502 - - 1:10
0
--- error_log
connect() failed



=== TEST 7: failback: the client is told how it failed, and no other instance is asked
--- ipconfig: round_robin {"mode":"failback"} tries 2: a 1
--- next_upstream: error timeout http_500 http_503
--- script
my %seen;
$seen{ told(fetch('/')) }++ for 1 .. 20;
say counts(\%seen);
say told((grep { $_->{status} == 504 } map { fetch('/slow?ms=600000') } 1 .. 2)[0]);
%seen = ();
$seen{ told(fetch('/code?code=503')) }++ for 1 .. 20;
say counts(\%seen);
say join ' ', map { "$_:" . counter('refused', $_) } qw(error timeout status);
say counter('retries'), ' ', served(10)->{a} // 0;
--- response_body
200 - - 1:10 502 error - 2:10
504 timeout - 2
502 error - 2:10 502 status - 2:10
error:21 timeout:1 status:10
0 5
--- error_log
connect() failed



=== TEST 8: failback tells of no failure that proxy_next_upstream does not name
--- ipconfig: round_robin {"mode":"failback"} tries 2: a b
--- next_upstream: timeout
--- script
say told(fetch('/code?code=500'));
say told(fetch('/drop'));
say told(fetch_post('/slow?ms=600000'));
say counter('refused', 'error');
--- response_body
500 - - 1
502 - - 1
504 - - 1
0
--- error_log
upstream prematurely closed connection



=== TEST 9: failcache: after one failure an instance gets nothing until it has rested
--- ipconfig: round_robin {"mode":"failcache","rest":"1500ms"} tries 2: a b 1
--- script
# When the requests began that met it, and how many were between.
my (@met, $between);
await('it was tried three times', sub {
    my $began = time;
    tries(fetch('/')) == 2 ? push @met, $began : $between++;
    return @met == 3;
});
my @rests = map { $met[$_] - $met[$_ - 1] } 1, 2;
note("$between requests, @rests s");
# The second one's rest began a moment after its request did.
say min(@rests) > 1.4 ? 'it rests' : "@rests";
say $between > 60 ? 'and the others serve' : $between;
--- response_body
it rests
and the others serve
--- error_log
connect() failed



=== TEST 10: so do all workers of the host
--- ipconfig: round_robin {"mode":"failcache","rest":"1m"} tries 2: a b 1
--- workers: 2
--- script
await('it was tried', sub { tries(fetch_anew('/')) == 2 });
my %seen;
$seen{ scalar tries(fetch_anew('/')) }++ for 1 .. 100;
say counts(\%seen);
--- response_body
1:100
--- error_log
connect() failed



=== TEST 11: an instance whose last try failed rests as well
--- ipconfig: round_robin {"mode":"failcache","rest":"1m"} tries 0: a b
--- script
my ($first) = fetch('/drop')->{headers}{tries};
my %seen;
$seen{ (tries(fetch('/')))[0] eq $first ? 'the one that failed' : 'the other' }++ for 1 .. 20;
say counts(\%seen);
--- response_body
the other:20
--- error_log
upstream prematurely closed connection



=== TEST 12: where all of a service rest, none does
--- ipconfig: round_robin {"mode":"failcache","rest":"1m"} tries 2: a b
--- script
fetch('/drop') for 1 .. 2;
say names(served(20)), ' ', sum0(values %{ served(20) });
--- response_body
a b 20
--- error_log
upstream prematurely closed connection



=== TEST 13: a bad day costs a part of the requests in retries, and the reserve, and is told
--- ipconfig: round_robin {"budget":{"percent":20,"reserve":10,"per_second":0}} tries 2: a b 8 9
--- script
my (%seen, $tries);
for (1 .. 500) {
    my $answer = fetch('/');
    $tries += tries($answer);
    $seen{ told($answer) =~ s/ \d+$//r }++;
}
my ($retries, $denied) = (counter('retries'), counter('retries_denied'));
my $most = 0.2 * 500 + 10;
say $retries <= $most ? 'within the budget' : "$retries retries";
say $retries > 0.9 * $most ? 'which is used' : "of which $retries are used";
say $denied == $seen{'503 retry_budget 1'} ? 'those denied are told so' : counts(\%seen);
say $seen{'200 - -'} + $denied;
# what is denied goes to the responder, not to an instance
say $tries == 500 + $retries + $denied ? 'counted' : "$tries tries";
--- response_body
within the budget
which is used
those denied are told so
500
counted
--- error_log
upstream prematurely closed connection



=== TEST 14: all workers have one budget
--- ipconfig: round_robin {"budget":{"percent":0,"reserve":10,"per_second":0}} tries 2: a 8
--- workers: 2
--- script
my %seen;
$seen{ fetch_anew('/')->{status} }++ for 1 .. 200;
say counter('retries');
--- response_body
10
--- error_log
upstream prematurely closed connection



=== TEST 15: time fills the budget of a service of few requests
--- ipconfig: best {"budget":{"percent":0,"reserve":3,"per_second":1}} tries 1: 8 a
--- script
sub statuses { my %seen; $seen{ fetch('/')->{status} }++ for 1 .. shift; return \%seen }
# `best` asks 8 first, each time
statuses(3);
await('it is used up', sub { statuses(1)->{503} });
sleep 3.5;
my $seen = statuses(20);
say $seen->{200} >= 3 && $seen->{503} >= 1 ? 'filled' : counts($seen);
--- response_body
filled
--- error_log
upstream prematurely closed connection



=== TEST 16: a retry that is denied is denied once, whatever proxy_next_upstream says of 503
--- ipconfig: best {"budget":{"percent":0,"reserve":0}} tries 3: 8 a b
--- next_upstream: error timeout http_503
--- script
say told(fetch('/')) for 1 .. 3;
say counter('retries_denied'), ' ', counter('retries');
--- response_body
503 retry_budget 1 3
503 retry_budget 1 3
503 retry_budget 1 3
3 0
--- error_log
upstream prematurely closed connection



=== TEST 17: a bad day is one line a second and service in the log
--- ipconfig: best {"budget":{"percent":0,"reserve":0,"per_second":0}} tries 1: 8 a
--- script
my $begin = time;
get('/') for 1 .. 400;
my $seconds = int(time - $begin) + 1;
my $lines = logged(qr/nothing to offer for service chat: too many requests have failed/);
say $lines >= 1 && $lines <= $seconds ? 'few lines' : "$lines lines in $seconds s";
sleep 1.1;
get('/');
say logged(qr/too many requests have failed for one more try \(\d+ requests\)/) >= 1
    ? 'with how many they are of' : 'without a number';
--- response_body
few lines
with how many they are of
--- error_log
upstream prematurely closed connection



=== TEST 18: a connection in vain costs no instance anything, and is not paid for
--- ipconfig: best {"budget":{"percent":0,"reserve":0,"per_second":0}} tries 1: 1 a
--- script
say counts(served(50)), ' ', counter('retries'), ' ', counter('retries_denied');
--- response_body
a:50 50 0
--- error_log
connect() failed
