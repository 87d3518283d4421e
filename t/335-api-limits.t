# What the pages of the gateway do with requests that are none of theirs: too long, with
# a body, slow.

use lib 't/lib';
use IpconfigTest 'no_plan';

package IpconfigTest::Script;

# Sends these texts until they are not taken any more; what was answered (status and
# body), and how many bytes were taken.
sub converse {
    my @texts = @_;
    my $connection = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1', PeerPort => IpconfigTest::Parts::server_port(),
    ) or die "failed to connect: $!\n";
    local $SIG{PIPE} = 'IGNORE';
    my $taken = 0;
    for my $text (@texts) {
        my $n = syswrite $connection, $text;
        last if !defined $n;
        $taken += $n;
        last if $n < length $text;
    }
    my $answer = do { local $/; <$connection> } // '';
    my ($status) = $answer =~ m{^HTTP/1\.1 (\d+)};
    return ($status // 'none', $taken, $answer);
}

sub memory_kb { my ($kb) = slurp("/proc/$_[0]/status") =~ /^VmRSS:\s+(\d+)/m; return $kb }

package main;

run_tests();

__DATA__

=== TEST 1: a body is not read: a long one is refused, a short one is of no consequence
--- script
for my $method (qw(GET HEAD POST)) {
    my $head = "$method /ipconfig/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    my ($short) = converse("${head}Content-Length: 4\r\n\r\nbody");
    my ($long) = converse("${head}Content-Length: 2000\r\n\r\n", 'x' x 1000);
    say "$method: $short, $long";
}
say fetch('/ipconfig/healthz')->{status};
--- response_body
GET: 200, 413
HEAD: 200, 413
POST: 405, 413
200
--- error_log
client intended to send too large body
--- no_error_log
[crit]
[alert]



=== TEST 2: a body without a length takes no memory, and its end is not waited for
--- script
my ($pid) = master_pid();
my $before = memory_kb($pid);
my $chunk = sprintf("%x\r\n", 65536) . 'x' x 65536 . "\r\n";
my ($status, $taken) = converse(
    "GET /ipconfig/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
    ($chunk) x 500);
my $more = memory_kb($pid) - $before;
say "$status, ", $more < 4096 ? 'no more memory' : "$more KB more";
my $begin = time;
($status) = converse(
    "GET /ipconfig/healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
my $took = time - $begin;
say "$status, ", $took < 40 ? 'given up' : "after $took s";
--- response_body
200, no more memory
200, given up
--- no_error_log
[crit]
[alert]



=== TEST 3: a path, a query or a header that is too long is refused, and is in no line of the log
--- script
my $long = 'q' x 1_000_000;
my @heads = ("GET /ipconfig/$long HTTP/1.1\r\nHost: x\r\n",
             "GET /ipconfig/v1/services/chat?n=$long HTTP/1.1\r\nHost: x\r\n",
             "GET /ipconfig/healthz HTTP/1.1\r\nHost: x\r\nX-Long: $long\r\n",
             "GET /ipconfig/healthz HTTP/1.1\r\nHost: x\r\n" . "X-Many: y\r\n" x 100_000);
for my $head (@heads) {
    my ($status, $taken, $answer) = converse("$head\r\n");
    # A reset, as more was on its way, may take the answer with it.
    say $status =~ /^(?:400|414|none)$/ && length $answer < 2000 ? 'refused' : "$status: " . length $answer;
}
say fetch('/ipconfig/healthz')->{status};
say logged(qr/q{3000}/), ' lines with it';
--- response_body
refused
refused
refused
refused
200
0 lines with it
--- no_error_log
[crit]
[alert]



=== TEST 4: what is no number in a query, however it is written, is told escaped, and logged nowhere
--- script
my $evil = "%0a2026/01/01 [alert] forged%22%1b[31m";
my $answer = fetch("/ipconfig/v1/services/chat?n=$evil" =~ s/ /%20/gr);
say $answer->{status}, ' ', $answer->{content} =~ /[\x00-\x09\x0b-\x1f]/ ? 'raw' : 'escaped';
$answer = fetch("/ipconfig/v1/services/$evil" =~ s/ /%20/gr);
say $answer->{status}, ' ', $answer->{content} =~ /[\x00-\x09\x0b-\x1f]/ ? 'raw' : 'escaped';
say logged(qr/^2026\/01\/01/), ' forged lines';
--- response_body
400 escaped
404 escaped
0 forged lines
--- no_error_log
[crit]
