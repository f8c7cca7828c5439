package relay_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

// difference is one deliberate difference from New API on the relay's endpoints. The exchanges that it concerns are those of the
// recordings; a difference without one is of something that the recordings do not show.
type difference struct {
	exchanges []string
	what      string // the case
	theirs    string
	ours      string
	why       string
}

// differences is the table of the README.
var differences = []difference{
	{
		[]string{"no messages", "empty messages", "max_tokens negative", "max_tokens huge"},
		"a field that is missing or out of range", "500 `invalid_request`", "400 `invalid_request`, naming the field in `param`",
		"it is the client's mistake: a client that retries on 5xx would repeat it",
	},
	{
		[]string{"user soft-deleted"},
		"the key of a deleted user", "500, database error", "401, as any key that is not valid", "nothing is broken",
	},
	{
		[]string{"upstream 429, stream asked"},
		"an upstream's failure when a stream was asked for", "`text/event-stream` with a bare JSON line", "`application/json`",
		"the body is JSON, and clients read it as such",
	},
	{
		nil, "a field that bears on money given twice", "the last counts", "400 `invalid_request`",
		"readers disagree on which counts, so the hold could be for one and the upstream obey the other",
	},
	{
		nil, "only open requests are in the way of a hold", "403, or overspend", "429 `quota_held` with Retry-After",
		"the quota may come back when they end",
	},
	{
		nil, "enough quota for a part of what a request may cost", "admitted; the balance may go below zero",
		"admitted with `max_tokens` lowered (or added) to what the quota pays for", "no account spends more than it has",
	},
	{
		nil, "a stream without `max_tokens` outgrows the quota", "goes on below zero", "ends with `finish_reason` `length`, charged to the unit",
		"no account spends more than it has",
	},
	{nil, "more than $10 on key and wallet", "nothing is reserved", "reserved like any other request", "the bypass is how accounts go below zero"},
	{nil, "the client of an answer in one piece leaves", "not charged", "charged", "the upstream bills it"},
	{
		nil, "the upstream reports no usage", "a usage is put into the answer", "the answer stays as it is; the bill says that it was counted",
		"answers pass byte for byte",
	},
	{nil, "an embedding, completion or chat body above the limit of time to arrive", "waits", "408 `read_request_body_failed`", "a slow client must not hold memory"},
	{
		nil, "the hot counters are being rebuilt or out of reach", "requests go on unreserved", "503 `counters_rebuilding` or `counters_unreachable` with Retry-After",
		"no free pass",
	},
	{nil, "the node cannot record usage, is full, or stops", "-", "503 `journal_failed`, `log_unreachable`, `node_full`, `node_stopping` with Retry-After", "what cannot be billed is not served"},
	{nil, "an upstream redirects", "followed", "502", "the key must not travel to another address"},
	{nil, "a body compressed otherwise than by gzip", "br and zstd are read", "400", "not supported"},
	{nil, "a failed channel, when a retry has other channels of its priority", "may be drawn again", "avoided", "it has just failed"},
}

func differs(exchange string) bool {
	for _, d := range differences {
		for _, name := range d.exchanges {
			if name == exchange {
				return true
			}
		}
	}
	return false
}

// The table as the README shows it. testdata/differences.md is what is copied there.
func TestDifferencesTable(t *testing.T) {
	var b strings.Builder
	b.WriteString("| case | New API | Ledgerline | why |\n| --- | --- | --- | --- |\n")
	for _, d := range differences {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", d.what, d.theirs, d.ours, d.why)
	}
	const golden = "testdata/differences.md"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Error("testdata/differences.md is not the table of this file; run go test -run DifferencesTable -update")
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil || !strings.Contains(string(readme), "| case | New API | Ledgerline | why |") {
		t.Skip("the README has no table of differences yet")
	}
	if !strings.Contains(string(readme), string(want)) {
		t.Error("the README's table of differences is not testdata/differences.md")
	}
}
