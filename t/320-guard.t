use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

use MIME::Base64 qw(encode_base64);

sub backend { IpconfigTest::Parts::expand('$BACKEND_' . uc shift) }

# Registers backends under one lease that a process keeps alive, as an agent does for a
# host. Returns its pid.
sub start_writer {
    my ($ttl, @ids) = @_;
    my $lease = IpconfigTest::Parts::etcd_call('/v3/lease/grant', { TTL => $ttl, ID => 0 })->{ID};
    my $prefix = IpconfigTest::Parts::prefix();
    for my $id (@ids) {
        IpconfigTest::Parts::etcd_call('/v3/kv/put', {
            key   => encode_base64("$prefix/instances/chat/$id", ''),
            value => encode_base64('{"addr":"' . backend($id) . '"}', ''),
            lease => $lease,
        });
    }
    my $parent = $$;
    defined(my $pid = fork) or die "failed to fork: $!";
    if ($pid == 0) {
        $Test::Nginx::Util::InSubprocess = 1;
        while (getppid == $parent) {
            eval { IpconfigTest::Parts::etcd_call('/v3/lease/keepalive', { ID => $lease }) };
            sleep 0.3;
        }
        POSIX::_exit(0);
    }
    return sub { kill KILL => $pid; waitpid $pid, 0; undef $pid };
}

# Takes all keys away at once.
sub wipe_etcd {
    my $prefix = IpconfigTest::Parts::prefix();
    IpconfigTest::Parts::etcd_call('/v3/kv/deleterange', {
        key => encode_base64("$prefix/", ''), range_end => encode_base64("${prefix}0", ''),
    });
}

sub ids { join ' ', sort split ' ', ranking('chat') }

sub figure {
    my $name = shift;
    my ($value) = get_anew('/ipconfig/metrics') =~ /^ipconfig_\Q$name\E (\S+)$/m;
    return defined $value ? 0 + $value : 'none';
}

sub are_doubtful {
    my $states = join ' ', map { "$_:doubtful" } @_;
    return await($states, sub { ranking_states('chat') =~ /\b\Q$states\E\b/ });
}

package main;

our $Chat = '{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "guard": GUARD } } }';

run_tests();

__DATA__

=== TEST 1: who dies with its writer's lease alone stays, and who dies itself leaves at once
# An agent that registers for its host is killed; the processes go on, and later die.
--- workers: 2
--- no_wait
--- ipconfig eval: $::Chat =~ s/GUARD/{}/r
--- script
my $kill_writer = start_writer(2, qw(a b c d));
ready('chat', 'a b c d');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
$kill_writer->();
are_doubtful(qw(a b c d));
sleep 3;
say ranking_states('chat');
await('counted', sub { figure('doubtful_instances{service="chat"}') == 4 });
say 'trips: ', figure('guard_trips_total');
kill_backend($_) for qw(a b);
my $took = await('they leave', sub { ids() eq 'c d' });
note(sprintf 'after %.1f s', $took);
say $took < 4 ? 'at once' : "after $took s";
my $count = $end->();
say names($count);
my $found = sub { figure('doubts_total{outcome="dead"}') + figure('doubts_total{outcome="failed"}') };
await('they were found out', sub { $found->() == 2 });
kill_backend($_) for qw(c d);
await('all are gone', sub { ids() eq '' });
await('counted', sub { figure('doubtful_instances{service="chat"}') eq 'none' });
--- response_body
a:doubtful b:doubtful c:doubtful d:doubtful
trips: 1
at once
a b c d
--- error_log eval
[qr/\[warn\] .* chat: etcd lost 4 of 4 instances at once; they are kept, doubtful/,
 qr/chat: no instance is doubtful any more \(dead: /]
--- no_error_log
[crit]
[alert]



=== TEST 2: who was taken out and goes on answering leaves after its time, and not before a second list
--- workers: 2
--- ipconfig eval: $::Chat =~ s/GUARD/{ "hold": "6s" }/r
--- etcd
register chat a b c d
--- script
ready('chat', 'a b c d');
my $before = figure('audits_total');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
my $begin = time;
del("instances/chat/$_") for qw(a b c);
are_doubtful(qw(c));
await('a second list', sub { figure('audits_total') > $before });
my $listed = time - $begin;
note(sprintf 'listed after %.1f s', $listed);
say $listed < 5 ? 'listed soon' : "listed after $listed s";
say ranking('chat') =~ /c/ ? 'c stays' : 'c is gone';
await('it leaves', sub { ids() eq 'd' }, 30);
my $took = time - $begin;
note(sprintf 'gone after %.1f s', $took);
say $took > 5 ? 'after its time' : "after $took s";
my $count = $end->();
say names($count), ', ', names(served_anew(20));
await('counted', sub { figure('doubts_total{outcome="deregistered"}') > 0 });
--- response_body
listed soon
c stays
after its time
a b c d, d
--- error_log
no instance is doubtful any more (deregistered:



=== TEST 3: an etcd that is wiped takes nobody away, and has them again when it is filled again
--- workers: 2
--- ipconfig eval: $::Chat =~ s/GUARD/{}/r
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
wipe_etcd();
are_doubtful(qw(a b c));
sleep 2;
my $explained = fetch('/ipconfig/v1/services/chat/explain')->{content};
say scalar(() = $explained =~ /"state":"doubtful"/g), ' explained';
put("instances/chat/$_", '{"addr":"' . backend($_) . '"}') for qw(a b c);
await('they are back', sub { ranking_states('chat') eq 'a:unreported b:unreported c:unreported' });
await('counted', sub { figure('doubts_total{outcome="returned"}') == 3 });
say names($end->());
--- response_body
3 explained
a b c
--- error_log
no instance is doubtful any more (returned: 3)



=== TEST 4: a reload, and a worker 0 that is killed, keep who is doubtful
--- workers: 2
--- ipconfig eval: $::Chat =~ s/GUARD/{}/r
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
wipe_etcd();
are_doubtful(qw(a b c));
reload();
sleep 1;
say ranking_states('chat');
kill KILL => writer_pid();
await('it is told by another thread', sub { logged(qr/instances that are still doubtful: 3/) >= 2 });
sleep 1;
say ranking_states('chat');
my $count = $end->();
say join ' ', grep { /^[a-c]$/ } sort keys %$count;
kill_backend('a');
await('a leaves', sub { ids() eq 'b c' });
--- response_body
a:doubtful b:doubtful c:doubtful
a:doubtful b:doubtful c:doubtful
a b c
--- error_log
instances that are still doubtful: 3



=== TEST 5: who is doubtful and fails its requests leaves
--- workers: 2
--- ipconfig eval
$::Chat =~ s/GUARD/{}, "health": { "consecutive_failures": 3, "max_ejected": 0 }/r
--- etcd
register chat a b c
--- script
ready('chat', 'a b c');
wipe_etcd();
are_doubtful(qw(a b c));
await('a is gone', sub { served_anew(9, '/?fail=a'); ids() eq 'b c' });
say ids();
await('counted', sub { figure('doubts_total{outcome="failed"}') == 1 });
--- response_body
b c



=== TEST 6: half of the instances leave at once, and with the guard off all of them
--- workers: 2
--- ipconfig eval
'{ "services": { "chat": {}, "mail": { "guard": { "max_loss": 100 } } } }'
--- etcd
register chat a b c d
register mail a b
--- script
ready('chat', 'a b c d');
ready('mail', 'a b');
del("instances/chat/$_") for qw(a b);
ready('chat', 'c d');
del("instances/mail/$_") for qw(a b);
ready('mail', '');
say 'trips: ', figure('guard_trips_total');
--- response_body
trips: 0
