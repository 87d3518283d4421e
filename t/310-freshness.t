# How fresh what is served is: each step of the ladder down and up, in the API, on the
# metrics page and in one line of the log.

use lib 't/lib';
use IpconfigTest 'no_plan';

our $Reporting = <<'_EOC_';
put instances/chat/a {"addr":"$BACKEND_A","status":"grpc://127.0.0.1:9"}
put instances/chat/b {"addr":"$BACKEND_B","status":"grpc://127.0.0.1:9"}
put instances/chat/c {"addr":"$BACKEND_C","status":"grpc://127.0.0.1:9"}
_EOC_

our $Chat = '{ "fallback": { "after": "2s" }, "services": { "chat": {} } }';

package IpconfigTest::Script;

# From aging to the board it is a minute.
$IpconfigTest::Parts::PATIENCE = 120;

my $seq = 0;

# One report of each of these.
sub put_reports {
    ++$seq;
    put_status('e', 'chat', map {
        ($_ => { boot_id => 1, seq => $seq, requests => 100 * $seq,
                 latency_sum_ns => 1e9 * $seq })
    } @_);
}

# These report, several times within the three seconds for which a report is fresh,
# until the condition holds.
sub report {
    my ($what, $condition, @ids) = @_;
    await($what, sub {
        put_reports(@ids) if @ids;
        sleep 0.2;
        return $condition->();
    });
}

sub freshness { service(shift // 'chat')->{freshness} }

sub page { fetch_anew('/ipconfig/metrics')->{content} }

# A figure of the page, by its series; "none" if it is not there.
sub figure {
    my ($value) = page() =~ /^ipconfig_\Q$_[0]\E ([\d.e+]+)$/m;
    return defined $value ? 0 + $value : 'none';
}

# The step as the metrics page has it.
sub step_by_metrics {
    my $service = shift // 'chat';
    my %value = page() =~ /^ipconfig_freshness\{service="$service",step="(\w+)"\} (\d)/mg;
    return join ' ', (grep { $value{$_} } sort keys %value), 'of', scalar keys %value;
}

# How all that tells of it sees the service.
sub show {
    my $service = shift // 'chat';
    my $view = service($service);
    my ($listed) = grep { $_->{service} eq $service } @{ api('v1/services')->{services} };
    my $health = fetch_anew('/ipconfig/healthz');
    my ($of) = grep { $_->{service} eq $service } @{ decode($health)->{not_fresh} };
    my $reports = $view->{reports};
    say "$view->{freshness}, listed as $listed->{freshness}, metrics: ", step_by_metrics($service);
    say "reports: $reports->{fresh} of $reports->{expected}, metrics: ", join ' of ',
        map { figure("reports_$_\{service=\"$service\"}") } qw(fresh expected) if $reports;
    say "healthz: $health->{status}, ", decode($health)->{fresh} ? 'fresh' : 'not fresh',
        $of ? " as $of->{service} is $of->{mode} and $of->{freshness}" : '',
        ', asked for fresh: ', fetch_anew('/ipconfig/healthz?fresh')->{status};
}

# What the log says of it, but for ages.
sub lines {
    my @lines = map { /(\[\w+\]) .*\[ipconfig\] (freshness .*?)(?:, context.*)?$/ ? "$1 $2" : () }
        split /\n/, slurp(IpconfigTest::Parts::servroot() . '/logs/error.log');
    s/(?<=oldest report is )[\dms ]+(?= old)/N/ for @lines;
    return @lines;
}

package main;

run_tests();

__DATA__

=== TEST 1: a service goes down the ladder as its reports end and up as they come back, and each step is told once
--- ipconfig eval: $::Chat
--- etcd eval: $::Reporting
--- script
say freshness();
report('fresh', sub { freshness() eq 'fresh' }, qw(a b c));
show();
report('aging', sub { freshness() eq 'aging' && service('chat')->{reports}{fresh} == 1 }, 'a');
show();
# While one of three reports, it is no worse; and two suffice to be fresh again.
report('fresh again', sub { freshness() eq 'fresh' && service('chat')->{reports}{fresh} == 2 }, 'a', 'b');
show();
del('status/e/chat/0');
report('aging again', sub { freshness() eq 'aging' });
my $began = time;
report('on the board', sub { freshness() eq 'board' });
my $took = time - $began;
note(sprintf 'on the board %.1f s after it aged', $took);
say $took > 50 ? 'a minute later' : "after $took s";
show();
report('fresh from the board', sub { freshness() eq 'fresh' }, qw(a b c));
show();
say figure("freshness_transitions_total{service=\"chat\",step=\"$_\"}"), " times $_" for qw(fresh aging board);
say $_ for lines();
--- response_body
board
fresh, listed as fresh, metrics: fresh of 5
reports: 3 of 3, metrics: 3 of 3
healthz: 200, fresh, asked for fresh: 200
aging, listed as aging, metrics: aging of 5
reports: 1 of 3, metrics: 1 of 3
healthz: 200, not fresh as chat is live and aging, asked for fresh: 503
fresh, listed as fresh, metrics: fresh of 5
reports: 2 of 3, metrics: 2 of 3
healthz: 200, fresh, asked for fresh: 200
a minute later
board, listed as board, metrics: board of 5
reports: 0 of 3, metrics: 0 of 3
healthz: 200, not fresh as chat is live and board, asked for fresh: 503
fresh, listed as fresh, metrics: fresh of 5
reports: 3 of 3, metrics: 3 of 3
healthz: 200, fresh, asked for fresh: 200
3 times fresh
2 times aging
1 times board
[notice] freshness of chat: board to fresh: instances with fresh reports: 3 of 3; the oldest report is N old
[warn] freshness of chat: fresh to aging: instances with fresh reports: 1 of 3; the oldest report is N old
[notice] freshness of chat: aging to fresh: instances with fresh reports: 2 of 3; the oldest report is N old
[warn] freshness of chat: fresh to aging: instances with fresh reports: 0 of 3; the oldest report is N old
[warn] freshness of chat: aging to board: instances with fresh reports: 0 of 3; the oldest report is N old
[notice] freshness of chat: board to fresh: instances with fresh reports: 3 of 3; the oldest report is N old



=== TEST 2: reports that come and go for moments change nothing
--- ipconfig eval: $::Chat
--- etcd eval: $::Reporting
--- script
report('fresh', sub { freshness() eq 'fresh' }, qw(a b c));
my %seen;
for (1 .. 4) {
    # Fresh for three seconds, and then late for one.
    put_reports(qw(a b c));
    my $end = time + 4;
    $seen{ freshness() }++ while time < $end && sleep 0.1;
}
say join ' ', sort keys %seen;
say scalar lines(), ' line';
--- response_body
fresh
1 line



=== TEST 3: a service that nobody expects to report is on the board, fresh all the same, and not told of
--- ipconfig
{ "discover": true, "services": { "chat": {}, "empty": {} } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/found/b {"addr":"$BACKEND_B"}
--- script
ready('found', 'b');
# Longer than one that should report is given.
sleep 12;
show($_) for qw(chat empty found);
say scalar lines(), ' lines';
--- response_body
board, listed as board, metrics: board of 5
reports: 0 of 0, metrics: 0 of 0
healthz: 200, fresh, asked for fresh: 200
board, listed as board, metrics: board of 5
reports: 0 of 0, metrics: 0 of 0
healthz: 200, fresh, asked for fresh: 200
board, listed as board, metrics: board of 5
reports: 0 of 0, metrics: 0 of 0
healthz: 200, fresh, asked for fresh: 200
0 lines



=== TEST 4: a service that should report and never does is told of once
--- ipconfig eval: $::Chat
--- etcd eval: $::Reporting
--- script
await('it is told of', sub { lines() });
sleep 3;
show();
say $_ for lines();
--- response_body
board, listed as board, metrics: board of 5
reports: 0 of 3, metrics: 0 of 3
healthz: 200, not fresh as chat is live and board, asked for fresh: 503
[warn] freshness of chat: board: instances with fresh reports: 0 of 3; none ever reported



=== TEST 5: a reload, and a thread that starts anew with etcd away, go on where the step was
--- ipconfig eval: $::Chat
--- workers: 2
--- etcd eval: $::Reporting
--- script
report('fresh', sub { freshness() eq 'fresh' }, qw(a b c));
my $end = meanwhile(sub { report('', sub { 1 }, qw(a b c)) });
for (1 .. 2) {
    reload();
    await('fresh after a reload', sub { freshness() eq 'fresh' && service('chat')->{reports}{fresh} == 3 });
}
$end->();
say scalar lines(), ' line';
kill_etcd();
reload();
# The reports that the new thread never heard grow old.
await('aging', sub { freshness() eq 'aging' });
await('stale', sub { mode('chat') eq 'stale' });
show();
start_etcd();
report('fresh again', sub { freshness() eq 'fresh' }, qw(a b c));
show();
await('three lines', sub { lines() >= 3 });
say $_ for lines();
--- response_body
1 line
aging, listed as aging, metrics: aging of 5
reports: 0 of 3, metrics: 0 of 3
healthz: 200, not fresh as chat is stale and aging, asked for fresh: 503
fresh, listed as fresh, metrics: fresh of 5
reports: 3 of 3, metrics: 3 of 3
healthz: 200, fresh, asked for fresh: 200
[notice] freshness of chat: board to fresh: instances with fresh reports: 3 of 3; the oldest report is N old
[warn] freshness of chat: fresh to aging: instances with fresh reports: 0 of 3; the oldest report is N old
[notice] freshness of chat: aging to fresh: instances with fresh reports: 3 of 3; the oldest report is N old



=== TEST 6: while the plugin's thread is silent the step is fallback, and then again what it was
--- ipconfig eval: $::Chat
--- workers: 2
--- etcd eval: $::Reporting
--- script
report('fresh', sub { freshness() eq 'fresh' }, qw(a b c));
while_stopped(writer_pid(), sub {
    await('fallback', sub { freshness() eq 'fallback' });
    show();
    my ($one) = @{ service('chat')->{instances} };
    say exists $one->{status_age_ms} ? 'an age' : 'no age is known to Lua';
});
report('fresh again', sub { freshness() eq 'fresh' && decode(fetch_anew('/ipconfig/healthz'))->{fresh} }, qw(a b c));
show();
say logged(qr/mode fallback: the plugin's thread is silent/) >= 1 ? 'told' : 'not told';
--- response_body
fallback, listed as fallback, metrics: fallback of 5
healthz: 200, not fresh as chat is fallback and fallback, asked for fresh: 503
no age is known to Lua
fresh, listed as fresh, metrics: fresh of 5
reports: 3 of 3, metrics: 3 of 3
healthz: 200, fresh, asked for fresh: 200
told
--- error_log
[ipconfig] mode fallback
--- no_error_log
[crit]
[alert]



=== TEST 7: while etcd was never read the step is static
--- no_wait
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] }, "fallback": { "after": "1s" },
  "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A", "status": "grpc://127.0.0.1:9" } ] } } }
--- script
await('it is ranked', sub { service('chat')->{version} });
show();
await('told', sub { logged(qr/mode static: etcd was never read/) });
# Longer than a service that should report is given.
sleep 12;
say logged(qr/mode static: etcd was never read/), ' line of that, ', scalar lines(), ' of reports';
--- response_body
static, listed as static, metrics: static of 5
reports: 0 of 0, metrics: 0 of 0
healthz: 200, not fresh as chat is static and static, asked for fresh: 503
1 line of that, 0 of reports



=== TEST 8: the age of each instance's status is what it says, and grows while it is silent
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- etcd eval: $::Reporting
--- script
my $ages = sub { +{ map { ($_->{id} => $_->{status_age_ms}) } @{ service('chat')->{instances} } } };
say join ' ', map { defined $_ ? $_ : 'null' } values %{ $ages->() };
say figure('status_age_max_seconds{service="chat"}');
report('a and b are known', sub { defined $ages->()->{a} && defined $ages->()->{b} }, qw(a b));
my $known = $ages->();
say defined $known->{c} ? $known->{c} : 'null', ': c never reported';
# a alone goes on.
report('b is old', sub { ($ages->()->{b} // 0) > 4000 && $ages->()->{a} < 3000 }, 'a');
say 'b is older than a';
my $max = figure('status_age_max_seconds{service="chat"}');
say $max >= 4 && $max < 60 ? 'so the page says' : $max;
--- response_body
null null null
none
null: c never reported
b is older than a
so the page says



=== TEST 9: a worker proves up to which revision its ranking is right, and when that was so
--- workers: 2
--- ipconfig eval: $::Chat
--- etcd eval: $::Reporting
--- script
my $proof = sub { my $view = service('chat'); return @$view{qw(applied_revision confirmed_age_ms ranking_age_ms)} };
# Of a change that changes no ranking, too.
for my $put (['exporters/test', '{}'], ['instances/chat/d', '{"addr":"$BACKEND_D"}']) {
    put(@$put);
    my $revision = IpconfigTest::Parts::revision();
    await('it is in the ranking', sub { ($proof->())[0] == $revision });
    say ranking('chat') =~ /d/ ? 'with d' : 'without d', ', page: ',
        figure('applied_revision{service="chat"}') == $revision ? 'the same' : 'another';
}
# It is said again and again, though nothing changes.
await('the ranking is older than its confirmation', sub {
    my (undef, $confirmed, $made) = $proof->();
    return $made > 2000 && $confirmed < 1500;
});
my $page = page();
say $page =~ /^ipconfig_ranking_confirmed_age_seconds\{service="chat"\} [\d.]+$/m ? 'age on the page' : $page;
my $status = decode(fetch_anew('/ipconfig/healthz'));
say join ' ', map { defined $status->{$_} ? $_ : () } qw(applied_revision confirmed_age_ms ranking_age_ms);
say grep({ $_ == $status->{worker}{pid} } worker_pids()) ? 'of a worker' : 'of nobody';
# Without etcd the revision stays, and the thread goes on to vouch for it.
my ($revision) = $proof->();
kill_etcd();
await('stale', sub { mode('chat') eq 'stale' });
my ($still, $age) = $proof->();
say $still == $revision && $age < 5000 ? 'as before' : "$still, $age ms";
start_etcd();
--- response_body
without d, page: the same
with d, page: the same
age on the page
applied_revision confirmed_age_ms ranking_age_ms
of a worker
as before
