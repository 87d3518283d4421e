use lib 't/lib';
use IpconfigTest 'no_plan';

run_tests();

__DATA__

=== TEST 1: the example configuration starts, and routes, by its two files alone
--- no_wait
--- script
my $folder = checkout_at('example');
my $json = slurp("$folder/nginx/example.json");
$json =~ s/127\.0\.0\.1:2379/$ETCD/;
$json =~ s/127\.0\.0\.1:9001/$BACKEND_A/;
$json =~ s/127\.0\.0\.1:9002/$BACKEND_B/;
spew("$folder/nginx/example.json", $json);

local $ENV{IPCONFIG_CONFIG} = "$folder/nginx/example.json";
say test_nginx($folder, 'nginx/example.conf') =~ /test is successful/ ? 'checked' : 'refused';
start_nginx($folder, 'nginx/example.conf');
my $url = 'http://127.0.0.1:$FREE_PORT_1';
await('the example serves', sub { fetch("$url/ipconfig/healthz")->{success} });
my %count;
await('both serve', sub { $count{ word(fetch("$url/chat/")) }++; keys %count == 2 });
say names(\%count);
--- response_body
checked
a b



=== TEST 2: the example configuration does not start without its JSON file
--- no_wait
--- script
my $folder = checkout_at('example-without');
local $ENV{IPCONFIG_CONFIG} = "$folder/nginx/none.json";
my $pid = start_nginx($folder, 'nginx/example.conf');
await('it has ended', sub { waitpid($pid, WNOHANG) == $pid });
say nginx_output() =~ m{(failed to open the configuration: )\S+/nginx/none.json: (.*)};
--- response_body
failed to open the configuration: No such file or directory



=== TEST 3: the two includes make a plain nginx.conf of another folder a gateway
--- no_wait
--- script
my $folder = new_folder('elsewhere');
spew("$folder/ipconfig.json", <<'_EOC_');
{ "etcd": { "endpoints": ["http://$ETCD"] },
  "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
_EOC_
spew("$folder/nginx.conf", load_modules() . <<'_EOC_');
worker_processes 2;
daemon off;
pid elsewhere.pid;
error_log error.log;
env IPCONFIG_CONFIG;
events {}
http {
    access_log off;
    lua_package_path  "$LUA/?.lua;;";
    lua_package_cpath "$LIB/?.so;;";
    include $REPO/nginx/ipconfig.conf;
    server {
        listen 127.0.0.1:$FREE_PORT_1;
        location /chat/ {
            set $ipconfig_service chat;
            proxy_pass http://ipconfig;
        }
        include $REPO/nginx/ipconfig_api.conf;
    }
}
_EOC_

local $ENV{IPCONFIG_CONFIG} = "$folder/ipconfig.json";
start_nginx($folder, 'nginx.conf');
my $url = 'http://127.0.0.1:$FREE_PORT_1';
await('it serves', sub { fetch("$url/ipconfig/healthz")->{success} });
say word(fetch("$url/chat/"));
say fetch("$url/ipconfig/v1/services/chat")->{content} =~ /"id":"a"/ ? 'shown' : 'not shown';
--- response_body
a
shown



=== TEST 4: a registration by hand shows up in the API, and its end too
--- ipconfig
{ "discover": true, "services": {} }
--- script
put('instances/u/x', '{"addr":"127.0.0.1:9"}');
ready('u', 'x');
say $_->{id}, ' ', $_->{addr} for @{ service('u')->{instances} };
del('instances/u/x');
await('it is gone', sub { !@{ service('u')->{instances} } });
say ranking('u') eq '' ? 'gone' : 'there';
--- response_body
x 127.0.0.1:9
gone
