# The gateway's own checks: instances that are killed, frozen or answer wrongly
# leave, whatever they say of themselves, and come back when they pass again.

use lib 't/lib';
use IpconfigTest 'no_plan';

our $CHECK = '"http": "/", "interval": "300ms", "timeout": "300ms"';

add_block_preprocessor(sub {
    my $block = shift;
    $block->set_value(ipconfig => qq({ "services": { "chat": {
        "balance": { "strategy": "round_robin", "tries": 0 },
        "check": { $::CHECK } } } })) if !defined $block->ipconfig && !defined $block->ipconfig_file;
    $block->set_value(etcd => <<'_EOC_') if !defined $block->etcd;
register chat a b c
_EOC_
});

package IpconfigTest::Script;

sub await_states {
    my $wanted = shift;
    return await("the states are $wanted", sub { ranking_states('chat') eq $wanted });
}

sub backend_pid { IpconfigTest::Parts::backend_pid(shift) }

# A figure of the metrics page.
sub metric {
    my $name = shift;
    return get_anew('/ipconfig/metrics') =~ /^\Q$name\E (\S+)$/m ? $1 : 'none';
}

# Who answers: requests enough for everybody's turn in each worker.
sub who { names(served_anew(30)) }

package main;

run_tests();

__DATA__

=== TEST 1: an instance that is killed leaves after three checks, and is back after two
--- script
await('all are checked', sub {
    metric('ipconfig_checked_instances{service="chat",state="up"}') eq '3.0' });
my $began = time;
kill_backend('c');
await_states('a:unreported b:unreported c:failing');
say time - $began > 0.5 ? 'after three checks' : 'after ' . (time - $began) . ' s';
say who();
$began = time;
start_backend('c');
await_states('a:unreported b:unreported c:unreported');
say time - $began > 0.25 ? 'after two checks' : 'after ' . (time - $began) . ' s';
say who();
in_log(qr/chat: c passes its checks at/);
say logged(qr/\[warn\].*chat: c fails its checks at \S+: connection refused/), ' ',
    logged(qr/chat: c passes its checks at \S+ again/);
--- response_body
after three checks
a b
after two checks
a b c
1 1



=== TEST 2: an instance that is frozen leaves by its timeouts, and the others are served meanwhile
--- script
my $pid = backend_pid('b');
stop($pid);
my $left = eval { await_states('a:unreported b:failing c:unreported'); 1 };
say $left ? 'left' : $@;
say who();
kill CONT => $pid;
await_states('a:unreported b:unreported c:unreported');
say who();
in_log(qr/chat: b fails its checks at/);
say logged(qr/chat: b fails its checks at \S+: timeout/);
--- response_body
left
a c
a b c
1



=== TEST 3: a status that is not good is named, and one that the list has is good
--- ipconfig
{ "services": {
    "chat": { "check": { "http": "/code?code=500", "interval": "300ms", "timeout": "300ms" } },
    "mail": { "check": { "http": "/code?code=500", "interval": "300ms", "timeout": "300ms",
                         "status": ["500"] } } } }
--- etcd
register chat a
register mail a
--- script
await_states('a:failing');
await('it is counted', sub {
    metric('ipconfig_checked_instances{service="mail",state="up"}') eq '1.0' });
say ranking_states('mail');
in_log(qr/chat: a fails its checks at/);
say logged(qr/chat: a fails its checks at \S+: status 500/);
for my $figure ('checks_total{service="chat",result="status"}', 'check_seconds_total{service="mail"}',
                'checks_total{service="mail",result="passed"}') {
    await($figure, sub { my $value = metric("ipconfig_$figure"); $value ne 'none' && $value > 0 });
    say $figure;
}
--- response_body
a:unreported
1
checks_total{service="chat",result="status"}
check_seconds_total{service="mail"}
checks_total{service="mail",result="passed"}



=== TEST 4: an instance that registers before it listens is out at its first check
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin", "tries": 0 },
                          "check": { "http": "/", "interval": "20s", "fall": 100 } } } }
--- script
my $began = time;
put('instances/chat/d', '{"addr":"$DEAD_1"}');
await_states('a:unreported b:unreported c:unreported d:failing');
say time - $began < 20 ? 'at once' : 'after ' . (time - $began) . ' s';
say who();
--- response_body
at once
a b c



=== TEST 5: a port is enough for tcp, and another one can be checked
--- ipconfig
{ "services": {
    "chat": { "check": { "tcp": true, "interval": "300ms", "timeout": "300ms" } },
    "mail": { "check": { "tcp": true, "interval": "300ms", "timeout": "300ms",
                         "port": $FREE_PORT_1 } } } }
--- etcd
register chat a b
put instances/chat/d {"addr":"$DEAD_1"}
register mail a
--- script
await_states('a:unreported b:unreported d:failing');
await('mail fails', sub { ranking_states('mail') eq 'a:failing' });
say 'both';
--- response_body
both



=== TEST 6: no good report brings back one whose checks fail, and no good check one that says that it is not serving
--- ipconfig eval
# A report counts for longer than the test takes.
qq({ "services": { "chat": { "balance": { "strategy": "round_robin", "tries": 0 },
    "status": { "missed": 100 }, "check": { $::CHECK } } } })
--- etcd
register chat a b c {"status":"grpc://127.0.0.1:9"}
--- script
my $seq = 0;
my $well = sub { ++$seq; return { boot_id => 1, seq => $seq, requests => 100 * $seq } };
my $tell = sub { put_status('e', 'chat', a => $well->(), b => $_[0], c => $well->()) };
$tell->($well->());
await_states('a:reporting b:reporting c:reporting');
kill_backend('c');
await_states('a:reporting b:reporting c:failing');
for (1 .. 5) { $tell->($well->()); sleep 0.1 }
say ranking_states('chat'), ' ', who();

$tell->(not_serving());
ready('chat', 'a c');
sleep 1;
say ranking_states('chat');
start_backend('c');
await_states('a:reporting c:reporting');
say who();

# Both at once: each has to be taken back.
kill_backend('b');
sleep 1;
$tell->($well->());
await_states('a:reporting b:failing c:reporting');
start_backend('b');
await_states('a:reporting b:reporting c:reporting');
say who();
--- response_body
a:reporting b:reporting c:failing a b
a:reporting c:failing
a c
a b c



=== TEST 7: a reload neither brings back who fails nor puts out who is well
--- workers: 2
--- script
kill_backend('c');
await_states('a:unreported b:unreported c:failing');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++; sleep 0.005 });
reload();
sleep 0.5;
reload();
sleep 1.5;
say names($end->());
say ranking_states('chat');
start_backend('c');
await_states('a:unreported b:unreported c:unreported');
say who();
--- response_body
a b
a:unreported b:unreported c:failing
a b c



=== TEST 8: when most fail all are offered, and the state says who fails
--- script
kill_backend($_) for qw(b c);
await_states('a:unreported b:failing c:failing');
say join ' ', sort { $a <=> $b } uniq map { $_->{share} > 0 ? 1 : 0 } @{ service('chat')->{instances} };
start_backend('c');
await_states('a:unreported b:failing c:unreported');
say who();
--- response_body
1
a c
--- error_log
fails its checks



=== TEST 9: whom the operator disabled is not checked, and whom he drained is
--- script
kill_backend($_) for qw(b c);
put('control/chat', '{"disable":["b"],"drain":["c"]}');
ready('chat', 'a');
await('c fails', sub { logged(qr/chat: c fails its checks/) });
# The page's figures are of the last second.
await('a is up and c is down', sub {
    metric('ipconfig_checked_instances{service="chat",state="up"}') eq '1.0'
        && metric('ipconfig_checked_instances{service="chat",state="down"}') eq '1.0';
});
put('control/chat', '{}');
await_states('a:unreported b:failing c:failing');
say 'both, as soon as they are offered';
--- response_body
both, as soon as they are offered



=== TEST 10: without etcd the instances of the file are checked, over a reload too
--- workers: 2
--- no_wait
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] },
  "services": { "chat": {
    "balance": { "strategy": "round_robin", "tries": 0 },
    "check": { "http": "/", "interval": "300ms", "timeout": "300ms" },
    "instances": [ { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" },
                   { "id": "c", "addr": "$BACKEND_C" } ] } } }
--- script
await_states('a:unreported b:unreported c:unreported');
sleep 0.5;
kill_backend('c');
await_states('a:unreported b:unreported c:failing');
say who();
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++; sleep 0.005 });
reload();
sleep 1;
say names($end->());
start_backend('c');
await_states('a:unreported b:unreported c:unreported');
say who();
kill_backend('b');
await_states('a:unreported b:failing c:unreported');
say 'again';
--- response_body
a b
a b
a b c
again



=== TEST 11: while etcd is lost checks go on
--- script
kill_etcd();
kill_backend('c');
await_states('a:unreported b:unreported c:failing');
start_backend('c');
await_states('a:unreported b:unreported c:unreported');
say who();
--- response_body
a b c
--- error_log
passes its checks



=== TEST 12: a reload without checks brings back who failed
--- workers: 2
--- script
kill_backend('c');
await_states('a:unreported b:unreported c:failing');
write_ipconfig(ipconfig() =~ s/"check": \{.*?\} /"check": {} /sr);
reload();
await_states('a:unreported b:unreported c:unreported');
say metric('ipconfig_checked_instances{service="chat",state="up"}');
--- response_body
none



=== TEST 13: a check that is of two kinds is refused
--- ipconfig
{ "services": { "chat": { "check": { "http": "/", "tcp": true } } } }
--- etcd
--- config
    location = /x { return 200; }
--- suppress_stderr
--- must_die
--- error_log
services.chat.check: found http and tcp, expected one of them
