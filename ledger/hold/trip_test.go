package hold

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

// trips draws calls from small sets of names, so that they meet in one trip.
type trips struct {
	*rand.Rand
	partitions []int
}

func (r *trips) id(of byte, n int) ledger.ID { return ledger.ID{0: of, 15: byte(r.IntN(n)) + 1} }

func (r *trips) units() int64 {
	if r.IntN(20) == 0 {
		return []int64{MaxUnits, MaxUnits / 3, 1 << 44, 1<<44 + 1}[r.IntN(4)]
	}
	return r.Int64N(12)
}

// epoch is mostly the one that is open.
func (r *trips) epoch() uint64 { return 1 + uint64(r.IntN(15)/14) }

func (r *trips) partition() int { return r.partitions[r.IntN(len(r.partitions))] }

// next makes a call and what asks another implementation the same.
func (r *trips) next() (*call, func(context.Context, Counters) string) {
	hold, inc := r.id('h', 12), r.id('a', 2)
	switch r.IntN(5) {
	case 0, 1:
		c := ledger.ReserveCall{
			Hold: hold, Incarnation: inc, Partition: r.partition(), Epoch: r.epoch(), User: r.Int64N(3) + 1, Token: r.Int64N(4), Want: r.units(),
		}
		c.Min = min(c.Want, r.Int64N(4))
		return reserveCall(&c), func(ctx context.Context, l Counters) string { return told(l.Reserve(ctx, c)) }
	case 2:
		c := ledger.ExtendCall{Hold: hold, Incarnation: inc, Partition: r.partition(), Epoch: r.epoch(), To: r.units()}
		return extendCall(&c), func(ctx context.Context, l Counters) string { return told(l.Extend(ctx, c)) }
	default:
		c := ledger.ReleaseCall{Hold: hold, Incarnation: inc, Partition: r.partition(), Epoch: r.epoch(), Charge: r.units() - 3}
		if r.IntN(30) == 0 {
			c.Charge = 1 << 60
		}
		one := releaseCall(&c)
		return &one, func(ctx context.Context, l Counters) string {
			return told(ledger.ReserveReply{}, l.Release(ctx, []ledger.ReleaseCall{c}))
		}
	}
}

func told(r ledger.ReserveReply, err error) string { return fmt.Sprintf("%+v %v", r, err) }

// contents tells all that some partitions hold of the accounts and incarnations that are drawn.
func (r *trips) contents(t *testing.T, c Counters) string {
	t.Helper()
	var all []string
	var accounts []ledger.Account
	for id := range int64(3) {
		accounts = append(accounts, accountsOf(id+1, id+1)...)
	}
	for _, p := range r.partitions {
		list, err := c.Accounts(t.Context(), p, accounts)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%+v", list))
		for n := range byte(2) {
			holds, err := c.Holds(t.Context(), p, ledger.ID{0: 'a', 15: n + 1})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%+v", holds))
		}
	}
	return strings.Join(all, "\n")
}

// What calls of one trip do is what they do one after the other, by partition.
func TestTripsAreInOrder(t *testing.T) {
	t.Parallel()
	local := NewLocal()
	remote, err := NewRedis(RedisConfig{URL: ledgertest.Redis(t), Prefix: ledgertest.UniqueName("hold") + ":"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = remote.Close() })
	for seed := range 150 {
		r := &trips{rand.New(rand.NewPCG(uint64(seed), 0)), []int{2 * seed, 2*seed + 1}}
		for _, c := range []Counters{local, remote} {
			for _, p := range r.partitions {
				begin(t, c, p)
			}
		}
		for range 8 {
			r.compare(t, seed, local, remote)
		}
	}
}

// begin opens an epoch with accounts that run out, do not, and are not loaded.
func begin(t *testing.T, c Counters, partition int) {
	t.Helper()
	ctx := t.Context()
	if ok, err := c.Begin(ctx, ledger.BeginCall{Partition: partition, Epoch: 1}); !ok || err != nil {
		t.Fatalf("begin: %v, %v", ok, err)
	}
	if ok, err := c.OpenEpoch(ctx, partition, 1, 0); !ok || err != nil {
		t.Fatalf("open: %v, %v", ok, err)
	}
	balances := map[ledger.Account]ledger.Balance{}
	for id, granted := range []int64{1 << 62, 40} {
		for _, a := range accountsOf(int64(id+1), int64(id+1)) {
			balances[a] = ledger.Balance{Granted: granted}
		}
	}
	if err := c.Load(ctx, ledger.LoadCall{Partition: partition, Epoch: 1, Balances: balances}); err != nil {
		t.Fatal(err)
	}
}

// compare makes a trip.
func (r *trips) compare(t *testing.T, seed int, local, remote Counters) {
	t.Helper()
	n := r.IntN(40) + 1
	if r.IntN(10) == 0 {
		n = MaxTrip
	}
	calls := make([]*call, n)
	asks := map[*call]func(context.Context, Counters) string{}
	for i := range calls {
		var ask func(context.Context, Counters) string
		calls[i], ask = r.next()
		asks[calls[i]] = ask
	}
	redis := remote.(*Redis)
	redis.fly(redis.way(0), calls) // sorts them as it packs them
	for i, c := range calls {
		if c.err != nil {
			t.Fatalf("seed %d: call %d: %v", seed, i, c.err)
		}
		got := told(ledger.ReserveReply{}, nil)
		if c.kind == callReserve || c.kind == callExtend {
			got = told(c.reply())
		}
		if want := asks[c](t.Context(), local); got != want {
			t.Fatalf("seed %d: call %d of %d, %c %+v, is answered %s, one by one %s", seed, i, n, c.kind, c.packedCall, got, want)
		}
	}
	if diff := cmp.Diff(r.contents(t, local), r.contents(t, remote)); diff != "" {
		t.Fatalf("seed %d: a trip of %d calls leaves other contents than the same one by one (-one by one +trip):\n%s", seed, n, diff)
	}
}
