use lib 't/lib';
use IpconfigTest 'no_plan';

run_tests();

__DATA__

=== TEST 1: a put is seen by the next requests, and so is a delete
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', 'a');
say names(served(20));
put('instances/chat/b', '{"addr":"$BACKEND_B"}');
my $took = await('b is served', sub { get('/') eq 'b' });
note(sprintf 'a put is served after %.0f ms', 1000 * $took);
say names(served(20));
del('instances/chat/a');
$took = await('a is not served', sub { !served(4)->{a} });
note(sprintf 'a delete is in force after %.0f ms', 1000 * $took);
say names(served(20));
--- response_body
a
a b
b



=== TEST 2: an instance that moves is served at its new address alone
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
put instances/chat/one {"addr":"$BACKEND_A"}
--- script
ready('chat', 'one');
put('instances/chat/one', '{"addr":"$BACKEND_B"}');
await('the new address is served', sub { get('/') eq 'b' });
say counts(served(20));
--- response_body
b:20



=== TEST 3: a changed weight is in force at once
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","weight":1}
put instances/chat/b {"addr":"$BACKEND_B","weight":1}
--- script
ready('chat', 'a b');
say counts(served(40));
put('instances/chat/a', '{"addr":"$BACKEND_A","weight":3}');
await('the weight is 3', sub { weights('chat')->{a} == 3 });
say counts(served(40));
--- response_body
a:20 b:20
a:30 b:10



=== TEST 4: a drained instance gets nothing until its drain ends
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","drain":true}
--- script
ready('chat', 'b c');
say names(served(60));
put('instances/chat/a', '{"addr":"$BACKEND_A"}');
ready('chat', 'a b c');
say names(served(60));
put('instances/chat/b', '{"addr":"$BACKEND_B","drain":true}');
ready('chat', 'a c');
say names(served(60));
--- response_body
b c
a b c
a c



=== TEST 5: etcd's instance wins over the file's of the same id, which comes back after it
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "one", "addr": "$BACKEND_A", "weight": 5 } ] } } }
--- etcd
put instances/chat/one {"addr":"$BACKEND_B"}
--- script
await('the weight is 1', sub { weights('chat')->{one} == 1 });
say counts(served(20)), ' ', counts(weights('chat'));
del('instances/chat/one');
await('the file is in force', sub { weights('chat')->{one} == 5 });
say counts(served(20)), ' ', counts(weights('chat'));
put('instances/chat/one', '{"addr":"$BACKEND_C"}');
await('etcd is in force', sub { weights('chat')->{one} == 1 });
say counts(served(20)), ' ', counts(weights('chat'));
--- response_body
b:20 one:1
a:20 one:5
c:20 one:1



=== TEST 6: a bad record takes nothing away from the good ones
--- etcd
put instances/chat/d {"addr":"not an address"}
put instances/chat/e {"addr":"$BACKEND_E"}
--- script
ready('chat', 'a b c e');
say names(served(100));
await('it is logged', sub { logged(qr/bad record ignored key="\S+chat.d" reason="addr"/) });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d e');
say names(served(100));
say logged(qr/bad record ignored/), ' line';
--- response_body
a b c e
a b c d e
1 line
--- no_error_log
[error]



=== TEST 7: a service that the configuration does not name is not served
--- config
    location / {
        set $ipconfig_service other;
        proxy_pass http://ipconfig;
    }
--- etcd
put instances/other/a {"addr":"$BACKEND_A"}
--- script
say get('/');
say fetch('/ipconfig/v1/services/other')->{status};
--- response_body
503
404
--- error_log
nothing to offer for service other: the service is not known



=== TEST 8: with `discover` it is
--- ipconfig
{ "discover": ["oth*"], "services": {} }
--- config
    location / {
        set $ipconfig_service $arg_service;
        proxy_pass http://ipconfig;
    }
--- etcd
put instances/other/a {"addr":"$BACKEND_A"}
put instances/another/b {"addr":"$BACKEND_B"}
--- script
ready('other', 'a');
say counts(served(20, '/?service=other'));
put('instances/other/b', '{"addr":"$BACKEND_B"}');
ready('other', 'a b');
say names(served(40, '/?service=other'));
say get('/?service=another');
--- response_body
a:20
a b
503
--- error_log
nothing to offer for service another



=== TEST 9: an instance that reports low latency gets more than one that reports high
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "weighted_random" } } } }
--- etcd
put instances/chat/fast {"addr":"$BACKEND_A","status":"grpc://127.0.0.1:9"}
put instances/chat/slow {"addr":"$BACKEND_B","status":"grpc://127.0.0.1:9"}
--- script
ready('chat', 'fast slow');
say ranking_states('chat');
report_until('fast weighs more', sub {
    my $weight = weights('chat');
    return $weight->{fast} > 1.2 * $weight->{slow}
        && ranking_states('chat') eq 'fast:reporting slow:reporting';
}, chat => (fast => { latency_ms => 5 }, slow => { latency_ms => 100 }));
# The weights move on while requests are sent.
await('it gets more', sub {
    my ($before, $count, $after) = (weights('chat'), served(1000), weights('chat'));
    note(counts($before), ', ', counts($count));
    return counts($before) eq counts($after)
        && fit($count, { a => $before->{fast}, b => $before->{slow} }) eq 'fits'
        && $count->{a} > $count->{b};
});
say 'more';
--- response_body
fast:unknown slow:unknown
more



=== TEST 10: an instance that reports failures gets less, and the top is another
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"$BACKEND_B","status":"grpc://127.0.0.1:9"}
--- script
ready('chat', 'a b');
say ranking('chat'), ': ', counts(served(20));
report_until('b is the top', sub { ranking('chat') eq 'b a' },
             chat => (a => { failing => 0.5 }, b => {}));
say ranking('chat'), ': ', counts(served(20));
--- response_body
a b: a:20
b a: b:20



=== TEST 11: equal reports leave the weights as they were
--- etcd
put instances/chat/a {"addr":"$BACKEND_A","status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"$BACKEND_B","status":"grpc://127.0.0.1:9","weight":2}
--- script
ready('chat', 'a b c');
my %weights;
report_until('they report', sub {
    $weights{ counts(weights('chat')) }++;
    return $_[0] > 10 && ranking_states('chat') eq 'a:reporting b:reporting c:unreported';
}, chat => (a => { latency_ms => 20 }, b => { latency_ms => 20 }));
say names(\%weights);
--- response_body
a:1 b:2 c:1
