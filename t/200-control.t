# An operator's hand: what control/<service> says is in force within one watch
# event, and is over when it is deleted or lapses.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

sub control { put('control/chat', shift) }

# The control is in force: the page shows who wrote it.
sub in_force {
    my $by = shift;
    await("$by is in force", sub { (service('chat')->{control}{by} // '') eq $by });
}

package main;

run_tests();

__DATA__

=== TEST 1: manual weights are in force at once, and the ranking's come back when they are deleted
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
control('{"mode":"manual","weights":{"a":3,"b":1},"by":"ann","why":"a bad day"}');
in_force('ann');
my $view = service('chat');
say join ' ', $view->{mode}, $view->{strategy}, $view->{control}{why};
say counts(served(40));
del('control/chat');
await('auto again', sub { mode('chat') eq 'live' });
say counts(served(30));
--- response_body
manual round_robin a bad day
a:30 b:10
a:10 b:10 c:10



=== TEST 2: an instance that the operator did not name is asked when the others fail
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" } } } }
--- etcd
register chat 1 a
put control/chat {"mode":"manual","weights":{"1":1}}
--- script
ready('chat', '1 a');
say mode('chat'), ' ', counts(served(5));
--- response_body
manual a:5
--- error_log
connect() failed



=== TEST 3: where none is left that the operator named, the ranking serves
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a
register chat b {"weight":3}
put control/chat {"mode":"manual","weights":{"gone":1}}
--- script
ready('chat', 'a b');
say mode('chat'), ' ', counts(served(40));
--- response_body
live a:10 b:30



=== TEST 4: a consistent hash goes by the manual weights
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
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
put control/chat {"mode":"manual","strategy":"chash","weights":{"a":3,"b":1},"by":"ann"}
--- script
ready('chat', 'a b c');
in_force('ann');
my @first = map { get("/?k=$_") } 1 .. 200;
my @again = map { get("/?k=$_") } 1 .. 200;
say "@first" eq "@again" ? 'each key stays' : 'keys wander';
my %count;
$count{$_}++ for @first;
say names(\%count);
say $count{a} > 120 && $count{a} < 180 ? 'three to one' : counts(\%count);
--- response_body
each key stays
a b
three to one



=== TEST 5: the operator's strategy stands in place of the configured one
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" } } } }
--- etcd
register chat a b
--- script
ready('chat', 'a b');
say service('chat')->{strategy}, ' ', counts(served(20));
control('{"strategy":"round_robin","by":"ann"}');
in_force('ann');
say service('chat')->{strategy}, ' ', mode('chat'), ' ', counts(served(20));
--- response_body
best a:20
round_robin live a:10 b:10



=== TEST 6: a drained instance gets no request, nor does a disabled one, and nothing fails
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
control('{"drain":["a"],"disable":["b"],"by":"ann"}');
in_force('ann');
say ranking('chat'), ': ', counts(served(10));
control('{"drain":["c"],"by":"bob"}');
in_force('bob');
say ranking('chat'), ': ', counts(served(10));
--- response_body
c: c:10
a b: a:5 b:5



=== TEST 7: it lapses at its time by itself
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b
--- script
ready('chat', 'a b');
my @at = gmtime(time + 8);
my $expires = sprintf '%04d-%02d-%02dT%02d:%02d:%02dZ',
    $at[5] + 1900, $at[4] + 1, @at[3, 2, 1, 0];
control(qq({"mode":"manual","weights":{"a":1},"by":"ann","expires":"$expires"}));
in_force('ann');
say mode('chat'), ' ', service('chat')->{control}{expires} eq $expires ? 'as said' : 'else';
await('it has lapsed', sub { mode('chat') eq 'live' && !service('chat')->{control} });
await('it is logged', sub { logged(qr/the control of chat has lapsed/) });
say counts(served(10));
--- response_body
manual as said
a:5 b:5
--- error_log
the control of chat has lapsed



=== TEST 8: one that has lapsed already is never in force
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b
put control/chat {"mode":"manual","weights":{"a":1},"expires":"2001-01-01T00:00:00Z"}
--- script
ready('chat', 'a b');
say mode('chat'), ' ', counts(served(10));
--- response_body
live a:5 b:5



=== TEST 9: a bad value is refused whole, counted and logged, and the last good one stays
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b
put control/chat {"mode":"manual","weights":{"a":1},"by":"ann"}
--- script
ready('chat', 'a b');
in_force('ann');
control('{"mode":"manual","weights":{"b":-1},"drain":["a"]}');
await('it is counted', sub {
    fetch_anew('/ipconfig/metrics')->{content}
        =~ /^ipconfig_bad_records_total\{reason="control"\} 1(?:\.0)?$/m
});
say mode('chat'), ' ', counts(served(10));
--- response_body
manual a:10
--- error_log
control/chat" reason="control" error=refused the control value: weights.b: invalid value



=== TEST 10: it outlives a reload
--- workers: 2
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
register chat a b
put control/chat {"mode":"manual","weights":{"a":1},"by":"ann"}
--- script
ready('chat', 'a b');
in_force('ann');
reload();
ready('chat', 'a b');
my %seen;
$seen{ get_anew('/') }++ for 1 .. 20;
say join ' ', %seen;
--- response_body
a 20
