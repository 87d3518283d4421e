use lib 't/lib';
use IpconfigTest 'no_plan';

# The distributions are judged by chi-square at 1e-6: of a million runs of a
# right gateway, one fails in one of the blocks (see IpconfigTest::Script::fit).

add_block_preprocessor(sub ($) {
    my $block = shift;
    my $ipconfig = $block->ipconfig or return;
    my $instances = join ', ', map {
        sprintf '{ "id": "%s", "addr": "$BACKEND_%s", "weight": %s }', $_->[0], uc $_->[0], $_->[1]
    } map { [split /:/] } $ipconfig =~ /(\w:[\d.]+)/g;
    my ($strategy) = $ipconfig =~ /^(\w+)/;
    $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "$strategy" }, "instances": [$instances] } } }
_EOC_
});

run_tests();

__DATA__

=== TEST 1: best sends every request to the top of the ranking
--- ipconfig: best a:1 b:1 c:9
--- script
say ranking('chat');
say counts(served(50));
--- response_body
c a b
c:50



=== TEST 2: best passes over an instance of weight 0
--- ipconfig: best a:0 b:1 c:1
--- script
say ranking('chat');
say counts(served(50));
--- response_body
b c a
b:50



=== TEST 3: weighted_random draws in proportion to the weights
--- ipconfig: weighted_random a:1 b:3 c:6
--- script
say fit(served(3000), { a => 1, b => 3, c => 6 });
--- response_body
fits



=== TEST 4: weighted_random never draws an instance of weight 0
--- ipconfig: weighted_random a:1 b:0 c:1
--- script
say fit(served(1000), { a => 1, b => 0, c => 1 });
--- response_body
fits



=== TEST 5: round_robin is exact over any cycle, and spreads the turns within it
# Weights 1, 2 and 4 make a cycle of 7 requests; between two turns of b, c has
# two.
--- ipconfig: round_robin a:1 b:2 c:4
--- script
my @turns = map { get('/') } 1 .. 140;
my %cycles;
for my $first (0 .. 133) {
    my %count;
    $count{$_}++ for @turns[$first .. $first + 6];
    $cycles{ counts(\%count) }++;
}
say names(\%cycles);
my $longest = max(map { length } join('', @turns) =~ /c+/g);
say "c has at most $longest turns running";
--- response_body
a:1 b:2 c:4
c has at most 2 turns running



=== TEST 6: round_robin never turns to an instance of weight 0
--- ipconfig: round_robin a:1 b:0 c:1
--- script
say counts(served(100));
--- response_body
a:50 c:50



=== TEST 7: random treats all weights alike
--- ipconfig: random a:1 b:10 c:100
--- script
say fit(served(2000), { a => 1, b => 1, c => 1 });
--- response_body
fits



=== TEST 8: random, too, leaves out an instance of weight 0
--- ipconfig: random a:1 b:0 c:7
--- script
say fit(served(1000), { a => 1, b => 0, c => 1 });
--- response_body
fits



=== TEST 9: p2c starves none and leaves out an instance of weight 0
--- ipconfig: p2c a:1 b:1 c:0 d:1
--- script
my $count = served(900);
say names($count);
say sum0(values %$count), ' answers';
say min(values %$count) >= 200 ? 'none starved' : counts($count);
--- response_body
a b d
900 answers
none starved



=== TEST 10: p2c prefers the instance with fewer requests open
# Even two draws with repetition give it 3 of 4; fewer than 180 of 300 have a
# chance of 1e-9.
--- ipconfig: p2c a:1 b:1
--- script
my @ends = map { meanwhile(sub { get('/slow?ms=1000') }) } 1 .. 3;
await('three requests are open', sub { in_flight('chat') == 3 });
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
my ($idler) = grep { $open{$_} < 2 } keys %open;
my $count = served(300);
note('open ', counts(\%open), ', served ', counts($count));
say $count->{$idler} > 180 ? 'the idler' : counts($count);
--- response_body
the idler



=== TEST 11: adaptive follows the weights, starves none and leaves out weight 0
--- ipconfig: adaptive a:1 b:2 c:0 d:4
--- script
my $count = served(1400);
note(counts($count));
say names($count);
say sum0(values %$count), ' answers';
say $count->{a} < $count->{b} && $count->{b} < $count->{d} ? 'by weight' : counts($count);
say $count->{a} >= 100 ? 'none starved' : counts($count);
--- response_body
a b d
1400 answers
by weight
none starved



=== TEST 12: adaptive turns away from an instance with requests open
--- ipconfig: adaptive a:1 b:1
--- script
my @ends = map { meanwhile(sub { get('/slow?ms=1000') }) } 1 .. 3;
await('three requests are open', sub { in_flight('chat') == 3 });
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
my ($idler) = grep { $open{$_} < 2 } keys %open;
my $count = served(300);
note('open ', counts(\%open), ', served ', counts($count));
say $count->{$idler} > 180 ? 'the idler' : counts($count);
--- response_body
the idler



=== TEST 13: without a status the weight in the ranking is the instance's
--- ipconfig: adaptive a:1 b:2.5 c:0 d:40
--- script
say counts(weights('chat'));
--- response_body
a:1 b:2.5 c:0 d:40



=== TEST 14: where all weights are 0, all are served
--- ipconfig: weighted_random a:0 b:0 c:0
--- script
say fit(served(1000), { a => 1, b => 1, c => 1 });
--- response_body
fits
