package ledger

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIDText(t *testing.T) {
	id := ID{0x01, 0x93, 0xaa, 0xbb, 0xcc, 0xdd, 0x7e, 0xef, 0x80, 1, 2, 3, 4, 5, 6, 0xff}
	const text = "0193aabb-ccdd-7eef-8001-0203040506ff"
	if got := id.String(); got != text {
		t.Errorf("String() = %q, want %q", got, text)
	}
	back, err := ParseID(text)
	if err != nil || back != id {
		t.Errorf("ParseID(%q) = %v, %v", text, back, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", "0193aabb_ccdd-7eef-8001-0203040506ff", "0193aabb-ccdd-7eef-8001-0203040506fg", "0193aabbc-cdd-7eef-8001-0203040506ff"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) gave no error", bad)
		}
	}
}

// TestPartition pins the placement: changing it would tear accounts apart (L5).
func TestPartition(t *testing.T) {
	for user, want := range map[int64]int{1: 4, 2: 1, 7: 2, 42: 7, 1_000_000: 8} {
		if got := Partition(user, 12); got != want {
			t.Errorf("Partition(%d, 12) = %d, want %d", user, got, want)
		}
	}
}

func TestWatermark(t *testing.T) {
	type step struct {
		seq, prev uint64
		want      Sight
	}
	for name, steps := range map[string][]step{
		"in order":                 {{1, 0, SightNew}, {4, 1, SightNew}, {9, 4, SightNew}},
		"a duplicate":              {{1, 0, SightNew}, {1, 0, SightDuplicate}, {4, 1, SightNew}, {1, 0, SightDuplicate}},
		"a hole is filled":         {{1, 0, SightNew}, {9, 4, SightAfterHole}, {4, 1, SightFillsHole}, {4, 1, SightDuplicate}, {9, 4, SightDuplicate}},
		"a hole is filled in part": {{9, 7, SightAfterHole}, {4, 2, SightFillsHole}, {7, 4, SightFillsHole}, {2, 0, SightFillsHole}, {2, 0, SightDuplicate}, {7, 4, SightDuplicate}},
		"two holes":                {{1, 0, SightNew}, {5, 3, SightAfterHole}, {9, 7, SightAfterHole}, {3, 1, SightFillsHole}, {7, 5, SightFillsHole}, {5, 3, SightDuplicate}},
	} {
		t.Run(name, func(t *testing.T) {
			var w Watermark
			for i, s := range steps {
				if got := w.See(s.seq, s.prev); got != s.want {
					t.Fatalf("step %d: See(%d, %d) = %v, want %v", i, s.seq, s.prev, got, s.want)
				}
			}
		})
	}
}

// TestWatermarkRandom delivers a producer's records with losses, repeats and late arrivals: each must count exactly once.
func TestWatermarkRandom(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		type rec struct{ seq, prev uint64 }
		var all, late []rec
		prev := uint64(0)
		for seq := uint64(1); seq < 60; seq++ {
			if rng.IntN(3) > 0 { // the other sequences lie in other partitions
				all = append(all, rec{seq, prev})
				prev = seq
			}
		}
		var w Watermark
		counted := map[uint64]int{}
		see := func(r rec) {
			if w.See(r.seq, r.prev) != SightDuplicate {
				counted[r.seq]++
			}
		}
		for i, r := range all {
			if rng.IntN(6) == 0 {
				late = append(late, r)
				continue
			}
			see(r)
			if rng.IntN(4) == 0 {
				see(all[rng.IntN(i+1)]) // a repeat, or a record of a hole that arrives now
			}
		}
		rng.Shuffle(len(late), func(i, j int) { late[i], late[j] = late[j], late[i] })
		for _, r := range late {
			see(r)
		}
		for _, r := range all {
			if counted[r.seq] != 1 {
				t.Fatalf("seed %d: seq %d counted %d times", seed, r.seq, counted[r.seq])
			}
		}
	}
}

func TestWatermarkBound(t *testing.T) {
	var w Watermark
	seq := uint64(0)
	for range 3 * MaxHoles {
		seq += 10
		w.See(seq, seq-5)
	}
	if len(w.Holes) > MaxHoles {
		t.Errorf("%d holes kept, more than %d (L7)", len(w.Holes), MaxHoles)
	}
	if got := w.See(seq, seq-5); got != SightDuplicate {
		t.Errorf("a duplicate beyond the bound of holes: %v, want SightDuplicate (L2)", got)
	}
}

func TestDeltas(t *testing.T) {
	user, token, channel := Account{UserAccount, 7}, Account{TokenAccount, 8}, Account{ChannelAccount, 9}
	base := Event{User: 7, Token: 8, Channel: 9, Granted: 100, Charged: 30, Requests: 1}
	with := func(k Kind, a AccountKind) *Event { e := base; e.Kind, e.Account = k, a; return &e }
	charge := Balance{Charged: 30, Requests: 1}
	all := Balance{100, 30, 1}
	for name, c := range map[string]struct {
		event *Event
		want  []Delta
	}{
		"settled":       {with(KindUsageSettled, ""), []Delta{{user, charge}, {token, charge}, {channel, charge}}},
		"recovered":     {with(KindUsageRecovered, ""), []Delta{{user, charge}, {token, charge}, {channel, charge}}},
		"adjusted":      {with(KindUsageAdjusted, ""), []Delta{{user, charge}, {token, charge}, {channel, charge}}},
		"credit":        {with(KindCreditGranted, ""), []Delta{{user, Balance{Granted: 100}}}},
		"limit":         {with(KindTokenLimited, TokenAccount), []Delta{{token, Balance{Granted: 100}}}},
		"adopted user":  {with(KindCreditAdopted, UserAccount), []Delta{{user, all}}},
		"adopted token": {with(KindCreditAdopted, TokenAccount), []Delta{{token, all}}},
		"opened":        {with(KindAccountOpened, ChannelAccount), []Delta{{channel, all}}},
		"audit":         {with(KindAudit, ""), nil},
	} {
		if d := cmp.Diff(c.want, c.event.Deltas(nil)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestFold(t *testing.T) {
	a, b := ID{1}, ID{2}
	usage := func(p ID, seq, prev uint64, charged int64) Event {
		return Event{Version: 1, Kind: KindUsageSettled, ID: ID{byte(seq)}, Producer: p, Seq: seq, Prev: prev, User: 7, Charged: charged, Requests: 1}
	}
	credit := func(seq, prev uint64, key string) Event {
		return Event{Version: 1, Kind: KindCreditGranted, ID: ID{9}, Producer: b, Seq: seq, Prev: prev, User: 7, Granted: 50, Key: key}
	}
	redrive := usage(b, 3, 2, 4)
	redrive.Redrive = true
	log := []Event{
		0: usage(a, 1, 0, 10), 1: usage(a, 1, 0, 10), 2: usage(a, 2, 1, 4), 3: credit(1, 0, "k:7"), 4: credit(2, 1, "k:7"), 5: redrive,
	}
	dead := func(_ int, offset int64) DeadState {
		return map[int64]DeadState{2: DeadOriginal, 5: DeadRedriven}[offset]
	}
	f := NewFold(dead)
	counted := make([]bool, 0, len(log))
	for i := range log {
		counted = append(counted, f.Apply(&Record{Offset: int64(i), Event: log[i]}))
	}
	counted = append(counted, f.Apply(&Record{Offset: 6, Err: errors.New("poison")}))
	if d := cmp.Diff([]bool{true, false, false, true, false, true, false}, counted); d != "" {
		t.Errorf("what counted (-want +got):\n%s", d)
	}
	if d := cmp.Diff(Balance{Granted: 50, Charged: 14, Requests: 2}, f.Balance(Account{UserAccount, 7})); d != "" {
		t.Errorf("balance (-want +got):\n%s", d)
	}
}
