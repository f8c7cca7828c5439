package main

import (
	"bytes"
	"io"
	"testing"
)

// The database that growth is measured on is one that a start takes over: every user and token gets an account, and the keys are those
// that the load uses.
func TestGrownDatabase(t *testing.T) {
	const users, tokens, channels = 5, 7, 3
	b := &bench{dir: t.TempDir(), getenv: func(string) string { return "" }, out: &bytes.Buffer{}, errs: io.Discard, upstream: &child{url: "http://127.0.0.1:1"}}
	b.o.concurrency = 1
	env, err := b.grownDatabase(t.Context(), "grown", users, tokens, channels)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := loadConfig(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(t.Context(), cfg, wholeNode, discardLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	db, err := openBench(env)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, want := range map[string]int{
		"SELECT COUNT(*) FROM users WHERE id >= 1000":                                                         users,
		"SELECT COUNT(*) FROM ledger_accounts WHERE kind = 'user' AND slot = 0 AND id >= 1000":                users,
		"SELECT COUNT(*) FROM ledger_accounts WHERE kind = 'token' AND slot = 0 AND id >= 1000":               tokens,
		"SELECT COUNT(*) FROM abilities WHERE model = '" + demoModel + "'":                                    channels,
		"SELECT COUNT(*) FROM tokens WHERE `key` = '" + benchKey(tokens) + "' AND user_id = 1001 AND id=1006": 1,
	} {
		var got int
		if err := db.QueryRowContext(t.Context(), query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", query, got, err, want)
		}
	}
	for _, bad := range []string{"0", "x", "1,-2"} {
		if _, err := sizes("growth: -accounts", bad); err == nil {
			t.Errorf("sizes %q are taken", bad)
		}
	}
}
