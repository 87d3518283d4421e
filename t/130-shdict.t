# The shared dict fails in every way that it can: missing, too small, full of
# other people's values, damaged, emptied. What is served then is the last good
# ranking, the failure is counted and logged once, and the writer makes it good.

use lib 't/lib';
use IpconfigTest 'no_plan';

# As ipconfig.conf, with little room.
our $SMALL_DICT = <<"_EOC_";
    lua_shared_dict ipconfig 256k;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
_EOC_

# What somebody else may do to the dict.
our $VANDAL = <<'_EOC_';
    # large values, then ever smaller ones, until not one byte more fits
    location = /fill {
        content_by_lua_block {
            local dict, n = ngx.shared.ipconfig, 0
            for _, size in ipairs { 32768, 2000, 1000, 500, 200, 100, 50, 20, 1 } do
                while dict:safe_set("foreign-" .. n, ("x"):rep(size)) do
                    n = n + 1
                end
            end
            ngx.say(n > 0 and "full")
        }
    }
    location = /clear {
        content_by_lua_block {
            local dict = ngx.shared.ipconfig
            for _, key in ipairs(dict:get_keys(0)) do
                if key:find("^foreign%-") then
                    dict:delete(key)
                end
            end
            ngx.say("clear")
        }
    }
    location = /foreign {
        content_by_lua_block {
            local n = 0
            for _, key in ipairs(ngx.shared.ipconfig:get_keys(0)) do
                n = n + (key:find("^foreign%-") and 1 or 0)
            end
            ngx.say(n)
        }
    }
    # the version of a value, read past the plugin, which would take it in
    location = /stored {
        content_by_lua_block {
            local value = ngx.shared.ipconfig:get(ngx.var.arg_key)
            ngx.say(value and tonumber(value:match("^ipconfig1 %x+ %x+ (%x+)\n"), 16) or "none")
        }
    }
    location = /delete {
        content_by_lua_block { ngx.shared.ipconfig:delete(ngx.var.arg_key) ngx.say("deleted") }
    }
    location = /flush {
        content_by_lua_block { ngx.shared.ipconfig:flush_all() ngx.say("flushed") }
    }
    location = /damage {
        content_by_lua_block {
            local dict, key = ngx.shared.ipconfig, ngx.var.arg_key
            local value = dict:get(key)
            local damaged = {
                garbage = ("garbage "):rep(100),
                cut     = value:sub(1, 50),
                torn    = value:sub(1, 60) .. "\255" .. value:sub(62),
                number  = 42,
                empty   = "",
            }
            ngx.say(dict:set(key, damaged[ngx.var.arg_how]) and "damaged")
        }
    }
_EOC_

add_block_preprocessor(sub {
    my $block = shift;
    return if defined $block->must_die;
    $block->set_value(config => $VANDAL . $IpconfigTest::SERVICE_LOCATION);
});

package IpconfigTest::Script;

# A figure of the metrics page.
sub figure {
    my $name = shift;
    my ($value) = fetch('/ipconfig/metrics')->{content} =~ /^ipconfig_\Q$name\E (\S+)$/m;
    return 0 + ($value // 'nan');
}

# Waits until a version after this one is in the dict. No worker has it yet.
sub await_stored {
    my ($key, $version) = @_;
    await("a newer $key is stored", sub { get("/stored?key=$key") > $version });
}

# What each value of `key` that comes with another instance is damaged to, before
# any worker has taken it in; and that requests go on by the last good ranking.
sub damage {
    my ($key, $how) = @_;
    my $version = get("/stored?key=$key");
    my $errors = figure('view_errors_total');
    my $pattern = qr/\[error\] .*\[ipconfig\] the ranking of chat in the shared dict cannot be used, the one at hand stays: (.*?)(?:, client| while|$)/;

    put('instances/chat/d', '{"addr":"$BACKEND_D"}');
    await_stored($key, $version);
    get($how eq 'deleted' ? "/delete?key=$key" : "/damage?key=$key&how=$how");
    # The next request meets it; from then on it may be stored again at any time.
    my $who = get('/');
    say "$how: ", $who =~ /^[abc]$/ ? 'one of a b c' : $who;

    in_log($pattern);
    my $log = slurp(IpconfigTest::Parts::servroot() . '/logs/error.log');
    my @lines = $log =~ /$pattern/g;
    say @lines == 1 ? $lines[0] =~ s/[0-9a-f]{8}/N/gr : scalar(@lines) . ' lines';
    say 'counted: ', figure('view_errors_total') - $errors;
    ready('chat', 'a b c d');
    say 'healed: ', names(served(60));
}

package main;

run_tests();

__DATA__

=== TEST 1: without the shared dict nginx does not start, and is told what to add
--- hooks
    init_by_lua_block {
        require("resty.ipconfig").init()
    }
--- config
    location = /x { return 200; }
--- must_die
--- suppress_stderr
--- error_log eval
qr{init_by_lua\(nginx\.conf:\d+\):2: \Qno shared dict: add 'lua_shared_dict ipconfig 32m;' to the http block\E}



=== TEST 2: with a dict that is too small nginx does not start, and is told how large it must be
--- hooks
    lua_shared_dict ipconfig 64k;
    init_by_lua_block {
        require("resty.ipconfig").init()
    }
--- config
    location = /x { return 200; }
--- must_die
--- suppress_stderr
--- error_log eval
qr{init_by_lua\(nginx\.conf:\d+\):2: \Qlua_shared_dict ipconfig is too small: 64k for 3 configured instances, which need at least 129k\E}



=== TEST 3: what is too small grows with the configured instances
--- ipconfig eval
my $n = 0;
my $instances = CORE::join ', ', map { ++$n; qq({ "id": "i$n", "addr": "127.0.0.1:$_" }) } 1 .. 1000;
qq({ "services": { "chat": { "instances": [ $instances ] } } })
--- hooks
    lua_shared_dict ipconfig 512k;
    init_by_lua_block {
        require("resty.ipconfig").init()
    }
--- config
    location = /x { return 200; }
--- must_die
--- suppress_stderr
--- error_log eval
qr{\Qlua_shared_dict ipconfig is too small: 512k for 1000 configured instances, which need at least 628k\E}



=== TEST 4: in a dict that others have filled the old ranking stays, and the new one comes when there is room
--- hooks eval: $::SMALL_DICT
--- script
my $id = 'd' x 120;
say get('/fill'), ': ', names(served(60));
put("instances/chat/$id", '{"addr":"$BACKEND_D"}');
await('the failure is counted', sub { figure('publish_errors_total') >= 1 });
say 'old: ', names(served(60)), ', ', ranking('chat');
my $errors = figure('publish_errors_total');
await('it is tried again', sub { figure('publish_errors_total') > $errors });
say 'still old: ', names(served(60));
in_log(qr/the ranking of chat stays as it was/);
sleep 0.4;
say 'logged: ', logged(qr/\[error\] .*\[ipconfig\] the ranking of chat stays as it was: failed to store (?:instances|ranking):chat \(\d+ bytes\) in the shared dict: no memory/);
say get('/clear');
ready('chat', "a b c $id");
say 'new: ', names(served(100));
$errors = figure('publish_errors_total');
sleep 1.2;
say 'more errors: ', figure('publish_errors_total') - $errors;
--- response_body
full: a b c
old: a b c, a b c
still old: a b c
logged: 1
clear
new: a b c d
more errors: 0
--- error_log
no memory
--- no_error_log
[crit]
[alert]



=== TEST 5: in a full dict nobody else's value is evicted
--- hooks eval: $::SMALL_DICT
--- script
say get('/fill');
my $foreign = get('/foreign');
put('instances/chat/' . 'd' x 120, '{"addr":"$BACKEND_D"}');
await('the failure is counted', sub { figure('publish_errors_total') >= 1 });
say $foreign - get('/foreign'), ' of theirs are gone';
--- response_body
full
0 of theirs are gone
--- no_error_log
[crit]
[alert]



=== TEST 6: a ranking that somebody wrote over leaves the last good one and is stored again
--- script
damage('ranking:chat', 'garbage');
--- response_body
garbage: one of a b c
the value does not begin with ipconfig1
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 7: a torn ranking leaves the last good one and is stored again
--- script
damage('ranking:chat', 'torn');
--- response_body
torn: one of a b c
the checksum is N where the header says N
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 8: a ranking that is cut short leaves the last good one and is stored again
--- script
damage('ranking:chat', 'cut');
--- response_body_like eval
qr{^cut: one of a b c
the value is cut short: 50 bytes where its header says \d+
counted: 1
healed: a b c d
$}
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 9: a ranking that was deleted leaves the last good one and is stored again
--- script
damage('ranking:chat', 'deleted');
--- response_body
deleted: one of a b c
the value is missing from the shared dict
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 10: a ranking that became a number is damage as any other
--- script
damage('ranking:chat', 'number');
--- response_body
number: one of a b c
the value does not begin with ipconfig1
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 11: a ranking that became empty is damage as any other
--- script
damage('ranking:chat', 'empty');
--- response_body
empty: one of a b c
the value is missing from the shared dict
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 12: instances that somebody wrote over leave the last good ranking and are stored again
--- script
damage('instances:chat', 'garbage');
--- response_body
garbage: one of a b c
the value does not begin with ipconfig1
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 13: instances that were deleted leave the last good ranking and are stored again
--- script
damage('instances:chat', 'deleted');
--- response_body
deleted: one of a b c
the value is missing from the shared dict
counted: 1
healed: a b c d
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 14: damage to a value that every worker has already read is no trouble
--- script
get("/damage?key=$_&how=garbage") for 'ranking:chat', 'instances:chat';
say names(served(60)), ', ', ranking('chat'), ', view errors: ', figure('view_errors_total');
--- response_body
a b c, a b c, view errors: 0



=== TEST 15: an emptied dict is no trouble, and a new worker finds it filled again
--- workers: 1
--- script
say get('/flush'), ': ', names(served(60));
reload();
ready('chat', 'a b c');
my %served;
$served{ word(fetch_anew('/')) }++ for 1 .. 60;
say names(\%served);
await('the ranking is stored', sub { get('/stored?key=ranking:chat') =~ /^\d+$/ });
say 'stored again';
--- response_body
flushed: a b c
a b c
stored again
--- no_error_log
[crit]
[alert]



=== TEST 16: a damaged ranking is seen by each worker, and healed for each
--- workers: 2
--- script
my $version = get('/stored?key=ranking:chat');
# so that both workers have a view
await('both workers serve', sub { 2 == uniq map { fetch_anew('/worker')->{content} } 1 .. 20 });
fetch_anew('/') for 1 .. 40;
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
await_stored('ranking:chat', $version);
get('/damage?key=ranking:chat&how=garbage');
# The next request meets it; from then on it may be stored again at any time.
my $who = get_anew('/');
say $who =~ /^[abc]$/ ? 'one of a b c' : $who;
await('both have d', sub { my %seen; $seen{ word(fetch_anew('/')) }++ for 1 .. 60; ($seen{d} // 0) > 5 });
say 'healed';
--- response_body
one of a b c
healed
--- error_log
cannot be used
--- no_error_log
[crit]
[alert]



=== TEST 17: the thread's own state that was deleted is stored again
--- script
await('it is there', sub { api('healthz')->{plugin} });
get('/delete?key=status');
await('it is back', sub { api('healthz')->{plugin} });
say 'back';
--- response_body
back



=== TEST 18: a ranking that was damaged is not gone on from after a reload, and says so
--- workers: 2
--- script
get("/damage?key=ranking:chat&how=torn");
reload();
await('it is said', sub { logged(qr/the weights of chat begin anew/) });
await('it is stored', sub { get('/stored?key=ranking:chat') =~ /^\d+$/ });
ready('chat', 'a b c');
say names(served_anew(60));
say 'lines: ', logged(qr/the weights of chat begin anew/);
--- response_body
a b c
lines: 1
--- error_log
the weights of chat begin anew: the checksum is
--- no_error_log
[crit]
[alert]
