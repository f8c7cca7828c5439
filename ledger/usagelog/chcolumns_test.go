package usagelog

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// oddRows are rows in which every column has values of its own.
func oddRows(n int) []Row {
	rows := make([]Row, n)
	for i := range rows {
		k := int64(i)
		rows[i] = Row{
			Partition: i % 7, Offset: 1000 + k, EventID: ledger.ID{1, 15: byte(i), 14: byte(i >> 8)}, Kind: ledger.KindUsageSettled,
			Producer: ledger.ID{2, byte(i)}, Seq: 1<<62 + k, Prev: -k, Key: strings.Repeat("k", i%40), Moves: MovesAll, Granted: -1 << 63, Charged: 1<<63 - 1,
			Requests: 2, UserID: 3 + k, CreatedAt: 1_764_374_400 + k, Type: 5, Content: strings.Repeat("é\x00", i%300), Username: "u", TokenName: "t",
			ModelName: []string{"a", "b", ""}[i%3], Quota: 4, PromptTokens: 5, CompletionTokens: 6, UseTime: 7, IsStream: i%2 == 0, ChannelID: 8, TokenID: 9,
			Group: "g", IP: "::1", RequestID: "r", UpstreamRequestID: "ur", Other: "{}", Node: "n", Event: bytes.Repeat([]byte{byte(i)}, i%200),
		}
	}
	return rows
}

// TestProtocolsStoreTheSame: the blocks that go over HTTP and the driver's batches, which the native protocol uses, leave the
// same rows.
func TestProtocolsStoreTheSame(t *testing.T) {
	rows := oddRows(3*blockRows + 5)
	var stored [2][]string
	for i, http := range []bool{true, false} {
		c, err := OpenClickHouse(t.Context(), Config{DSN: ledgertest.ClickHouse(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.http = http
		if err := c.Append(t.Context(), Batch{Rows: rows, Position: Position{Log: 2}}); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"ledger_usage", "ledger_events"} {
			err := c.each(t.Context(), "SELECT toString(tuple(*)) FROM "+table+" ORDER BY log_offset", func(r driver.Rows) error {
				var line string
				if err := r.Scan(&line); err != nil {
					return err
				}
				stored[i] = append(stored[i], line)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(stored[0]) != 2*len(rows) {
		t.Errorf("%d rows stored, want %d", len(stored[0]), 2*len(rows))
	}
	if diff := cmp.Diff(stored[1], stored[0]); diff != "" {
		t.Errorf("rows (-batches +blocks):\n%.2000s", diff)
	}
}

// TestColumnsAreThoseOfSQL: both databases get every column.
func TestColumnsAreThoseOfSQL(t *testing.T) {
	names := func(list string) []string {
		all := strings.Split(strings.ReplaceAll(list, "`", ""), ", ")
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff(names(usageColumns), names(namesOf(usageTable))); diff != "" {
		t.Errorf("columns (-SQL +ClickHouse):\n%s", diff)
	}
	if n := len(names(usageColumns)); n != usageArgs || len(usageValues(nil, &Row{})) != n {
		t.Errorf("%d columns, %d values, usageArgs %d", n, len(usageValues(nil, &Row{})), usageArgs)
	}
}

// TestBlocks reads the body of an INSERT back, however it is read.
func TestBlocks(t *testing.T) {
	rows := oddRows(blockRows + 3)
	columns := []column{textColumn("a", func(r *Row) string { return r.ModelName }), intColumn("b", "UInt16", func(r *Row) int64 { return r.Offset })}
	for _, size := range []int{1, 7, 1 << 20} {
		body, err := io.ReadAll(compress.NewReader(slow{newBlocks(columns, rows), size}))
		if err != nil && !strings.Contains(err.Error(), "EOF") {
			t.Fatal(err)
		}
		n := 0
		for len(body) > 0 {
			var head [2]uint64
			for i := range head {
				v, k := binary.Uvarint(body)
				head[i], body = v, body[k:]
			}
			if head[0] != 2 {
				t.Fatalf("%d columns, want 2", head[0])
			}
			want := appendText(appendText(nil, "a"), "String")
			for i := range int(head[1]) {
				want = appendText(want, rows[n+i].ModelName)
			}
			want = appendText(appendText(want, "b"), "UInt16")
			for i := range int(head[1]) {
				want = binary.LittleEndian.AppendUint16(want, uint16(rows[n+i].Offset))
			}
			if !bytes.HasPrefix(body, want) {
				t.Fatalf("block of %d rows differs", head[1])
			}
			body = body[len(want):]
			n += int(head[1])
		}
		if n != len(rows) {
			t.Errorf("read %d bytes at a time: %d rows, want %d", size, n, len(rows))
		}
	}
}

// slow gives few bytes at a time.
type slow struct {
	r    io.Reader
	size int
}

func (s slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.size)]) }
