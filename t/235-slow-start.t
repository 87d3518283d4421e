# An instance that is new, was started anew or is back gets its weight by and by.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# To so many digits as a reload leaves of it.
sub weight { sprintf('%.5f', weights('chat')->{ $_[0] } // 0) + 0 }

# The weights that an instance has until it has the whole one.
sub ramp {
    my $id = shift;
    my @seen;
    await("$id has its weight", sub { push @seen, weight($id); $seen[-1] == 1 });
    my $is_rising = join(' ', @seen) eq join(' ', sort { $a <=> $b } @seen);
    return $is_rising ? uniq(map { sprintf '%.2f', $_ } @seen) : "falls: @seen";
}

sub others { join ' ', map { weight($_) } @_ }

package main;

run_tests();

__DATA__

=== TEST 1: who is in the first list has its whole weight, and who comes later grows into it
--- ipconfig
{ "services": { "chat": { "slow_start": { "window": "8s" },
    "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
say others(qw(a b c));
my $began = time;
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
my $first = weight('d');
my $count = served(31);
say $first < 0.4 && $count->{d} < 6 ? 'a little' : "$first: " . counts($count);
my @ramp = ramp('d');
my $took = time - $began;
say @ramp >= 4 ? 'by and by' : "@ramp";
say $took > 6 ? 'in its time' : $took;
say others(qw(a b c)), ' ', counts(served(40));
--- response_body
1 1 1
a little
by and by
in its time
1 1 1 a:10 b:10 c:10 d:10



=== TEST 2: where most of the service is new nobody starts slowly
--- ipconfig
{ "services": { "chat": { "slow_start": { "window": "1m" } } } }
--- etcd
register chat a b
--- script
ready('chat', 'a b');
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
say weight('c') < 0.2 ? 'one of three starts slowly' : weight('c');
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
put('instances/chat/e', '{"addr":"$BACKEND_E"}');
ready('chat', 'a b c d e');
say others(qw(a b c d e));
--- response_body
one of three starts slowly
1 1 1 1 1



=== TEST 3: a slow start goes on over a reload, and does not begin for the others
--- workers: 2
--- ipconfig
{ "services": { "chat": { "slow_start": { "window": "15s" } } } }
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
await('a third of it', sub { weight('d') > 0.3 });
my $before = weight('d');
reload();
my @seen;
for (1 .. 20) {
    push @seen, weight('d');
    sleep 0.1;
}
say min(@seen) >= $before && min(@seen) < 0.7 ? 'it goes on' : "$before: @seen";
say others(qw(a b c));
my @ramp = ramp('d');
say @ramp >= 3 ? 'to its end' : "@ramp";
--- response_body
it goes on
1 1 1
to its end



=== TEST 4: an instance that was out is new again, and so is another process of it
--- ipconfig
{ "services": { "chat": { "slow_start": { "window": "20s" } } } }
--- etcd
register chat a {"status":"grpc://$DEAD_1"}
register chat b {"status":"grpc://$DEAD_2"}
register chat c d e
--- script
my $status = sub { my ($boot, $seq) = @_; return { boot_id => $boot, seq => $seq } };
ready('chat', 'a b c d e');
put_status('e', 'chat', a => $status->(1, 1), b => $status->(1, 1));
await('both report', sub { ranking_states('chat') =~ /a:reporting b:reporting/ });
put_status('e', 'chat', a => $status->(1, 2), b => not_serving());
ready('chat', 'a c d e');
say others(qw(a));
put_status('e', 'chat', a => $status->(1, 3), b => $status->(1, 3));
ready('chat', 'a b c d e');
say others(qw(a c d e)), ' ', weight('b') < 0.3 ? 'back, and new' : weight('b');
put_status('e', 'chat', a => $status->(2, 1), b => $status->(1, 4));
await('a was started anew', sub { weight('a') < 0.3 });
say others(qw(c d e)), ' ', weight('a') < 0.3 ? 'started, and new' : weight('a');
--- response_body
1
1 1 1 1 back, and new
1 1 1 started, and new
