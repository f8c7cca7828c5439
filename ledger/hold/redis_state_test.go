package hold_test

import (
	"strconv"
	"strings"
	"sync"
	"testing"

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
		if ok, err := r.Begin(t.Context(), p, uint64(100+p), int64(p)); !ok || err != nil {
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
