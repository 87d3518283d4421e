package IpconfigTest::Processes;

# Words for scripts about processes that are killed, stopped and replaced, and faults
# that are put in the gateway's way from outside:
#
#   --- faults          nginx is loaded with faults.c; fault() says what goes wrong

use strict;
use warnings;

use IpconfigTest::Parts;
use IpconfigTest::Script;

package IpconfigTest::Script;

use Errno;
use Time::HiRes qw(sleep time);

# --- traffic that can tell whose connection was lost

# Reads one answer: its status, the worker's pid (the header Worker) and its body; or
# nothing if the connection ends before that.
sub read_answer {
    my ($connection, $buffer) = (shift, '');
    my $more = sub {
        my $read;
        # The signal that ends the traffic interrupts, and is no answer.
        do { $read = sysread $connection, $buffer, 65536, length $buffer } until defined $read || !$!{EINTR};
        return $read;
    };
    $more->() or return until $buffer =~ /\r\n\r\n/;
    my ($head, $body) = split /\r\n\r\n/, $buffer, 2;
    my ($status) = $head =~ m{^HTTP/1\.1 (\d+)};
    my ($length) = $head =~ /^content-length: (\d+)/mi;
    my ($pid) = $head =~ /^worker: (\d+)/mi;
    $buffer = $body;
    $more->() or return while length $buffer < ($length // 0);
    return ($status, $pid, $buffer =~ s/\s+\z//r);
}

# Requests, one after another, so many on each connection (10), until the function that
# this returns is called. It returns what was answered, by word; "lost" are requests whose
# connection ended without an answer, and "lost PID" those on a connection that this
# worker had answered on.
sub traffic {
    my ($clients, $a_connection) = @_;
    my @ends = map { meanwhile(sub {
        my $count = shift;
        my $connection = IO::Socket::INET->new(
            PeerAddr => '127.0.0.1', PeerPort => IpconfigTest::Parts::server_port(),
            Timeout => $IpconfigTest::Parts::PATIENCE,
        );
        return $count->{refused}++ if !$connection;
        $connection->autoflush(1);
        local $SIG{PIPE} = 'IGNORE';
        my $pid = '';
        for my $left (reverse 0 .. ($a_connection // 10) - 1) {
            my $end = $left ? '' : "Connection: close\r\n";
            print {$connection} "GET / HTTP/1.1\r\nHost: test\r\n$end\r\n";
            my ($status, $worker, $body) = read_answer($connection);
            if (!$status) {
                $count->{"lost $pid" =~ s/ \z//r}++;
                last;
            }
            $pid = $worker // '';
            $count->{ $status == 200 ? $body : $status }++;
        }
    }) } 1 .. $clients;
    return sub {
        # So long that each client has had some answers of how it is now, however busy
        # this machine is.
        get_anew('/') for 1 .. 200;
        my %count;
        for my $count (map { $_->() } @ends) {
            $count{$_} += $count->{$_} for keys %$count;
        }
        return \%count;
    };
}

# What became of the traffic while these were killed (pid => 1): who answered, and
# what no kill is the reason of. A client has one request under way, so that a kill
# can cost each client one.
sub say_served {
    my ($count, $clients, %killed) = @_;
    my ($lost, @strange) = (0);
    for my $word (sort keys %$count) {
        my ($of) = $word =~ /^lost ?(\d*)$/ or next;
        $lost += $count->{$word};
        push @strange, $word if $of ne '' && !$killed{$of};
    }
    my %answered = map { /^lost/ ? () : ($_ => $count->{$_}) } keys %$count;
    note(sprintf '%d killed; %s; lost: %d', scalar keys %killed, counts(\%answered), $lost);
    say 'answered: ', names(\%answered);
    say sum0(values %answered) > 100 ? 'under load' : 'hardly any load: ' . counts($count);
    say @strange ? "lost on others' connections: @strange"
      : $lost > $clients * keys %killed ? "$lost lost by " . keys(%killed) . ' kills'
      : 'none is lost but on connections of the killed';
}

# --- processes of any master

sub children { my $pid = shift; split ' ', slurp("/proc/$pid/task/$pid/children") }

# The workers of this master that take requests, and the one with the plugin's thread.
sub workers_of {
    return grep { slurp("/proc/$_/cmdline") =~ /^nginx: worker process(?! is)/ } children(shift);
}

# Those that let their last requests finish, too.
sub any_workers_of {
    return grep { slurp("/proc/$_/cmdline") =~ /^nginx: worker process/ } children(shift);
}

sub thread_of {
    for my $pid (@_) {
        return $pid if grep { slurp($_) eq "ipconfig\n" } glob "/proc/$pid/task/*/comm";
    }
    return;
}

sub is_gone { my $stat = slurp("/proc/$_[0]/stat"); $stat eq '' || $stat =~ /\) Z / }

sub await_gone { my @pids = @_; await("@pids are gone", sub { !grep { !is_gone($_) } @pids }) }

# Kills worker 0 and waits for the thread of the next one. The one that was killed.
sub kill_writer {
    my $pid;
    await('there is a writer', sub { $pid = writer_pid() });
    kill KILL => $pid;
    await('there is another one', sub { my $next = writer_pid(); $next && $next != $pid });
    return $pid;
}

# Has a new program take over as an upgrade does: another master, with workers of its
# own. Returns the pids of both masters, the old one first.
sub upgrade {
    my $old = master_pid();
    kill USR2 => $old;
    await('there is another master', sub { my $new = master_pid(); $new && $new != $old });
    my $new = master_pid();
    await('its workers serve', sub {
        workers_of($new) == workers_of($old) && thread_of(workers_of($new))
            && by_workers_of($new);
    });
    return ($old, $new);
}

# Whether some worker of this master has the whole ranking of the other's.
sub by_workers_of {
    my $master = shift;
    my $answer = fetch_anew('/ipconfig/v1/services/chat');
    my %is_of = map { $_ => 1 } workers_of($master);
    my $view = decode($answer);
    return $is_of{ $answer->{headers}{worker} // 0 } && $view->{mode} eq 'live';
}

# Starts nginx anew by the block's nginx.conf.
sub start_gateway {
    my $root = IpconfigTest::Parts::servroot();
    my $ended = system(IpconfigTest::Parts::nginx_binary(), '-p', "$root/",
                       '-c', "$root/conf/nginx.conf");
    die "nginx did not start\n" if $ended != 0;
}

# A figure of the metrics page, of any worker.
sub metric {
    my $name = shift;
    my ($value) = get_anew('/ipconfig/metrics') =~ /^ipconfig_\Q$name\E (\S+)$/m;
    return defined $value ? 0 + $value : 'none';
}

# --- faults

sub fault { my ($name, $text) = @_; spew(IpconfigTest::Processes::faults() . "/$name", $text // '') }
sub mend { my $name = shift; unlink IpconfigTest::Processes::faults() . "/$name"; return }
sub is_struck { my $name = shift; !-e IpconfigTest::Processes::faults() . "/$name" }

package IpconfigTest::Processes;

my $owner = $$;
my $library;

# The folder in which they are asked for.
sub faults { return IpconfigTest::Parts::folder() . '/faults' }

# The library that brings them; compiled once.
sub library {
    return $library if $library;
    mkdir faults();
    my $built = IpconfigTest::Parts::folder() . '/faults.so';
    system('cc', '-shared', '-fPIC', '-O1', '-DFAULTS="' . faults() . '"', '-o', $built,
           "$REPO/t/lib/IpconfigTest/faults.c", '-ldl') == 0
        or die "failed to compile faults.c";
    return $library = $built;
}

# Whether a block's nginx is to have them. Where the Lua module is part of nginx's own
# program its functions are not to be had in between.
sub prepare {
    my $has = shift;
    delete $ENV{TEST_NGINX_LD_PRELOAD};
    return if !$has;
    $ENV{TEST_NGINX_LD_PRELOAD} = library();
    unlink glob faults() . '/*';
}

1;
