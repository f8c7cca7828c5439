package hold_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
)

// Partitions that are looked at together, in one call or in several at about the same time, are one question to the server, and each
// gets its own answer.
func TestStatesShareATrip(t *testing.T) {
	const partitions, rounds = 12, 50
	server := ledgertest.StartRedis(t)
	r, admin := connect(t, server.RedisURL()), raw(t, server.RedisURL())
	var all []int
	for p := range partitions {
		if ok, err := r.Begin(t.Context(), ledger.BeginCall{Partition: p, Epoch: uint64(100 + p), Offset: int64(p)}); !ok || err != nil {
			t.Fatalf("begin: %v, %v", ok, err)
		}
		all = append(all, p)
	}
	scripts := func() int {
		t.Helper()
		text, err := admin.Info(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(text, "cmdstat_evalsha:calls=")
		count, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(count)
		if err != nil {
			t.Fatalf("the server does not count scripts: %v", err)
		}
		return n
	}
	look := func(want []int) {
		states, err := r.State(t.Context(), want...)
		if err != nil || len(states) != len(want) {
			t.Errorf("%d states, %v", len(states), err)
			return
		}
		for i, p := range want {
			if s := states[i]; s.Partition != p || s.Epoch != uint64(100+p) || s.Done != int64(p) {
				t.Errorf("partition %d has the state %+v", p, s)
			}
		}
	}
	look(all) // the script is known from here on
	before := scripts()
	look(all)
	if n := scripts() - before; n != 1 {
		t.Errorf("%d scripts for one call, want 1", n)
	}
	before = scripts()
	for range rounds {
		var together sync.WaitGroup
		for p := range partitions {
			together.Go(func() { look([]int{p}) })
		}
		together.Wait()
	}
	if n := scripts() - before; n > rounds*partitions/2 {
		t.Errorf("%d scripts for %d looks, want at most half as many", n, rounds*partitions)
	}
}

// A server of a cluster that hangs does not keep the others' partitions waiting, even if they look at the same time
// as others look at its partitions.
func TestStatesOfAHangingServer(t *testing.T) {
	t.Parallel()
	const partitions, slots, servers = 12, 16384, 3
	all, url := ledgertest.StartRedisCluster(t, "--cluster-require-full-coverage", "no")
	r, first := connect(t, url), raw(t, "redis://"+all[0].Addr)
	hangs := map[int]bool{}
	for p := range partitions {
		if ok, err := r.Begin(t.Context(), ledger.BeginCall{Partition: p, Epoch: uint64(100 + p), Offset: int64(p)}); !ok || err != nil {
			t.Fatalf("begin: %v, %v", ok, err)
		}
		slot, err := first.ClusterKeySlot(t.Context(), fmt.Sprintf("{p%d}", p)).Result()
		if err != nil {
			t.Fatal(err)
		}
		hangs[p] = slot < slots/servers
	}
	ctx, cancel := context.WithTimeout(t.Context(), hold.ControlTimeout/2)
	defer cancel()
	all[0].Freeze()
	defer all[0].Thaw()
	var together sync.WaitGroup
	for p := range partitions {
		together.Go(func() {
			if _, err := r.State(ctx, p); (err != nil) != hangs[p] {
				t.Errorf("partition %d, whose server hangs: %v: %v", p, hangs[p], err)
			}
		})
	}
	together.Wait()
}

// Reserves and releases of the other servers' partitions go on as well.
func TestCallsBesideAHangingServer(t *testing.T) {
	t.Parallel()
	const slots, servers = 16384, 3
	all, url := ledgertest.StartRedisCluster(t, "--cluster-require-full-coverage", "no")
	r, first := connect(t, url), raw(t, "redis://"+all[0].Addr)
	open(t, r, benchPartitions)
	hangs := map[uint64]bool{}
	for p := range uint64(benchPartitions) {
		slot, err := first.ClusterKeySlot(t.Context(), fmt.Sprintf("{p%d}", p)).Result()
		if err != nil {
			t.Fatal(err)
		}
		hangs[p] = slot < slots/servers
	}
	all[0].Freeze()
	defer all[0].Thaw()
	var together sync.WaitGroup
	for p := range uint64(benchPartitions) {
		together.Go(func() {
			for round := range uint64(20) {
				err := reserveAndRelease(t.Context(), r, benchPartitions, round*benchPartitions+p)
				if (err != nil) != hangs[p] {
					t.Errorf("partition %d, whose server hangs: %v: %v", p, hangs[p], err)
				}
				if hangs[p] {
					return
				}
			}
		})
	}
	together.Wait()
}

// A server that hangs holds up a look for as long as its caller allows, also if it is the caller's turn to ask for all: a node has other duties,
// and one that did not beat meanwhile would be given up.
func TestStateEndsInTime(t *testing.T) {
	server := ledgertest.StartRedis(t)
	r := connect(t, server.RedisURL())
	if _, err := r.State(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	server.Freeze()
	defer server.Thaw()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := r.State(ctx, 0, 1)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the state of a server that hangs: %v, want the caller's deadline", err)
		}
	}
}
