package journal

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

var update = flag.Bool("update", false, "rewrite golden files")

var (
	testProducer = ledger.ID{0x01, 0x98, 15: 0x07}
	testHeader   = segmentHeader{Index: 3, Created: 1_700_000_000_000, Highest: 41, Last: []uint64{40, 0, 41}}
)

// testRecords is one record of each kind, and an event that settles no hold.
func testRecords() []record {
	return []record{
		{
			Kind: kindOpen, Hold: ledger.ID{15: 1}, Epoch: 9, User: 7, At: 5, Slot: 2, Amount: 1000, Token: 8, TokenHeld: true,
			Payload: []byte(`{"request":{"id":"r1"},"rating":{}}`),
		},
		{
			Kind: kindEvent, Hold: ledger.ID{15: 1}, Epoch: 9, User: 7, At: 6, ID: ledger.ID{15: 2}, Seq: 42, Prev: 41, Charge: 12, Made: 4,
			EventKind: ledger.KindUsageSettled, Payload: []byte(`{"v":1}`),
		},
		{Kind: kindVoid, Hold: ledger.ID{15: 3}, Epoch: 10, User: 7, At: 7},
		{
			Kind: kindEvent, User: 1, At: 8, ID: ledger.ID{15: 4}, Seq: 43, Prev: 0, Made: 4,
			EventKind: ledger.KindCreditGranted, Payload: []byte(`{"v":1,"kind":"credit.granted"}`),
		},
	}
}

// buildSegment makes a segment file of records, two to a batch.
func buildSegment(records []record) []byte {
	data := testHeader.encode(testProducer)
	salt := segmentSalt(testProducer, testHeader.Index)
	batch := 0
	for i := range records {
		if i%2 == 0 {
			batch = len(data)
		}
		start := len(data)
		data = append(data, make([]byte, frameHeader)...)
		data, _ = records[i].append(data)
		sealFrame(data[start:], salt, int64(start), int64(batch))
	}
	return data
}

// TestFormat pins the bytes on the disk: another version of the program has to read them.
func TestFormat(t *testing.T) {
	got := hex.Dump(buildSegment(testRecords()))
	golden := filepath.Join("testdata", "segment.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Fatalf("the format on the disk has changed (-want +got):\n%s", d)
	}
}

func TestSegmentRoundTrip(t *testing.T) {
	want := testRecords()
	data := buildSegment(want)
	head, start, err := decodeSegmentHeader(data, testProducer)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(testHeader, head); d != "" {
		t.Fatal(d)
	}
	var got []record
	gaps, err := walkFrames(data[start:], segmentSalt(testProducer, 3), start, func(f frame) error {
		r, err := decodeRecord(f.Body)
		got = append(got, r)
		return err
	})
	if err != nil || len(gaps) > 0 {
		t.Fatal(gaps, err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(record{}), cmp.Transformer("text", func(b []byte) string { return string(b) })); d != "" {
		t.Fatal(d)
	}
}

// TestFrameCountsAtItsPlaceOnly: a frame copied elsewhere, to another segment or another journal, is none.
func TestFrameCountsAtItsPlaceOnly(t *testing.T) {
	data := buildSegment(testRecords()[:1])
	at := headerBytes(3)
	salt := segmentSalt(testProducer, 3)
	if _, err := decodeFrame(data[at:], salt, at); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"offset":      second(decodeFrame(data[at:], salt, at+1)),
		"segment":     second(decodeFrame(data[at:], segmentSalt(testProducer, 4), at)),
		"incarnation": second(decodeFrame(data[at:], segmentSalt(ledger.ID{1}, 3), at)),
	} {
		if err == nil {
			t.Errorf("a frame counts at another %s", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestTornOrDamaged: what lies in the last batch is torn, what was followed by another batch was durable.
func TestTornOrDamaged(t *testing.T) {
	data := buildSegment(testRecords())
	salt, start := segmentSalt(testProducer, 3), headerBytes(3)
	var at []int64
	walk := func(b []byte) []gap {
		at = nil
		gaps, _ := walkFrames(b[start:], salt, start, func(f frame) error { at = append(at, f.Offset); return nil })
		return gaps
	}
	walk(data)
	offsets := append([]int64(nil), at...)
	for i, durable := range []bool{true, true, false, false} { // two frames a batch
		b := bytes.Clone(data)
		b[offsets[i]+frameHeader+3] ^= 1
		gaps := walk(b)
		if len(gaps) != 1 || gaps[0].From != offsets[i] || gaps[0].Durable != durable || len(at) != 3 {
			t.Errorf("frame %d: %+v, %d frames left", i, gaps, len(at))
		}
	}
}

func FuzzSegment(f *testing.F) {
	whole := buildSegment(testRecords())
	f.Add(whole, uint(0), byte(0))
	f.Add(whole, uint(200), byte(1))
	f.Add(whole[:len(whole)-5], uint(90), byte(0))
	f.Add([]byte(segmentMagic), uint(0), byte(0))
	f.Add(append(bytes.Clone(whole), whole...), uint(300), byte(7))
	blank := append(bytes.Clone(whole), make([]byte, 600)...)
	f.Add(blank, uint(0), byte(0))
	f.Add(blank, uint(len(whole)-3), blank[len(whole)-3])
	f.Add(append(blank, 0xFF), uint(len(whole)), byte(0xFF))
	f.Fuzz(func(t *testing.T, data []byte, at uint, flip byte) {
		data = bytes.Clone(data)
		if int(at%(1<<20)) < len(data) {
			data[at%(1<<20)] ^= flip
		}
		start := headerBytes(3)
		if _, n, err := decodeSegmentHeader(data, testProducer); err == nil {
			start = n
		}
		start = min(start, int64(len(data)))
		pos := start
		type stretch struct{ from, to int64 }
		var frames []stretch
		gaps, err := walkFrames(data[start:], segmentSalt(testProducer, 3), start, func(fr frame) error {
			frames = append(frames, stretch{fr.Offset, fr.end()})
			r, err := decodeRecord(fr.Body)
			if err != nil {
				return nil
			}
			if again, _ := r.append(nil); !bytes.Equal(again, fr.Body) && r.Kind != kindOpen { // held is any byte but 0
				t.Errorf("record reads as %+v, which is written differently", r)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for len(frames)+len(gaps) > 0 { // they cover everything, once
			switch {
			case len(frames) > 0 && frames[0].from == pos:
				pos, frames = frames[0].to, frames[1:]
			case len(gaps) > 0 && gaps[0].From == pos:
				pos, gaps = gaps[0].To, gaps[1:]
			default:
				t.Fatalf("nothing begins at %d: frames %v, gaps %v", pos, frames, gaps)
			}
		}
		if pos != int64(len(data)) {
			t.Fatalf("covered to %d of %d", pos, len(data))
		}
	})
}

func FuzzRecord(f *testing.F) {
	for _, r := range testRecords() {
		b, _ := r.append(nil)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRecord(body)
		if err != nil {
			return
		}
		if again, _ := r.append(nil); !bytes.Equal(again, body) && r.Kind != kindOpen {
			t.Errorf("%x reads as %+v, which is written %x", body, r, again)
		}
		if r.Kind == kindOpen {
			_, _ = r.open()
		}
	})
}
