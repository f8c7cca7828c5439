package hold_test

import (
	"context"
	"encoding/binary"
	"strconv"
	"sync/atomic"
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
)

const (
	benchPartitions  = 12
	benchUsers       = 50
	benchParallelism = 32 // concurrent requests, as in the measurements of the whole relay
)

// open opens an epoch in every partition and loads the users of each, with a token of the same number.
func open(t testing.TB, c hold.Counters, partitions int) {
	t.Helper()
	for p := range partitions {
		if ok, err := c.Begin(t.Context(), ledger.BeginCall{Partition: p, Epoch: 1}); !ok || err != nil {
			t.Fatalf("begin: %v, %v", ok, err)
		}
		if ok, err := c.OpenEpoch(t.Context(), p, 1, 0); !ok || err != nil {
			t.Fatalf("open: %v, %v", ok, err)
		}
		balances := map[ledger.Account]ledger.Balance{}
		for n := range benchUsers {
			for _, kind := range []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount} {
				balances[ledger.Account{Kind: kind, ID: int64(n + 1)}] = ledger.Balance{Granted: 1 << 50}
			}
		}
		if err := c.Load(t.Context(), ledger.LoadCall{Partition: p, Epoch: 1, Balances: balances}); err != nil {
			t.Fatal(err)
		}
	}
}

// reserveAndRelease does what one request does.
func reserveAndRelease(ctx context.Context, c hold.Counters, partitions int, n uint64) error {
	id := ledger.ID{15: 1}
	binary.BigEndian.PutUint64(id[:8], n+1)
	call := ledger.ReserveCall{
		Hold: id, Incarnation: ledger.ID{1}, Partition: int(n % uint64(partitions)), Epoch: 1,
		User: int64(n%benchUsers + 1), Token: int64(n%benchUsers + 1), Min: 10, Want: 100,
	}
	if _, err := c.Reserve(ctx, call); err != nil {
		return err
	}
	return c.Release(ctx, []ledger.ReleaseCall{{
		Hold: id, Incarnation: call.Incarnation, Partition: call.Partition, Epoch: 1, Charge: 50,
	}})
}

func benchmark(b *testing.B, c hold.Counters, partitions int) {
	open(b, c, partitions)
	var next atomic.Uint64
	b.ReportAllocs()
	b.SetParallelism(benchParallelism)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := reserveAndRelease(b.Context(), c, partitions, next.Add(1)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkLocal and BenchmarkRedis measure a reserve and its release, at 32 requests at once on each processor.
func BenchmarkLocal(b *testing.B) { benchmark(b, hold.NewLocal(), benchPartitions) }

func BenchmarkRedis(b *testing.B) {
	for _, partitions := range []int{1, benchPartitions} {
		b.Run(strconv.Itoa(partitions)+"-partitions", func(b *testing.B) {
			r := connect(b, ledgertest.Redis(b))
			benchmark(b, r, partitions)
			s := r.Stats()
			b.ReportMetric(float64(s.Calls)/float64(s.Trips), "calls/trip")
		})
	}
}

// BenchmarkApply measures bringing 10,000 accounts forward in one script.
func BenchmarkApply(b *testing.B) {
	for name, c := range map[string]hold.Counters{"local": hold.NewLocal(), "redis": connect(b, ledgertest.Redis(b))} {
		b.Run(name, func(b *testing.B) { benchmarkApply(b, c) })
	}
}

func benchmarkApply(b *testing.B, c hold.Counters) {
	const accounts = 10_000
	ctx := b.Context()
	epoch := uint64(1)
	states, err := c.State(ctx, 0)
	if err != nil {
		b.Fatal(err)
	}
	epoch += states[0].Epoch
	if ok, err := c.Begin(ctx, ledger.BeginCall{Epoch: epoch}); !ok || err != nil {
		b.Fatalf("begin: %v, %v", ok, err)
	}
	if ok, err := c.OpenEpoch(ctx, 0, epoch, 0); !ok || err != nil {
		b.Fatalf("open: %v, %v", ok, err)
	}
	load := ledger.LoadCall{Epoch: epoch, Balances: map[ledger.Account]ledger.Balance{}}
	sums := make([]ledger.Sum, accounts)
	for n := range sums {
		a := ledger.Account{Kind: ledger.UserAccount, ID: int64(n + 1)}
		load.Balances[a] = ledger.Balance{Granted: 1 << 50}
		sums[n] = ledger.Sum{Account: a, Charged: 5, Settled: 5}
	}
	if err := c.Load(ctx, load); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	at := int64(0)
	for b.Loop() {
		reply, err := c.Apply(ctx, ledger.ApplyCall{Epoch: epoch, From: at, To: at + 1, Sums: sums})
		if err != nil || reply.Done != at+1 {
			b.Fatalf("apply at %d: %+v, %v", at, reply, err)
		}
		at++
	}
}
