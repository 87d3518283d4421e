use lib 't/lib';
use IpconfigTest 'no_plan';

our $file;       # the block's
our $mounted;

# A full disk's.
my $owner = $$;
END { system('umount', IpconfigTest::Parts::folder() . '/full') if $mounted && $$ == $owner }

# The gateway keeps what etcd holds in a file of the block's own.
my $snapshots = 0;
sub ipconfig_with_snapshot {
    my ($instances, $folder) = @_;
    $folder //= IpconfigTest::Parts::folder() . '/snapshot-' . ++$snapshots;
    mkdir $folder;
    return <<"_EOC_";
{ "fallback": { "after": "1s" }, "snapshot": { "path": "$folder/etcd" },
  "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [$instances] } } }
_EOC_
}

package IpconfigTest::Script;

use MIME::Base64 qw(encode_base64);

# Takes all keys away at once.
sub wipe_etcd {
    my $prefix = IpconfigTest::Parts::prefix();
    IpconfigTest::Parts::etcd_call('/v3/kv/deleterange', {
        key => encode_base64("$prefix/", ''), range_end => encode_base64("${prefix}0", ''),
    });
}

# Kills every process of the gateway at once, as a machine that goes down does.
sub kill_gateway {
    my $master = master_pid();
    my @pids = ($master, split ' ', slurp("/proc/$master/task/$master/children"));
    kill KILL => @pids;
    await('the gateway is gone', sub { !grep { -e "/proc/$_" && slurp("/proc/$_/stat") !~ /\) Z / } @pids });
}

# Starts it anew, with an empty shared dict; returns when that was.
sub start_gateway {
    my $root = IpconfigTest::Parts::servroot();
    my $begin = time;
    system(IpconfigTest::Parts::nginx_binary(), '-p', "$root/", '-c', "$root/conf/nginx.conf") == 0
        or die "nginx did not start\n";
    return $begin;
}

# The ids in a file.
sub ids_in {
    my $body = slurp(shift) =~ s/\A.*?\n//r;
    my $services = decode({ content => $body })->{services} // {};
    return join ' ', map { $_->[0] =~ s{.*/}{}r } map { @{ $_->{instances} } } values %$services;
}

# Waits until the file has these.
sub kept {
    my $ids = shift;
    ($::file) = ipconfig() =~ /"path": "(.*?)"/;
    return await("the file has $ids", sub { -e $::file && ids_in($::file) eq $ids }, 20);
}

sub told { my $health = api('healthz'); return $health->{plugin}{snapshot} // {} }

sub figure {
    my $name = shift;
    my ($value) = get_anew('/ipconfig/metrics') =~ /^ipconfig_\Q$name\E (\S+)$/m;
    return defined $value ? 0 + $value : 'none';
}

# Breaks a file in its middle.
sub tear {
    my $path = shift;
    my $bytes = slurp($path);
    substr($bytes, length($bytes) / 2, 1) ^= "\1";
    spew($path, $bytes);
}

package main;

run_tests();

__DATA__

=== TEST 1: what etcd holds is kept in a file of the workers' user, and each change of it
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a b
--- script
kept('a b');
say slurp($::file) =~ /\Aipconfig-snapshot 1 [0-9a-f]{8} [0-9a-f]{16}\n\{"as_of_ms":\d+,/ ? 'a header' : slurp($::file);
say sprintf '%o', (stat $::file)[2] & 07777;
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
my $took = kept('a b c');
note(sprintf 'after %.1f s', $took);
say 'and before: ', ids_in("$::file.1");
await('it is told', sub { (told()->{writes}{written} // 0) == 2 });
my $told = told();
say "$told->{loaded}, $told->{misses}[0]{reason}, ", $told->{age_ms} < 10_000 ? 'new' : $told->{age_ms};
say 'written: ', figure('snapshot_writes_total{result="written"}');
say 'age: ', figure('snapshot_age_seconds') < 10 ? 'new' : figure('snapshot_age_seconds');
my ($folder) = $::file =~ m{(.*)/};
say join ' ', sort map { s{.*/}{}r } glob "$folder/*";
--- response_body
a header
640
and before: a b
none, missing, new
written: 2
age: new
etcd etcd.1
--- error_log
there is no snapshot
--- no_error_log
[error]
[warn]



=== TEST 2: a start without etcd serves what etcd held, from the first request on, and says so
# `chat` has no instance in the file. b drains by the operator's wish. etcd hangs: it
# takes connections and answers nothing, so that whoever waits for it waits for 5 s.
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a b c
put control/chat {"drain":["b"]}
--- script
kept('a b c');
kill_gateway();
stop(IpconfigTest::Parts::etcd_pid());
push @to_end, \&kill_etcd;
my $begin = start_gateway();
my $first = get_anew('/');
my $took = time - $begin;
note(sprintf 'the first answer %.0f ms after the start: %s', 1000 * $took, $first);
# Workers wait for the disk for 0.8 s; one that takes longer is no fault.
say $first =~ /^[ac]$/ || $first eq '503' && $took > 0.8 ? 'at once' : $first;
await('it serves', sub { get_anew('/') =~ /^[ac]$/ });
$took = time - $begin;
say $took < 5 ? 'before any timeout' : "after $took s";
await('both workers serve', sub { names(served_anew(20)) eq 'a c' });
say names(served_anew(300));
my $health = api('healthz');
say "$health->{mode} ", $health->{ready} ? 'ready' : 'not ready', " $health->{plugin}{snapshot}{loaded}";
my $view = service('chat');
my $age = time - (stat $::file)[9];
say "$view->{mode}, ", abs($view->{age_ms} / 1000 - $age) < 2 ? "of the file's age" : $view->{age_ms};
say 'mode: ', figure('mode{mode="snapshot"}'), ' loaded: ', figure('snapshot_loaded{generation="newest"}');
await('the mode is logged', sub { logged(qr/mode snapshot: etcd was not read since the start/) }, 4);
--- response_body
at once
before any timeout
a c
snapshot ready newest
snapshot, of the file's age
mode: 1 loaded: 1
--- error_log eval
qr/etcd as of \S+ ago serves, from the snapshot \S+: instances: 3, services: 1/
--- no_error_log
[crit]
[alert]



=== TEST 3: what etcd lost and got while the gateway was down is in force when etcd comes
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a b c
--- script
kept('a b c');
kill_gateway();
my $before = logged(qr/mode live/);
del('instances/chat/b');
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
kill_etcd();
start_gateway();
await('it serves', sub { names(served_anew(30)) eq 'a b c' });
say mode('chat');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
start_etcd();
my $took = await('live', sub { mode('chat') eq 'live' }, 12);
note(sprintf 'live %.1f s after etcd', $took);
say ranking('chat') =~ /b/ ? 'b is still there' : 'b is gone';
say names(served_anew(60));
say 'of all requests: ', names($end->());
kept('a c d');
say 'and before: ', ids_in("$::file.1");
await('it is logged', sub { logged(qr/mode live/) > $before });
--- response_body
snapshot
b is gone
a c d
of all requests: a b c d
and before: a b c
--- error_log
mode live: etcd is watched
--- no_error_log
[crit]
[alert]



=== TEST 4: a file that is torn is a miss with its reason, and the one before it serves
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a
--- script
kept('a');
put('instances/chat/b', '{"addr":"$BACKEND_B"}');
kept('a b');
kill_gateway();
kill_etcd();
tear($::file);
start_gateway();
await('it serves', sub { names(served_anew(30)) eq 'a' });
say mode('chat');
my $told = told();
say "$told->{loaded}, $told->{misses}[0]{reason}";
start_etcd();
await('live', sub { mode('chat') eq 'live' }, 12);
await('the torn one is put aside', sub { -e "$::file.bad" });
kept('a b');
say 'before that: ', ids_in("$::file.1");
await('it is logged', sub { logged(qr/was no snapshot and is \S+\.bad now: its checksum is/) });
--- response_body
snapshot
older, checksum
before that: a
--- error_log eval
qr/\[warn\] .* the snapshot \S+ is not used: its checksum is [0-9a-f]{8} where its header says/
--- no_error_log
[crit]
[alert]



=== TEST 5: with no sound file the configured instances serve, and each file's reason is told
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('{ "id": "e", "addr": "$BACKEND_E" }')
--- etcd
register chat a
--- script
kept('a');
put('instances/chat/b', '{"addr":"$BACKEND_B"}');
kept('a b');
kill_gateway();
kill_etcd();
spew($::file, substr slurp($::file), 0, 60);
spew("$::file.1", "listen 80;\n");
start_gateway();
say names(served_anew(30)), ' ', mode('chat');
await('it is told', sub { told()->{loaded} });
my $told = told();
say "$told->{loaded}, ", join ' ', map { $_->{reason} } @{ $told->{misses} };
my @missed = get_anew('/ipconfig/metrics') =~ /^ipconfig_snapshot_missed\{.*reason="(\w+)"\} 1(?:\.0)?$/mg;
say 'missed: ', join ' ', sort @missed;
await('the mode is logged', sub { logged(qr/mode static: etcd was never read/) });
say logged(qr/is not used: it has 60 bytes where its header says/), ' ',
    logged(qr/is not used: it does not begin with ipconfig-snapshot/);
--- response_body
e static
none, truncated foreign
missed: foreign truncated
1 1
--- error_log
mode static: etcd was never read
--- no_error_log
[crit]
[alert]



=== TEST 6: a reload without etcd goes on with the snapshot, also when the file is gone
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('{ "id": "e", "addr": "$BACKEND_E" }')
--- etcd
register chat a
--- script
kept('a');
kill_gateway();
kill_etcd();
start_gateway();
await('it serves', sub { mode('chat') eq 'snapshot' });
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
reload();
say ranking('chat'), ' ', mode('chat');
unlink $::file, "$::file.1";
reload();
sleep 1;
say join(' ', sort split ' ', ranking('chat')), ' ', mode('chat');
say names($end->());
await('the mode is logged', sub { logged(qr/mode snapshot/) });
--- response_body
a e snapshot
a e snapshot
a e
--- error_log
mode snapshot
--- no_error_log
[crit]
[alert]



=== TEST 7: on a reload without etcd the last ranking is newer than any file, and stays
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a b
--- script
kept('a b');
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
kept('a b c');
rename "$::file.1", $::file or die;
kill_etcd();
await('stale', sub { mode('chat') eq 'stale' });
reload();
sleep 1;
say join(' ', sort split ' ', ranking('chat')), ' ', mode('chat');
say names(served_anew(60));
--- response_body
a b c stale
a b c
--- error_log
mode stale
--- no_error_log
[crit]
[alert]
serves, from the snapshot



=== TEST 8: what a wiped etcd lost stays in the file, so that a start without etcd has it
# Instances, and what the operator wished for them.
--- workers: 2
--- ipconfig eval: ::ipconfig_with_snapshot('')
--- etcd
register chat a b c
put control/chat {"disable":["b"]}
--- script
kept('a b c');
wipe_etcd();
await('it is doubted', sub { logged(qr/chat has lost most of its instances/) });
say ids_in($::file), slurp($::file) =~ /"doubted":\{"chat":0\}/ ? ', doubted' : '';
kill_gateway();
kill_etcd();
start_gateway();
await('it serves', sub { names(served_anew(20)) eq 'a c' });
say names(served_anew(60));
--- response_body
a b c, doubted
a c
--- error_log
the snapshot
--- no_error_log
[crit]
[alert]



=== TEST 9: a full disk leaves the file as it was, is counted and told, and is tried again
--- workers: 2
--- ipconfig eval
my $folder = IpconfigTest::Parts::folder() . '/full';
mkdir $folder;
$::mounted = system("mount -t tmpfs -o size=16k none $folder 2>/dev/null") == 0;
::ipconfig_with_snapshot('', $folder)
--- etcd
register chat a
--- script
kept('a');
my ($folder) = $::file =~ m{(.*)/};
# Whoever may not mount has no full disk: a folder that does not let the file in.
my $fill = sub {
    open my $filler, '>', "$folder/filler" or die;
    1 while syswrite $filler, 'x' x 4096;
};
$::mounted ? $fill->() : (chmod 0555, $folder);
put('instances/chat/b', '{"addr":"$BACKEND_B"}');
my $result = $::mounted || $> == 0 ? 'no_space' : 'denied';
if ($::mounted || $> != 0) {
    await('it is told', sub { told()->{error} }, 20);
    say 'told';
    say 'counted: ', figure("snapshot_writes_total{result=\"$result\"}") >= 1 ? 'yes' : 'no';
    say ids_in($::file), ', ', names(served_anew(20));
    await('it is logged', sub { logged(qr/stays as it was/) });
    unlink "$folder/filler";
    chmod 0755, $folder;
    kept('a b');
    await('it is over', sub { !told()->{error} });
} else {
    say "told\ncounted: yes\na, a b";
}
say ids_in($::file);
--- response_body
told
counted: yes
a, a b
a b
--- error_log eval
$::mounted ? qr/stays as it was, and is tried again: failed to write a file in \S+: No space left on device/ : 'snapshot'
--- no_error_log
[crit]
[alert]



=== TEST 10: without a folder for the file the gateway serves as without the file, and says so
--- workers: 2
--- ipconfig
{ "snapshot": { "path": "/nonexistent/ipconfig/etcd" },
  "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [] } } }
--- etcd
register chat a
--- script
await('it is told', sub { told()->{error} });
say told()->{error};
say figure('snapshot_writes_total{result="no_folder"}'), ' ', figure('snapshot_age_seconds');
say names(served_anew(20));
await('it is logged', sub { logged(qr/stays as it was/) });
--- response_body
failed to write a file in /nonexistent/ipconfig: No such file or directory (os error 2)
1 none
a
--- error_log
the snapshot /nonexistent/ipconfig/etcd stays as it was, and is tried again
--- no_error_log
[error]
[crit]
