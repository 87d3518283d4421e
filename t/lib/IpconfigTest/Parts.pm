package IpconfigTest::Parts;

# The real parts of a test file: ports of its own, one etcd, backends, and which
# nginx it is. Loaded before Test::Nginx, which takes its settings from the
# environment as it is loaded.

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use Fcntl qw(:flock);
use File::Basename qw(basename dirname);
use File::Path qw(make_path remove_tree);
use File::Temp qw(tempdir);
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP ();
use MIME::Base64 qw(encode_base64 decode_base64);
use POSIX qw(WNOHANG);
use Socket;
use Test::More ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
    $REPO $LUA $LIB expand begin_block spell_out put_into_etcd wait_until_in_force
);

our $REPO = abs_path(dirname(__FILE__) . '/../../..');
our $LUA = $ENV{IPCONFIG_TEST_LUA} // "$REPO/lua";
our $LIB = $ENV{IPCONFIG_TEST_LIB} // "$REPO/target/release";

my $OWNER = $$;    # a forked child ends nothing

# --- ports

# Below the range that the kernel takes for connections, so that no connection of
# anybody's has one of them (32768 and up by default), and below that of tests/support.
my ($FIRST_PORT, $LAST_PORT) = (10_000, 20_000);
my $PORTS = 20;

my $port_lock;

# The first of $PORTS neighbouring free ports, no other test file's.
sub claim_ports {
    my $folder = "/tmp/ipconfig-test-ports-$>";
    make_path($folder);

    my $blocks = int(($LAST_PORT - $FIRST_PORT) / $PORTS);
    for my $i (0 .. $blocks - 1) {
        my $block = ($OWNER * 7 + $i) % $blocks;
        my $first = $FIRST_PORT + $block * $PORTS;
        open $port_lock, '>', "$folder/$first" or next;
        next if !flock $port_lock, LOCK_EX | LOCK_NB;
        return $first if !grep { !is_free($_) } $first .. $first + $PORTS - 1;
    }
    die "no $PORTS free ports from $FIRST_PORT to $LAST_PORT";
}

sub is_free {
    my $port = shift;
    return IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => $port,
                                 Listen => 1, ReuseAddr => 1);
}

# Binds a port without listening: whoever connects is refused, and nobody else
# can listen there.
sub refuse_connections {
    my $port = shift;
    socket my $socket, PF_INET, SOCK_STREAM, 0 or die "failed to make a socket: $!";
    bind $socket, sockaddr_in($port, INADDR_LOOPBACK)
        or die "failed to bind port $port: $!";
    return $socket;
}

my $next_port = claim_ports();
my $server_port = $next_port++;
my ($etcd_port, $etcd_peer_port) = ($next_port++, $next_port++);

my %backend_port = map { $_ => $next_port++ } 'a' .. 'e';
my %dead_port = map { $_ => $next_port++ } 1 .. 3;
my @dead_sockets = map { refuse_connections($_) } values %dead_port;

my %words = (
    REPO        => $REPO,
    LUA         => $LUA,
    LIB         => $LIB,
    SERVER_PORT => $server_port,
    ETCD        => "127.0.0.1:$etcd_port",
    (map { (uc "BACKEND_$_" => "127.0.0.1:$backend_port{$_}") } keys %backend_port),
    (map { ("DEAD_$_" => "127.0.0.1:$dead_port{$_}") } keys %dead_port),
    (map { ("FREE_PORT_$_" => $next_port++) } 1 .. 4),
);

# The text with the words of IpconfigTest's head filled in.
sub expand {
    my $text = shift;
    return undef if !defined $text;

    start_backend(lc) for grep { !backend_pid(lc) } $text =~ /\$BACKEND_([A-E])\b/g;
    my $names = join '|', keys %words;
    return $text =~ s/\$($names)\b/$words{$1}/gr;
}

sub server_port { return $server_port }

# --- nginx

my $servroot = "$REPO/t/servroot-" . basename($0, '.t') . "-$OWNER";

sub find_nginx {
    for my $name (grep { defined } $ENV{NGINX_BIN}, $ENV{TEST_NGINX_BINARY},
                  'openresty', 'nginx') {
        return $name if $name =~ m{/} && -x $name;
        my ($found) = grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH}), '/usr/sbin';
        return $found if $found;
    }
    die "found neither openresty nor nginx; set NGINX_BIN";
}

# Debian has the Lua module beside nginx, OpenResty has it inside.
sub lua_modules {
    my $nginx = shift;
    return '' if `$nginx -V 2>&1` =~ /openresty|ngx_lua|lua-nginx-module/;
    return join ' ', map { "/usr/lib/nginx/modules/$_.so" }
        qw(ndk_http_module ngx_http_lua_module);
}

my $nginx = find_nginx();
$ENV{TEST_NGINX_BINARY} = $nginx;
$ENV{TEST_NGINX_LOAD_MODULES} //= lua_modules($nginx);
$ENV{TEST_NGINX_PORT} = $server_port;
$ENV{TEST_NGINX_SERVER_PORT} = $server_port;
$ENV{TEST_NGINX_SERVROOT} = $servroot;

sub servroot { return $servroot }
sub nginx_binary { return $nginx }

# --- processes

my $folder = tempdir('ipconfig-test-XXXXXX', TMPDIR => 1);
my %pids;    # name -> pid of what runs

# Starts a program with its output in a file.
sub start {
    my ($name, @command) = @_;

    defined(my $pid = fork) or die "failed to fork: $!";
    if ($pid == 0) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$folder/$name.log";
        open STDERR, '>&', \*STDOUT;
        exec @command or POSIX::_exit(127);
    }
    $pids{$name} = $pid;
    return $pid;
}

# Ends a program; once this returns it is gone.
sub end {
    my ($name, $signal) = @_;
    my $pid = delete $pids{$name} or return;
    kill $signal => $pid;
    waitpid $pid, 0;
}

# So long a test waits for what has to come, in seconds. How soon it comes says
# how busy the machine is, and is no law: this is so long that nothing but a fault
# reaches it.
our $PATIENCE = 60;

# Waits until the condition holds and returns how long that took, in seconds. A
# condition that dies does not hold yet: nginx may be between two workers.
sub await {
    my ($what, $condition) = @_;

    my $begin = time;
    until (eval { $condition->() }) {
        my $why = $@ ? ": $@" : "\n";
        die "$what: not after $PATIENCE s$why" if time - $begin > $PATIENCE;
        sleep 0.005;
    }
    return time - $begin;
}

sub is_listening {
    return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => shift);
}

# --- backends: tiny nginx processes that tests may kill

my $BACKEND = <<'_EOC_';
_MODULES_
daemon off; master_process off; user root;
pid _FOLDER_/_NAME_.pid; error_log _FOLDER_/_NAME_.log;
events { worker_connections 1024; }
http {
    access_log off; keepalive_requests 1000000; default_type text/plain;
    client_body_temp_path _FOLDER_/_NAME_.body; proxy_temp_path _FOLDER_/_NAME_.proxy;
    fastcgi_temp_path _FOLDER_/_NAME_.fcgi; uwsgi_temp_path _FOLDER_/_NAME_.uwsgi;
    scgi_temp_path _FOLDER_/_NAME_.scgi;
    init_by_lua_block { gate = { opened = 0, waiting = 0 } }
    server {
        listen 127.0.0.1:_PORT_ backlog=1024;
        location / {
            # of the backends that are named so, each fails, knows of nothing, and
            # ends the connection
            if ($arg_fail ~ _NAME_) { return 500; }
            if ($arg_miss ~ _NAME_) { return 404; }
            if ($arg_drop ~ _NAME_) { return 444; }
            return 200 "_NAME_\n";
        }
        # ends the connection without an answer
        location /drop { return 444; }
        # answers after ?ms=
        location /slow {
            content_by_lua_block { ngx.sleep(ngx.var.arg_ms / 1000) ngx.say("_NAME_") }
        }
        # answers when the gate opens, with ?n= chunks before that
        location /gate {
            content_by_lua_block {
                local opened = gate.opened
                for _ = 1, ngx.var.arg_n or 0 do
                    ngx.say("_NAME_") ngx.flush(true)
                end
                gate.waiting = gate.waiting + 1
                while gate.opened == opened do ngx.sleep(0.005) end
                gate.waiting = gate.waiting - 1
                ngx.say("_NAME_")
            }
        }
        # opens it to all who wait; how many those are
        location /open { content_by_lua_block { gate.opened = gate.opened + 1 } }
        location /waiting { content_by_lua_block { ngx.say(gate.waiting) } }
        # takes the connection over, and sends back each line that comes
        location /upgrade {
            content_by_lua_block {
                local socket = ngx.req.socket(true)
                socket:send("HTTP/1.1 101 Switching Protocols\r\n"
                            .. "Connection: Upgrade\r\nUpgrade: lines\r\n\r\n")
                local line = socket:receive()
                while line do
                    socket:send("_NAME_: " .. line .. "\n")
                    line = socket:receive()
                end
            }
        }
        # has the gateway go on at ?to=
        location /accel { add_header X-Accel-Redirect $arg_to; return 200; }
        # answers with ?code=
        location /code { content_by_lua_block { ngx.exit(tonumber(ngx.var.arg_code)) } }
    }
}
_EOC_

sub folder { return $folder }

sub backend_pid { return $pids{"backend-$_[0]"} }

sub start_backend {
    my $name = shift;

    my %value = (
        MODULES => join(' ', map { "load_module $_;" }
                             split ' ', $ENV{TEST_NGINX_LOAD_MODULES}),
        FOLDER  => $folder,
        NAME    => $name,
        PORT    => $backend_port{$name},
    );
    my $config = $BACKEND =~ s/_([A-Z]+)_/$value{$1}/gr;
    $config =~ s/user root;// if $> != 0;
    open my $file, '>', "$folder/$name.conf" or die "failed to write a backend's file: $!";
    print {$file} $config;
    close $file;

    start("backend-$name", $nginx, '-e', "$folder/$name.log", '-p', $folder,
          '-c', "$folder/$name.conf");
    await("backend $name listens", sub { is_listening($backend_port{$name}) });
}

sub kill_backend { end("backend-$_[0]", 'KILL') }

# The addresses of those that run.
sub backends { map { "127.0.0.1:$backend_port{$_}" } grep { backend_pid($_) } sort keys %backend_port }

# --- etcd

# A client of JSON over HTTP on loopback, with no proxy in between.
my %DIRECT = (proxy => undef, http_proxy => undef, https_proxy => undef);
my $http = HTTP::Tiny->new(%DIRECT, timeout => $PATIENCE);
my $json = JSON::PP->new->canonical;

my $block_number = 0;
my $prefix;
my $revision = 0;    # the last one that a put or a delete of ours made

sub start_etcd {
    my $pid = start('etcd', 'etcd', '--name', 'test', '--data-dir', "$folder/etcd",
        '--listen-client-urls', "http://127.0.0.1:$etcd_port",
        '--advertise-client-urls', "http://127.0.0.1:$etcd_port",
        '--listen-peer-urls', "http://127.0.0.1:$etcd_peer_port",
        '--initial-advertise-peer-urls', "http://127.0.0.1:$etcd_peer_port",
        '--initial-cluster', "test=http://127.0.0.1:$etcd_peer_port",
        # alone in its cluster it need not wait long to be elected
        '--heartbeat-interval', 20, '--election-timeout', 200,
        '--log-level', 'error', '--logger', 'zap');
    my $has_ended;
    await('etcd is healthy', sub {
        $has_ended = waitpid($pid, WNOHANG) == $pid;
        return $has_ended
            || $http->get("http://127.0.0.1:$etcd_port/health")->{content} =~ /"true"/;
    });
    die "etcd ended, see $folder/etcd.log\n" if $has_ended;
}

sub kill_etcd { end('etcd', 'KILL') }
sub etcd_pid { return $pids{etcd} }

sub etcd_call {
    my ($path, $body) = @_;
    my $answer = $http->post("http://127.0.0.1:$etcd_port$path",
                             { content => $json->encode($body) });
    die "etcd $path: $answer->{status} $answer->{content}\n" if !$answer->{success};
    my $decoded = $json->decode($answer->{content});
    $revision = $decoded->{header}{revision} // $revision;
    return $decoded;
}

# Puts a value, which may be bytes, under the block's prefix.
sub put_key {
    my ($key, $value) = @_;
    return etcd_call('/v3/kv/put', { key   => encode_base64("$prefix/$key", ''),
                                     value => encode_base64($value, '') });
}

sub delete_key {
    my $key = shift;
    return etcd_call('/v3/kv/deleterange', { key => encode_base64("$prefix/$key", '') });
}

# The text of a section etcd with each "register" made the puts that it stands for,
# whose addresses are yet to be expanded.
sub spell_out {
    my $text = shift;
    return $text =~ s/^\h*register\h+(\S+)((?:\h+\w\b)+)\h*(?:\{(.*)\}\h*)?$/
        registrations($1, $3, split ' ', $2)/gmer;
}

sub registrations {
    my ($service, $more, @ids) = @_;
    return join "\n", map {
        my $addr = '$' . (/\d/ ? 'DEAD_' : 'BACKEND_') . uc;
        my $value = join ',', qq("addr":"$addr"), $more // ();
        "put instances/$service/$_ {$value}";
    } @ids;
}

sub put_into_etcd {
    for my $line (grep { /\S/ && !/^\s*#/ } split /\n/, shift) {
        my ($verb, $key, $value) = $line =~ /^\s*(put|del)\s+(\S+)\s*(.*?)\s*$/
            or die "no line of the section etcd: $line";
        $verb eq 'put' ? put_key($key, $value) : delete_key($key);
    }
}

sub revision { return $revision }
sub prefix { return $prefix }
sub words { return \%words }

# --- a block's begin

# etcd runs, the killed backends too, and the prefix is a new one: no block sees
# what another one left.
sub begin_block {
    start_etcd() if !$pids{etcd};
    start_backend($_) for grep { -e "$folder/$_.conf" && !backend_pid($_) } 'a' .. 'e';
    $words{PREFIX} = $prefix = '/ipconfig-test/' . ++$block_number;
}

# Waits until nginx has seen what etcd holds now. A key that the gateway does not
# read marks that place in etcd's history.
sub wait_until_in_force {
    put_key('exporters/test', '{}');
    my $in_force = eval {
        await('the state of etcd is in force', sub {
            my $list = api('v1/services') or return;
            my $health = api('healthz') or return;
            return if !$health->{ready};
            for my $service (@{ $list->{services} }) {
                my $view = api("v1/services/$service->{service}?n=0") or return;
                return if $view->{revision} < $revision || $view->{mode} !~ /^(?:live|manual)$/;
            }
            return 1;
        });
    };
    print STDERR "# $@" if !$in_force;
    # Publishing a small service may be put off by some milliseconds: 20 times
    # what the last time took.
    sleep 0.03;
}

# A page of the HTTP API, decoded, or nothing; of any worker that answers.
sub api {
    my $path = shift;
    my $one_off = HTTP::Tiny->new(%DIRECT, timeout => $PATIENCE, keep_alive => 0);
    my $answer = $one_off->get("http://127.0.0.1:$server_port/ipconfig/$path");
    return eval { $json->decode($answer->{content}) };
}

# --- the end

# An interrupt ends what was started, too.
$SIG{INT} = sub { exit 130 };
$SIG{TERM} = sub { exit 143 };

END {
    if ($$ == $OWNER) {
        local $?;
        end($_, 'KILL') for keys %pids;
        # a failure leaves its nginx.conf and error.log to look at
        remove_tree($folder, Test::More->builder->is_passing ? $servroot : ());
    }
}

1;
