# A configuration that cannot be used is refused whole: nginx does not start, and
# the message has the caller's line, the key's path, what was found and what is
# allowed.

use lib 't/lib';
use IpconfigTest 'no_plan';

# What the message begins with: for the file, where the include calls init().
our $FILE = qr{init_by_lua error: init_by_lua\(\S+/ipconfig\.conf:\d+\):1: \S+/ipconfig\.json: };
# And for a table, where the block's hooks do, in their second line.
our $TABLE = qr{init_by_lua error: init_by_lua\(nginx\.conf:\d+\):2: };

add_block_preprocessor(sub {
    my $block = shift;
    return if !defined $block->must_die;
    $block->set_value(suppress_stderr => '');
    $block->set_value(config => "    location = /x { return 200; }\n");
});

run_tests();

__DATA__

=== TEST 1: a file that is not there is refused with its path
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init("/nonexistent/ipconfig.json")
    }
--- must_die
--- error_log eval
qr{$::TABLE\Qfailed to open the configuration: /nonexistent/ipconfig.json: No such file or directory\E}



=== TEST 2: broken JSON is refused with line and column
--- ipconfig_file
{ "services": {
    "chat": { "instances": [ }
} }
--- must_die
--- error_log eval
qr{$::FILE\Qnot JSON: expected value at line 2 column 30\E}



=== TEST 3: JSON that ends too early is refused
--- ipconfig_file
{ "services": { "chat": {
--- must_die
--- error_log eval
qr{$::FILE\Qnot JSON: EOF while parsing an object at line \E\d+ column \d+}



=== TEST 4: text after the JSON is refused
--- ipconfig_file
{ "services": {} } x
--- must_die
--- error_log eval
qr{$::FILE\Qnot JSON: trailing characters at line 1 column 20\E}



=== TEST 5: an empty file is refused
--- ipconfig_file eval: ''
--- must_die
--- error_log eval
qr{$::FILE\Qnot JSON: EOF while parsing a value at line \E\d+ column \d+}



=== TEST 6: JSON that is no object is refused
--- ipconfig_file
[]
--- must_die
--- error_log eval
qr{$::FILE\Qtop level: invalid type: sequence, expected an object at line 1 column \E\d}



=== TEST 7: a file without services is refused
--- ipconfig_file
{ "window": {} }
--- must_die
--- error_log eval
qr{$::FILE\Qtop level: missing field `services` at line 1 column 16\E}



=== TEST 8: a wrong type is refused with the key's path
--- ipconfig_file
{ "services": { "chat": { "balance": { "tries": "2" } } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.balance.tries: invalid type: string "2", expected an integer from 0 to 16 at line 1 column \E\d}



=== TEST 9: an unknown key is refused with its path and the keys that there are
--- ipconfig_file
{ "services": { "chat": { "ballance": {} } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.ballance: unknown field `ballance`, expected one of `balance`, `failure`, `score`, `status`, `health`, `guard`, `slow_start`, `zone`, `subset`, `check`, `rules`, `instances` at line 1 column \E\d}



=== TEST 10: a key that is given twice is refused
--- ipconfig_file
{ "services": { "chat": {}, "chat": {} } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices: duplicate key "chat" at line 1 column \E\d}



=== TEST 11: a duration without a unit is refused
--- ipconfig_file
{ "fallback": { "after": "5" }, "services": {} }
--- must_die
--- error_log eval
qr{$::FILE\Qfallback.after: "5" is not a duration with a unit, such as "1s" or "250ms", from 1s to 10m at line 1 column \E\d}



=== TEST 12: a duration that is a number is refused
--- ipconfig_file
{ "window": { "bucket": 1000 }, "services": {} }
--- must_die
--- error_log eval
qr{$::FILE\Qwindow.bucket: invalid type: integer `1000`, expected a duration with a unit, such as "1s" or "250ms", from 100ms to 1m at line 1 column \E\d}



=== TEST 13: an address with a hostname is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "127.0.0.1:9001" },
    { "id": "b", "addr": "chat.local:9001" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[1].addr: "chat.local:9001" is not an address: it is a hostname; expected an IP address with a port from 1 to 65535, as in 10.0.0.5:8080 or [fd00::5]:8080 at line 3 column \E\d}



=== TEST 14: port 0 is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:0" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[0].addr: "127.0.0.1:0" is not an address: its port is 0; expected \E}



=== TEST 15: port 70000 is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:70000" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[0].addr: "127.0.0.1:70000" is not an address: its port is larger than 65535; expected \E}



=== TEST 16: an instance without an address is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [ { "id": "a" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[0]: missing field `addr` at line 1 column \E\d}



=== TEST 17: a negative weight is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:9001", "weight": -1 } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[0].weight: invalid value: floating point `-1.0`, expected a number from 0 to 1000 at line 1 column \E\d}



=== TEST 18: a weight above 1000 is refused
--- ipconfig_file
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:9001", "weight": 1e9 } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[0].weight: invalid value: floating point `1000000000.0`, expected a number from 0 to 1000 at line 1 column \E\d}



=== TEST 19: two instances with one id are refused
--- ipconfig_file
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "127.0.0.1:9001" }, { "id": "a", "addr": "127.0.0.1:9002" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[1].id: a is that of services.chat.instances[0] too, expected another one for each instance\E}



=== TEST 20: two instances with one address are refused
--- ipconfig_file
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "127.0.0.1:9001" }, { "id": "b", "addr": "127.0.0.1:9001" } ] } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.instances[1].addr: 127.0.0.1:9001 is that of services.chat.instances[0] too, expected another one for each instance\E}



=== TEST 21: an unknown strategy is refused with those that there are
--- ipconfig_file
{ "services": { "chat": { "balance": { "strategy": "fastest" } } } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat.balance.strategy: "fastest" is not one of best, weighted_random, round_robin, random, least_conn, p2c, adaptive, chash at line 1 column \E\d}



=== TEST 22: a service's name that is no name is refused
--- ipconfig_file
{ "services": { "chat/1": {} } }
--- must_die
--- error_log eval
qr{$::FILE\Qservices.chat/1: "chat/1" is not a name: 1 to 128 characters out of A-Z a-z 0-9 . _ : - at line 1 column \E\d}



=== TEST 23: keys that contradict each other are refused, all in one message
--- ipconfig_file
{ "services": {}, "etcd": { "username": "root" }, "exporter": { "timeout": "2s" } }
--- must_die
--- error_log eval
qr{$::FILE\Qetcd.password_file: empty while etcd.username is set, expected both or neither; exporter.timeout: 2s is longer than exporter.interval, expected at most 1s\E}



=== TEST 24: a table is checked as a file is
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({ services = { chat = { balance = { tries = 17 } } } })
    }
--- must_die
--- error_log eval
qr{$::TABLE\Qservices.chat.balance.tries: invalid value: integer `17`, expected an integer from 0 to 16 at line 1 column \E\d}



=== TEST 25: a table with an unknown key is refused
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({ services = {}, windows = {} })
    }
--- must_die
--- error_log eval
qr{$::TABLE\Qwindows: unknown field `windows`, expected one of `etcd`, `window`, `snapshot`, `allow`, `discover`, `fallback`, `gateway`, `services`, `exporter` at line 1 column \E\d}



=== TEST 26: a table with a value that JSON cannot have is refused
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({ services = { chat = print } })
    }
--- must_die
--- error_log eval
qr{$::TABLE.*Cannot serialise function}



=== TEST 27: a table without services is refused
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({})
    }
--- must_die
--- error_log eval
qr{$::TABLE\Qtop level: missing field `services` at line 1 column 2\E}



=== TEST 28: what is neither path nor table is refused
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init(true)
    }
--- must_die
--- error_log eval
qr{$::TABLE\Qinit() takes a path or a table, not a boolean\E}



=== TEST 29: a table serves as a file does, also with empty lists
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({
            etcd = { endpoints = { "http://$ETCD" }, prefix = "$PREFIX" },
            discover = {},
            services = { chat = { instances = {} } },
        })
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    log_by_lua_block { require("resty.ipconfig").log() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
ready('chat', 'a');
say get('/');
--- response_body
a



=== TEST 30: a table's instances serve
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init({
            etcd = { endpoints = { "http://$ETCD" }, prefix = "$PREFIX" },
            services = { chat = { instances = { { id = "a", addr = "$BACKEND_A" },
                                                { id = "b", addr = "$BACKEND_B", weight = 0 } } } },
        })
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
    upstream ipconfig {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance() }
    }
--- script
say ranking('chat'), ', served by ', names(served(30));
--- response_body
a b, served by a



=== TEST 31: without an argument the file is that of IPCONFIG_CONFIG
--- ipconfig
{ "services": { "from-the-environment": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        assert(os.getenv("IPCONFIG_CONFIG"))
        require("resty.ipconfig").init()
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
--- config
    location = /x { return 200; }
--- script
say join ' ', map { $_->{service} } @{ api('v1/services')->{services} };
--- response_body
from-the-environment



=== TEST 32: a path that is given comes before IPCONFIG_CONFIG
--- user_files
>>> other.json
{ "services": { "other": { "instances": [ { "id": "a", "addr": "127.0.0.1:9" } ] } } }
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        require("resty.ipconfig").init((os.getenv("IPCONFIG_CONFIG"):gsub("ipconfig.json$", "other.json")))
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
--- no_wait
--- config
    location = /x { return 200; }
--- script
await('the page is there', sub { api('v1/services') });
say join ' ', map { $_->{service} } @{ api('v1/services')->{services} };
--- response_body
other
