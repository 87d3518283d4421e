package IpconfigTest;

# What every test of the suite stands on: Test::Nginx with the checkout's Lua
# code and library, a private etcd and real backends. Beside Test::Nginx's own
# sections, a block has these, all optional:
#
#   --- ipconfig        the configuration file; `etcd` is added, so that the file
#                       needs `services` alone. Default: the service `chat` with
#                       the instances a, b and c of weight 1, which take turns:
#                       `adaptive` may leave one alone for some seconds
#   --- ipconfig_file   the same, with nothing added
#   --- etcd            what etcd holds before nginx starts, a line each:
#                       "put instances/chat/a {...}" or "del instances/chat/a";
#                       "register chat a b 1" puts the backends a and b and the dead
#                       address 1 as instances of chat, 'register chat a {"zone":"n"}'
#                       with more in their values. Keys are below the prefix, which
#                       each block has its own of
#   --- hooks           stands in place of `include ipconfig.conf` in http {}
#   --- http_config     stands after it
#   --- config          the server's locations. Default: $SERVICE_LOCATION. The
#                       HTTP API and /worker ("<id> <pid>") are always there
#   --- script          Perl, run once nginx serves, with the vocabulary of
#                       IpconfigTest::Script. What it says (`say`) is the
#                       response body that the block expects
#   --- workers         so many workers under a master. Default: one process
#   --- no_wait         begin at once, not when etcd's state is in force
#
# In all of them are expanded: $BACKEND_A ... $BACKEND_E, addresses of backends,
# which answer with their letter and are started when they are first named;
# $DEAD_1 ... $DEAD_3, addresses that refuse connections; $FREE_PORT_1 ...
# $FREE_PORT_4; $ETCD (its address), $PREFIX, $REPO, $LUA, $LIB, $SERVER_PORT.
#
# The request is GET /t by default, and the error log must then have neither
# [error] nor [crit] nor [alert], unless the block says what it must have, which is
# waited for. Nothing is to go by how fast this machine is: see await and PATIENCE in
# IpconfigTest::Parts, and hold, begin and release in IpconfigTest::Script for requests
# that are under way for as long as the test wants.
#
# From the environment: NGINX_BIN, and IPCONFIG_TEST_LUA and IPCONFIG_TEST_LIB,
# the folders of the Lua code and of libipconfig.so to test instead of the
# checkout's.

use IpconfigTest::Parts;
use Test::Nginx::Socket::Lua -Base;
use IpconfigTest::Script;

my $SAID = server_root() . '/html/said';

# of the block that is run
my ($script, $waits, @to_be_logged);

our $DEFAULT_IPCONFIG = <<'_EOC_';
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [
    { "id": "a", "addr": "$BACKEND_A" },
    { "id": "b", "addr": "$BACKEND_B" },
    { "id": "c", "addr": "$BACKEND_C" } ] } } }
_EOC_

our $SERVICE_LOCATION = <<'_EOC_';
    location / {
        set $ipconfig_service chat;
        proxy_pass            http://ipconfig;
        proxy_http_version    1.1;
        proxy_set_header      Connection "";
    }
_EOC_

my $WORKER_LOCATION = <<'_EOC_';
    location = /worker {
        content_by_lua_block { ngx.say(ngx.worker.id(), " ", ngx.worker.pid()) }
    }
_EOC_

no_shuffle();
no_long_string();
no_root_location();
log_level('info');
worker_connections(1024);
timeout(30);

$ENV{IPCONFIG_CONFIG} = server_root() . '/html/ipconfig.json';
env_to_nginx('IPCONFIG_CONFIG');

add_block_preprocessor(sub ($) {
    my $block = shift;

    begin_block();

    master_process_enabled(defined $block->workers);
    workers($block->workers // 1);

    set_expanded($block, $_, $block->$_)
        for grep { defined $block->$_ && !ref $block->$_ }
            qw(request error_log no_error_log response_body response_body_like
               grep_error_log_out main_config);

    set_http_config($block);
    set_config($block);
    add_file($block, 'ipconfig.json', ipconfig_of($block));
    put_into_etcd(expand(spell_out($block->etcd // '')));

    $block->set_value(request => 'GET /t')
        if !defined $block->request && !defined $block->raw_request
            && !defined $block->pipelined_requests;

    $block->set_value(no_error_log => "[error]\n[crit]\n[alert]")
        if !defined $block->error_log && !defined $block->no_error_log
            && !defined $block->must_die;

    # What the plugin's thread has to say, a worker logs a moment later.
    @to_be_logged = map { ref ? $_ : qr/\Q$_\E/ }
        map { ref eq 'ARRAY' ? @$_ : ref ? $_ : split /\n/ } $block->error_log // ();
    $script = expand($block->script);
    $waits = !defined $block->no_wait;
    $block->set_value(init => ($block->init // '') . ';IpconfigTest::begin();');
});

# What happens between the start of nginx and the block's request.
sub begin () {
    wait_until_in_force() if $waits;
    return if !defined $script;

    my $said = IpconfigTest::Script::run($script);
    eval { IpconfigTest::Script::in_log($_) for @to_be_logged };
    open my $file, '>', $SAID or die "failed to open $SAID: $!";
    print {$file} $said;
    close $file;
}

sub set_expanded ($$$) {
    my ($block, $section, $text) = @_;
    $block->set_value($section => expand($text));
}

sub set_http_config ($) {
    my $block = shift;

    my $hooks = $block->hooks // "    include $REPO/nginx/ipconfig.conf;\n";
    set_expanded($block, 'http_config', <<"_EOC_" . ($block->http_config // ''));
    lua_package_path  "$REPO/t/lib/?.lua;$LUA/?.lua;;";
    lua_package_cpath "$LIB/?.so;;";
    lua_socket_log_errors off;
    proxy_connect_timeout 20s;
    access_log off;
$hooks
_EOC_
}

sub set_config ($) {
    my $block = shift;

    my $config = $block->config // $SERVICE_LOCATION;
    $config .= $WORKER_LOCATION;
    $config .= "    include $REPO/nginx/ipconfig_api.conf;\n"
        if $config !~ /ipconfig_api\.conf/;
    $config .= "    location = /t { alias $SAID; }\n" if defined $block->script;
    set_expanded($block, 'config', $config);
}

# The configuration file's text. `etcd` is put into the text rather than into
# the object that it stands for, so that a block can have any text.
sub ipconfig_of ($) {
    my $block = shift;

    return expand($block->ipconfig_file) if defined $block->ipconfig_file;

    my $text = $block->ipconfig // $DEFAULT_IPCONFIG;
    $text =~ s/\{/{ "etcd": { "endpoints": ["http:\/\/\$ETCD"], "prefix": "\$PREFIX" },/;
    return expand($text);
}

sub add_file ($$$) {
    my ($block, $name, $text) = @_;

    my $files = $block->user_files // '';
    $files .= "\n" if $files ne '' && $files !~ /\n\z/;
    $block->set_value(user_files => "$files>>> $name\n$text");
}

1;
