# Requests stay in the gateway's zone, the others stay warm, and what the zone cannot
# take goes elsewhere; of a large service, a gateway uses its subset.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# zone -> its share, as the API shows it.
sub shares { return { map { ($_->{zone} => $_->{share}) } @{ service('chat')->{zones} // [] } } }

sub share { shares()->{ $_[0] } // 0 }

# How many of so many requests went to these instances.
sub part {
    my ($ids, $n) = @_;
    my $count = served($n);
    return sum0(map { $count->{$_} // 0 } split ' ', $ids);
}

sub metric {
    my $name = shift;
    my ($value) = fetch_anew('/ipconfig/metrics')->{content} =~ /^\Q$name\E (\S+)$/m;
    return $value // 'none';
}

sub two_digits { sprintf '%.2f', shift }

package main;

run_tests();

__DATA__

=== TEST 1: the gateway's zone comes first, each other one has its floor, and both are shown
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {
    "balance": { "strategy": "round_robin" }, "zone": { "floor": 2 } } } }
--- etcd
register chat a b {"zone":"n"}
register chat c {"zone":"f"}
register chat d {"zone":"g"}
--- script
ready('chat', 'a b c d');
say counts(served(100));
say join ' ', map { "$_:" . two_digits(share($_)) } qw(f g n);
say join ' ', map { two_digits(metric(qq(ipconfig_zone_share{service="chat",zone="$_"}))) }
    qw(f g n);
--- response_body
a:48 b:48 c:2 d:2
f:0.02 g:0.02 n:0.96
0.02 0.02 0.96



=== TEST 2: every strategy keeps to the zone, also where others rank first
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {} } }
--- etcd
register chat a b {"zone":"f"}
register chat c d {"zone":"n"}
--- script
ready('chat', 'a b c d');
for my $strategy (qw(best weighted_random round_robin random least_conn p2c adaptive chash)) {
    put('control/chat', qq({"strategy":"$strategy"}));
    await($strategy, sub { service('chat')->{strategy} eq $strategy });
    # Where both of them have just answered slowly, `adaptive` asks the others.
    await("$strategy is local", sub { part('c d', 200) >= 190 });
    say "$strategy: local";
}
--- response_body
best: local
weighted_random: local
round_robin: local
random: local
least_conn: local
p2c: local
adaptive: local
chash: local



=== TEST 3: a zone that is lost spills within a second, and no request fails
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {} } }
--- etcd
register chat a b {"zone":"n"}
register chat c {"zone":"f"}
register chat d {"zone":"g"}
--- script
ready('chat', 'a b c d');
say part('a b', 50) >= 45 ? 'local' : 'elsewhere';
my $counted = meanwhile(sub { $_[0]{ get('/') }++ });
sleep 0.3;
kill_backend('a');
kill_backend('b');
sleep 0.5;
my $lost = time;
del("instances/chat/$_") for qw(a b);
await('the others serve all', sub { share('n') == 0 && ranking('chat') !~ /[ab]/ });
note(sprintf 'after %.0f ms', 1000 * (time - $lost));
my $part = part('c d', 50);
my $count = $counted->();
delete @$count{qw(a b c d)};
say $part, ' of 50, ', names($count) eq '' ? 'none failed' : 'failed: ' . counts($count);
say join ' ', map { "$_:" . two_digits(share($_)) } qw(f g);
--- response_body
local
50 of 50, none failed
f:0.50 g:0.50
--- error_log
connect() failed



=== TEST 4: a zone that is back gets its part in steps, not below what it has without zones
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {} } }
--- etcd
register chat a {"zone":"n"}
register chat c d {"zone":"f"}
--- script
ready('chat', 'a c d');
say two_digits(share('n'));
del('instances/chat/a');
ready('chat', 'c d');
put('instances/chat/a', '{"addr":"$BACKEND_A","zone":"n"}');
ready('chat', 'a c d');
my $first = share('n');
say $first > 0.3 && $first < 0.95 ? 'not all at once' : $first;
my @seen = ($first);
await('all of it', sub { push @seen, share('n'); $seen[-1] > 0.985 });
say join(' ', @seen) eq join(' ', sort { $a <=> $b } @seen) ? 'rising' : "@seen";
say scalar(uniq(map { two_digits($_) } @seen)) > 2 ? 'in steps' : "@seen";
--- response_body
0.99
not all at once
rising
in steps



=== TEST 5: what is too much for the zone goes to the others, by what reports say
--- ipconfig
{ "gateway": { "zone": "n" }, "services": { "chat": {} } }
--- etcd
register chat a {"zone":"n","status":"grpc://$DEAD_1"}
register chat b {"zone":"f","status":"grpc://$DEAD_2"}
--- script
ready('chat', 'a b');
# id -> how many requests in a tenth of a second, and how busy that makes it
my $seq = 0;
my $told = sub {
    my ($what, $holds, %of) = @_;
    my $rounds = 0;
    await($what, sub {
        $seq++;
        put_status('e', 'chat', map {
            my ($requests, $busy) = @{ $of{$_} };
            ($_ => { boot_id => 1, seq => $seq, requests => $requests * $seq,
                     latency_sum_ns => 10_000_000 * $requests * $seq,
                     cpu_used_cores => $busy, cpu_limit_cores => 1 });
        } keys %of);
        sleep 0.1;
        return ++$rounds >= 30 && $holds->(share('n'));
    });
    say $what;
};
$told->('it has room', sub { $_[0] > 0.97 }, a => [50, 0.5], b => [50, 0.5]);
$told->('it spills', sub { $_[0] < 0.8 && $_[0] > 0.4 }, a => [100, 0.97], b => [50, 0.5]);
--- response_body
it has room
it spills



=== TEST 6: zones do not count without a zone of the gateway's, where they are not preferred, nor for manual weights
--- workers: 1
--- ipconfig
{ "gateway": { "zone": "n" }, "services": {
    "chat": { "balance": { "strategy": "round_robin" }, "zone": { "prefer": false } },
    "mail": { "instances": [ { "id": "x", "addr": "$BACKEND_A", "zone": "n" },
                             { "id": "y", "addr": "$BACKEND_B", "zone": "f" } ] } } }
--- etcd
register chat a {"zone":"n"}
register chat b {"zone":"f"}
put control/mail {"mode":"manual","weights":{"x":1,"y":3},"by":"ann"}
--- script
ready('chat', 'a b');
say counts(served(20));
say join ' ', map { "$_->{zone}:$_->{share}" } @{ service('mail')->{zones} };
write_ipconfig(ipconfig() =~ s/"prefer": false/"prefer": true/r);
reload();
await('preferred', sub { share('n') > 0.95 });
write_ipconfig(ipconfig() =~ s/"gateway": \{.*?\}, //r);
reload();
await('no zone of its own', sub { abs(share('n') - 0.5) < 0.001 });
sleep 1.5;    # a share that moves on goes half of its way in a second
say counts(served(20));
--- response_body
a:10 b:10
f:0.75 n:0.25
a:10 b:10



=== TEST 7: a gateway uses its subset, the same after a reload, and another gateway another one
--- workers: 1
--- ipconfig
{ "gateway": { "id": "gateway-1" }, "services": { "chat": {
    "subset": { "size": 2 }, "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c d e
--- script
await('two of them', sub { split(' ', ranking('chat')) == 2 });
my $mine = names(served(10));
reload();
await('two of them', sub { split(' ', ranking('chat')) == 2 });
say names(served_anew(10)) eq $mine ? 'the same' : "$mine, then others";
my %seen = ($mine => 1);
for my $id (2 .. 5) {
    write_ipconfig(ipconfig() =~ s/gateway-\d/gateway-$id/r);
    reload();
    await('others', sub { ranking('chat') ne $mine }) if $id == 2;
    $seen{ names(served_anew(10)) }++;
}
say scalar(keys %seen) > 2 ? 'each its own' : counts(\%seen);
my ($gone) = split ' ', $mine;
write_ipconfig(ipconfig() =~ s/gateway-\d/gateway-1/r);
reload();
await('mine again', sub { join(' ', sort split ' ', ranking('chat')) eq $mine });
del("instances/chat/$gone");
await('another in its place', sub { ranking('chat') !~ /$gone/ });
my @now = split ' ', ranking('chat');
say scalar(@now), ' ', scalar(grep { $mine =~ /$_/ } @now), ' stayed';
--- response_body
the same
each its own
2 1 stayed
