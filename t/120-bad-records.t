# A bad record in etcd is dropped alone: its neighbours stay routed, the drop is
# counted by its reason and logged once with key and reason, however often the
# record is put.

use lib 't/lib';
use IpconfigTest 'no_plan';

our $GOOD = <<'_EOC_';
put instances/chat/a {"addr":"$BACKEND_A"}
put instances/chat/b {"addr":"$BACKEND_B"}
_EOC_

# A report counts for longer than the test takes.
our $PATIENT = <<'_EOC_';
{ "services": { "chat": { "balance": { "strategy": "round_robin" }, "status": { "missed": 100 } } } }
_EOC_

add_block_preprocessor(sub {
    my $block = shift;
    $block->set_value(ipconfig => '{ "services": { "chat": { "balance": { "strategy": "round_robin" } } } }') if !defined $block->ipconfig;
    $block->set_value(etcd => $GOOD . ($block->etcd // ''));
});

package IpconfigTest::Script;

# Dropped records by reason, from the metrics page.
sub bad_records {
    my %count = fetch('/ipconfig/metrics')->{content}
        =~ /^ipconfig_bad_records_total\{reason="(\w+)"\} (\S+)$/mg;
    return { map { ($_ => 0 + $count{$_}) } keys %count };
}

sub await_bad_records {
    my $n = shift;
    await("$n bad records are counted", sub { sum0(values %{ bad_records() }) >= $n });
}

# The reasons that were logged for a subject: a key, or a service's name.
sub reasons {
    my $subject = shift;
    my $log = slurp(IpconfigTest::Parts::servroot() . '/logs/error.log');
    return $log =~ /\[warn\] .*\[ipconfig\] bad record ignored key="\Q$subject\E" reason="(\w+)" error=\S/g;
}

sub key { IpconfigTest::Parts::prefix() . "/$_[0]" }

# The reasons that were logged for some subjects, once each has one more than before.
sub all_reasons {
    my ($before, @subjects) = @_;
    await('all are logged', sub {
        !grep { my @reasons = reasons($_); @reasons <= ($before->{$_} // 0) } @subjects;
    });
    sleep 0.4;    # the log is written four times a second, and may have another
    return map { join ' ', reasons($_) } @subjects;
}

# Puts each record twice; says what was logged for each key, and all counts.
sub offend {
    my %records = @_;
    my %before = map { my @reasons = reasons(key($_)); (key($_) => scalar @reasons) } keys %records;
    my $n = sum0(values %{ bad_records() }) + 2 * keys %records;
    for my $key (sort keys %records) {
        put($key, $records{$key}) for 1, 2;
    }
    await_bad_records($n);
    my @keys = sort keys %records;
    my @reasons = all_reasons(\%before, map { key($_) } @keys);
    say "$keys[$_]: $reasons[$_]" for 0 .. $#keys;
    say 'counted: ', counts(bad_records());
}

sub routed { say 'routed: ', names(served(40)) }

package main;

run_tests();

__DATA__

=== TEST 1: an instance whose address is none is dropped alone
--- script
my $port = IpconfigTest::Parts::expand('$BACKEND_C') =~ s/.*://r;
offend('instances/chat/absent'   => '{"weight":1}',
       'instances/chat/hostname' => qq({"addr":"localhost:$port"}),
       'instances/chat/port-0'   => '{"addr":"127.0.0.1:0"}',
       'instances/chat/port-70000' => '{"addr":"127.0.0.1:70000"}',
       'instances/chat/portless' => '{"addr":"127.0.0.1"}',
       'instances/chat/number'   => qq({"addr":$port}));
routed();
--- response_body
instances/chat/absent: addr
instances/chat/hostname: addr
instances/chat/number: json
instances/chat/port-0: addr
instances/chat/port-70000: addr
instances/chat/portless: addr
counted: addr:10 json:2
routed: a b
--- error_log
it is a hostname



=== TEST 2: an instance whose weight is none is dropped alone
--- script
my $addr = IpconfigTest::Parts::expand('$BACKEND_C');
offend(map { ("instances/chat/$_->[0]" => qq({"addr":"$addr","weight":$_->[1]})) }
    ['negative', '-1'], ['nan', 'NaN'], ['nan-text', '"NaN"'], ['huge', '1e9'], ['endless', '1e999'],
    ['null', 'null']);
routed();
--- response_body
instances/chat/endless: json
instances/chat/huge: weight
instances/chat/nan: json
instances/chat/nan-text: json
instances/chat/negative: weight
instances/chat/null: json
counted: json:8 weight:4
routed: a b
--- error_log
allowed is 0 to 1000



=== TEST 3: what is no JSON object is dropped alone
--- script
offend('instances/chat/broken' => '{"addr":"127.0.0.1:9",', 'instances/chat/list' => '["127.0.0.1:9"]',
       'instances/chat/text' => '"127.0.0.1:9"', 'instances/chat/empty' => '',
       'instances/chat/bytes' => "\x00\xff\xfe");
routed();
--- response_body
instances/chat/broken: json
instances/chat/bytes: json
instances/chat/empty: json
instances/chat/list: json
instances/chat/text: json
counted: json:10
routed: a b
--- error_log
failed to parse the instance as a JSON object



=== TEST 4: a key with too many parts, too few, or one that is no name is dropped alone
--- script
my $instance = IpconfigTest::Parts::expand('{"addr":"$BACKEND_C"}');
offend(map { ($_ => $instance) } 'instances', 'instances/chat', 'instances/chat/', 'instances/chat/c/d',
    'instances//c', 'instances/chat/c d', 'instances/chat/' . 'x' x 129, 'status/e/chat',
    'status/e/chat/0/1', 'status/e/chat/first', 'statuses/e/chat/0', '');
routed();
--- response_body eval
<<"_EOC_";
: key
instances: key
instances//c: key
instances/chat: key
instances/chat/: key
instances/chat/c d: key
instances/chat/c/d: key
instances/chat/@{[ 'x' x 129 ]}: key
status/e/chat: key
status/e/chat/0/1: key
status/e/chat/first: key
statuses/e/chat/0: key
counted: key:24
routed: a b
_EOC_
--- error_log
failed to read key



=== TEST 5: a value of 1 MB is dropped unread
--- script
my $addr = IpconfigTest::Parts::expand('$BACKEND_C');
my $label = 'x' x 1_000_000;
offend('instances/chat/c' => qq({"addr":"$addr","labels":{"x":"$label"}}), 'status/e/chat/0' => $label);
routed();
--- response_body
instances/chat/c: too_large
status/e/chat/0: too_large
counted: too_large:4
routed: a b
--- error_log
refused a value of 1000000 bytes: at most 262144 are read



=== TEST 6: a batch that is no protobuf, or only the beginning of one, is dropped whole and the last one stays
--- ipconfig eval: $::PATIENT
--- script
put_status('e', 'chat', a => { boot_id => 1, seq => 1 }, b => { boot_id => 1, seq => 1 });
await('both report', sub { 2 == grep { $_->{state} eq 'reporting' } @{ service('chat')->{instances} } });
my $whole = bytes_field(1, bytes_field(1, 'a') . bytes_field(2, status({ boot_id => 1, seq => 2 })));
offend('status/e/chat/0' => "\xff\xff\xff", 'status/e/chat/1' => substr($whole, 0, -1));
say join ' ', map { "$_->{id}:$_->{state}" } @{ service('chat')->{instances} };
routed();
--- response_body
status/e/chat/0: protobuf
status/e/chat/1: protobuf
counted: protobuf:4
a:reporting b:reporting
routed: a b
--- error_log
failed to decode the batch of statuses



=== TEST 7: a status with a figure that is none is dropped alone, beside others of its batch
--- ipconfig eval: $::PATIENT
--- script
my $inf = 9**9**9;
my %bad = ('not a number' => $inf - $inf, infinite => $inf, negative => -1);
for my $what (sort keys %bad) {
    my $status = { boot_id => 1, seq => 1, cpu_limit_cores => 1 };
    put_status("e-$what" =~ tr/ /-/r, 'chat', a => { %$status, cpu_used_cores => $bad{$what} },
                                  b => { %$status, cpu_used_cores => 0.5 }) for 1, 2;
}
put_status('e-limit', 'chat', a => { boot_id => 1, cpu_limit_cores => 0 }) for 1, 2;
put_status('e-boot', 'chat', a => { seq => 1 }) for 1, 2;
await_bad_records(10);
my @batches = qw(e-not-a-number e-infinite e-negative e-limit e-boot);
my @reasons = all_reasons({}, map { key("status/$_/chat/0") } @batches);
say "$batches[$_]: $reasons[$_]" for 0 .. $#batches;
say 'counted: ', counts(bad_records());
say join ' ', sort map { "$_->{id}:$_->{state}" } @{ service('chat')->{instances} };
routed();
--- response_body
e-not-a-number: status
e-infinite: status
e-negative: status
e-limit: status
e-boot: status
counted: status:10
a:unreported b:reporting
routed: a b
--- error_log
refused a status: cpu_used_cores is NaN, allowed is a finite number, 0 or more
refused a status: cpu_used_cores is inf
refused a status: cpu_used_cores is -1
refused a status: cpu_limit_cores is 0



=== TEST 8: a batch that goes on naming an unknown instance is counted, and the others of it are heard
--- ipconfig
{ "exporter": { "interval": "100ms", "timeout": "100ms" }, "services": { "chat": { "balance": { "strategy": "round_robin" } } } }
--- script
my $seq = 0;
await('the stranger is counted', sub {
    ++$seq;
    put_status('e', 'chat', a => { boot_id => 1, seq => $seq }, stranger => { boot_id => 1, seq => $seq });
    sleep 0.1;
    my @reporting = grep { $_->{state} eq 'reporting' } @{ service('chat')->{instances} };
    return bad_records()->{unknown_instance} && join(' ', map { $_->{id} } @reporting) eq 'a';
});
say 'reporting: a';
say all_reasons({}, key('status/e/chat/0'));
say names(bad_records());
routed();
--- response_body
reporting: a
unknown_instance
unknown_instance
routed: a b
--- error_log
1 not registered in "chat", such as ["stranger"]



=== TEST 9: a batch that names an instance a moment before it registers is no bad record
--- script
put_status('e', 'chat', c => { boot_id => 1, seq => 1 });
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
put_status('e', 'chat', c => { boot_id => 1, seq => 2 });
await('c reports', sub { grep { "$_->{id} $_->{state}" eq 'c reporting' } @{ service('chat')->{instances} } });
sleep 1.2;
say 'counted: ', counts(bad_records());
routed();
--- response_body
counted: 
routed: a b c



=== TEST 10: of two instances with one address the newer is offered, and the older when that one is gone
--- script
put('instances/chat/twin', '{"addr":"$BACKEND_A"}') for 1, 2;
ready('chat', 'b twin');
await_bad_records(1);
routed();
del('instances/chat/twin');
ready('chat', 'a b');
routed();
say all_reasons({}, key('instances/chat/a'));
say 'counted: ', counts(bad_records());
--- response_body
routed: a b
routed: a b
duplicate_addr
counted: duplicate_addr:1
--- error_log
a newer registration has the same address



=== TEST 11: a service that is neither configured nor discovered is ignored and named once
--- ipconfig
{ "discover": ["news*"], "services": { "chat": {} } }
--- script
put('instances/mail/a', '{"addr":"$BACKEND_C"}') for 1, 2;
put('instances/mail/b', '{"addr":"$BACKEND_D"}');
put('instances/news-1/a', '{"addr":"$BACKEND_C"}');
await_bad_records(3);
ready('news-1', 'a');
say all_reasons({}, 'mail');
say 'counted: ', counts(bad_records());
say join ' ', map { $_->{service} } @{ api('v1/services')->{services} };
say fetch('/ipconfig/v1/services/mail')->{status};
routed();
--- response_body
unknown_service
counted: unknown_service:3
chat news-1
404
routed: a b
--- error_log
the configuration neither names this service nor discovers it



=== TEST 12: a bad registration leaves the last good one, until the key is deleted
--- script
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
offend('instances/chat/c' => '{"addr":"nowhere"}');
routed();
del('instances/chat/c');
ready('chat', 'a b');
routed();
--- response_body
instances/chat/c: addr
counted: addr:2
routed: a b c
routed: a b
--- error_log
it has no port



=== TEST 13: a key that was good in between is logged anew, and counted on
--- script
offend('instances/chat/c' => '{}');
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
offend('instances/chat/c' => '{}');
routed();
--- response_body
instances/chat/c: addr
counted: addr:2
instances/chat/c: addr addr
counted: addr:4
routed: a b c
--- error_log
the instance has no addr



=== TEST 14: bad records that are there before the gateway are dropped out of its first list
--- etcd
put instances/chat/bad {"addr":"localhost:80"}
put instances/chat/x/y {"addr":"$BACKEND_C"}
put instances/mail/a {"addr":"$BACKEND_C"}
put status/e/chat/0 nothing
--- script
routed();
await_bad_records(4);
say 'counted: ', counts(bad_records());
my @subjects = (key('instances/chat/bad'), key('instances/chat/x/y'), 'mail', key('status/e/chat/0'));
await('the log has them', sub { 4 == grep { reasons($_) } @subjects });
say join ' ', map { reasons($_) } @subjects;
--- response_body
routed: a b
counted: addr:1 key:1 protobuf:1 unknown_service:1
addr key unknown_service protobuf
--- error_log
bad record ignored



=== TEST 15: a broken registration that others of the same service follow does not hide them
--- script
put('instances/chat/bad', '{');
put('instances/chat/c', '{"addr":"$BACKEND_C"}');
ready('chat', 'a b c');
del('instances/chat/bad');
put('instances/chat/d', '{"addr":"$BACKEND_D"}');
ready('chat', 'a b c d');
routed();
--- response_body
routed: a b c d



=== TEST 16: an instance outside of `allow` is dropped, and the last good one of its key stays
--- ipconfig
{ "allow": ["127.0.0.1/32", "fd00::/8"], "services": { "chat": {} } }
--- script
offend('instances/chat/a' => '{"addr":"127.0.0.2:80"}', 'instances/chat/c' => '{"addr":"[::1]:80"}');
routed();
my $port = IpconfigTest::Parts::expand('$BACKEND_C') =~ s/.*://r;
put('instances/chat/c', qq({"addr":"[::ffff:127.0.0.1]:$port"}));
ready('chat', 'a b c');
del('instances/chat/a');
ready('chat', 'b c');
--- response_body
instances/chat/a: not_allowed
instances/chat/c: not_allowed
counted: not_allowed:4
routed: a b
--- error_log
127.0.0.2:80 is outside of allow: 127.0.0.1/32, fd00::/8



=== TEST 17: an instance of the file outside of `allow` is refused, and nothing is started
--- ipconfig
{ "allow": ["10.0.0.0/8"], "services": { "chat": { "instances": [ { "id": "a", "addr": "127.0.0.1:80" } ] } } }
--- must_die
--- error_log
services.chat.instances[0].addr: 127.0.0.1:80 is outside of allow: 10.0.0.0/8
