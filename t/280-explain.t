# Explain: every factor of every instance's weight, and why others are not offered.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

sub explained { api('v1/services/chat/explain' . (shift // '')) }

sub line { my ($id, $of) = @_; (grep { $_->{id} eq $id } @{ $of->{instances} })[0] }

package main;

run_tests();

__DATA__

=== TEST 1: each factor of each weight is told, and their product is the weight that is in force
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {
    "rules": [ { "name": "new", "to": { "version": "2" }, "percent": 5 } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","zone":"n","weight":3}
put instances/chat/b {"addr":"$BACKEND_B","zone":"f","max_in_flight":7}
put instances/chat/c {"addr":"$BACKEND_C","zone":"n","labels":{"version":"2"}}
--- script
ready('chat', 'a b c');
served(20);
my $of = explained();
say join ' ', map { "$_->{id}:$_->{rank}:$_->{state}" } @{ $of->{instances} };
my $weights = weights('chat');
for my $line (@{ $of->{instances} }) {
    my $product = $line->{base};
    $product *= $_ for values %{ $line->{factors} };
    my $is_so = abs($product - $line->{weight}) < 1e-9
        && abs($line->{weight} - $weights->{ $line->{id} }) < 1e-9;
    say "$line->{id}: ", $is_so ? 'the weight' : "$product, $line->{weight}, $weights->{ $line->{id} }";
}
say line('b', $of)->{factors}{zone} < 0.1 ? 'another zone' : 'the same';
say join ' ', line('a', $of)->{registered_weight}, line('b', $of)->{max_in_flight},
    "@{ line('c', $of)->{rules} }", line('c', $of)->{labels}{version};
say sum0(map { $_->{seen}{requests} } @{ $of->{instances} }), ' requests';
say join ' ', $of->{basis}, $of->{count}, $of->{panic} ? 'panic' : 'calm', scalar @{ $of->{absent} };
--- response_body
a:1:unreported b:2:unreported c:3:unreported
a: the weight
b: the weight
c: the weight
another zone
3 7 new 2
20 requests
priors 3 calm 0



=== TEST 2: who is not offered is told with the reason
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B","drain":true}
put instances/chat/c {"addr":"$BACKEND_C"}
put instances/chat/d {"addr":"$BACKEND_D"}
put control/chat {"mode":"manual","weights":{"a":5},"drain":["c"],"disable":["d"]}
--- script
ready('chat', 'a');
my $of = explained();
say join ' ', map { "$_->{id}:$_->{state}" } sort { $a->{id} cmp $b->{id} } @{ $of->{absent} };
say $of->{manual} ? 'manual' : 'auto', ' ', line('a', $of)->{base}, ' ', line('a', $of)->{registered_weight};
--- response_body
b:draining c:draining d:disabled
manual 5 1



=== TEST 3: it is made anew each time, for any worker, and no more than were asked for
--- workers: 2
--- script
ready('chat', 'a b c');
my %requests;
for (1 .. 6) {
    get_anew('/');
    my $of = explained('?n=1');
    $requests{ @{ $of->{instances} } . ' of ' . $of->{count} }++;
}
say join ' ', %requests;
--- response_body
1 of 3 6



=== TEST 4: a report's figures are there, with their number and age
--- ipconfig
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "$BACKEND_A", "status": "grpc://127.0.0.1:9" } ] } } }
--- script
put_status('test', 'chat', a => { boot_id => 1, seq => 1, in_flight => 2 });
await('it reports', sub { (service('chat')->{instances}[0]{state} // '') eq 'reporting' });
my $line = line('a', explained());
my $age_ms = $line->{report_age_ms} // 'unknown';
say $line->{samples}, ' ', $age_ms =~ /^\d+$/ && $age_ms < 30_000 ? 'young' : $age_ms;
--- response_body
1 young



=== TEST 5: what cannot be explained says so
--- script
ready('chat', 'a b c');
say fetch('/ipconfig/v1/services/none/explain')->{status};
my $bad = fetch('/ipconfig/v1/services/chat/explain?n=0');
say $bad->{status}, ' ', $bad->{content} =~ s/\s+\z//r;
--- response_body
404
400 {"error":"n: found '0', expected a whole number from 1 to 1000"}
