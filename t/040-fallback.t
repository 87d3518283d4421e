use lib 't/lib';
use IpconfigTest 'no_plan';

our $Weights = <<'_EOC_';
{ "fallback": { "after": "2s" },
  "services": { "chat": { "balance": { "strategy": "best" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A", "weight": 1 },
      { "id": "b", "addr": "$BACKEND_B", "weight": 3 },
      { "id": "c", "addr": "$BACKEND_C", "weight": 6 },
      { "id": "d", "addr": "$BACKEND_D", "weight": 0 } ] } } }
_EOC_

our $Keyed = <<'_EOC_';
    upstream keyed {
        server 0.0.0.1;
        balancer_by_lua_block {
            require("resty.ipconfig").balance("chat", { key = ngx.var.arg_k })
        }
    }
_EOC_
our $KeyedLocation = $IpconfigTest::SERVICE_LOCATION =~ s{http://ipconfig}{http://keyed}r;

run_tests();

__DATA__

=== TEST 1: when the plugin's thread is silent, the fallback weights decide until it is back
# As the strategy is best, c gets all requests but in fallback mode. A wrong
# alarm of the chi-square: once in a million runs.
--- workers: 2
--- ipconfig eval: $::Weights
--- script
my $writer = writer_pid();
say mode('chat'), ': ', counts(served(50));
my $began = time;
while_stopped($writer, sub {
    await('fallback', sub { mode('chat') eq 'fallback' });
    my $took = time - $began;
    note(sprintf 'in fallback after %.2f s', $took);
    say $took >= 1 ? 'not before its time' : "after $took s";
    say mode('chat'), ': ', fit(served_anew(3000), { a => 1, b => 3, c => 6 });
});
my $took = await('its end', sub { logged(qr/mode normal/) && mode('chat') eq 'live' });
note(sprintf 'live after %.2f s', $took);
# Either worker may have fallen back; both are to be back.
await('by the ranking', sub { counts(served_anew(50)) eq 'c:50' });
say mode('chat'), ': by the ranking';
# Once each, unless the machine itself stopped for so long.
await('as often back', sub { logged(qr/mode fallback/) == logged(qr/mode normal/) });
say 'as often back';
--- response_body
live: c:50
not before its time
fallback: fits
live: by the ranking
as often back
--- error_log
[ipconfig] mode fallback
[ipconfig] mode normal
--- no_error_log
[crit]
[alert]



=== TEST 2: a stop shorter than fallback.after changes nothing
--- workers: 2
--- ipconfig eval: $::Weights =~ s/"2s"/"20s"/r
--- script
while_stopped(writer_pid(), sub { sleep 2 });
sleep 1;
say logged(qr/mode fallback/), ' lines';
say counts(served_anew(50));
--- response_body
0 lines
c:50



=== TEST 3: in fallback mode a failed try moves on, to no instance twice
--- workers: 2
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "instances": [
      { "id": "a", "addr": "$BACKEND_A" },
      { "id": "b", "addr": "$BACKEND_B" },
      { "id": "1", "addr": "$DEAD_1" } ] } } }
--- config
    location / {
        set $ipconfig_service chat;
        proxy_pass http://ipconfig;
        add_header Tries $upstream_addr always;
    }
--- script
while_stopped(writer_pid(), sub {
    await('fallback', sub { mode('chat') eq 'fallback' });
    my $count = served_anew(100);
    say names($count), ', ', sum0(values %$count);
    my %seen;
    for (1 .. 30) {
        my @tries = tries(fetch_anew('/drop'));
        $seen{ @tries . ' tries at ' . uniq(@tries) }++;
    }
    say counts(\%seen);
});
--- response_body
a b, 100
3 tries at 3:30
--- error_log
[ipconfig] mode fallback



=== TEST 4: the fallback serves what the last ranking had, etcd's instances too
--- workers: 2
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "instances": [
      { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- etcd
put instances/chat/b {"addr":"$BACKEND_B","drain":true}
put instances/chat/c {"addr":"$BACKEND_C"}
--- script
ready('chat', 'a c');
while_stopped(writer_pid(), sub {
    await('fallback', sub { mode('chat') eq 'fallback' });
    say names(served_anew(60));
});
--- response_body
a c
--- error_log
[ipconfig] mode fallback



=== TEST 5: without etcd the ranking is served on, as stale, and live again with it
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B"}
--- script
ready('chat', 'a b');
my $end = meanwhile(sub { $_[0]{ get('/') }++ });
kill_etcd();
my $took = await('stale', sub { mode('chat') eq 'stale' });
note(sprintf 'stale after %.2f s', $took);
say ranking('chat'), ' ', mode('chat'), ', ', fetch('/ipconfig/healthz')->{status};
start_etcd();
$took = await('live', sub { mode('chat') eq 'live' });
note(sprintf 'live %.2f s after etcd', $took);
my $count = $end->();
note('meanwhile ', counts($count));
say names($count);
say ranking('chat'), ' ', mode('chat');
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
say names(served(30));
--- response_body
a b stale, 200
a b
a b live
a b c



=== TEST 6: what etcd lost while it could not be seen goes when it can
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B"}
put instances/chat/c {"addr":"$BACKEND_C"}
--- script
ready('chat', 'a b c');
kill_etcd();
say ranking('chat');
start_etcd();
del('instances/chat/b');
await('b is gone', sub { ranking('chat') eq 'a c' });
say names(served(60));
--- response_body
a b c
a c



=== TEST 7: with etcd down from the start the file's instances are served, by their weights
--- skip_eval
2: $ENV{TEST_NGINX_USE_HUP} # a reload is no start
--- no_wait
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] },
  "services": { "chat": { "balance": { "strategy": "weighted_random" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A", "weight": 1 },
      { "id": "b", "addr": "$BACKEND_B", "weight": 3 } ] } } }
--- script
await('the file is in force', sub { ranking('chat') eq 'b a' });
my $health = api('healthz');
say mode('chat'), ', ', $health->{ready} ? 'ready' : 'not ready';
say fit(served(1000), { a => 1, b => 3 });
--- response_body
static, ready
fits



=== TEST 8: with etcd down from the start a service without instances is not ready
--- skip_eval
2: $ENV{TEST_NGINX_USE_HUP} # a reload is no start
--- no_wait
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] }, "services": { "chat": {} } }
--- script
say fetch('/ipconfig/healthz')->{status};
say get('/');
--- response_body
503
503
--- error_log
nothing to offer for service chat



=== TEST 9: the first requests of a start are served by the file's instances
--- no_wait
--- script
say names(served(60));
--- response_body
a b c



=== TEST 10: with chash a key stays where it is when the fallback takes over, retries too
--- workers: 4
--- http_config eval: $::Keyed
--- config eval: $::KeyedLocation
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "balance": { "strategy": "chash", "hash_balance_factor": 0 },
                          "instances": [
      { "id": "a", "addr": "$BACKEND_A", "weight": 1 },
      { "id": "b", "addr": "$BACKEND_B", "weight": 3 },
      { "id": "c", "addr": "$BACKEND_C", "weight": 2.5 },
      { "id": "d", "addr": "$BACKEND_D", "weight": 0 },
      { "id": "1", "addr": "$DEAD_1", "weight": 2 } ] } } }
--- script
my $homes = sub { return { map { ($_ => get_anew("/?k=user-$_")) } 1 .. 150 } };
my $live = $homes->();
my $elsewhere = sub { my $now = $homes->(); scalar grep { $now->{$_} ne $live->{$_} } keys %$live };
say names({ reverse %$live });
while_stopped(writer_pid(), sub {
    await('fallback', sub { mode('chat') eq 'fallback' });
    say $elsewhere->(), ' elsewhere' for 1 .. 2;
    # without a's the chance is 1e-10
    say names(served_anew(200)), ' without a key';
});
--- response_body
a b c
0 elsewhere
0 elsewhere
a b c without a key
--- error_log
[ipconfig] mode fallback
Connection refused



=== TEST 11: in fallback mode chash shares the keys by weight
--- workers: 2
--- http_config eval: $::Keyed
--- config eval: $::KeyedLocation
--- ipconfig eval: $::Weights =~ s/best/chash/r
--- script
while_stopped(writer_pid(), sub {
    await('fallback', sub { mode('chat') eq 'fallback' });
    my %count;
    $count{ get_anew("/?k=user-$_") }++ for 1 .. 3000;
    say fit(\%count, { a => 1, b => 3, c => 6 });
});
--- response_body
fits
--- error_log
[ipconfig] mode fallback
