package ledgertest_test

import (
	"ledgerline/ledger/ledgertest"
	"testing"
)

func TestShared(t *testing.T) {
	t.Log(ledgertest.Redis(t))
	t.Log(ledgertest.Redis(t))
	t.Log(ledgertest.MySQL(t))
	t.Log(ledgertest.ClickHouse(t))
	t.Log(ledgertest.KafkaTopic(t, 4))
}
