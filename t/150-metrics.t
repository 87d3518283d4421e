# The metrics page: valid OpenMetrics text whose figures move with what happens.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

my $NAME = qr/[a-zA-Z_:][a-zA-Z0-9_:]*/;
my $LABEL = qr/[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"/;
my $NUMBER = qr/[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?/;
my %SUFFIX = (counter => '_total', gauge => '', unknown => '');

# What is wrong with an OpenMetrics page, line by line; nothing for a valid one.
sub faults {
    my $page = shift;
    my (@faults, %type, %seen, $family);

    push @faults, 'the page does not end with # EOF' if $page !~ /\n# EOF\n\z/;
    my @lines = split /\n/, $page, -1;
    pop @lines;    # behind the last line end
    for my $line (@lines) {
        if ($line eq '# EOF') {
            push @faults, 'something follows # EOF' if \$line != \$lines[-1];
        } elsif ($line =~ /^# HELP ($NAME) \S/) {
            push @faults, "help twice: $line" if $seen{"help $1"}++;
        } elsif ($line =~ /^# UNIT ($NAME) (\w+)$/) {
            push @faults, "no unit of this name: $line" if $1 !~ /_\Q$2\E$/;
        } elsif ($line =~ /^# TYPE ($NAME) (\w+)$/) {
            push @faults, "type twice: $line" if $type{$1};
            push @faults, "no such type: $line" if !defined $SUFFIX{$2};
            ($family, $type{$1}) = ($1, $2);
        } elsif ($line =~ /^($NAME)(?:\{((?:$LABEL(?:,$LABEL)*)?)\})? $NUMBER$/) {
            my ($name, $labels) = ($1, $2 // '');
            push @faults, "no type before: $line"
                if !defined $family || $name ne $family . ($SUFFIX{ $type{$family} } // '');
            my $series = "$name " . join ',', sort $labels =~ /$LABEL/g;
            push @faults, "series twice: $line" if $seen{$series}++;
            my @labels = $labels =~ /(\w+)="/g;
            push @faults, "label twice: $line" if @labels != uniq @labels;
            push @faults, "negative: $line" if $line =~ / -\S+$/;
        } else {
            push @faults, "no line of the format: $line";
        }
    }
    return @faults;
}

sub page { fetch_anew('/ipconfig/metrics')->{content} }

# A figure of the page, by its series; "none" if it is not there.
sub figure {
    my ($series, $page) = @_;
    my ($value) = ($page // page()) =~ /^ipconfig_\Q$series\E ($NUMBER)$/m;
    return defined $value ? 0 + $value : 'none';
}

sub of_instance { figure(qq($_[0]\{service="chat",instance="$_[1]"\})) }

# The label of the one series that is 1, of those that are 0 or 1.
sub one_hot {
    my $name = shift;
    my %value = page() =~ /^ipconfig_$name\{\w+="(\w+)"\} ($NUMBER)$/mg;
    return join ' ', (grep { $value{$_} == 1 } sort keys %value), 'of', sort keys %value;
}

package main;

run_tests();

__DATA__

=== TEST 1: the page is valid OpenMetrics text, and says so
--- ipconfig
{ "discover": true, "services": {
    "empty": {},
    "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- no_wait
--- script
ready('chat', 'a b');
put('instances/news/a', '{"addr":"$BACKEND_C"}');
put('instances/news/bad', 'bad');
ready('news', 'a');
served(10);
await('the bad record is counted', sub { page() =~ /reason="json"/ });
my $answer = fetch('/ipconfig/metrics');
say $answer->{headers}{'content-type'};
say scalar(() = $answer->{content} =~ /^ipconfig_/mg) > 20 ? 'samples' : $answer->{content};
say $_ for faults($answer->{content});
--- response_body
application/openmetrics-text; version=1.0.0; charset=utf-8
samples
--- error_log
bad record



=== TEST 2: the check of the page sees what is wrong with one
--- script
my $good = "# HELP x X.\n# TYPE x counter\nx_total{a=\"1\"} 1\nx_total{a=\"2\"} 1\n# EOF\n";
say 'good: ', scalar faults($good);
say "$_->[0]: ", join '; ', faults($_->[1]) for
    ['no end', $good =~ s/# EOF\n//r],
    ['no type', $good =~ s/# TYPE.*\n//r],
    ['another name', $good =~ s/^x_total/y_total/mr],
    ['no suffix', $good =~ s/^x_total/x/mr],
    ['a series twice', $good =~ s/"2"/"1"/r],
    ['a type twice', $good =~ s/(# TYPE.*\n)/$1$1/r],
    ['another unit', $good =~ s/(# TYPE)/# UNIT x bytes\n$1/r],
    ['no number', $good =~ s/ 1$/ NaN/mr],
    ['an open label', $good =~ s/"1"/"1/r],
    ['an empty line', "\n$good"];
--- response_body
good: 0
no end: the page does not end with # EOF
no type: no type before: x_total{a="1"} 1; no type before: x_total{a="2"} 1
another name: no type before: y_total{a="1"} 1
no suffix: no type before: x{a="1"} 1
a series twice: series twice: x_total{a="1"} 1
a type twice: type twice: # TYPE x counter
another unit: no unit of this name: # UNIT x bytes
no number: no line of the format: x_total{a="1"} NaN
an open label: no line of the format: x_total{a="1} 1
an empty line: no line of the format: 



=== TEST 3: the requests of each instance grow by what it was sent
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "instances": [
    { "id": "a", "addr": "$BACKEND_A", "weight": 2 }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
my %before = map { $_ => of_instance('requests_total', $_) } qw(a b);
my $count = served(90);
say 'served: ', counts($count);
say 'counted: ', join ' ', map { "$_:" . (of_instance('requests_total', $_) - $before{$_}) } qw(a b);
say 'failed: ', join ' ', map { "$_:" . of_instance('failed_tries_total', $_) } qw(a b);
say 'in flight: ', join ' ', map { "$_:" . of_instance('in_flight', $_) } qw(a b);
--- response_body
served: a:60 b:30
counted: a:60 b:30
failed: a:0 b:0
in flight: a:0 b:0



=== TEST 4: a try that failed counts as failed where it failed and as a request where it went next
--- ipconfig
{ "services": { "chat": { "balance": { "strategy": "best" },
    "health": { "max_ejected": 0 }, "instances": [
    { "id": "a", "addr": "$DEAD_1" }, { "id": "b", "addr": "$BACKEND_B" } ] } } }
--- script
say counts(served(7));
say 'requests: ', join ' ', map { "$_:" . of_instance('requests_total', $_) } qw(a b);
say 'failed: ', join ' ', map { "$_:" . of_instance('failed_tries_total', $_) } qw(a b);
say 'in flight: ', join ' ', map { "$_:" . of_instance('in_flight', $_) } qw(a b);
--- response_body
b:7
requests: a:7 b:7
failed: a:7 b:0
in flight: a:0 b:0
--- error_log
connect() failed



=== TEST 5: a last try that failed counts as failed, and so does an answer of 500 or more
--- ipconfig
{ "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- script
for my $path (qw(/drop /code?code=500 /code?code=503 /code?code=404 /)) {
    my $before = of_instance('failed_tries_total', 'a');
    my $word = get($path);
    say "$word: ", of_instance('failed_tries_total', 'a') - $before, ' failed';
}
say of_instance('requests_total', 'a'), ' requests, in flight: ', of_instance('in_flight', 'a');
--- response_body
502: 1 failed
500: 1 failed
503: 1 failed
404: 0 failed
a: 0 failed
5 requests, in flight: 0
--- error_log
upstream prematurely closed connection



=== TEST 6: a request that an instance is busy with is in flight
--- script
hold(1);
await('it is in flight', sub { 1 == sum0(map { of_instance('in_flight', $_) } qw(a b c)) });
say 'in flight: ', sum0(map { $_->{in_flight} } @{ service('chat')->{instances} });
let_go();
await('it is over', sub { 0 == sum0(map { of_instance('in_flight', $_) } qw(a b c)) });
say 'over';
--- response_body
in flight: 1
over



=== TEST 7: exactly one mode is 1: live while etcd is watched, stale once it is lost
--- ipconfig
{ "fallback": { "after": "1s" }, "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- script
say one_hot('mode');
my $revision = figure('revision');
say 'source age: ', figure('source_age_seconds') < 30 ? 'young' : figure('source_age_seconds');
kill_etcd();
await('stale', sub { one_hot('mode') =~ /^stale/ });
say one_hot('mode');
say 'source age: ', figure('source_age_seconds') > 0.9 ? 'about 1 s or more' : figure('source_age_seconds');
say 'revision: ', figure('revision') == $revision ? 'the same' : figure('revision');
say 'faults: ', scalar faults(page());
--- response_body
live of fallback live manual snapshot stale static
source age: young
stale of fallback live manual snapshot stale static
source age: about 1 s or more
revision: the same
faults: 0
--- error_log
[ipconfig]
--- no_error_log
[crit]
[alert]



=== TEST 8: without etcd the mode is static
--- ipconfig_file
{ "etcd": { "endpoints": ["http://$DEAD_1"] },
  "services": { "chat": { "instances": [ { "id": "a", "addr": "$BACKEND_A" } ] } } }
--- no_wait
--- script
await('the page is there', sub { page() });
say one_hot('mode');
await('the watch is known', sub { one_hot('watch_state') !~ /^of/ });
say one_hot('watch_state') =~ /^(?:connecting|backoff) of/ ? 'not watching' : one_hot('watch_state');
say figure('revision'), ' ', figure('source_age_seconds');
say 'faults: ', scalar faults(page());
--- response_body
static of fallback live manual snapshot stale static
not watching
0 none
faults: 0
--- no_error_log
[crit]
[alert]



=== TEST 9: the watch's state and the revision are etcd's
--- script
await('the watch is known', sub { one_hot('watch_state') =~ /^watching/ });
say one_hot('watch_state');
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say figure('revision') == IpconfigTest::Parts::revision() ? "etcd's" : figure('revision');
--- response_body
watching of backoff connecting listing watching
etcd's



=== TEST 10: the version of a ranking grows with each change and its age starts anew
--- script
my $version = figure('ranking_version{service="chat"}');
await('it ages', sub { figure('ranking_age_seconds{service="chat"}') >= 2 });
say 'unchanged: ', figure('ranking_version{service="chat"}') - $version;
my $began = time;
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
say 'changed: ', figure('ranking_version{service="chat"}') - $version;
say 'age: ', figure('ranking_age_seconds{service="chat"}') < 0.1 + time - $began ? 'young' : 'old';
--- response_body
unchanged: 0
changed: 1
age: young



=== TEST 11: what has not happened is there and 0
--- script
say "$_ ", figure($_) for qw(publish_errors_total view_errors_total thread_restarts_total fallback_requests_total uncounted_instances);
say page() =~ /^# TYPE ipconfig_bad_records counter$/m ? 'bad_records' : 'none';
say page() =~ /bad_records_total/ ? 'some' : 'and none of them';
--- response_body
publish_errors_total 0
view_errors_total 0
thread_restarts_total 0
fallback_requests_total 0
uncounted_instances 0
bad_records
and none of them



=== TEST 12: bad records are counted by reason
--- script
put('instances/chat/x', '{"addr":"localhost:1"}');
put('instances/chat/x/y', '{}');
put('instances/chat/x/z', '{}');
await('they are counted', sub { figure('bad_records_total{reason="key"}') eq '2' });
say figure('bad_records_total{reason="addr"}'), ' ', figure('bad_records_total{reason="key"}');
say 'faults: ', scalar faults(page());
--- response_body
1 2
faults: 0
--- error_log
bad record



=== TEST 13: the counters are those of all workers, whichever answers
--- workers: 2
--- script
await('both workers serve', sub { 2 == uniq(map { fetch_anew('/worker')->{content} } 1 .. 20) });
my %count;
$count{ word(fetch_anew('/')) }++ for 1 .. 120;
my %pages = map { my $page = fetch_anew('/ipconfig/metrics')->{content};
    (join(' ', map { "$_:" . figure(qq(requests_total{service="chat",instance="$_"}), $page) } qw(a b c)) => 1) } 1 .. 20;
say scalar(keys %pages), ' answer, ', (keys %pages)[0] eq counts(\%count) ? 'the right one' : join ' / ', keys %pages, counts(\%count);
--- response_body
1 answer, the right one



=== TEST 14: counters of an instance go on after it left and came back, and over a reload
--- ipconfig
{ "services": { "chat": { "guard": { "max_loss": 100 } } } }
--- etcd
put instances/chat/a {"addr":"$BACKEND_A"}
--- workers: 1
--- script
served(5);
del('instances/chat/a');
await('a is gone', sub { ranking('chat') eq '' });
say of_instance('requests_total', 'a');
say 'counted: ', figure('counted_instances');
put('instances/chat/a', '{"addr":"$BACKEND_A"}');
ready('chat', 'a');
served(5);
say of_instance('requests_total', 'a');
reload();
ready('chat', 'a');
fetch_anew('/') for 1 .. 5;
say of_instance('requests_total', 'a');
--- response_body
none
counted: 1
10
15
