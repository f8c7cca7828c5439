package hold_test

import (
	"testing"

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
	r, err := hold.NewRedis(hold.RedisConfig{URL: url, Prefix: ledgertest.UniqueName("hold") + ":"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}
