# Who is in the ranking by what exporters report: silence costs nobody its place,
# evidence does.

use lib 't/lib';
use IpconfigTest 'no_plan';

add_block_preprocessor(sub {
    my $block = shift;
    my $services = $block->ipconfig // '{ "chat": { "balance": { "strategy": "round_robin" } } }';
    $block->set_value(ipconfig => qq({ "exporter": { "interval": "200ms" }, "services": $services }));
    $block->set_value(etcd => <<'_EOC_');
put instances/chat/a {"addr":"$BACKEND_A","status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"$BACKEND_B","status":"grpc://127.0.0.1:9"}
put instances/chat/c {"addr":"$BACKEND_C","status":"grpc://127.0.0.1:9"}
_EOC_
});

package IpconfigTest::Script;

my $seq = 0;

# A status that is news.
sub well { ++$seq; return { boot_id => 1, seq => $seq, requests => 100 * $seq } }

# All of them are well.
sub begin_well {
    put_status('e', 'chat', map { ($_ => well()) } qw(a b c));
    await_states('a:reporting b:reporting c:reporting');
}

sub await_states {
    my $wanted = shift;
    await("the states are $wanted", sub { ranking_states('chat') eq $wanted });
}

# Reports ten times a second, for so many seconds and then until these are the
# states: id -> what makes its report. Says who was in the ranking meanwhile.
sub go_on {
    my ($seconds, $states, %reports) = @_;
    my (%seen, $rounds);
    await("the states are $states", sub {
        put_status('e', 'chat', map { ($_ => $reports{$_}->()) } keys %reports);
        sleep 0.1;
        $seen{ join ' ', sort split ' ', ranking('chat') }++;
        return ++$rounds >= 10 * $seconds && ranking_states('chat') eq $states;
    });
    say join ', ', sort keys %seen;
    say $states;
}

package main;

run_tests();

__DATA__

=== TEST 1: an instance of which nothing is heard becomes unknown and is served on
--- script
begin_well();
go_on(2, 'a:reporting b:reporting c:unknown', a => \&well, b => \&well);
say names(served(60));
--- response_body
a b c
a:reporting b:reporting c:unknown
a b c



=== TEST 2: when nothing at all is heard any more, nobody leaves
--- script
begin_well();
put_status('e', 'chat', c => unreachable(0));
await_states('a:unknown b:unknown c:unreachable');
del('status/e/chat/0');
sleep 1.5;
say names(served(60));
--- response_body
a b c



=== TEST 3: an instance that is reported unreachable for too long leaves, and is back with its first good report
--- script
begin_well();
put_status('e', 'chat', c => unreachable(0));
sleep 0.4;
say ranking('chat');
put_status('e', 'chat', c => unreachable(1));
ready('chat', 'a b');
say names(served(60));
put_status('e', 'chat', c => unreachable(0));
sleep 0.4;
say names(served(60));
put_status('e', 'chat', c => well());
ready('chat', 'a b c');
say names(served(60));
--- response_body
a b c
a b
a b
a b c



=== TEST 4: where `unreachable` is "keep" it stays
--- ipconfig
{ "chat": { "balance": { "strategy": "round_robin" }, "status": { "unreachable": "keep" } } }
--- script
begin_well();
go_on(1.5, 'a:reporting b:reporting c:unreachable',
      a => \&well, b => \&well, c => sub { unreachable(60) });
say names(served(60));
--- response_body
a b c
a:reporting b:reporting c:unreachable
a b c



=== TEST 5: `missed` says how many intervals are too long
--- ipconfig
{ "chat": { "status": { "missed": 100 } } }
--- script
begin_well();
go_on(1, 'a:reporting b:reporting c:reporting',
      a => \&well, b => \&well, c => sub { unreachable(20) });
put_status('e', 'chat', c => unreachable(21));
ready('chat', 'a b');
--- response_body
a b c
a:reporting b:reporting c:reporting



=== TEST 6: an instance that wants no requests leaves at once, and is back when it serves
--- script
begin_well();
put_status('e', 'chat', c => not_serving());
my $took = await('c has left', sub { ranking('chat') !~ /c/ });
note(sprintf 'it left after %.0f ms', 1000 * $took);
say names(served(60));
put_status('e', 'chat', c => serving());
ready('chat', 'a b c');
say names(served(60));
--- response_body
a b
a b c



=== TEST 7: an instance that serves and has no figures is reporting, and weighs as the others do
--- script
go_on(1, 'a:reporting b:reporting c:reporting',
      a => \&serving, b => \&serving, c => \&well);
say counts(weights('chat'));
--- response_body
a b c
a:reporting b:reporting c:reporting
a:1 b:1 c:1



=== TEST 8: when most are unreachable, all stay
--- script
begin_well();
go_on(2, 'a:reporting b:unreachable c:unreachable',
      a => \&well, b => sub { unreachable(60) }, c => sub { unreachable(60) });
say names(served(60));
--- response_body
a b c
a:reporting b:unreachable c:unreachable
a b c



=== TEST 9: when no instance wants requests, all are served
--- script
begin_well();
for (['a', 'b c'], ['b', 'c'], ['c', 'a b c']) {
    my ($id, $others) = @$_;
    put_status('e', 'chat', $id => not_serving());
    ready('chat', $others);
}
say names(served(60));
put_status('e', 'chat', b => serving());
ready('chat', 'b');
--- response_body
a b c



=== TEST 10: two exporters that make up their counters do not disturb each other
--- script
my ($requests, $seq) = (0, 0);
await('b weighs more', sub {
    $requests += 100;
    $seq++;
    put_status('one', 'chat', map {
        my $latency_ms = $_ eq 'a' ? 100 : 5;
        ($_ => { boot_id => 1, seq => $seq, requests => $requests,
                 latency_sum_ns => $requests * 1_000_000 * $latency_ms })
    } qw(a b c));
    put_status('other', 'chat', map { ($_ => { boot_id => 2, seq => $seq }) } qw(a b c));
    sleep 0.1;
    my $weight = weights('chat');
    return $seq >= 15 && $weight->{b} > 1.2 * $weight->{a}
        && ranking_states('chat') eq 'a:reporting b:reporting c:reporting';
});
say 'b weighs more';
--- response_body
b weighs more



=== TEST 11: an instance that one exporter reads stays, though another one does not
--- script
my $rounds = 0;
await('all report', sub {
    put_status('one', 'chat', map { ($_ => well()) } qw(a b c));
    put_status('other', 'chat', c => unreachable(60));
    sleep 0.1;
    say ranking('chat') if ranking('chat') !~ /c/;
    return ++$rounds >= 15 && ranking_states('chat') eq 'a:reporting b:reporting c:reporting';
});
say 'all report';
--- response_body
all report



=== TEST 12: an instance that is long out is not brought back by a reload
--- workers: 2
--- script
begin_well();
put_status('e', 'chat', c => unreachable(3600));
ready('chat', 'a b');
my $end = meanwhile(sub {
    $_[0]{ get_anew('/') }++;
    $_[0]{ 'ranking: ' . ranking('chat') =~ s/b a/a b/r }++;
});
for (1 .. 3) {
    reload();
    sleep 1;
}
my $count = $end->();
note(counts($count));
say join ', ', sort keys %$count;
--- response_body
a, b, ranking: a b
