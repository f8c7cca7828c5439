package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/eventlog"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/usagelog"
)

// The log twin gives the answers of the embedded broker, reached as in production, to everything that the runner, the quota sink and
// the shipper ask.
func TestLogIsTheLog(t *testing.T) {
	broker, err := eventlog.StartEmbedded(eventlog.EmbeddedConfig{Dir: t.TempDir()})
	must(t, err)
	t.Cleanup(broker.Close)
	client, err := eventlog.NewClient(eventlog.Config{Brokers: []string{broker.Addr()}, Topic: "events"})
	must(t, err)
	t.Cleanup(client.Close)
	_, err = client.EnsureTopic(t.Context(), 2)
	must(t, err)
	w := newWorld(t, 1)
	w.cfg.partitions = 2
	w.log = newLogTwin(w)
	r := rand.New(rand.NewPCG(1, 2))
	seq := map[int]uint64{}
	for step := range 40 {
		n := r.IntN(2)
		p := w.log.partitions[n]
		switch r.IntN(3) {
		case 0: // a batch, some of it for the second time
			var parcels []ledger.Parcel
			from := max(1, seq[n]+uint64(r.IntN(2))*2-1)
			for seq[n] = from; seq[n] < from+uint64(r.IntN(4)); seq[n]++ {
				parcels = append(parcels, parcel(t, n, seq[n]))
			}
			parcels = append(parcels, parcel(t, n, seq[n]))
			must(t, eventlog.NewShipper(client, eventlog.ShipperConfig{}).Ship(t.Context(), &journalOf{parcels: parcels}))
			for i := range parcels {
				w.log.append(n, parcels[i].Value)
			}
		case 1:
			offset := r.Int64N(p.end()+3) - 1
			have, errA := w.log.readAt(n, offset)
			want, errB := client.ReadAt(t.Context(), n, max(offset, 0))
			if offset < 0 {
				continue // the runner never asks below 0
			}
			sameRecords(t, step, []ledger.Record{have}, []ledger.Record{want}, errA, errB)
		case 2:
			first, end, err := client.Bounds(t.Context(), n)
			if err != nil || first != 0 || end != p.end() {
				t.Errorf("step %d: the log is [%d, %d), %v; the twin ends at %d", step, first, end, err, p.end())
			}
		}
	}
	for n, p := range w.log.partitions {
		all := readAll(t, p.end(), func(offset int64) (eventlog.Batch, error) { return client.Fetch(t.Context(), n, offset) })
		mine := readAll(t, p.end(), func(offset int64) (eventlog.Batch, error) { return w.log.fetch(n, offset, 3) })
		sameRecords(t, -1, mine, all, nil, nil)
		var again []ledger.Record
		must(t, client.Read(t.Context(), n, 1, p.end()-1, func(part []ledger.Record) error {
			for _, r := range part {
				r.Value = append([]byte(nil), r.Value...)
				again = append(again, r)
			}
			return nil
		}))
		sameRecords(t, -2, mine[1:len(mine)-1], again, nil, nil)
		_, errA := w.log.fetch(n, p.end()+1, 1)
		_, errB := client.Fetch(t.Context(), n, p.end()+1)
		if !errors.Is(errA, eventlog.ErrOutOfRange) || !errors.Is(errB, eventlog.ErrOutOfRange) {
			t.Errorf("beyond the end: twin %v, log %v", errA, errB)
		}
	}
}

// journalOf yields parcels once.
type journalOf struct{ parcels []ledger.Parcel }

// Next implements eventlog.Source.
func (j *journalOf) Next(context.Context, int) ([]ledger.Parcel, error) {
	parcels := j.parcels
	j.parcels = nil
	if len(parcels) == 0 {
		return nil, io.EOF
	}
	return parcels, nil
}

// Acked implements eventlog.Source.
func (j *journalOf) Acked(int, uint64) {}

func readAll(t *testing.T, end int64, fetch func(int64) (eventlog.Batch, error)) (all []ledger.Record) {
	t.Helper()
	for offset := int64(0); offset < end; {
		b, err := fetch(offset)
		must(t, err)
		if b.End != end || b.First != 0 {
			t.Fatalf("a batch at %d says the log is [%d, %d)", offset, b.First, b.End)
		}
		all = append(all, b.Records...)
		offset = b.Next
	}
	return all
}

func sameRecords(t *testing.T, step int, have, want []ledger.Record, errA, errB error) {
	t.Helper()
	if (errA == nil) != (errB == nil) || errors.Is(errA, eventlog.ErrOutOfRange) != errors.Is(errB, eventlog.ErrOutOfRange) {
		t.Errorf("step %d: twin says %v, log says %v", step, errA, errB)
		return
	}
	if errA != nil {
		return
	}
	brief := func(list []ledger.Record) (out []string) {
		for _, r := range list {
			out = append(out, fmt.Sprintf("%d/%d %s %s %d %v", r.Partition, r.Offset, r.Value, r.Event.ID, r.Event.Seq, r.Err))
		}
		return out
	}
	if d := cmp.Diff(brief(want), brief(have)); d != "" {
		t.Errorf("step %d: log −, twin +:\n%s", step, d)
	}
}

func parcel(t *testing.T, n int, seq uint64) ledger.Parcel {
	t.Helper()
	user := int64(1)
	for ledger.Partition(user, 2) != n {
		user++
	}
	e := ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindCreditGranted, ID: ledger.ID{'e', byte(n), byte(seq)}, Producer: ledger.ID{'p'}, Seq: seq, Prev: seq - 1,
		Time: 1_800_000_000_000, User: user, Granted: 1,
	}
	value, err := e.Encode(nil)
	must(t, err)
	return ledger.Parcel{Producer: e.Producer, Partition: n, Seq: seq, Prev: seq - 1, ID: e.ID, Kind: e.Kind, User: user, Time: e.Time, Value: value}
}

// The twin of the usage log keeps what the SQL ones keep, whatever is appended twice, late, or by a zombie.
func TestUsageIsTheUsageLog(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { compareUsage(t, "") })
	t.Run("mysql", func(t *testing.T) { compareUsage(t, ledgertest.MySQL(t)) })
}

func compareUsage(t *testing.T, dsn string) {
	store, err := usagelog.Open(t.Context(), usagelog.Config{DSN: dsn, SQLitePath: filepath.Join(t.TempDir(), "usage.db")})
	must(t, err)
	defer store.Close()
	must(t, store.Migrate(t.Context()))
	twin, r := newUsageTwin(), rand.New(rand.NewPCG(3, 4))
	var records []ledger.Record
	for n := range 40 {
		e := ledger.Event{
			Version: ledger.EventVersion, Kind: ledger.KindUsageSettled, ID: ledger.ID{'e', byte(n)}, Producer: ledger.ID{'p'}, Seq: uint64(n + 1), Prev: uint64(n),
			Time: 1_800_000_000_000, User: 1, Token: 10, Channel: 1, Charged: int64(n), Requests: 1,
		}
		if n > 4 && r.IntN(4) == 0 {
			e.ID = ledger.ID{'e', byte(n - 3)} // a copy: a re-drive, or a row of the outbox that was moved twice
		}
		value, err := e.Encode(nil)
		must(t, err)
		record := ledger.Record{Offset: int64(n), Value: value}
		record.Event, record.Err = ledger.Decode(value)
		records = append(records, record)
	}
	for range 30 {
		from := r.IntN(len(records))
		to := from + 1 + r.IntN(len(records)-from)
		b := usagelog.Batch{Position: usagelog.Position{Offset: int64(to), LastEvent: records[to-1].Event.ID, LastOffset: int64(to - 1)}}
		for i := range records[from:to] {
			b.Rows = append(b.Rows, usagelog.RowOf(&records[from+i]))
		}
		must(t, store.Append(t.Context(), b))
		for i := range b.Rows {
			twin.put(&b.Rows[i])
		}
		twin.move(0, b.Position)
		have := twin.position(0)
		want, err := store.Position(t.Context(), 0)
		must(t, err)
		have.At, want.At = time.Time{}, time.Time{}
		if have != want {
			t.Fatalf("twin is at %+v, the usage log at %+v", have, want)
		}
		sums := map[ledger.Account]ledger.Balance{}
		must(t, store.Totals(t.Context(), nil, []int64{have.Offset}, func(a ledger.Account, b ledger.Balance) error { sums[a] = b; return nil }))
		mine := map[ledger.Account]ledger.Balance{}
		for _, row := range twin.rows {
			e, err := ledger.Decode(row.Event)
			must(t, err)
			for _, d := range e.Deltas(nil) {
				mine[d.Account] = mine[d.Account].Plus(d.Balance)
			}
		}
		maps.DeleteFunc(sums, func(_ ledger.Account, b ledger.Balance) bool { return b.IsZero() })
		if d := cmp.Diff(sums, mine); d != "" {
			t.Fatalf("usage log −, twin +:\n%s", d)
		}
	}
}
