# Processes that are killed, stopped, replaced and starved: the table of what becomes
# of it is in doc/operating.md.

BEGIN {
    # Each block has a gateway of its own to kill.
    if ($ENV{TEST_NGINX_USE_HUP}) {
        print "1..0 # SKIP a reload is no start\n";
        exit;
    }
}

use lib 't/lib';
use IpconfigTest 'no_plan';
use IpconfigTest::Processes;

# Who answers tells which worker it is.
our $LOCATION = <<'_EOC_';
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_http_version    1.1;
        proxy_set_header      Connection "";
        add_header            Worker $pid always;
    }
_EOC_

our $API = <<'_EOC_';
    location /ipconfig/ {
        add_header Worker $pid always;
        default_type application/json;
        content_by_lua_block { require("resty.ipconfig.api").serve() }
    }
    # include ipconfig_api.conf
_EOC_

add_block_preprocessor(sub {
    my $block = shift;
    $block->set_value(config => $LOCATION . ($block->locations // '') . $API);
    IpconfigTest::Processes::prepare(defined $block->faults);
});

my $snapshots = 0;
sub ipconfig_with_snapshot {
    my $folder = IpconfigTest::Parts::folder() . '/snapshot-' . ++$snapshots;
    mkdir $folder;
    return <<"_EOC_";
{ "fallback": { "after": "1s" }, "snapshot": { "path": "$folder/etcd" },
  "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [] } } }
_EOC_
}

run_tests();

__DATA__

=== TEST 1: worker 0 is killed at 30 moments, and no request fails but on its own connections
--- workers: 2
--- script
hold(3);
await('they are in flight', sub { in_flight('chat') == 3 });
my $end = traffic(2);
my %killed;
for my $n (1 .. 30) {
    # etcd changes, so that some are killed while they publish
    put('instances/chat/d', { addr => '$BACKEND_D', weight => $n });
    sleep rand 0.3;
    $killed{ kill_writer() }++;
}
say keys(%killed) . ' writers were killed';
my $count = $end->();
say_served($count, 2, %killed);
let_go();
await('none is in flight', sub { in_flight('chat') == 0 });
put('instances/chat/e', '{"addr":"$BACKEND_E"}');
ready('chat', 'a b c d e');
await('all are served', sub { names(served_anew(60)) eq 'a b c d e' });
say 'none in flight, and the ranking moves: ', mode('chat');
--- response_body
30 writers were killed
answered: a b c d
under load
none is lost but on connections of the killed
none in flight, and the ranking moves: live
--- error_log
exited on signal 9
--- no_error_log
[crit]
exited on signal 11
exited on signal 6
cannot be used



=== TEST 2: any worker is killed at any moment
--- workers: 3
--- script
my $end = traffic(2);
my %killed;
for (1 .. 20) {
    my @pids = worker_pids();
    my $pid = $pids[rand @pids];
    kill KILL => $pid;
    $killed{$pid}++;
    await('there are three again', sub { my @now = worker_pids(); @now == 3 && !grep { $killed{$_} } @now });
    sleep rand 0.1;
}
say_served($end->(), 2, %killed);
await('none is in flight', sub { in_flight('chat') == 0 });
await('there is a writer', sub { writer_pid() });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say 'the ranking moves';
--- response_body
answered: a b c
under load
none is lost but on connections of the killed
the ranking moves
--- error_log
exited on signal 9
--- no_error_log
[crit]
exited on signal 11
exited on signal 6



=== TEST 3: worker 0 is killed between any two steps of publishing, and each worker serves on
--- workers: 2
--- faults
--- skip_eval
6: !$ENV{TEST_NGINX_LOAD_MODULES} # the Lua module's functions are nginx's own
--- script
my $end = traffic(2);
my (%killed, $n);
for my $when ('before instances:chat', 'after instances:chat', 'before ranking:chat', 'after ranking:chat') {
    my $pid;
    await('there is a writer', sub { $pid = writer_pid() });
    $killed{$pid}++;
    fault('kill', $when);
    put('instances/chat/d' . ++$n, '{"addr":"$BACKEND_D"}');
    await("it is killed $when", sub { is_struck('kill') });
    await_gone($pid);
    # Of each address the newer registration is offered.
    ready('chat', "a b c d$n");
    await('all are served', sub { names(served_anew(60)) eq 'a b c d' });
    say "$when: goes on";
}
say_served($end->(), 2, %killed);
--- response_body
before instances:chat: goes on
after instances:chat: goes on
before ranking:chat: goes on
after ranking:chat: goes on
answered: a b c d
under load
none is lost but on connections of the killed
--- error_log
exited on signal 9
--- no_error_log
[crit]
exited on signal 11
exited on signal 6



=== TEST 4: a new worker 0 whose ranking is damaged serves while etcd is away, and others keep theirs
# What nobody can read is no ranking to begin with; the configured instances are.
--- workers: 2
--- locations
    location = /damage {
        content_by_lua_block {
            local dict = ngx.shared.ipconfig
            local value = dict:get("ranking:chat")
            dict:set("ranking:chat", value:sub(1, 40) .. ("x"):rep(#value - 40))
            ngx.say("damaged")
        }
    }
--- etcd
register chat d
--- script
ready('chat', 'a b c d');
await('both workers serve', sub { my %by; $by{ fetch_anew('/')->{headers}{worker} }++ for 1 .. 20; keys %by == 2 });
kill_etcd();
say get('/damage');
my $end = traffic(2);
my %killed = (kill_writer() => 1);
my $died = time;
sleep 0.05 while time < $died + 3;
say_served($end->(), 2, %killed);
start_etcd();
await('each worker has all', sub {
    my %by;
    for (1 .. 60) {
        my $answer = fetch_anew('/');
        $by{ $answer->{headers}{worker} }{ word($answer) }++;
    }
    2 == grep { names($_) eq 'a b c d' } values %by;
});
say 'healed';
--- response_body
damaged
answered: a b c d
under load
none is lost but on connections of the killed
healed
--- error_log
exited on signal 9
cannot be used
--- no_error_log
[crit]
exited on signal 11



=== TEST 5: reloads in a storm cost no request, and leave one thread, nothing in flight and no more descriptors
--- workers: 2
--- script
my $descriptors = sub { scalar map { glob "/proc/$_/fd/*" } master_pid() };
reload();
my $before = $descriptors->();
my $end = traffic(2, 1);
for (1 .. 40) {
    kill HUP => master_pid();
    sleep rand 0.15;
}
my $master = master_pid();
await('the old ones are gone', sub { children($master) == 2 && worker_pids() == 2 });
my $count = $end->();
say_served($count, 0);
my @threads = grep { slurp($_) eq "ipconfig\n" } map { glob "/proc/$_/task/*/comm" } worker_pids();
say scalar(@threads), ' thread';
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
await('none is in flight', sub { in_flight('chat') == 0 });
say 'none in flight, restarts: ', metric('thread_restarts_total');
my $more = $descriptors->() - $before;
say $more <= 2 ? 'no more descriptors' : "$more more descriptors";
--- response_body
answered: a b c
under load
none is lost but on connections of the killed
1 thread
none in flight, restarts: 0
no more descriptors
--- no_error_log
[error]
[crit]
[alert]



=== TEST 6: the master is killed: its workers serve on, and the next start has the snapshot
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot()
--- etcd
register chat a b
--- script
my ($file) = ipconfig() =~ /"path": "(.*?)"/;
await('the snapshot is there', sub { slurp($file) =~ m{chat/b} });
my $master = master_pid();
my @workers = worker_pids();
kill KILL => $master;
await_gone($master);
my $end = traffic(2);
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
await('c is served', sub { names(served_anew(20)) eq 'a b c' });
my $count = $end->();
say_served($count, 0);
await('the snapshot has it', sub { slurp($file) =~ m{chat/c} });
# An operator ends the orphans: they have the port, and nobody replaces them.
kill QUIT => @workers;
await_gone(@workers);
kill_etcd();
start_gateway();
say names(served_anew(30)), ' by ', mode('chat');
start_etcd();
await('etcd is watched', sub { mode('chat') eq 'live' });
say 'other workers' if !grep { my $pid = $_; grep { $_ == $pid } @workers } worker_pids();
--- response_body
answered: a b c
under load
none is lost but on connections of the killed
a b c by snapshot
other workers
--- no_error_log
exited on signal 11



=== TEST 7: an upgrade by USR2, WINCH and QUIT costs no request, and both programs share etcd, port and snapshot
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot()
--- etcd
register chat a b c
--- script
my ($file) = ipconfig() =~ /"path": "(.*?)"/;
await('the snapshot is there', sub { slurp($file) =~ m{chat/c} });
my $end = traffic(2, 1);
my ($old, $new) = upgrade();
my @threads = map { thread_of(workers_of($_)) } $old, $new;
say scalar(@threads), ' threads, one each';
# Each has shared memory of its own, and follows etcd by itself.
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
for my $master ($old, $new) {
    my %is_of = map { $_ => 1 } workers_of($master);
    await("all of $master serve d", sub {
        my %by;
        for (1 .. 60) {
            my $answer = fetch_anew('/');
            my $pid = $answer->{headers}{worker};
            $by{$pid}{ word($answer) }++ if $is_of{$pid};
        }
        2 == grep { names($_) eq 'a b c d' } values %by;
    });
}
await('the snapshot has d', sub { slurp($file) =~ m{chat/d} });
kill WINCH => $old;
await('the old workers are gone', sub { !any_workers_of($old) });
kill QUIT => $old;
await_gone($old);
del('instances/chat/a');
ready('chat', 'b c d');
my $count = $end->();
say_served($count, 0);
await('a is served no more', sub { names(served_anew(40)) eq 'b c d' });
await('the snapshot has no a', sub { slurp($file) !~ m{chat/a"} });
my ($folder) = $file =~ m{(.*)/};
say join ' ', sort map { s{.*/}{}r } glob "$folder/*";
say mode('chat'), ', one master: ', master_pid() == $new ? 'the new one' : 'another';
--- response_body
2 threads, one each
answered: a b c d
under load
none is lost but on connections of the killed
etcd etcd.1
live, one master: the new one
--- no_error_log
[error]
[crit]
[alert]
stays as it was



=== TEST 8: an upgrade that is taken back costs no request
--- workers: 2
--- script
my $end = traffic(2, 1);
my ($old, $new) = upgrade();
kill WINCH => $old;
await('the old workers are gone', sub { !any_workers_of($old) });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
await('the new ones serve it', sub { names(served_anew(40)) eq 'a b c d' });
# Back: the old master has workers again, with the memory that it had.
kill HUP => $old;
await('the old one serves', sub { workers_of($old) == 2 && thread_of(workers_of($old)) && by_workers_of($old) });
kill QUIT => $new;
await_gone($new);
await('it is the master again', sub { master_pid() eq $old });
my $count = $end->();
say_served($count, 0);
ready('chat', 'a b c d');
await('all serve d', sub { names(served_anew(40)) eq 'a b c d' });
say mode('chat'), ', in flight: ', in_flight('chat');
--- response_body
answered: a b c d
under load
none is lost but on connections of the killed
live, in flight: 0
--- no_error_log
[error]
[crit]
exited on signal



=== TEST 9: two programs with one gateway.id that share checks say the same, and do not fight
--- workers: 2
--- ipconfig
{ "gateway": { "id": "gw-1" },
  "services": { "chat": { "balance": { "strategy": "round_robin" },
                          "check": { "by": "one", "tcp": true, "interval": "500ms", "timeout": "500ms" } } } }
--- etcd
register chat a b 1
--- script
await('1 is out', sub { ranking('chat') eq 'a b' || !grep { $_->{id} eq '1' && $_->{weight} > 0 } @{ service('chat')->{instances} } });
my ($old, $new) = upgrade();
my $revision = sub { IpconfigTest::Parts::put_key('mark', '{}'); IpconfigTest::Parts::revision() };
my ($begin, $before) = (time, $revision->());
sleep 0.1 while time < $begin + 4;
my $writes = $revision->() - $before;
note("$writes revisions in 4 s");
say $writes < 60 ? 'etcd has peace' : "$writes revisions in 4 s";
say names(served_anew(40));
kill QUIT => $old;
await_gone($old);
say names(served_anew(40)), ' ', mode('chat');
--- response_body
etcd has peace
a b
a b live
--- no_error_log
[crit]
[alert]



=== TEST 10: worker 0 stands still for long: the others serve on, fall back, and return, with one line each
--- workers: 3
--- ipconfig
{ "fallback": { "after": "2s" },
  "services": { "chat": { "balance": { "strategy": "best" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A", "weight": 3 }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
my @others = grep { $_ != writer_pid() } worker_pids();
while_stopped(writer_pid(), sub {
    my $served = served_anew(30);
    say 'first by the ranking: ', names($served) if mode('chat') eq 'live';
    await('each other worker has fallen back', sub { logged(qr/mode fallback/) == @others });
    my $began = time;
    my %count;
    while (time < $began + 3) { $count{ get_anew('/') }++ }
    say 'then by weight: ', names(\%count);
    say 'lines: ', logged(qr/mode fallback/);
});
await('each is back', sub { logged(qr/mode normal/) == logged(qr/mode fallback/) });
await('the ranking serves', sub { counts(served_anew(60)) eq 'a:60' });
put('instances/chat/a', '{"addr":"$BACKEND_A","drain":true}');
await('and moves', sub { names(served_anew(40)) eq 'b' });
say 'back: ', mode('chat');
--- response_body
first by the ranking: a
then by weight: a b
lines: 2
back: live
--- error_log
mode fallback
mode normal
--- no_error_log
[crit]
[alert]



=== TEST 11: the thread panics: it is told why, counted, begins anew, and no request notices
--- workers: 2
--- faults
--- script
my $end = traffic(2);
fault('panic-once');
await('it is struck', sub { is_struck('panic-once') });
in_log(qr/the plugin's thread panicked: .+; it starts anew in 1s/);
await('it is counted', sub { metric('thread_restarts_total') == 1 });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
await('all are served', sub { names(served_anew(60)) eq 'a b c d' });
my $count = $end->();
say_served($count, 0);
await('its state says so', sub { api('healthz')->{plugin}{restarts} == 1 });
say mode('chat'), ', ', scalar(grep { slurp($_) eq "ipconfig\n" } map { glob "/proc/$_/task/*/comm" } worker_pids()), ' thread';
# In a process that ends it has no say.
reload();
say 'restarts: ', metric('thread_restarts_total');
--- response_body
answered: a b c d
under load
none is lost but on connections of the killed
live, 1 thread
restarts: 1
--- error_log
the plugin's thread panicked: unexpected error when polling the I/O driver
--- no_error_log
[crit]
[alert]
mode fallback



=== TEST 12: a panic that comes back each time is tried ever less often, the fallback serves, and its end is the end of it
--- workers: 2
--- faults
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "balance": { "strategy": "best" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A", "weight": 3 }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
my $cpu = sub { my @stat = split ' ', slurp("/proc/$_[0]/stat") =~ s/.*\) //r; $stat[11] + $stat[12] };
my $writer = writer_pid();
fault('panic');
my $end = traffic(1, 1);
in_log(qr/it starts anew in 4s/);
my $used = $cpu->($writer);
my %modes;
await('the fallback serves', sub { $modes{ mode('chat') }++; $modes{fallback} });
in_log(qr/it starts anew in 8s/);
say 'panics until then: ', metric('thread_restarts_total');
mend('panic');
await('it runs', sub { mode('chat') eq 'live' && metric('thread_restarts_total') >= 4 });
put('instances/chat/a', '{"addr":"$BACKEND_A","drain":true}');
await('the ranking moves', sub { names(served_anew(40)) eq 'b' });
my $count = $end->();
say_served($count, 0);
say $writer == writer_pid() ? 'the same worker' : 'another worker';
--- response_body
panics until then: 4
answered: a b
under load
none is lost but on connections of the killed
the same worker
--- error_log eval
[qr/it starts anew in 1s/, qr/it starts anew in 2s/, qr/it starts anew in 4s/, qr/it starts anew in 8s/, qr/mode fallback/, qr/mode normal/]
--- no_error_log
[crit]
exited on signal



=== TEST 13: the clock is set ahead and back by an hour, and nobody notices
--- workers: 2
--- faults
--- script
my $end = traffic(2);
my $n = 0;
my $moves = sub {
    my $id = 'd' . ++$n;
    put("instances/chat/$id", '{"addr":"$BACKEND_D"}');
    await('the ranking moves', sub { ranking('chat') =~ /\b$id\b/ });
    del("instances/chat/$id");
    await('and back', sub { ranking('chat') !~ /\b$id\b/ });
    return mode('chat');
};
my $year = sub { api('healthz'); my $answer = fetch_anew('/'); $answer->{headers}{date} };
my $date = $year->();
for my $ahead (3600, 0, -3600, 86400 * 365, 0) {
    fault('clock', $ahead);
    await('nginx has another time', sub { $year->() ne $date });
    $date = $year->();
    say "$ahead: ", $moves->();
}
my $count = $end->();
say_served($count, 0);
my $view = service('chat');
say 'age: ', $view->{age_ms} < 30_000 ? 'young' : $view->{age_ms};
--- response_body
3600: live
0: live
-3600: live
31536000: live
0: live
answered: a b c d
under load
none is lost but on connections of the killed
age: young
--- no_error_log
[crit]
[alert]
mode stale
mode fallback
exited on signal



=== TEST 14: with the clock put back the fallback and the log of refusals go on
--- workers: 2
--- faults
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" } ] },
    "empty": {} } }
--- locations
    location /empty {
        set $ipconfig_service empty;
        proxy_pass http://ipconfig;
    }
--- script
my $in_fallback = sub {
    my $work = shift;
    my $times = 1 + logged(qr/mode fallback/);
    while_stopped(writer_pid(), sub {
        await('fallback', sub { logged(qr/mode fallback/) == $times });
        $work->();
    });
    await('it is back', sub { logged(qr/mode normal/) == $times && mode('chat') eq 'live' });
};
$in_fallback->(sub {
    say names(served_anew(40));
    # as long as there is nobody to answer 503
    say get_anew('/empty');
});
fault('clock', -3600);
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
my $lines = logged(qr/nothing to offer for service empty/);
$in_fallback->(sub {
    await('the last ranking serves', sub { names(served_anew(40)) eq 'a b c' });
    get_anew('/empty');
    await('refusals are logged', sub { get_anew('/empty'); logged(qr/nothing to offer for service empty/) > $lines });
});
say 'the last ranking serves, and refusals are logged';
--- response_body
a b
500
the last ranking serves, and refusals are logged
--- error_log
nothing to offer for service empty
--- no_error_log
[alert]
exited on signal



=== TEST 15: without descriptors left a worker takes no more, and all goes on once there are
# Each worker has 64, and requests that are held take most of them.
--- workers: 2
--- main_config
    worker_rlimit_nofile 64;
--- script
my @pids = worker_pids();
my $open = sub { map { scalar(() = glob "/proc/$_/fd/*") } @pids };
hold(80);
await('they are all taken', sub { !grep { $_ < 62 } $open->() });
note('descriptors: ', join ' ', $open->());
# The thread loses etcd, and has no descriptor for another connection.
kill_etcd();
start_etcd();
my $began = time;
sleep 0.1 while time < $began + 3;
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
let_go();
await('there are some', sub { !grep { $_ > 55 } $open->() });
ready('chat', 'a b c d');
await('none is in flight', sub { in_flight('chat') == 0 });
await('all are served', sub { names(served_anew(60)) eq 'a b c d' });
say mode('chat'), ', ', "@pids" eq join(' ', worker_pids()) ? 'the same workers' : 'other workers';
--- response_body
live, the same workers
--- error_log
Too many open files
--- no_error_log
exited on signal
[emerg]



=== TEST 16: the thread begins anew without descriptors, and when there are some it runs
--- workers: 1
--- faults
--- main_config
    worker_rlimit_nofile 64;
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [
      { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" } ] },
    "empty": {} } }
--- locations
    location /empty {
        set $ipconfig_service empty;
        proxy_pass http://ipconfig;
    }
--- script
my ($pid) = worker_pids();
my $open = sub { scalar(() = glob "/proc/$pid/fd/*") };
hold(60);
await('they are all taken', sub { $open->() >= 62 });
fault('panic');
in_log(qr/it starts anew in 2s/);
# What it held is taken by others while it rests.
hold(40);
await('they are all taken again', sub { $open->() >= 62 });
mend('panic');
in_log(qr/thread cannot run: Too many open files|requests that nobody can take will get 500, not 503: Too many open files/);
let_go();
await('there are some', sub { $open->() < 50 });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b d');
await('none is in flight', sub { in_flight('chat') == 0 });
say names(served_anew(40)), ', ', mode('chat');
await('refusals have their ports', sub { get_anew('/empty') eq '503' });
say 'refused with 503';
--- response_body
a b d, live
refused with 503
--- error_log
Too many open files
--- no_error_log
exited on signal



=== TEST 17: others evict and poison what is in the shared dict, and each worker serves on
--- workers: 2
--- hooks
    lua_shared_dict ipconfig 256k;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- locations
    # takes the room of values that are not used
    location = /evict {
        content_by_lua_block {
            local dict = ngx.shared.ipconfig
            for i = 1, 4000 do dict:set("foreign-" .. i, ("x"):rep(400)) end
            ngx.say(dict:get("ranking:chat") and "there" or "evicted")
            for i = 1, 4000 do dict:delete("foreign-" .. i) end
        }
    }
    location = /poison {
        content_by_lua_block {
            local dict, how = ngx.shared.ipconfig, ngx.var.arg_how
            local keep = dict:get("ranking:chat")
            for _, key in ipairs { "ranking:chat", "instances:chat", "status", "explain:chat" } do
                local value = dict:get(key)
                if how == "boolean" then value = true
                elseif how == "number" then value = -1 / 0
                elseif how == "list" then dict:delete(key) dict:lpush(key, "x") value = nil
                elseif how == "random" then
                    local bytes = {}
                    for i = 1, 2000 do bytes[i] = string.char(math.random(0, 255)) end
                    value = table.concat(bytes)
                elseif how == "swapped" then value = key == "instances:chat" and keep or dict:get("status")
                end
                if value ~= nil then dict:set(key, value) end
            end
            ngx.say("poisoned")
        }
    }
--- script
my $end = traffic(2);
my ($n, %killed) = (0);
my @hows = ('/evict', map { "/poison?how=$_" } qw(boolean number list random swapped));
for my $how (@hows) {
    my $said = get($how);
    # A new worker finds nothing but that, and the others are to read it.
    $killed{ kill_writer() }++;
    put('instances/chat/d' . ++$n, '{"addr":"$BACKEND_D"}');
    await('each worker has it', sub {
        my %by;
        for (1 .. 40) {
            my $answer = fetch_anew('/');
            $by{ $answer->{headers}{worker} }{ word($answer) }++;
        }
        ranking('chat') =~ /\bd$n\b/ && 2 == grep { names($_) eq 'a b c d' } values %by;
    });
    await('the status is there', sub { api('healthz')->{plugin} });
    say "$how: $said";
}
say_served($end->(), 2, %killed);
say mode('chat');
--- response_body
/evict: evicted
/poison?how=boolean: poisoned
/poison?how=number: poisoned
/poison?how=list: poisoned
/poison?how=random: poisoned
/poison?how=swapped: poisoned
answered: a b c d
under load
none is lost but on connections of the killed
live
--- error_log
exited on signal 9
--- no_error_log
[crit]
exited on signal 11
exited on signal 6



=== TEST 18: worker 0 has no memory left: it ends, as if it were killed, and the next one serves
--- workers: 2
--- skip_eval
4: system('prlimit --version > /dev/null 2>&1') != 0
--- script
my $pid = writer_pid();
my ($kb) = slurp("/proc/$pid/status") =~ /^VmData:\s+(\d+)/m;
# Not one page more, for the thread nor for nginx.
system('prlimit', "--pid=$pid", '--data=' . $kb * 1024) == 0 or die;
my $labels = join ',', map { qq("l$_":") . 'x' x 120 . '"' } 1 .. 30;
for my $n (1 .. 2000) {
    last if is_gone($pid);
    put("instances/chat/m$n", qq({"addr":"127.0.0.2:$n","weight":0,"labels":{$labels}}));
}
await_gone($pid);
await('there is another writer', sub { my $next = writer_pid(); $next && $next != $pid });
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
await('the ranking moves', sub { ranking('chat') =~ /\bd\b/ });
await('all are served', sub { names(served_anew(80)) eq 'a b c d' });
say mode('chat');
--- response_body
live
--- error_log
exited on signal 6
--- no_error_log
exited on signal 11
