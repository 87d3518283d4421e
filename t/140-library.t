# When libipconfig.so cannot be used nginx starts all the same, says why, and Lua
# alone serves the configured instances by their weights.

use File::Copy qw(copy);
use File::Temp qw(tempdir);

# The folder that the gateway looks for its library in, empty unless the block has
# one of these sections:
#
#   --- library_text      the library is a file of this text
#   --- library_source    the library is what the C compiler makes of this
#   --- library_built     the library is the checkout's
our ($FOLDER, $BUILT);

BEGIN {
    $BUILT = $ENV{IPCONFIG_TEST_LIB};
    $FOLDER = tempdir('ipconfig-library-XXXXXX', TMPDIR => 1, CLEANUP => 1);
    $ENV{IPCONFIG_TEST_LIB} = $FOLDER;
}

use lib 't/lib';
use IpconfigTest 'no_plan';

$BUILT //= "$IpconfigTest::Parts::REPO/target/release";

sub write_file {
    my ($path, $text) = @_;
    open my $file, '>', $path or die "failed to write $path: $!";
    print {$file} $text;
    close $file;
}

add_block_preprocessor(sub {
    my $block = shift;
    my $path = "$FOLDER/libipconfig.so";
    unlink $path;

    if (defined $block->library_source) {
        write_file("$FOLDER/library.c", $block->library_source);
        system('cc', '-shared', '-fPIC', '-o', $path, "$FOLDER/library.c") == 0
            or die "failed to compile the library";
    } elsif (defined $block->library_text) {
        write_file($path, $block->library_text);
    } elsif (defined $block->library_built) {
        copy("$BUILT/libipconfig.so", $path) or die "failed to copy the library: $!";
    }

    $block->set_value(ipconfig => $main::IPCONFIG) if !defined $block->ipconfig;
    $block->set_value(no_wait => '') if !defined $block->library_built;
    $block->set_value(suppress_stderr => '');
    $block->set_value(no_error_log => "[crit]\n[alert]") if !defined $block->no_error_log;
});

our $IPCONFIG = <<'_EOC_';
{ "services": {
    "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A", "weight": 3, "zone": "east" },
                             { "id": "b", "addr": "$BACKEND_B" } ] },
    "empty": {} } }
_EOC_

package IpconfigTest::Script;

my $codec = JSON::PP->new->canonical;

sub json { $codec->encode(shift) }

# Why the library is not used, as the API tells it.
sub why { api('healthz')->{error} =~ s/\Q$main::FOLDER\E/FOLDER/gr }

sub tell_how_it_serves {
    my $count = served(400);
    say 'served: ', fit($count, { a => 3, b => 1 });
    say 'mode: ', join ' ', api('healthz')->{mode}, map { "$_->{service}:$_->{mode}" }
        @{ api('v1/services')->{services} };
    say 'logged: ', logged(qr/\[error\] .*init\(\): \[ipconfig\] serving the configured instances without ranking: /);
}

package main;

run_tests();

__DATA__

=== TEST 1: without the library all paths that were tried are named, and the weights serve
--- script
my $why = why();
my @paths = split /, /, $why =~ s/^libipconfig\.so was not found along package\.cpath; tried: //r;
say 'first: ', $paths[0];
say 'all end in libipconfig.so' if !grep { !m{^(?:\.|FOLDER|/.*)/libipconfig\.so$} } @paths;
say 'the current folder too' if grep { $_ eq './libipconfig.so' } @paths;
say 'none twice' if @paths == uniq @paths;
tell_how_it_serves();
--- response_body
first: FOLDER/libipconfig.so
all end in libipconfig.so
the current folder too
none twice
served: fits
mode: static chat:static empty:static
logged: 1
--- error_log
was not found along package.cpath; tried: 



=== TEST 2: a library of another ABI is not used, and both versions are named
--- library_source
int ipconfig_abi(void) { return 999; }
int ipconfig_init(void) { __builtin_trap(); }
--- script
say why();
tell_how_it_serves();
--- response_body
FOLDER/libipconfig.so has ABI 999 and this Lua code needs 5: install both from one release, and restart nginx (a reload keeps the old library)
served: fits
mode: static chat:static empty:static
logged: 1
--- error_log
has ABI 999



=== TEST 3: a library of somebody else's is not used
--- library_source
int something_else(void) { return 1; }
--- script
say why() =~ s/: \S.* undefined/: undefined/r;
tell_how_it_serves();
--- response_body
FOLDER/libipconfig.so is no libipconfig.so: undefined symbol: ipconfig_abi
served: fits
mode: static chat:static empty:static
logged: 1
--- error_log
undefined symbol: ipconfig_abi



=== TEST 4: a file that is no library is not used
--- library_text
Not Found
--- script
say why() =~ /^(failed to load FOLDER\/libipconfig\.so: FOLDER\/libipconfig\.so: \w+)/;
tell_how_it_serves();
--- response_body
failed to load FOLDER/libipconfig.so: FOLDER/libipconfig.so: file
served: fits
mode: static chat:static empty:static
logged: 1
--- error_log
failed to load



=== TEST 5: the API has the same pages and fields without the library
--- script
say json(api('v1/services'));
say json(api('v1/services/chat'));
say json([map { $_->{id} } @{ api('v1/services/chat?n=1')->{instances} }]);
say fetch('/ipconfig/v1/services/nope')->{status}, ' ', fetch('/ipconfig/v1/services/chat?n=x')->{status};
my $answer = fetch('/ipconfig/healthz');
my $health = api('healthz');
say "$answer->{status} ", json([$health->{ready}, $health->{not_ready}]);
--- response_body eval
<<"_EOC_";
{"services":[{"age_ms":0,"freshness":"static","instances":2,"mode":"static","service":"chat"},{"age_ms":0,"freshness":"static","instances":0,"mode":"static","service":"empty"}]}
{"age_ms":0,"basis":"priors","count":2,"freshness":"static","instances":[{"addr":"127.0.0.1:@{[ $ENV{TEST_NGINX_SERVER_PORT} + 3 ]}","id":"a","in_flight":0,"rank":1,"score":0,"share":0.75,"state":"unknown","weight":3,"zone":"east"},{"addr":"127.0.0.1:@{[ $ENV{TEST_NGINX_SERVER_PORT} + 4 ]}","id":"b","in_flight":0,"rank":2,"score":0,"share":0.25,"state":"unknown","weight":1,"zone":""}],"mode":"static","revision":0,"service":"chat","strategy":"adaptive","version":0}
["a"]
404 400
503 [false,["empty"]]
_EOC_
--- error_log
was not found



=== TEST 6: the metrics page says that the library is missing and counts what was served
--- script
served(5);
my $answer = fetch('/ipconfig/metrics');
say $answer->{headers}{'content-type'};
say $_ for grep { !/^# [^HT]/ } split /\n/, $answer->{content};
--- response_body
text/plain; version=0.0.4; charset=utf-8
# TYPE ipconfig_library_loaded gauge
ipconfig_library_loaded 0
# TYPE ipconfig_fallback_requests_total counter
ipconfig_fallback_requests_total 5
--- error_log
was not found



=== TEST 7: a failed try moves on without the library too, and never back
--- ipconfig
{ "services": { "chat": { "balance": { "tries": 3 }, "instances": [
    { "id": "x", "addr": "$DEAD_1", "weight": 100 }, { "id": "y", "addr": "$DEAD_2", "weight": 100 },
    { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- script
say counts(served(100));
say 'tries that failed: ', logged(qr/connect\(\) failed/) > 100 ? 'more than one a request' : 'few';
--- response_body
a:100
tries that failed: more than one a request
--- error_log
connect() failed



=== TEST 8: a service that is not known gets an error and one line without the library
--- config
    location / { set $ipconfig_service nope; proxy_pass http://ipconfig; }
--- script
say get('/') =~ /^50[03]$/ ? 'refused' : 'served';
say logged(qr/nothing to offer for service nope: the service is not known/);
--- response_body
refused
1
--- error_log
nothing to offer



=== TEST 9: a configuration that is no JSON is refused without the library too
--- ipconfig_file
{ "services": {
--- must_die
--- error_log eval
qr{init_by_lua\(\S+/ipconfig\.conf:\d+\):1: \S+/ipconfig\.json: Expected }



=== TEST 10: a configuration without services is refused without the library too
--- ipconfig_file
{ "window": {} }
--- must_die
--- error_log eval
qr{init_by_lua\(\S+/ipconfig\.conf:\d+\):1: \S+/ipconfig\.json: services: expected an object}



=== TEST 11: the library is used where it is the right one
--- library_built
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- script
say api('healthz')->{error} // 'no error', ', ', api('healthz')->{mode}, ', ', get('/');
--- response_body
no error, live, a
--- no_error_log
[error]
[crit]
[alert]



=== TEST 12: init_worker() and status() tell a caller why the library is not used
--- hooks
    lua_shared_dict ipconfig 1m;
    init_by_lua_block { require("resty.ipconfig").init() }
    init_worker_by_lua_block { ok, err = require("resty.ipconfig").init_worker() }
--- config
    location = /x {
        content_by_lua_block {
            local _, err = require("resty.ipconfig").init_worker()
            ngx.say(err == require("resty.ipconfig").status().error and err)
        }
    }
--- script
say get('/x') =~ /^(libipconfig\.so was not found along package\.cpath)/;
--- response_body
libipconfig.so was not found along package.cpath
--- error_log
was not found



=== TEST 13: without the library an instance that drains is served nothing
--- ipconfig
{ "services": { "chat": { "instances": [
    { "id": "a", "addr": "$BACKEND_A", "drain": true },
    { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
say names(served(50));
say join ' ', map { $_->{id} } @{ service('chat')->{instances} };
--- response_body
b
b
--- error_log
serving the configured instances without ranking
