# Routing rules: which requests go to which instances, by labels, from the file or
# from control/<service>.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# Puts an operator's value in force: the page shows who wrote it.
sub control {
    my ($by, $text) = @_;
    put('control/chat', $text);
    await("$by is in force", sub { (service('chat')->{control}{by} // '') eq $by });
}

# Who answers a request with these headers.
sub with { my ($path, %headers) = @_; get($path, headers => \%headers) }

# Who answers each of $n users, one request each.
sub by_user { my $n = shift; map { with('/', Cookie => "uid=user-$_") } 1 .. $n }

# How often each word is there.
sub tally { my %count; $count{$_}++ for @_; return \%count }

# The users that the canary has, of $n.
sub in_canary { my @who = by_user(shift); grep { $who[$_] eq 'b' } 0 .. $#who }

sub is_within { my ($few, $many) = @_; my %in = map { $_ => 1 } @$many; !grep { !$in{$_} } @$few }

package main;

# a has version 1, b has version 2.
our $Two = <<'_EOC_';
put instances/chat/a {"addr":"$BACKEND_A","labels":{"version":"1"}}
put instances/chat/b {"addr":"$BACKEND_B","labels":{"version":"2"}}
_EOC_

our $Canary = <<'_EOC_';
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "rules": [
    { "name": "canary", "to": { "version": "2" }, "percent": 5, "key": "cookie:uid" } ] } } }
_EOC_

run_tests();

__DATA__

=== TEST 1: a canary of 5 percent gets 5 percent, by chance and by key
--- ipconfig eval: $main::Canary
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
say 'by chance: ', fit(served(3000), { a => 95, b => 5 });
say 'by key: ', fit(tally(by_user(3000)), { a => 95, b => 5 });
--- response_body
by chance: fits
by key: fits



=== TEST 2: it keeps its users over workers, a reload and the growth of its percentage
--- workers: 2
--- ipconfig eval: $main::Canary
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
my @five = in_canary(400);
say @five > 5 && @five < 50 ? 'some users' : scalar @five;
my @anew = grep { get_anew('/', headers => { Cookie => "uid=user-" . ($_ + 1) }) eq 'b' } 0 .. 399;
say "@anew" eq "@five" ? 'the same in each worker' : "@anew";
reload();
ready('chat', 'a b');
say join(' ', in_canary(400)) eq "@five" ? 'the same after a reload' : 'others';
control('ten', $main::Canary =~ s/.*("rules":.*\]).*/{$1,"by":"ten"}/sr =~ s/: 5,/: 10,/r);
my @ten = in_canary(400);
say @ten > @five && is_within(\@five, \@ten) ? 'more, and all of them' : "@ten";
control('two', $main::Canary =~ s/.*("rules":.*\]).*/{$1,"by":"two"}/sr =~ s/: 5,/: 2.5,/r);
my @two = in_canary(400);
say @two < @five && is_within(\@two, \@five) ? 'fewer, none of them new' : "@two";
--- response_body
some users
the same in each worker
the same after a reload
more, and all of them
fewer, none of them new



=== TEST 3: two rules of one percentage have users of their own
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "one", "to": { "version": "2" }, "percent": 50, "key": "query:k" },
    { "name": "two", "to": { "version": "3" }, "percent": 50, "key": "query:k" } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","labels":{"version":"1"}}
put instances/chat/b {"addr":"$BACKEND_B","labels":{"version":"2"}}
put instances/chat/c {"addr":"$BACKEND_C","labels":{"version":"3"}}
--- script
ready('chat', 'a b c');
say fit(tally(map { get("/?k=$_") } 1 .. 2000), { a => 25, b => 50, c => 25 });
--- response_body
fits



=== TEST 4: by header, cookie and query: a value, one of a list, present and absent, and all of them
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "all", "to": { "version": "5" }, "header": { "X-One": "1" }, "cookie": { "two": "2" } },
    { "name": "header", "to": { "version": "2" }, "header": { "X-Beta": "1" } },
    { "name": "cookie", "to": { "version": "3" }, "cookie": { "beta": ["x", "y"] } },
    { "name": "query", "to": { "version": "4" }, "query": { "beta": true, "no": false } } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","labels":{"version":"1"}}
put instances/chat/b {"addr":"$BACKEND_B","labels":{"version":"2"}}
put instances/chat/c {"addr":"$BACKEND_C","labels":{"version":"3"}}
put instances/chat/d {"addr":"$BACKEND_D","labels":{"version":"4"}}
put instances/chat/e {"addr":"$BACKEND_E","labels":{"version":"5"}}
--- script
ready('chat', 'a b c d e');
say join ' ', map { with('/', 'X-Beta' => $_) } '1', '2', '', '11';
say join ' ', map { with('/', Cookie => $_) } 'beta=x', 'z=1; beta=y', 'beta=z', 'alpha=x';
say join ' ', map { get($_) } '/?beta=', '/?beta=no', '/?beta=1&no=1', '/?xbeta=1', '/';
say join ' ', with('/', 'X-One' => 1, Cookie => 'two=2'), with('/', 'X-One' => 1),
              with('/', Cookie => 'two=2'), with('/?beta=1', 'X-Beta' => 1, Cookie => 'beta=x');
say join ' ', with('/', 'x-bEtA' => 1), with('/', Cookie => 'BETA=x'), get('/?Beta=1');
--- response_body
b a a a
c c a a
d d a a a
e a a b
b c d



=== TEST 5: a change in etcd is in force within a watch event, in place of the file's
--- ipconfig eval: $main::Canary
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
control('all', '{"rules":[{"name":"all","to":{"version":"2"}}],"by":"all"}');
say counts(served(20));
control('none', '{"rules":[],"by":"none"}');
say names(served(40));
control('else', '{"by":"else"}');
say service('chat')->{rules}[0]{name};
put('instances/chat/a', '{"addr":"$BACKEND_A","labels":{"version":"2"}}');
await('it has its new label', sub { service('chat')->{rules}[0]{selected} == 2 });
say names(served(40));
--- response_body
b:20
a b
canary
a b



=== TEST 6: rules that cannot be are refused whole and counted, and the old ones stay
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
control('ann', '{"rules":[{"name":"all","to":{"version":"2"}}],"by":"ann"}');
put('control/chat', '{"rules":[{"name":"x","to":{"version":"1"}},{"name":"y"}],"drain":["b"],"by":"bob"}');
await('it is counted', sub {
    fetch_anew('/ipconfig/metrics')->{content}
        =~ /^ipconfig_bad_records_total\{reason="control"\} 1(?:\.0)?$/m
});
say service('chat')->{control}{by}, ' ', counts(served(10));
--- response_body
ann b:10
--- error_log
refused the control value: rules[1]: missing field `to`



=== TEST 7: a file with a rule that cannot be is refused
--- ipconfig_file
{ "services": { "chat": { "rules": [ { "name": "x", "to": { "version": "1" }, "percent": 200 } ] } } }
--- no_wait
--- must_die
--- error_log
services.chat.rules[0].percent: invalid value: floating point `200.0`, expected a number from 0 to 100



=== TEST 8: an instance of a rule that dies costs no request: the rest serves, and then any
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "dead", "to": { "version": "2" }, "header": { "X-To": "dead" } },
    { "name": "next", "to": { "version": "3" }, "header": { "X-To": ["dead", "next"] } },
    { "name": "none", "to": { "version": "9" }, "header": { "X-To": "none" } },
    { "name": "alone", "to": { "version": "4" }, "header": { "X-To": "alone" } } ] } } }
--- etcd
put instances/chat/1 {"addr":"$DEAD_1","labels":{"version":"2"}}
put instances/chat/2 {"addr":"$DEAD_2","labels":{"version":"4"}}
put instances/chat/b {"addr":"$BACKEND_B","labels":{"version":"3"}}
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', '1 2 a b');
for my $to (qw(dead next none alone)) {
    say "$to: ", join ' ', map { with('/', 'X-To' => $to) } 1 .. 5;
}
del('instances/chat/a');
ready('chat', '1 2 b');
say 'no rest: ', counts(tally(map { with('/', 'X-To' => 'alone') } 1 .. 5));
say 'no rule: ', counts(served(10));
--- response_body
dead: b b b b b
next: b b b b b
none: a a a a a
alone: a a a a a
no rest: b:5
no rule: b:10
--- error_log
connect() failed



=== TEST 9: each strategy keeps to the rules, and shares out by weight among their instances
--- http_config
    upstream keyed {
        server 0.0.0.1;
        balancer_by_lua_block {
            require("resty.ipconfig").balance("chat", { key = ngx.var.arg_k })
        }
    }
--- config
    location / { proxy_pass http://keyed; }
--- ipconfig
{ "services": { "chat": { "balance": { "hash_balance_factor": 0 }, "rules": [
    { "name": "new", "to": { "version": "2" }, "header": { "X-New": "1" } } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","weight":3}
put instances/chat/b {"addr":"$BACKEND_B"}
put instances/chat/c {"addr":"$BACKEND_C","weight":3,"labels":{"version":"2"}}
put instances/chat/d {"addr":"$BACKEND_D","labels":{"version":"2"}}
--- script
ready('chat', 'a b c d');
for my $strategy (qw(weighted_random round_robin random p2c adaptive chash least_conn)) {
    control($strategy, qq({"strategy":"$strategy","by":"$strategy"}));
    my ($three, $one) = $strategy eq 'random' ? (1, 1) : (3, 1);
    # `adaptive` leaves one alone for some seconds that has just answered slowly.
    my $fit;
    await("$strategy fits", sub {
        my @old = map { get("/?k=$_") } 1 .. 600;
        my @new = map { with("/?k=$_", 'X-New' => 1) } 1 .. 600;
        my @again = map { with("/?k=$_", 'X-New' => 1) } 1 .. 600;
        $fit = join ' ', fit(tally(@old), { a => $three, b => $one }),
            fit(tally(@new), { c => $three, d => $one });
        $fit .= ', and keys wander' if $strategy eq 'chash' && "@new" ne "@again";
        return $fit eq 'fits fits' || $strategy ne 'adaptive';
    });
    say "$strategy: $fit";
}
control('best', '{"strategy":"best","by":"best"}');
say 'best: ', counts(served(20)), ' ', counts(tally(map { with('/', 'X-New' => 1) } 1 .. 20));
--- response_body
weighted_random: fits fits
round_robin: fits fits
random: fits fits
p2c: fits fits
adaptive: fits fits
chash: fits fits
least_conn: fits fits
best: a:20 c:20



=== TEST 10: manual weights count within a rule, and a rule whose instances have none is passed over
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "rules": [
    { "name": "new", "to": { "version": "2" }, "header": { "X-New": "1" } } ] } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B"}
put instances/chat/c {"addr":"$BACKEND_C","labels":{"version":"2"}}
put instances/chat/d {"addr":"$BACKEND_D","labels":{"version":"2"}}
--- script
ready('chat', 'a b c d');
my $new = sub { counts(tally(map { with('/', 'X-New' => 1) } 1 .. 40)) };
control('one', '{"mode":"manual","weights":{"a":1,"c":1,"d":3},"by":"one"}');
say $new->(), ', ', counts(served(10));
control('two', '{"mode":"manual","weights":{"a":1},"by":"two"}');
say $new->();
control('three', '{"drain":["c","d"],"by":"three"}');
say $new->();
--- response_body
c:10 d:30, a:10
a:40
a:20 b:20



=== TEST 11: the requests of each rule are counted over all workers, and the page shows the rules
--- workers: 2
--- ipconfig
{ "services": { "chat": { "rules": [
    { "name": "beta", "to": { "version": "2" }, "header": { "X-Beta": ["1", "2"] } },
    { "name": "odd", "to": { "version": "9" }, "query": { "odd": true } } ] } } }
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
get_anew('/', headers => { 'X-Beta' => 1 }) for 1 .. 30;
get_anew('/?odd=1') for 1 .. 5;
my ($beta, $odd) = @{ service('chat')->{rules} };
say join ' ', map { $beta->{$_} } qw(name selected requests);
say join ' ', $beta->{to}{version}, @{ $beta->{header}{'X-Beta'} }, 0 + $beta->{percent};
say join ' ', map { $odd->{$_} } qw(name selected requests);
my $page = fetch_anew('/ipconfig/metrics')->{content};
say($_) for $page =~ /^(ipconfig_rule_requests_total.*?)(?:\.0)?$/mg;
reload();
ready('chat', 'a b');
say service('chat')->{rules}[0]{requests};
--- response_body
beta 1 30
2 1 2 100
odd 0 0
ipconfig_rule_requests_total{service="chat",rule="beta"} 30
ipconfig_rule_requests_total{service="chat",rule="odd"} 0
30



=== TEST 12: without the library the rules hold: those of the ranking, and those of the file
--- hooks
    lua_shared_dict ipconfig 32m;
    init_by_lua_block {
        require("resty.ipconfig.native").load = function() return nil, "broken on purpose" end
        require("resty.ipconfig").init()
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance(nil, { key = ngx.var.arg_k }) }
    }
--- ipconfig
{ "services": { "chat": {
    "rules": [ { "name": "beta", "to": { "version": "2" }, "header": { "X-Beta": "1" } },
               { "name": "dead", "to": { "version": "3" }, "query": { "dead": true } },
               { "name": "half", "to": { "version": "2" }, "percent": 50 } ],
    "instances": [ { "id": "a", "addr": "$BACKEND_A" },
                   { "id": "b", "addr": "$BACKEND_B", "labels": { "version": "2" } },
                   { "id": "1", "addr": "$DEAD_1", "labels": { "version": "3" } } ] } } }
--- no_wait
--- script
say counts(tally(map { with('/', 'X-Beta' => 1) } 1 .. 20));
say fit(tally(map { get("/?k=$_") } 1 .. 500), { a => 1, b => 1 });
say 'sticky' if join('', map { get("/?k=$_") } 1 .. 50) eq join('', map { get("/?k=$_") } 1 .. 50);
say names(tally(map { get("/?dead=1&k=$_") } 1 .. 10));
--- response_body
b:20
fits
sticky
a b
--- error_log
connect() failed



=== TEST 13: while the thread is silent, the rules of the last ranking hold
--- workers: 2
--- ipconfig
{ "fallback": { "after": "1s" }, "services": { "chat": { "rules": [
    { "name": "beta", "to": { "version": "2" }, "header": { "X-Beta": "1" } } ] } } }
--- etcd eval: $main::Two
--- script
ready('chat', 'a b');
my $pid = writer_pid();
while_stopped($pid, sub {
    await('the other falls back', sub { (api('v1/services/chat')->{mode} // '') eq 'fallback' });
    say counts(tally(map { with('/', 'X-Beta' => 1) } 1 .. 20));
    say counts(served(20));
});
--- response_body
b:20
a:20
--- error_log
mode fallback
