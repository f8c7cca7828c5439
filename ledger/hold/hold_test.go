package hold_test

import (
	"testing"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/ledger/ledgertest"
)

func TestLocal(t *testing.T) {
	ledgertest.CountersSuite(t, func(*testing.T) ledgertest.Counters { return hold.NewLocal() })
}

func TestRedis(t *testing.T) {
	ledgertest.CountersSuite(t, func(t *testing.T) ledgertest.Counters { return connect(t, ledgertest.Redis(t)) })
}

// connect returns counters on a server, under keys and channels of the test's own.
func connect(t testing.TB, url string) *hold.Redis {
	t.Helper()
	return connectAs(t, hold.RedisConfig{URL: url, Prefix: ledgertest.UniqueName("hold") + ":"})
}

func connectAs(t testing.TB, cfg hold.RedisConfig) *hold.Redis {
	t.Helper()
	r, err := hold.NewRedis(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestSame holds the twin against a real Redis, step by step.
func TestSame(t *testing.T) {
	t.Parallel()
	const histories = 1000
	local, remote := hold.NewLocal(), connect(t, ledgertest.Redis(t))
	for seed := range uint64(histories) {
		ledgertest.SameCounters(t, seed, int(seed), local, remote)
	}
}

// TestWorld looks for an overspend.
func TestWorld(t *testing.T) {
	t.Parallel()
	local, remote := hold.NewLocal(), connect(t, ledgertest.Redis(t))
	for seed := range uint64(1000) {
		ledgertest.CountersWorld(t, seed, int(seed), local)
	}
	for seed := range uint64(20) {
		ledgertest.CountersWorld(t, seed, int(seed), remote)
	}
}

func TestEditHotAccount(t *testing.T) {
	url, prefix := ledgertest.Redis(t), ledgertest.UniqueName("hold")+":"
	r := connectAs(t, hold.RedisConfig{URL: url, Prefix: prefix})
	open(t, r, 1)
	a := ledger.Account{Kind: ledger.TokenAccount, ID: 3}
	ledgertest.EditHotAccount(t, url, prefix, 0, a, -1, 2)
	list, err := r.Accounts(t.Context(), 0, []ledger.Account{a})
	if err != nil || list[0].Granted != 1<<50-1 || list[0].Charged != 2 {
		t.Fatalf("account %+v, %v", list, err)
	}
}
