# HTTP::Tiny sends a request again whose connection was closed, and would hide
# what a test looks for. It knows the case by the error's text.
package IpconfigTest::Client;

use strict;
use warnings;

use parent 'HTTP::Tiny';

sub _request {
    my $self = shift;
    my $answer = eval { $self->SUPER::_request(@_) };
    die "failed: $@" if !$answer;
    return $answer;
}

package IpconfigTest::Script;

# What a block's `script` may say: it drives nginx, etcd and the backends from
# outside and tells what it saw.

use strict;
use warnings;

use File::Path qw(make_path);
use IpconfigTest::Parts;
use JSON::PP ();
use List::Util qw(max min sum0 uniq);
use POSIX qw(WNOHANG);
use Test::More ();
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->canonical;
my $said;
my @to_end;    # what a script that died may have left running

# Runs a script; what it said, and what it died of.
sub run {
    my $script = shift;
    $said = '';
    eval "package IpconfigTest::Script; $script; 1" or $said .= "died: $@";
    $_->() for splice @to_end;
    let_go();
    return $said;
}

sub say { $said .= join('', @_) . "\n"; return }
sub note { Test::More::note(@_) }

*await = \&IpconfigTest::Parts::await;

# --- requests

my %DIRECT = (proxy => undef, http_proxy => undef, https_proxy => undef,
              max_redirect => 0, timeout => $IpconfigTest::Parts::PATIENCE);
my $kept_alive = IpconfigTest::Client->new(%DIRECT);
my $one_off = IpconfigTest::Client->new(%DIRECT, keep_alive => 0);

# A path is one of the nginx under test.
sub url {
    my $url = shift;
    return $url =~ m{^/} ? 'http://127.0.0.1:' . IpconfigTest::Parts::server_port() . $url : $url;
}

# HTTP::Tiny's answer: status, content, headers.
sub fetch { my ($path, %options) = @_; $kept_alive->get(url($path), \%options) }

# The same on a connection of its own.
sub fetch_anew { my ($path, %options) = @_; $one_off->get(url($path), \%options) }

# A request whose client goes away after a tenth of a second.
sub abandon { IpconfigTest::Client->new(%DIRECT, timeout => 0.1)->get(url(shift)) }

# A request that is under way: its connection.
sub begin {
    my ($path, @headers) = @_;
    my $connection = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1', PeerPort => IpconfigTest::Parts::server_port(),
    ) or die "failed to connect: $!\n";
    @headers = 'Connection: close' if !@headers;
    print {$connection} join("\r\n", "GET $path HTTP/1.1", 'Host: test', @headers), "\r\n\r\n";
    return $connection;
}

# The status of its answer, once it is complete.
sub status_of {
    my $connection = shift;
    my $answer = do { local $/; <$connection> } // '';
    return $answer =~ m{^HTTP/1\.1 (\d+)} ? $1 : 'none';
}

# Has the backends answer the requests that are under way to /gate: $n, 1 by default.
# One that the gateway has sent need not be there yet.
sub release {
    my $n = shift // 1;
    my @backends = IpconfigTest::Parts::backends();
    my $ask = sub { my $path = shift; map { $one_off->get("http://$_$path")->{content} } @backends };
    await("$n wait at the gate", sub { sum0($ask->('/waiting')) == $n });
    $ask->('/open');
    await('they have left', sub { sum0($ask->('/waiting')) == 0 });
    return;
}

# Begins so many requests, each on a connection of its own, which are under way
# until let_go(): the instance would take longer than any test.
my @held;
sub hold {
    my ($n, $path) = @_;
    $path //= '/slow?ms=600000';
    push @held, map { begin($path) } 1 .. $n;
    return;
}

# Their clients go away.
sub let_go { close $_ for splice @held; return }

# What an answer says: its body, or its status when that is not 200.
sub word {
    my $answer = shift;
    return $answer->{status} if $answer->{status} != 200;
    return $answer->{content} =~ s/\s+\z//r;
}

sub get { word(fetch(@_)) }

sub get_anew { word(fetch_anew(@_)) }

sub fetch_post { $kept_alive->post(url($_[0]), { content => 'body' }) }

sub post { word(fetch_post(@_)) }

# The addresses that a request was sent to, one after another: the location must
# have `add_header Tries $upstream_addr always`.
sub tries { split /, /, $_[0]{headers}{tries} // '' }

# Who answered: how often each word came in $n requests.
sub served {
    my ($n, $path) = @_;
    my %count;
    $count{ get($path // '/') }++ for 1 .. $n;
    return \%count;
}

# The same with a connection for each request, which any worker may take.
sub served_anew {
    my ($n, $path) = @_;
    my %count;
    $count{ get_anew($path // '/') }++ for 1 .. $n;
    return \%count;
}

# What so many workers say at /ask, a line each, in the order of their ids; each
# line begins with the id.
sub views {
    my $workers = shift;
    my %view;
    # Which of them takes a connection is the kernel's to say.
    await("$workers workers answer", sub {
        my $line = get_anew('/ask');
        my ($id) = $line =~ /^(\d+) /;
        $view{ $id // $line } = $line;
        return keys %view == $workers;
    });
    return join "\n", map { $view{$_} } sort keys %view;
}

# "a:3 b:7"
sub counts { my $count = shift; join ' ', map { "$_:$count->{$_}" } sort keys %$count }
sub names { join ' ', sort keys %{ $_[0] } }

# --- the ranking as the API shows it

*api = \&IpconfigTest::Parts::api;

# An answer's JSON, or nothing.
sub decode { my $answer = shift; eval { $json->decode($answer->{content}) } }

sub service { api("v1/services/$_[0]") }

# The ids of a service's instances in rank order.
sub ranking { join ' ', map { $_->{id} } @{ service($_[0])->{instances} // [] } }

# id -> weight.
sub weights { return { map { ($_->{id} => $_->{weight}) } @{ service($_[0])->{instances} } } }

# Requests that are open on the instances of a service, together.
sub in_flight { sum0(map { $_->{in_flight} } @{ service($_[0])->{instances} }) }

# "a:reporting b:unknown"
sub ranking_states {
    my $instances = service(shift)->{instances};
    return counts({ map { ($_->{id} => $_->{state}) } @$instances });
}

# How a service is served.
sub mode { my $view = service(shift) or return ''; $view->{mode} }

# Waits until the ranking has these ids, in any order.
sub ready {
    my ($service, $ids) = @_;
    my $wanted = join ' ', sort split ' ', $ids;
    await("$service has the instances $ids", sub {
        join(' ', sort split ' ', ranking($service)) eq $wanted;
    });
}

# --- etcd

sub put {
    my ($key, $value) = @_;
    IpconfigTest::Parts::put_key($key, ref $value ? $json->encode($value)
                                                  : IpconfigTest::Parts::expand($value));
    return;
}

sub del { IpconfigTest::Parts::delete_key(shift); return }

*start_etcd = \&IpconfigTest::Parts::start_etcd;
*kill_etcd = \&IpconfigTest::Parts::kill_etcd;

# Puts a StatusBatch: id -> fields of ipconfig.v1.Status, of those in %FIELD, or
# what one of the three below returns.
sub put_status {
    my ($exporter, $service, %reports) = @_;
    my $batch = join '', map {
        my $report = $reports{$_};
        $report = bytes_field(2, status($report)) if ref $report;
        bytes_field(1, bytes_field(1, $_) . $report)
    } sort keys %reports;
    IpconfigTest::Parts::put_key("status/$exporter/$service/0", $batch);
    return;
}

sub serving { bytes_field(3, '') }

sub not_serving { bytes_field(4, '') }

# It has not been read for so many whole seconds.
sub unreachable { my $seconds = shift; bytes_field(5, bytes_field(1, "\x08" . varint($seconds))) }

# Reports, 10 times a second, on instances that answer 100 requests in between, in
# `latency_ms` each (10 by default), `failing` of them (0 to 1), until that has the
# effect that is to be seen. Once a block: the counters begin at 0.
sub report_until {
    my ($what, $is_seen, $service, %instances) = @_;
    my $seq = 0;
    await($what, sub {
        $seq++;
        put_status('test', $service, map {
            my $instance = $instances{$_};
            my $requests = 100 * $seq;
            ($_ => {
                boot_id        => 1,
                seq            => $seq,
                requests       => $requests,
                errors         => int($requests * ($instance->{failing} // 0)),
                latency_sum_ns => $requests * 1_000_000 * ($instance->{latency_ms} // 10),
            });
        } keys %instances);
        sleep 0.1;
        return $is_seen->($seq);
    });
}

# The field numbers of proto/ipconfig/v1/status.proto.
my %FIELD = (
    boot_id => 1, seq => 2, requests => 10, errors => 11, busy_ns => 12,
    latency_sum_ns => 13, cpu_used_cores => 20, cpu_limit_cores => 21,
    memory_used_bytes => 22, memory_limit_bytes => 23, in_flight => 24,
    max_in_flight => 27,
);
my %IS_DOUBLE = (cpu_used_cores => 1, cpu_limit_cores => 1);

sub status {
    my $status = shift;
    return join '', map {
        $IS_DOUBLE{$_} ? varint($FIELD{$_} << 3 | 1) . pack('d<', $status->{$_})
                       : varint($FIELD{$_} << 3) . varint($status->{$_})
    } sort keys %$status;
}

sub bytes_field { my ($n, $bytes) = @_; varint($n << 3 | 2) . varint(length $bytes) . $bytes }

sub varint {
    my $n = shift;
    my $bytes = '';
    while ($n > 127) {
        $bytes .= chr($n & 127 | 128);
        $n >>= 7;
    }
    return $bytes . chr $n;
}

# --- processes

*start_backend = \&IpconfigTest::Parts::start_backend;
*kill_backend = \&IpconfigTest::Parts::kill_backend;

sub master_pid { slurp(IpconfigTest::Parts::servroot() . '/logs/nginx.pid') =~ s/\s//gr }

# The workers that take requests: not those that are shutting down.
sub worker_pids {
    my $master = master_pid();
    return grep { is_worker($_) } split ' ', slurp("/proc/$master/task/$master/children");
}

# By its title. Under valgrind a process has none: then by what the log says of it.
sub is_worker {
    my $pid = shift;
    my $title = slurp("/proc/$pid/cmdline");
    return $title =~ /^nginx: worker process(?! is)/ if !$ENV{IPCONFIG_TEST_NO_TITLES};
    my $log = slurp(IpconfigTest::Parts::servroot() . '/logs/error.log');
    return $log =~ /start worker process $pid\b/
        && $log !~ /\[notice\] $pid#\d+: (?:gracefully shutting down|exiting)/;
}

# The worker in which the plugin's thread runs: worker 0.
sub writer_pid {
    for my $pid (worker_pids()) {
        return $pid if grep { slurp($_) eq "ipconfig\n" } glob "/proc/$pid/task/*/comm";
    }
    return;
}

# Stops a process; once this returns none of its threads runs.
sub stop {
    my $pid = shift;
    kill STOP => $pid;
    await("$pid stands still", sub {
        !grep { slurp($_) !~ /^\d+ \(.*\) T / } glob "/proc/$pid/task/*/stat";
    });
}

# Does something while a worker is stopped. The kernel wakes one worker for a
# connection (nginx listens with EPOLLEXCLUSIVE), the stopped one among them, but
# that one no more than once: connections of no use take its turn.
sub while_stopped {
    my ($pid, $work) = @_;
    stop($pid);
    my $port = IpconfigTest::Parts::server_port();
    my @useless = map { IpconfigTest::Parts::is_listening($port) } 1 .. 2;
    my $done = eval { $work->(); 1 };
    kill CONT => $pid;
    die $@ if !$done;
}

# Reloads and waits until new workers serve.
sub reload {
    # One that was only just begun may not be told from its master yet.
    my ($count) = slurp(IpconfigTest::Parts::servroot() . '/conf/nginx.conf')
        =~ /^worker_processes\s+(\d+)/m;
    await('all workers are there', sub { worker_pids() == ($count // 1) });
    my %old = map { $_ => 1 } worker_pids();
    kill HUP => master_pid();
    await('new workers serve', sub {
        my @pids = worker_pids();
        @pids == keys %old && !grep { $old{$_} } @pids;
    });
}

# Writes the configuration file anew, for the next reload.
sub write_ipconfig { spew($ENV{IPCONFIG_CONFIG}, shift) }

sub ipconfig { slurp($ENV{IPCONFIG_CONFIG}) }

# Does a piece of work again and again in another process while the script goes
# on. Returns a function that ends it and returns the hash that it counted into.
sub meanwhile {
    my $work = shift;    # called with the hash
    pipe my $from_child, my $to_parent or die "failed to make a pipe: $!";
    my $parent = $$;
    defined(my $pid = fork) or die "failed to fork: $!";
    if ($pid == 0) {
        $Test::Nginx::Util::InSubprocess = 1;
        my ($ended, %count);
        local $SIG{TERM} = sub { $ended = 1 };
        $kept_alive = IpconfigTest::Client->new(%DIRECT);
        eval { $work->(\%count) until $ended || getppid != $parent; 1 }
            or $count{"died: $@"}++;
        print {$to_parent} $json->encode(\%count);
        close $to_parent;
        POSIX::_exit(0);
    }
    close $to_parent;
    push @to_end, sub { if ($pid) { kill KILL => $pid; waitpid $pid, 0 } };
    return sub {
        kill TERM => $pid;
        my $text = do { local $/; <$from_child> };
        waitpid $pid, 0;
        undef $pid;
        return $json->decode($text || '{}');
    };
}

# Starts an nginx of the test's own, in the foreground, from a folder and a file
# in it; it ends with the script.
sub start_nginx {
    my ($folder, $file) = @_;
    my $nginx = IpconfigTest::Parts::nginx_binary();
    my $pid = IpconfigTest::Parts::start('nginx', $nginx, '-p', $folder, '-c', $file);
    push @to_end, sub { IpconfigTest::Parts::end('nginx', 'TERM') };
    return $pid;
}

# What it wrote.
sub nginx_output { slurp(IpconfigTest::Parts::folder() . '/nginx.log') }

# What `nginx -t` says of such a file.
sub test_nginx {
    my ($folder, $file) = @_;
    my $nginx = IpconfigTest::Parts::nginx_binary();
    return `$nginx -t -p $folder -c $file 2>&1`;
}

# --- files

sub slurp { open my $file, '<', shift or return ''; local $/; <$file> // '' }

sub spew {
    my ($path, $text) = @_;
    open my $file, '>', $path or die "failed to write $path: $!\n";
    print {$file} $text;
    close $file or die "failed to write $path: $!\n";
}

# A folder that has what a checkout has, with the example on ports of the test.
sub checkout_at {
    my $folder = new_folder(shift);
    make_path("$folder/nginx", "$folder/target");
    symlink $LUA, "$folder/lua";
    symlink $LIB, "$folder/target/release";
    for my $name (map { s{.*/}{}r } glob "$REPO/nginx/*") {
        my $text = slurp("$REPO/nginx/$name");
        $text =~ s/^load_module .*\n//mg if !load_modules();
        $text =~ s/127\.0\.0\.1:8080/127.0.0.1:\$FREE_PORT_1/;
        $text =~ s{/tmp/ipconfig-example}{$folder/example};
        spew("$folder/nginx/$name", IpconfigTest::Parts::expand($text));
    }
    return $folder;
}

# The lines that load the Lua module, where nginx needs them.
sub load_modules { join '', map { "load_module $_;\n" } split ' ', $ENV{TEST_NGINX_LOAD_MODULES} }

# A new folder that is gone at the end.
sub new_folder {
    my $name = shift;
    my $folder = IpconfigTest::Parts::folder() . "/$name";
    make_path($folder);
    return $folder;
}

# --- the error log

# How many of its lines match.
sub logged {
    my $pattern = shift;
    return scalar grep { $_ =~ $pattern }
        split /\n/, slurp(IpconfigTest::Parts::servroot() . '/logs/error.log');
}

# Waits until one does.
sub in_log {
    my $pattern = shift;
    await("$pattern is logged", sub { logged($pattern) });
}

# --- the compiler

# What LuaJIT did not compile of what is ours, by the lines of jit.v:
#
#   [TRACE --- (10/8) balancer.lua:233 -- NYI: bytecode FNEW at balancer.lua:217]
#   [TRACE  19 (10/8) balancer.lua:233 stitch ...]
#
# The second is a call that stays in the interpreter. Which traces there are is
# chance: it goes by addresses and by the timers that come in between. One that is
# given up for where it happened to begin, or to lead, is tried anew. After four
# times that is no chance, and after them no more is tried.
my $TRIES = 4;

sub given_up {
    my ($is_ours, @traces) = @_;
    my %times;
    return grep {
        $is_ours->($_) && (/ stitch / || /TRACE ---/
            && (/ -- NYI: (?!return to lower frame)/ || ++$times{$_} == $TRIES));
    } @traces;
}

# --- statistics

# Chi-square's quantiles at 1 - 1e-6, by degrees of freedom: a right
# distribution is taken for a wrong one once in a million runs.
my @CHI_SQUARE_LIMIT = (0, 23.928, 27.631, 30.665, 33.377);

# Whether the counts are what the weights make likely; those of weight 0 must
# not occur at all. "fits", or in words why not.
sub fit {
    my ($count, $weight) = @_;

    my @strangers = grep { !$weight->{$_} } sort keys %$count;
    return 'unexpected: ' . counts($count) if @strangers;

    my @ids = grep { $weight->{$_} } sort keys %$weight;
    my ($n, $total) = (sum0(values %$count), sum0(values %$weight));
    my $chi_square = sum0(map {
        my $expected = $n * $weight->{$_} / $total;
        (($count->{$_} // 0) - $expected)**2 / $expected;
    } @ids);
    note(sprintf 'chi-square %.2f, limit %.2f: %s', $chi_square,
         $CHI_SQUARE_LIMIT[@ids - 1], counts($count));
    return 'fits' if $chi_square < $CHI_SQUARE_LIMIT[@ids - 1];
    return sprintf 'chi-square %.1f: %s', $chi_square, counts($count);
}

1;
