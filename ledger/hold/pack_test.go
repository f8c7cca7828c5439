package hold

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"ledgerline/ledger"
)

func FuzzDecodeHold(f *testing.F) {
	h := ledger.OpenHold{Hold: ledger.ID{1, 2, 3}, Incarnation: ledger.ID{4}, User: 7, Token: 9, Amount: math.MaxInt64}
	f.Add(string(h.Hold[:]), string(encodeHold(&h)))
	h.Token = 0
	f.Add(string(h.Hold[:]), string(encodeHold(&h)))
	f.Add("", "")
	f.Fuzz(func(t *testing.T, id, value string) {
		got, err := decodeHold(h.Incarnation, id, value)
		if err != nil {
			if !errors.Is(err, errBadRecord) {
				t.Fatalf("error %v", err)
			}
			return
		}
		again, err := decodeHold(h.Incarnation, string(got.Hold[:]), string(encodeHold(&got)))
		if err != nil || again != got {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add("")
	f.Add(strings.Repeat("\xff", recordBytes))
	f.Fuzz(func(t *testing.T, record string) {
		a, err := decodeRecord(record)
		if (err == nil) != (record == "" || len(record) == recordBytes) {
			t.Fatalf("%d bytes: %+v, %v", len(record), a, err)
		}
		if err != nil || record == "" {
			return
		}
		var b []byte
		for _, v := range []int64{a.granted, a.charged, a.settled, a.held, a.open, a.at} {
			b = appendInt64(b, v)
		}
		if string(b) != record {
			t.Fatalf("%x became %x", record, b)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	id := ledger.ID{1}.String()
	f.Add("5", "1", "10", "9", "0", id, "mrd")
	f.Add("x", "1", "10", "9", "0", id, "m")
	f.Add("5", "1", "10", "9", "1", "me", "m")
	f.Fuzz(func(t *testing.T, epoch, open, floor, done, foreign, inc, flags string) {
		s, err := decodeState(3, []any{epoch, open, floor, done, foreign, inc, flags})
		if err == nil && (!s.Present || s.Partition != 3) {
			t.Fatalf("state %+v", s)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add("\x00", "")
	f.Add("\x02\x00\x00\x00\x00\x00\x00\x14\xc0\x01", "u7\x00t9\x00")
	f.Add("\x04\x00\x00\x00\x00\x00\x00\x08\x40\x00", "\x00\x00")
	f.Add("\x0a", "x")
	f.Fuzz(func(t *testing.T, head, tail string) {
		a, rest, err := readAnswer(head+tail, &packedCall{kind: callReserve, y: 5})
		if err != nil {
			return
		}
		if len(rest) >= len(head)+len(tail) {
			t.Fatalf("%d bytes are left of %d", len(rest), len(head)+len(tail))
		}
		user, token, err := a.accounts()
		if err != nil {
			return
		}
		r, err := a.reply(user, token)
		if err == nil && (r.Outcome < ledger.OutcomeGranted || r.Outcome > ledger.OutcomeGone) {
			t.Fatalf("reply %+v", r)
		}
	})
}

// What is available is exact in all of int64, where the differences on the way are not.
func TestAvailable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	draw := func() int64 {
		switch rnd.IntN(4) {
		case 0:
			return rnd.Int64N(100) - 50
		case 1:
			return []int64{math.MaxInt64, math.MinInt64, MaxUnits, -MaxUnits, 1 << 53, 1<<32 - 1, 1 << 32}[rnd.IntN(7)]
		case 2:
			return int64(rnd.Uint64())
		}
		return rnd.Int64N(1<<54) - 1<<53
	}
	for range 100_000 {
		a := account{granted: draw(), charged: draw(), settled: draw(), held: draw()}
		want := big.NewInt(a.granted)
		for _, v := range []int64{a.charged, a.settled, a.held} {
			want.Sub(want, big.NewInt(v))
		}
		if limit := big.NewInt(MaxUnits); want.Cmp(limit) > 0 {
			want = limit
		} else if limit := big.NewInt(-MaxUnits); want.Cmp(limit) < 0 {
			want = limit
		}
		if got := a.available(); got != want.Int64() {
			t.Fatalf("%+v has %d available, want %s", a, got, want)
		}
	}
}

func TestOldVersions(t *testing.T) {
	for version, old := range map[string]bool{
		"6.2.0": false, "7.0.15": false, "10.1.2": false, "6.2": false, "6.0.16": true, "5.0.14": true, "": true, "x.y.z": true, "7": true,
	} {
		if olderThan(version, 6, 2) != old {
			t.Errorf("%q is old: %v, want %v", version, !old, old)
		}
	}
}

func TestSplitHosts(t *testing.T) {
	for _, c := range []struct{ url, first, others string }{
		{"redis://a:1", "redis://a:1", ""},
		{"redis://a:1,b:2,c:3/4", "redis://a:1/4", "b:2 c:3"},
		{"rediss://u:p,w@a:1,b:2?protocol=3", "rediss://u:p,w@a:1?protocol=3", "b:2"},
		{"unix:///run/a,b.sock", "unix:///run/a,b.sock", ""},
		{"a:1,b:2", "a:1,b:2", ""},
	} {
		first, others := splitHosts(c.url)
		if first != c.first || strings.Join(others, " ") != c.others {
			t.Errorf("%s became %s and %v", c.url, first, others)
		}
	}
}
