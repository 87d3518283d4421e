# Processes that are killed, stopped, replaced and starved: the table of what becomes
# of it is in doc/operating.md.

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
8: $ENV{TEST_NGINX_USE_HUP} || !$ENV{TEST_NGINX_LOAD_MODULES}
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
