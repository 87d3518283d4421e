use lib 't/lib';
use IpconfigTest 'no_plan';

# What each worker has to say, by its id: "version: ids".
our $Ask = <<'_EOC_';
    location = /ask {
        content_by_lua_block {
            local ids = {}
            for i, one in ipairs(require("resty.ipconfig").best("chat")) do
                ids[i] = one.id .. "=" .. one.weight
            end
            ngx.say(ngx.worker.id(), " ", table.concat(ids, " "))
        }
    }
_EOC_

add_block_preprocessor(sub ($) {
    my $block = shift;
    $block->set_value(config => $IpconfigTest::SERVICE_LOCATION . $Ask);
});

run_tests();

__DATA__

=== TEST 1: two workers agree on the ranking
--- workers: 2
--- script
ready('chat', 'a b c');
say views(2);
put('instances/chat/d', '{"addr":"$BACKEND_D","weight":7}');
my $took = await('all see d', sub { views(2) =~ /^0 d=7.*\n1 d=7/ });
note(sprintf 'all see a put after %.0f ms', 1000 * $took);
say views(2);
--- response_body
0 a=1 b=1 c=1
1 a=1 b=1 c=1
0 d=7 a=1 b=1 c=1
1 d=7 a=1 b=1 c=1



=== TEST 2: four workers agree, and a drain reaches all of them
--- workers: 4
--- script
put('instances/chat/c', '{"addr":"$BACKEND_C","drain":true}');
await('all see it', sub { views(4) !~ /c/ });
say views(4);
say names(served_anew(100));
--- response_body
0 a=1 b=1
1 a=1 b=1
2 a=1 b=1
3 a=1 b=1
a b



=== TEST 3: a worker that reads while the thread stores has nothing to complain of
# A ranking is two values, of which a worker may read one before and one after
# the thread stored both. Reading slowly makes that likely.
--- workers: 2
--- hooks
    lua_shared_dict ipconfig 32m;
    init_by_lua_block {
        require("resty.ipconfig").init()

        local ffi = require "ffi"
        ffi.cdef "int usleep(unsigned int);"
        local methods = getmetatable(ngx.shared.ipconfig).__index
        local get = methods.get
        methods.get = function(dict, key)
            local value = get(dict, key)
            ffi.C.usleep(20000)
            return value
        end
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- script
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
for my $i (1 .. 15) {
    put("instances/chat/d$i", '{"addr":"$DEAD_1","weight":0}');
    sleep 0.01;
    del("instances/chat/d$i");
    sleep 0.1;
}
say names($end->());
say logged(qr/cannot be used/), ' complaints';
--- response_body
a b c
0 complaints
--- no_error_log
[crit]



=== TEST 4: only worker 0 has the plugin's thread
--- workers: 3
--- script
my @names = map { slurp($_) } map { glob "/proc/$_/task/*/comm" } worker_pids();
say scalar(grep { $_ eq "ipconfig\n" } @names), ' thread';
my %id;    # of each worker, by its pid
await('each worker has answered', sub {
    my ($id, $pid) = split ' ', get_anew('/worker');
    $id{$pid} = $id;
    return keys %id == 3;
});
say "in worker $id{writer_pid()}";
--- response_body
1 thread
in worker 0



=== TEST 5: in-flight requests of all workers are counted together
--- workers: 2
--- script
hold(6);
await('six in flight', sub { in_flight('chat') == 6 });
my %seen;
$seen{ in_flight('chat') }++ for 1 .. 40;
say names(\%seen), ' in flight';
--- response_body
6 in flight



=== TEST 6: with master_process off the one process does all
--- script
say views(1);
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say names(served(80));
--- response_body
0 a=1 b=1 c=1
a b c d



=== TEST 7: with lua_code_cache off requests are served and nothing crashes
--- workers: 2
--- http_config
    lua_code_cache off;
--- no_wait
--- script
await('two workers', sub { worker_pids() == 2 });
my @before = sort(worker_pids());
my %count;
for my $count (served_anew(100), served_anew(20, '/ask')) {
    $count{$_} += $count->{$_} for keys %$count;
}
say join ' ', grep { /^([abc]|5\d\d)$/ } sort keys %count;
say fetch_anew('/ipconfig/healthz')->{status};
say "@before" eq join(' ', sort(worker_pids())) ? 'the same workers' : 'other workers';
--- response_body
a b c
200
the same workers
--- no_error_log
[crit]
exited on signal
