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
    my $settings = join '', map { qq(, $_) } map { s/(\w+)=/"$1": /r } $ipconfig =~ /(\w+=\d+)/g;
    $block->set_value(ipconfig => <<"_EOC_");
{ "services": { "chat": { "balance": { "strategy": "$strategy"$settings },
                          "health": { "max_ejected": 0 },
                          "instances": [$instances] } } }
_EOC_
    return if $strategy ne 'chash';
    $block->set_value(http_config => $::Keyed);
    $block->set_value(config => $IpconfigTest::SERVICE_LOCATION =~ s{http://ipconfig}{http://keyed}r);
});

# The key is ?k= as a string, ?n= as a number, or ?mb= a million times.
our $Keyed = <<'_EOC_';
    upstream keyed {
        server 0.0.0.1;
        balancer_by_lua_block {
            local var = ngx.var
            local key = var.arg_k or tonumber(var.arg_n)
                        or var.arg_mb and string.rep(var.arg_mb, 1048576)
            require("resty.ipconfig").balance("chat", { key = key })
        }
        keepalive 64;
    }
_EOC_

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
hold(3);
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
# One that answered slowly, as any may on a busy machine, is left alone for some
# seconds. Of even draws no round in 1e9 is like this.
my %all;
await('by weight', sub {
    my $count = served(700);
    note(counts($count));
    $all{$_} += $count->{$_} for keys %$count;
    my %expected = (a => 100, b => 200, d => 400);
    return !grep { abs(($count->{$_} // 0) / $expected{$_} - 1) > 0.2 } keys %expected;
});
say 'by weight';
say names(\%all);
--- response_body
by weight
a b d



=== TEST 12: adaptive turns away from an instance with requests open
--- ipconfig: adaptive a:1 b:1
--- script
hold(3);
await('three requests are open', sub { in_flight('chat') == 3 });
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
my ($idler) = grep { $open{$_} < 2 } keys %open;
# The idler itself is left alone, for some seconds, when it answered slowly.
# Of even draws it has more than 220 of 300 once in 1e15 rounds.
await('the idler', sub {
    my $count = served(300);
    note('open ', counts(\%open), ', served ', counts($count));
    return $count->{$idler} > 220;
});
say 'the idler';
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



=== TEST 15: least_conn sends every request to the instance with the fewest open
--- workers: 2
--- ipconfig: least_conn a:1 b:1 c:1
--- script
for my $n (1 .. 2) {
    hold(1);
    await("$n are open", sub { in_flight('chat') == $n });
}
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
my ($idler) = grep { $open{$_} == 0 } keys %open;
my %count;
for (1 .. 60) {
    $count{ get_anew('/') }++;
    # its log phase may come after its answer, and in another worker
    await('it is over', sub { in_flight('chat') == 2 });
}
say max(values %open), ' open at most';
say $count{$idler} == 60 ? 'the idler' : counts(\%count);
--- response_body
1 open at most
the idler



=== TEST 16: least_conn shares idle instances by weight and leaves out weight 0
--- ipconfig: least_conn a:1 b:3 c:6 d:0
--- script
say fit(served(3000), { a => 1, b => 3, c => 6 });
--- response_body
fits



=== TEST 17: chash sends a key to one instance, whichever worker, across a reload too
# Without a bound: a request may be counted as open for a moment longer than its
# client waits, and the next one of its key would find its instance full.
--- workers: 4
--- ipconfig: chash hash_balance_factor=0 a:1 b:1 c:1
--- script
my %homes = map { ($_ => get_anew("/?k=user-$_")) } 1 .. 60;
my $elsewhere = sub {
    scalar grep { my $k = $_; grep { get_anew("/?k=user-$k") ne $homes{$k} } 1 .. 4 } keys %homes;
};
say names({ reverse %homes });
say $elsewhere->(), ' elsewhere';
reload();
say $elsewhere->(), ' elsewhere after a reload';
--- response_body
a b c
0 elsewhere
0 elsewhere after a reload



=== TEST 18: chash shares the keys by weight and leaves out weight 0
--- ipconfig: chash hash_balance_factor=0 a:1 b:3 c:6 d:0
--- script
my %count;
$count{ get("/?k=user-$_") }++ for 1 .. 3000;
say fit(\%count, { a => 1, b => 3, c => 6 });
--- response_body
fits



=== TEST 19: a dead instance's keys are spread over the others, and come back with it
--- ipconfig: chash hash_balance_factor=0 a:1 b:1 c:1
--- script
# b's keys all go to one of the others once in 1e11 runs.
my $homes = sub { return { map { ($_ => get_anew("/?k=user-$_")) } 1 .. 150 } };
my $differ = sub { my ($one, $two) = @_; grep { $one->{$_} ne $two->{$_} } keys %$one };
my $before = $homes->();
kill_backend('b');
my $without = $homes->();
my %moved = map { ("$before->{$_} to $without->{$_}" => 1) } $differ->($before, $without);
say names(\%moved);
say scalar $differ->($without, $homes->()), ' move again';
start_backend('b');
say scalar $differ->($before, $homes->()), ' stay away';
--- response_body
b to a b to c
0 move again
0 stay away
--- error_log
Connection refused



=== TEST 20: an instance that joins takes its part of each one's keys and moves no other
--- workers: 2
--- ipconfig: chash hash_balance_factor=0 a:1 b:1 c:1
--- script
# None of a's keys moves, or of b's or c's, once in 1e14 runs.
my $homes = sub { return { map { ($_ => get_anew("/?k=user-$_")) } 1 .. 400 } };
my $before = $homes->();
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
my $with = $homes->();
my @moved = grep { $before->{$_} ne $with->{$_} } keys %$before;
say names({ map { ("from $before->{$_}" => 1) } @moved }), ', to ',
    names({ map { ($with->{$_} => 1) } @moved });
say @moved < 200 ? 'a part' : @moved . ' of 400';
del('instances/chat/d');
ready('chat', 'a b c');
my $after = $homes->();
say scalar(grep { $before->{$_} ne $after->{$_} } keys %$before), ' stay away';
--- response_body
from a from b from c, to d
a part
0 stay away



=== TEST 21: a hot key's requests spill over when its instance has 125 % of its share
--- workers: 2
--- ipconfig: chash a:1 b:1 c:1
--- script
my $home = get('/?k=hot');
hold(12, '/slow?ms=600000&k=hot');
await('all are open', sub { in_flight('chat') == 12 });
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
note("home $home, open ", counts(\%open));
say max(values %open) <= 5 ? 'at most 125 %' : counts(\%open);
say $open{$home} >= 4 ? 'its share at home' : counts(\%open);
--- response_body
at most 125 %
its share at home



=== TEST 22: with a hash_balance_factor of 0 a hot key stays at home
--- workers: 2
--- ipconfig: chash hash_balance_factor=0 a:1 b:1 c:1
--- script
my $home = get('/?k=hot');
hold(12, '/slow?ms=600000&k=hot');
await('all are open', sub { in_flight('chat') == 12 });
my %open = map { ($_->{id} => $_->{in_flight}) } @{ service('chat')->{instances} };
say $open{$home} == 12 ? 'all at home' : counts(\%open);
--- response_body
all at home



=== TEST 23: a request without a key, or with an empty one, goes anywhere by weight
--- ipconfig: chash a:1 b:3 c:6
--- script
say fit(served(2000), { a => 1, b => 3, c => 6 });
say fit(served(2000, '/?k='), { a => 1, b => 3, c => 6 });
--- response_body
fits
fits



=== TEST 24: a key may be a number, or a megabyte long
--- ipconfig: chash hash_balance_factor=0 a:1 b:1 c:1
--- script
say names(served(20, '/?n=12')) eq get('/?k=12') ? 'as its text' : 'elsewhere';
# None has its home at a, or b or c, once in 1e10 runs.
my %homes = map { ($_ => served(2, "/?mb=$_")) } 10 .. 69;
say names({ map { (scalar(keys %$_) => 1) } values %homes }), ' instance for each';
say names({ map { %$_ } values %homes });
--- response_body
as its text
1 instance for each
a b c
