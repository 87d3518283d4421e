use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# Reports by which c is much the slowest of three that are as busy, until the
# function that this returns is called.
sub reports_go_on {
    my $seq = 0;
    return meanwhile(sub {
        $seq++;
        put_status('e', 'chat', map {
            ($_ => { boot_id => 1, seq => $seq, requests => 100 * $seq,
                     latency_sum_ns => 100 * $seq * 1_000_000 * ($_ eq 'c' ? 100 : 10),
                     cpu_used_cores => 0.5, cpu_limit_cores => 1 })
        } qw(a b c));
        sleep 0.2;
    });
}

# Waits until the weights have taken that in; what they are then.
sub await_learned {
    await('c weighs little', sub { (weights('chat')->{c} // 1) < 0.1 });
    return weights('chat');
}

# The service as it is seen again and again while some work is done, and when.
sub views_meanwhile {
    my $work = shift;
    my $file = new_folder('views') . '/views';
    unlink $file;    # an earlier block's
    my $end = meanwhile(sub {
        my $answer = fetch_anew('/ipconfig/v1/services/chat');
        open my $views, '>>', $file or die "failed to open $file: $!";
        print {$views} time, " $answer->{content}\n" if $answer->{status} == 200;
        close $views;
        sleep 0.03;
    });
    $work->();
    $end->();
    return map {
        my ($at, $content) = split / /, $_, 2;
        my $view = decode({ content => $content });
        $view ? { %$view, at => $at } : ();
    } split /\n/, slurp($file);
}

# What became of the weights. In a second, and with the ranking before that, none
# changes by a factor of more than four.
sub say_moves {
    my ($before, @views) = @_;
    my ($most, $leap, $last, %basis) = (0, 0);
    for my $view (@views) {
        my $weight = $view->{weight} = { map { $_->{id} => $_->{weight} } @{ $view->{instances} } };
        $most = max($most, $weight->{c});
        for my $id ($last ? qw(a b c) : ()) {
            my $moved = abs log($weight->{$id} / $last->{weight}{$id});
            $leap = max($leap, $moved / log(4) / (1 + $view->{at} - $last->{at}));
        }
        $basis{ $view->{basis} }++;
        $last = $view;
    }
    note(sprintf '%d views, c: %.3f, then %.3f at most, now %.3f; %.2f of the longest step; %s',
         scalar @views, $before->{c}, $most, $last->{weight}{c}, $leap, counts(\%basis));
    say $most < 1.2 * $before->{c} ? 'c never weighs more' : "c: $before->{c}, then $most";
    say $leap <= 1 ? 'no weight moves in leaps' : "a weight moves $leap times too far";
    say $basis{priors} ? counts(\%basis) : 'by reports only';
}

package main;

run_tests();

__DATA__

=== TEST 1: no request fails while nginx reloads
--- workers: 2
--- script
my @ends = map { meanwhile(sub { $_[0]{ get_anew('/') }++ }) } 1 .. 2;
for (1 .. 5) {
    reload();
    sleep 0.2;
}
my %count;
for my $count (map { $_->() } @ends) {
    $count{$_} += $count->{$_} for keys %$count;
}
note('meanwhile ', counts(\%count));
say names(\%count);
say sum0(values %count) > 30 ? 'under load' : counts(\%count);
--- response_body
a b c
under load



=== TEST 2: a request that is open when nginx reloads is answered
--- workers: 2
--- script
my $open = begin('/gate');
await('it is open', sub { in_flight('chat') == 1 });
reload();
release();
say status_of($open) == 200 ? 'answered' : 'lost';
await('none is in flight', sub { in_flight('chat') == 0 });
--- response_body
answered



=== TEST 3: a reload takes in the new configuration
--- workers: 2
--- script
write_ipconfig(ipconfig() =~ s/.\s*\{ "id": "c".*?\}//r);
reload();
ready('chat', 'a b');
say names(served_anew(60));
--- response_body
a b



=== TEST 4: a reload with a broken configuration leaves the old one serving
--- workers: 2
--- script
my @before = sort(worker_pids());
my $good = ipconfig();
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
write_ipconfig($good =~ s/"services"/"servises"/r);
kill HUP => master_pid();
await('it is refused', sub { logged(qr/servises/) });
sleep 0.2;
say "@before" eq join(' ', sort(worker_pids())) ? 'the same workers' : 'other workers';
say names($end->());
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say names(served_anew(80));

write_ipconfig($good =~ s/"id": "c"/"id": "e"/r);
reload();
ready('chat', 'a b e d');
say 'mended';
--- response_body
the same workers
a b c
a b c d
mended
--- error_log
servises: unknown field `servises`



=== TEST 5: a reload never hands out an instance that etcd no longer has
--- workers: 2
--- etcd
put instances/chat/d {"addr":"$BACKEND_D"}
--- script
ready('chat', 'a b c d');
del('instances/chat/d');
ready('chat', 'a b c');
my $end = meanwhile(sub { $_[0]{ get_anew('/') }++ });
reload() for 1 .. 5;
say names($end->());
say names(served_anew(60));
--- response_body
a b c
a b c



=== TEST 6: what left etcd during a reload is not served after it
--- workers: 2
--- etcd
put instances/chat/d {"addr":"$BACKEND_D"}
--- script
for (1 .. 5) {
    put('instances/chat/d', '{"addr":"$BACKEND_D"}');
    ready('chat', 'a b c d');
    kill HUP => master_pid();
    del('instances/chat/d');
    ready('chat', 'a b c');
}
say names(served_anew(60));
--- response_body
a b c



=== TEST 7: a reload never loses an instance that etcd has
--- workers: 2
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- etcd
put instances/chat/b {"addr":"$BACKEND_B"}
--- script
ready('chat', 'a b');
my $end = meanwhile(sub {
    my $view = decode(fetch_anew('/ipconfig/v1/services/chat')) or return;
    $_[0]{ join ' ', map { $_->{id} } @{ $view->{instances} } }++;
});
reload() for 1 .. 5;
say names($end->());
--- response_body
a b



=== TEST 8: versions go on over a reload
--- workers: 2
--- script
my $before = service('chat')->{version};
reload();
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say service('chat')->{version} > $before ? 'newer' : 'older';
--- response_body
newer



=== TEST 9: after kill -9 of worker 0 the next one publishes
--- workers: 2
--- script
my $killed = writer_pid();
kill KILL => $killed;
my $took = await('another writer', sub { my $pid = writer_pid(); $pid && $pid != $killed });
note(sprintf 'another writer after %.2f s', $took);
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say names(served_anew(80));
say mode('chat');
--- response_body
a b c d
live
--- error_log
exited on signal 9
--- no_error_log
[crit]



=== TEST 10: what a killed worker had in flight is given back
--- workers: 2
--- script
hold(1);
await('one is in flight', sub { in_flight('chat') == 1 });
kill KILL => $_ for worker_pids();
my $took = await('none is in flight', sub { in_flight('chat') == 0 });
note(sprintf 'given back after %.2f s', $took);
say 'none in flight';
--- response_body
none in flight
--- error_log
exited on signal 9



=== TEST 11: a reload takes no weight back that reports have moved
--- workers: 2
--- script
my $end = reports_go_on();
my $before = await_learned();
my @views = views_meanwhile(sub { reload(); sleep 0.2; reload(); sleep 3 });
$end->();
say_moves($before, @views);
--- response_body
c never weighs more
no weight moves in leaps
by reports only



=== TEST 12: a reload takes no weight back while etcd is down, nor when it is found again
--- workers: 2
--- script
my $end = reports_go_on();
my $before = await_learned();
$end->();
kill_etcd();
my @views = views_meanwhile(sub {
    reload();
    sleep 1;
    start_etcd();
    await('etcd is watched', sub { mode('chat') eq 'live' && logged(qr/mode live/) > 1 });
    sleep 2;
});
say_moves($before, @views);
--- response_body
c never weighs more
no weight moves in leaps
by reports only
