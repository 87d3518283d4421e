# The HTTP API field by field, and what Lua callers get, right or wrong.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

my $codec = JSON::PP->new->canonical;

sub json { $codec->encode(shift) }

sub client { HTTP::Tiny->new(proxy => undef, http_proxy => undef, @_) }

# A page as canonical JSON. The named fields are figures of the moment: whole
# numbers of them read N.
sub shape {
    my ($path, @moment) = @_;
    my $text = json(api($path));
    $text =~ s/"$_":\d+(?=[,}])/"$_":N/g for @moment;
    return $text;
}

# Status and body of an answer to any method.
sub ask {
    my ($method, $path, %options) = @_;
    my $answer = client(%options)->request($method, url("/ipconfig/$path"));
    return "$answer->{status} " . ($answer->{content} // '') =~ s/\s+\z//r;
}

package main;

run_tests();

__DATA__

=== TEST 1: the list has each service with its name, mode, number of instances and age
--- ipconfig
{ "services": {
    "mail": {},
    "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" },
                             { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
say shape('v1/services', 'age_ms');
--- response_body
{"services":[{"age_ms":N,"freshness":"board","instances":2,"mode":"live","service":"chat"},{"age_ms":N,"freshness":"board","instances":0,"mode":"live","service":"mail"}]}



=== TEST 2: without services the list is an empty JSON list
--- ipconfig
{ "services": {} }
--- script
say ask('GET', 'v1/services');
--- response_body
200 {"services":[]}



=== TEST 3: a service has each field of each instance, in rank order
--- ipconfig
{ "services": { "chat": {} } }
--- etcd
put instances/chat/z {"addr":"$BACKEND_A","weight":3,"zone":"east"}
put instances/chat/y {"addr":"$BACKEND_B","weight":1,"status":"grpc://127.0.0.1:9"}
--- script
my $view = api('v1/services/chat');
my $instances = delete $view->{instances};
say json($_) for @$instances;
say shape('v1/services/chat?n=0', qw(age_ms revision version applied_revision confirmed_age_ms ranking_age_ms));
say 'revision: ', $view->{revision} == IpconfigTest::Parts::revision() ? 'that of etcd' : $view->{revision};
say 'version: ', $view->{version} >= 1 ? '1 or more' : $view->{version};
say 'age: ', $view->{age_ms} < 30_000 ? 'young' : $view->{age_ms};
--- response_body eval
<<"_EOC_";
{"addr":"127.0.0.1:@{[ $ENV{TEST_NGINX_SERVER_PORT} + 3 ]}","id":"z","in_flight":0,"rank":1,"score":0,"share":0.75,"state":"unreported","status_age_ms":null,"weight":3,"zone":"east"}
{"addr":"127.0.0.1:@{[ $ENV{TEST_NGINX_SERVER_PORT} + 4 ]}","id":"y","in_flight":0,"rank":2,"score":0,"share":0.25,"state":"unknown","status_age_ms":null,"weight":1,"zone":""}
{"age_ms":N,"applied_revision":N,"basis":"priors","confirmed_age_ms":N,"count":2,"freshness":"board","instances":[],"mode":"live","ranking_age_ms":N,"reports":{"expected":1,"fresh":0},"revision":N,"service":"chat","strategy":"adaptive","version":N,"zones":[{"share":0.25,"zone":""},{"share":0.75,"zone":"east"}]}
revision: that of etcd
version: 1 or more
age: young
_EOC_



=== TEST 4: n limits the instances and not their count
--- script
for my $query ('', '?n=0', '?n=1', '?n=2', '?n=3', '?n=4', '?n=65536', '?n=007') {
    my $view = api("v1/services/chat$query");
    say "$query: ", join(' ', map { "$_->{rank}=$_->{id}" } @{ $view->{instances} }), " of $view->{count}";
}
--- response_body
: 1=a 2=b 3=c of 3
?n=0:  of 3
?n=1: 1=a of 3
?n=2: 1=a 2=b of 3
?n=3: 1=a 2=b 3=c of 3
?n=4: 1=a 2=b 3=c of 3
?n=65536: 1=a 2=b 3=c of 3
?n=007: 1=a 2=b 3=c of 3



=== TEST 5: an n that is no number of instances is refused, and told what is allowed
--- script
say "$_: ", ask('GET', "v1/services/chat?n=$_")
    for '', qw(x -1 +1 1.5 1e3 0x10 65537 99999999999999999999 nan inf 1%00);
--- response_body
: 400 {"error":"n: found '', expected a whole number from 0 to 65536"}
x: 400 {"error":"n: found 'x', expected a whole number from 0 to 65536"}
-1: 400 {"error":"n: found '-1', expected a whole number from 0 to 65536"}
+1: 400 {"error":"n: found '+1', expected a whole number from 0 to 65536"}
1.5: 400 {"error":"n: found '1.5', expected a whole number from 0 to 65536"}
1e3: 400 {"error":"n: found '1e3', expected a whole number from 0 to 65536"}
0x10: 400 {"error":"n: found '0x10', expected a whole number from 0 to 65536"}
65537: 400 {"error":"n: found '65537', expected a whole number from 0 to 65536"}
99999999999999999999: 400 {"error":"n: found '99999999999999999999', expected a whole number from 0 to 65536"}
nan: 400 {"error":"n: found 'nan', expected a whole number from 0 to 65536"}
inf: 400 {"error":"n: found 'inf', expected a whole number from 0 to 65536"}
1%00: 400 {"error":"n: found '1%00', expected a whole number from 0 to 65536"}



=== TEST 6: a service that is not known is 404, and so is any other page
--- script
say "$_: ", ask('GET', $_) for 'v1/services/nope', 'v1/services/nope?n=1', 'v1/services/no%22pe',
    'v1/services/' . 'x' x 129, 'v1/services/', 'v1/services/chat/', 'v1/services/chat/a', 'v1',
    'v2/services', 'healthz/x', '';
--- response_body eval
<<"_EOC_";
v1/services/nope: 404 {"error":"no such service: nope"}
v1/services/nope?n=1: 404 {"error":"no such service: nope"}
v1/services/no%22pe: 404 {"error":"no such service: no\\"pe"}
v1/services/@{[ 'x' x 129 ]}: 404 {"error":"no such service: @{[ 'x' x 129 ]}"}
v1/services/: 404 {"error":"no such page: \\/ipconfig\\/v1\\/services\\/"}
v1/services/chat/: 404 {"error":"no such page: \\/ipconfig\\/v1\\/services\\/chat\\/"}
v1/services/chat/a: 404 {"error":"no such page: \\/ipconfig\\/v1\\/services\\/chat\\/a"}
v1: 404 {"error":"no such page: \\/ipconfig\\/v1"}
v2/services: 404 {"error":"no such page: \\/ipconfig\\/v2\\/services"}
healthz/x: 404 {"error":"no such page: \\/ipconfig\\/healthz\\/x"}
: 404 {"error":"no such page: \\/ipconfig\\/"}
_EOC_



=== TEST 7: a service without instances has an empty JSON list, before any ranking and after
--- ipconfig
{ "services": { "chat": { "guard": { "max_loss": 100 } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- script
say ranking('chat');
del('instances/chat/a');
await('a is gone', sub { ranking('chat') eq '' });
say fetch('/ipconfig/v1/services/chat')->{content} =~ /("instances":.*)/;
--- response_body
a
"instances":[]}



=== TEST 8: the API is read-only: any method but GET and HEAD is 405 and changes nothing
--- script
for my $page (qw(v1/services v1/services/chat healthz metrics)) {
    for my $method (qw(POST PUT DELETE PATCH OPTIONS)) {
        my $answer = client()->request($method, url("/ipconfig/$page"));
        my $text = $answer->{content} =~ s/\s+\z//r;
        my $expected = qq({"error":"the API is read-only: $method is not allowed"});
        say "$page: $method $answer->{status} $text" if $answer->{status} != 405
            || $answer->{headers}{allow} ne 'GET, HEAD' || $text ne $expected;
    }
    say "$page: HEAD ", ask('HEAD', $page);
}
say ranking('chat');
--- response_body
v1/services: HEAD 200 
v1/services/chat: HEAD 200 
healthz: HEAD 200 
metrics: HEAD 200 
a b c



=== TEST 9: pages are JSON that nobody keeps, errors included
--- script
for my $page (qw(v1/services v1/services/chat v1/services/nope v1/services/chat?n=x healthz x)) {
    my $headers = fetch("/ipconfig/$page")->{headers};
    say "$page: $headers->{'content-type'}, $headers->{'cache-control'}";
}
--- response_body
v1/services: application/json, no-store
v1/services/chat: application/json, no-store
v1/services/nope: application/json, no-store
v1/services/chat?n=x: application/json, no-store
healthz: application/json, no-store
x: application/json, no-store



=== TEST 10: the API is for this host alone
--- config
    # lets the test come from anywhere
    set_real_ip_from 127.0.0.0/8;
    real_ip_header   X-Real-IP;
    access_log       off;
--- script
my %from = map { $_ => client(default_headers => { 'X-Real-IP' => $_ }) }
    qw(127.0.0.1 127.0.0.2 ::1 10.0.0.7 128.0.0.1 2001:db8::1);
for my $address (sort keys %from) {
    my %status = map { $from{$address}->get(url("/ipconfig/$_"))->{status} => 1 }
        qw(v1/services v1/services/chat healthz metrics nope);
    say "$address: ", join ' ', sort keys %status;
}
say 'by itself: ', ask('GET', 'healthz', local_address => '127.0.0.2') =~ /^(\d+)/;
--- response_body
10.0.0.7: 403
127.0.0.1: 200 404
127.0.0.2: 200 404
128.0.0.1: 403
2001:db8::1: 403
::1: 200 404
by itself: 200
--- error_log
access forbidden by rule
--- no_error_log
[crit]
[alert]



=== TEST 11: the included location is closed to all but loopback by its own text
--- script
say join ' ', slurp("$IpconfigTest::Parts::REPO/nginx/ipconfig_api.conf") =~ /^\s*((?:allow|deny) .*;)/mg;
--- response_body
allow 127.0.0.0/8; allow ::1; deny all;



=== TEST 12: a gateway that has read etcd once is healthy
--- script
await("the thread's state is there", sub { api('healthz')->{plugin} });
say shape('healthz', qw(revision applied_revision confirmed_age_ms ranking_age_ms pid));
--- response_body
{"applied_revision":N,"confirmed_age_ms":N,"fresh":true,"mode":"live","not_fresh":[],"not_ready":[],"plugin":{"audits":{"complete":0,"differences":0},"bad_records":{},"guard":{"doubtful":{},"outcomes":{},"trips":0},"restarts":0,"revision":N,"services":1,"watch":"watching"},"ranking_age_ms":N,"ready":true,"worker":{"id":0,"pid":N}}



=== TEST 13: without etcd the configured instances are enough to be healthy
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] },
  "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- no_wait
--- script
await('the page is there', sub { api('healthz') });
my $answer = fetch('/ipconfig/healthz');
my $health = api('healthz');
say "$answer->{status} $health->{mode}, ready: ", json([$health->{ready}, $health->{not_ready}]);
await('it is ranked', sub { service('chat')->{version} });
say service('chat')->{mode}, ' ', ranking('chat'), ' ', get('/');
--- response_body
200 static, ready: [true,[]]
static a a



=== TEST 14: without etcd a service that has no instances makes the gateway unhealthy, until etcd answers
--- ipconfig_file
{ "etcd": { "endpoints": ["http://127.0.0.1:$FREE_PORT_1"] },
  "services": { "mail": {}, "news": {},
                "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- no_wait
--- script
await('the page is there', sub { api('healthz') });
my $answer = fetch('/ipconfig/healthz');
my $health = api('healthz');
say "$answer->{status} ready: ", json([$health->{ready}, [sort @{ $health->{not_ready} }]]);
say join ' ', map { "$_->{service}:$_->{instances}:$_->{mode}" } @{ api('v1/services')->{services} };

my ($client, $peer) = map { 'http://127.0.0.1:' . IpconfigTest::Parts::expand("\$FREE_PORT_$_") } 1, 2;
IpconfigTest::Parts::start('late-etcd', 'etcd', '--name', 'late',
    '--data-dir', File::Temp::tempdir(CLEANUP => 1),
    '--listen-client-urls', $client, '--advertise-client-urls', $client,
    '--listen-peer-urls', $peer, '--initial-advertise-peer-urls', $peer,
    '--initial-cluster', "late=$peer", '--log-level', 'error');
await('etcd has answered', sub { fetch('/ipconfig/healthz')->{status} == 200 });
IpconfigTest::Parts::end('late-etcd', 'KILL');
say shape('healthz', 'revision') =~ /("not_ready":\[.*?\]).*("ready":\w+)/;
say join ' ', map { "$_->{service}:$_->{instances}:$_->{mode}" } @{ api('v1/services')->{services} };
--- response_body
503 ready: [false,["mail","news"]]
chat:1:static mail:0:static news:0:static
"not_ready":[]"ready":true
chat:1:live mail:0:live news:0:live



=== TEST 15: the mode is stale once etcd is lost for longer than fallback.after, and live again after it is back
--- ipconfig
{ "fallback": { "after": "1s" },
  "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- script
say service('chat')->{mode};
my $began = time;
kill_etcd();
await('stale', sub { service('chat')->{mode} eq 'stale' });
my $took = time - $began;
say $took > 0.7 ? 'not at once' : "after $took s";
say api('healthz')->{mode}, ' ', api('v1/services')->{services}[0]{mode}, ' ', get('/');
start_etcd();
await('live again', sub { service('chat')->{mode} eq 'live' });
say 'live';
--- response_body
live
not at once
stale stale a
live
--- error_log
[ipconfig]
--- no_error_log
[crit]
[alert]



=== TEST 16: best() gives a list in rank order, as long as was asked for
--- config
    location = /t {
        content_by_lua_block {
            local ipconfig = require "resty.ipconfig"
            local function show(list)
                local ids = {}
                for i, one in ipairs(list) do
                    ids[i] = one.rank .. "=" .. one.id
                end
                ngx.say(#list, ": ", table.concat(ids, " "))
            end
            show(ipconfig.best("chat"))
            show(ipconfig.best("chat", 2))
            show(ipconfig.best("chat", 0))
            show(ipconfig.best("chat", 1e9))

            local fields = {}
            for name, value in pairs(ipconfig.best("chat", 1)[1]) do
                fields[#fields + 1] = name .. ":" .. type(value)
            end
            table.sort(fields)
            ngx.say(table.concat(fields, " "))
            ngx.say(ipconfig.best("nope"))
        }
    }
--- response_body
3: 1=a 2=b 3=c
2: 1=a 2=b
0: 
3: 1=a 2=b 3=c
addr:string id:string in_flight:number rank:number score:number share:number state:string weight:number zone:string
nilno such service: nope



=== TEST 17: status() tells mode, readiness and the thread's own state
--- config
    location = /t {
        content_by_lua_block {
            local status = require("resty.ipconfig").status()
            while not status.plugin do  -- stored within a second
                ngx.sleep(0.01)
                status = require("resty.ipconfig").status()
            end
            ngx.say(status.mode, " ", status.ready, " ", #status.not_ready, " ", status.error)
            ngx.say(status.plugin.watch, " ", status.plugin.services, " ", type(status.plugin.revision))
        }
    }
--- response_body
live true 0 nil
watching 1 number



=== TEST 18: wrong arguments throw, with the caller's line
--- config
    location = /t {
        content_by_lua_block {
            local ipconfig = require "resty.ipconfig"
            local function try(...)
                local _, err = pcall(...)
                ngx.say((tostring(err):gsub("nginx.conf:%d+", "nginx.conf")))
            end
            try(function() ipconfig.best() end)
            try(function() ipconfig.best(5) end)
            try(function() ipconfig.best("") end)
            try(function() ipconfig.best(("x"):rep(129)) end)
            try(function() ipconfig.best("chat", "2") end)
            try(function() ipconfig.best("chat", -1) end)
            try(function() ipconfig.best("chat", 1.5) end)
            try(function() ipconfig.best("chat", 0/0) end)
            try(function() ipconfig.init(5) end)
        }
    }
--- response_body eval
<<"_EOC_" =~ s/^(\d+) /content_by_lua(nginx.conf):$1: /mgr;
7 service must be a name of 1 to 128 bytes, not a nil
8 service must be a name of 1 to 128 bytes, not a number
9 service must be a name of 1 to 128 bytes, not ''
10 service must be a name of 1 to 128 bytes, not '@{[ 'x' x 129 ]}'
11 n must be a whole number, 0 or more, not 2
12 n must be a whole number, 0 or more, not -1
13 n must be a whole number, 0 or more, not 1.5
14 n must be a whole number, 0 or more, not nan
15 init() takes a path or a table, not a number
_EOC_



=== TEST 19: wrong arguments of balance() fail the request, with the caller's line in the log
--- http_config
upstream number {
    server 0.0.0.1;
    balancer_by_lua_block {
        require("resty.ipconfig").balance(5)
    }
}
upstream opts {
    server 0.0.0.1;
    balancer_by_lua_block {

        require("resty.ipconfig").balance("chat", "key")
    }
}
--- config
    location = /number { proxy_pass http://number; }
    location = /opts { proxy_pass http://opts; }
    location = /unset { set $ipconfig_service ''; proxy_pass http://ipconfig; }
--- script
say "$_: ", get("/$_") for qw(number opts unset);
say logged(qr/balancer_by_lua\(nginx\.conf:\d+\):2: service must be a name of 1 to 128 bytes, not a number/);
say logged(qr/balancer_by_lua\(nginx\.conf:\d+\):3: opts must be a table, not a string/);
say logged(qr/balancer_by_lua\(\S+\/ipconfig\.conf:\d+\):1: service must be a name of 1 to 128 bytes, not ''/);
--- response_body
number: 500
opts: 500
unset: 500
1
1
1
--- error_log
balancer_by_lua
--- no_error_log
[crit]
[alert]



=== TEST 20: balance() on a service that is not known is 503 and one line in the log
--- config
    location / { set $ipconfig_service nope; proxy_pass http://ipconfig; }
--- script
my $answer = fetch('/');
say "$answer->{status} $answer->{headers}{'retry-after'} $answer->{content}";
say logged(qr/\[ipconfig\] nothing to offer for service nope: the service is not known/);
say logged(qr/\[(warn|error|crit|alert|emerg)\]/);
--- response_body
503 1 Service Unavailable

1
1
--- error_log
nothing to offer
--- no_error_log
[crit]
[alert]



=== TEST 21: balance() on a service without instances is 503 and one line in the log
--- ipconfig
{ "services": { "chat": {} } }
--- script
say get('/');
say logged(qr/\[ipconfig\] nothing to offer for service chat: it has no instances/);
say logged(qr/\[(warn|error|crit|alert|emerg)\]/);
--- response_body
503
1
1
--- error_log
nothing to offer
--- no_error_log
[crit]
[alert]



=== TEST 22: a second init() replaces the configuration of the first
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block {
        local ipconfig = require "resty.ipconfig"
        ipconfig.init()
        local etcd = { endpoints = { "http://$ETCD" }, prefix = "$PREFIX" }
        ipconfig.init({ etcd = etcd, services = { mail = {} } })
    }
    init_worker_by_lua_block { require("resty.ipconfig").init_worker() }
--- config
    location = /x { return 200; }
--- script
say join ' ', map { $_->{service} } @{ api('v1/services')->{services} };
say ask('GET', 'v1/services/chat');
--- response_body
mail
404 {"error":"no such service: chat"}



=== TEST 23: init_worker() without init() throws at the caller's line, and so does all that needs it
--- hooks
    lua_shared_dict ipconfig 1m;
    init_worker_by_lua_block {
        require("resty.ipconfig").init_worker()
    }
    upstream chat {
        server 0.0.0.1;
        balancer_by_lua_block { require("resty.ipconfig").balance("chat") }
    }
    log_by_lua_block { require("resty.ipconfig").log() }
--- no_wait
--- config
    location / { proxy_pass http://chat; }
    location = /best { content_by_lua_block { require("resty.ipconfig").best("chat") } }
--- script
say get('/'), ' ', get('/best');
say logged(qr/init_worker_by_lua error: init_worker_by_lua\(nginx\.conf:\d+\):2: init\(\) must run first, in init_by_lua/);
say logged(qr/balancer_by_lua\(nginx\.conf:\d+\):1: init\(\) must run first, in init_by_lua/);
say logged(qr/content_by_lua\(nginx\.conf:\d+\):1: init\(\) must run first, in init_by_lua/);
say logged(qr/log_by_lua/);
--- response_body
500 500
1
1
1
0
--- error_log
must run first
--- no_error_log
[crit]
[alert]
