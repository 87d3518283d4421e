# An instance whose requests fail is left out for a while: by all workers at once,
# for longer each time, never too many of them, and in a panic nobody.
#
# Of its own a block has, all optional:
#
#   --- ipconfig   "abc {...}": round robin among these, and the service's `health`

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# "a c": who is ejected.
sub ejected {
    my $view = service('chat');
    return join ' ', sort map { $_->{id} } grep { $_->{state} eq 'ejected' } @{ $view->{instances} };
}

sub out { my $ids = shift; await("$ids out", sub { ejected() eq $ids }) }

# A figure of the metrics page.
sub figure {
    my $name = quotemeta shift;
    my $page = fetch_anew('/ipconfig/metrics')->{content};
    return $page =~ /^$name (\S+)$/m ? $1 + 0 : "no $name";
}

sub ejections { figure(qq(ipconfig_ejections_total{service="chat",reason="$_[0]"})) }
sub ejected_now { figure('ipconfig_ejected{service="chat"}') }

# What it says of ejections: "a (time 1), a (time 2)", and for how many seconds.
my $EJECTED = qr/instance (\w+) is ejected for (\d+\.\d) s (\(time \d+\))/;

sub log_text { slurp(IpconfigTest::Parts::servroot() . '/logs/error.log') }

sub told { join ', ', map { join ' ', (/$EJECTED/)[0, 2] } grep { /$EJECTED/ } split /\n/, log_text() }

sub told_seconds { map { /$EJECTED/ ? $2 : () } split /\n/, log_text() }

# Requests until something holds, $path each.
sub until_it_is {
    my ($what, $path, $holds) = @_;
    await($what, sub { get_anew($path); $holds->() });
}

package main;

add_block_preprocessor(sub ($) {
    my $block = shift;
    my ($ids, $health) = ($block->ipconfig // '') =~ /^(\w+) (\{.*\})\s*$/s or return;
    my $instances = join ', ', map {
        '{ "id": "' . $_ . '", "addr": "$' . (/\d/ ? 'DEAD_' : 'BACKEND_') . uc . '" }'
    } split //, $ids;
    $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "round_robin" },
    "health": $health, "instances": [ $instances ] } } }
_EOC_
});

run_tests();

__DATA__

=== TEST 1: an instance that begins to fail is out of all workers after five failures
--- workers: 2
--- ipconfig: abc {}
--- script
my $failed = 0;
for (1 .. 60) {
    get_anew('/?fail=a') eq '500' or next;
    # A worker counts a request after its answer, and another one has the next.
    $failed++;
    await('it is counted', sub {
        figure('ipconfig_failed_tries_total{service="chat",instance="a"}') == $failed
            && ejections('consecutive_failures') == ($failed < 5 ? 0 : 1);
    });
}
say "$failed failed";
out('a');
say counts({ map { ($_ => weights('chat')->{$_}) } qw(a b c) });
say ejections('consecutive_failures'), ' ', ejected_now();
say names(served_anew(30, '/?fail=a'));
--- response_body
5 failed
a:0 b:1 c:1
1 1
b c



=== TEST 2: half of the instances down at once do not empty the service
--- ipconfig: ab12 { "max_ejected": 50 }
--- script
say names(served(60));
out('1 2');
say counts(served(40));
say service('chat')->{panic} ? 'panic' : 'no panic';
--- response_body
a b
a:20 b:20
no panic
--- error_log
connect() failed



=== TEST 3: when fewer than half are healthy all get requests, and the page and the log say so
--- ipconfig: abcde { "max_ejected": 100, "base_ejection": "2s" }
--- script
until_it_is('panic', '/?fail=abc', sub {
    service('chat')->{panic} && ejected() eq 'a b c' && figure('ipconfig_panic{service="chat"}') == 1;
});
say names(served(50));
out('');
say service('chat')->{panic} ? 'panic' : 'no panic', ' ', figure('ipconfig_panic{service="chat"}');
in_log(qr/chat: panic: fewer than 50 % of the instances are healthy; all get requests/);
in_log(qr/chat: enough instances are healthy; the panic is over/);
--- response_body
a b c d e
no panic 0



=== TEST 4: no more than a tenth are ejected, and one in any case
--- ipconfig: abcde {}
--- script
served(200, '/?fail=abc');
await('one is out', sub { ejected() ne '' });
sleep 0.6;
say length ejected(), ' ', ejected_now(), ' ', ejections('consecutive_failures');
--- response_body
1 1 1



=== TEST 5: who fails again is left out for longer, up to a bound
--- ipconfig: abc { "base_ejection": "2s", "max_ejection": "4s" }
--- script
until_it_is('out three times', '/?fail=a', sub { told() =~ /time 3/ });
# What is told is what is left; by chance an ejection is up to a tenth longer.
my @seconds = told_seconds();
say $seconds[0] <= 2.2 ? 'once' : "@seconds";
say $seconds[1] > 2.2 && $seconds[1] <= 4.4 ? 'twice as long' : "@seconds";
say $seconds[2] > 2.2 && $seconds[2] <= 4.4 ? 'no longer' : "@seconds";
--- response_body
once
twice as long
no longer



=== TEST 6: who is back is served by all workers, and the log has both
--- workers: 2
--- ipconfig: abc { "base_ejection": "1s" }
--- script
until_it_is('out', '/?fail=a', sub { ejections('consecutive_failures') == 1 });
await('it is back', sub { ejected_now() == 0 });
in_log(qr/chat: instance a is ejected for /);
in_log(qr/chat: instance a gets requests again/);
say ejected(), names(served_anew(60));
--- response_body
a b c



=== TEST 7: what is a failure is configured by status, and connections that fail always are
--- ipconfig: abc { "failures": ["404"], "max_ejected": 100, "panic": 0 }
--- script
say counts(served(30, '/?fail=a'));
my $count = served(30, '/?miss=a');
say "404:$count->{404}, ", $count->{b} + $count->{c};
out('a');
say counts(served(30, '/?drop=b'));
out('a b');
--- response_body
500:10 b:10 c:10
404:5, 25
c:30
--- error_log
upstream prematurely closed connection



=== TEST 8: who succeeds less often than the others is ejected
--- ipconfig
abc { "consecutive_failures": 0, "interval": "3s", "failure_percentage": { "threshold": 0 },
      "success_rate": { "stdev": 1.2, "min_instances": 3, "min_requests": 12 } }
--- script
# Of b's requests, every other one fails.
until_it_is('b is out', '/', sub {
    get($_ % 2 ? '/?fail=b' : '/') for 1 .. 60;
    ejected() eq 'b';
});
say ejections('success_rate'), ' ', ejections('failure_percentage');
in_log(qr/it fails more often than the others/);
--- response_body
1 0



=== TEST 9: whose requests mostly fail is ejected
--- ipconfig
abc { "consecutive_failures": 0, "interval": "2s", "success_rate": { "stdev": 0 },
      "failure_percentage": { "threshold": 85, "min_instances": 3, "min_requests": 10 } }
--- script
until_it_is('b is out', '/?fail=b', sub { ejected() eq 'b' });
say ejections('success_rate'), ' ', ejections('failure_percentage');
in_log(qr/most of its requests fail/);
--- response_body
0 1



=== TEST 10: a reload keeps who is ejected, and tells of it no second time
--- workers: 2
--- ipconfig: abc {}
--- script
served_anew(30, '/?fail=a');
out('a');
reload();
say names(served_anew(60));
say ejected(), ' ', ejected_now(), ' ', ejections('consecutive_failures');
sleep 1;
say told() eq 'a (time 1)' ? 'told once' : told();
--- response_body
b c
a 1 1
told once



=== TEST 11: an ejected instance that deregisters makes place for another
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
served(30, '/?fail=a');
out('a');
del('instances/chat/a');
ready('chat', 'b c');
await('none is ejected', sub { ejected_now() eq '0' });
served(30, '/?fail=b');
out('b');
say names(served(10));
--- response_body
c



=== TEST 12: the only instance of a service gets requests whatever it answers
--- ipconfig: a {}
--- script
say counts(served(20, '/?fail=a'));
await('panic', sub { service('chat')->{panic} });
say ejected(), ' ', counts(served(5));
--- response_body
500:20
a a:5



=== TEST 13: without it nobody is ejected
--- ipconfig: abc { "max_ejected": 0 }
--- script
say counts(served(60, '/?fail=a'));
sleep 0.3;
say counts(served(30)), ' ', ejections('consecutive_failures');
--- response_body
500:20 b:20 c:20
a:10 b:10 c:10 0



=== TEST 14: manual weights stay those of the operator when the only one that has one fails
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
put control/chat {"mode":"manual","weights":{"a":1}}
--- script
ready('chat', 'a b c');
served(10, '/?fail=a');
out('a');
say counts(served(10));
--- response_body
a:10
