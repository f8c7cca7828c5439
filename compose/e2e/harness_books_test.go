package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	_ "github.com/go-sql-driver/mysql" // the cluster's database
	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/hold"
	"ledgerline/relay/relaytest"
)

// partitions is KAFKA_PARTITIONS of every site.
const partitions = 4

// books reads what the stores say, from outside: plain SQL, and Redis's own figures.
type books struct {
	t          testing.TB
	site       *site
	db         *sql.DB // MySQL or SQLite
	usage      *sql.DB // ClickHouse, MySQL or SQLite
	clickhouse bool
	judged     []finding   // what the last comparison of bills found
	hot        *hold.Redis // nil when the counters live in the node
}

func openBooks(s *site) *books {
	s.t.Helper()
	b := &books{t: s.t, site: s}
	var err error
	if s.embedded {
		const readers = "?_pragma=busy_timeout(30000)"
		data := filepath.Join(s.nodes[0].dir, "data")
		b.db = b.sql(sql.Open("sqlite", "file:"+filepath.Join(data, "ledgerline.db")+readers))
		b.usage = b.sql(sql.Open("sqlite", "file:"+filepath.Join(data, "usage.db")+readers))
		return b
	}
	b.db = b.sql(sql.Open("mysql", s.env["SQL_DSN"]))
	switch dsn := s.env["LOG_SQL_DSN"]; {
	case dsn == "":
		b.usage = b.db
	case strings.Contains(dsn, "@tcp("):
		b.usage = b.sql(sql.Open("mysql", dsn))
	default:
		options, err := clickhouse.ParseDSN(dsn)
		if err != nil {
			s.t.Fatal(err)
		}
		b.usage, b.clickhouse = b.sql(clickhouse.OpenDB(options), nil), true
	}
	if b.hot, err = hold.NewRedis(hold.RedisConfig{URL: s.env["REDIS_CONN_STRING"], MasterName: s.env["REDIS_MASTER_NAME"]}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = b.hot.Close() })
	return b
}

func (b *books) sql(db *sql.DB, err error) *sql.DB {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = db.Close() })
	return db
}

// exec changes a row behind the program's back and requires that it did.
func (b *books) exec(statement string, args ...any) {
	b.t.Helper()
	if _, err := b.db.ExecContext(b.t.Context(), statement, args...); err != nil {
		b.t.Fatalf("%s: %v", statement, err)
	}
}

// number reads one figure.
func (b *books) number(query string, args ...any) (n int64) {
	b.t.Helper()
	if err := b.db.QueryRowContext(b.t.Context(), query, args...).Scan(&n); err != nil {
		b.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// billed is a row of the usage log.
type billed struct {
	user, token, channel, quota, requests, prompt, completion int64
	created                                                   int64 // Unix seconds
	kind                                                      string
}

// bills returns the usage log's rows by request id.
func (b *books) bills() (map[string]billed, error) {
	final := ""
	if b.clickhouse {
		final = " FINAL"
	}
	rows, err := b.usage.QueryContext(b.t.Context(), "SELECT request_id, user_id, token_id, channel_id, quota, requests, prompt_tokens, completion_tokens, created_at, kind FROM ledger_usage"+
		final+" WHERE kind IN ('usage.settled', 'usage.recovered')")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]billed{}
	for rows.Next() {
		var id string
		var r billed
		if err := rows.Scan(&id, &r.user, &r.token, &r.channel, &r.quota, &r.requests, &r.prompt, &r.completion, &r.created, &r.kind); err != nil {
			return nil, err
		}
		if _, twice := out[id]; twice {
			return nil, fmt.Errorf("request %s is billed twice", id)
		}
		out[id] = r
	}
	return out, rows.Err()
}

// served is what the upstream says of a request: of its attempts, the one that was answered.
func (b *books) served() map[string]servedRequest {
	out := map[string]servedRequest{}
	records, err := relaytest.ReadOracle(b.site.upstream.OraclePath()) // all of them: memory keeps the newest
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range records {
		if r.Status == 200 {
			out[r.Request] = servedRequest{user: r.User, prompt: r.Prompt, completion: r.Completion, model: r.Model, finished: r.Finished}
		}
	}
	return out
}

type servedRequest struct {
	user, model        string
	prompt, completion int64
	finished           bool // and so the upstream's own figures went out
}

// frameTokens is what the tokenizer sees around a message, and in it, beyond the estimate: it counts a prompt when an upstream
// dies, or the client leaves, before the upstream has said what it read.
const frameTokens = 8

// total is what an account is said to have.
type total struct{ Left, Charged, Requests int64 }

// settled waits until the stores are at rest and have every request that a client knows of, and compares all figures with the
// oracle: each bill, and per user, key and channel every column of every store.
func (b *books) settled(saw []seen, accounts ...*account) {
	b.t.Helper()
	var bills map[string]billed
	eventually(b.t, "the stores have every request and agree", func() (err error) {
		for _, n := range b.site.nodes {
			if err := n.atRest(); err != nil {
				return err
			}
		}
		if bills, err = b.bills(); err != nil {
			return err
		}
		for _, s := range saw {
			if _, there := bills[s.id]; !there {
				return fmt.Errorf("request %s is not in the usage log (%d are, the clients saw %d)", s.id, len(bills), len(saw))
			}
		}
		return b.compareColumns(sums(bills, accounts))
	})
	b.compareBills(bills, b.served(), saw)
}

// settledSums is settled for more requests than memory should hold, all of which came to their end: what each account's must
// have cost is what the usage log has of them, each once, and what every store says.
func (b *books) settledSums(of map[*account]spent) {
	b.t.Helper()
	want := map[ledger.Account]total{}
	channels := map[int64]total{}
	eventually(b.t, "the stores have every request and agree", func() error {
		for _, n := range b.site.nodes {
			if err := n.atRest(); err != nil {
				return err
			}
		}
		clear(channels)
		for u, sum := range of {
			var got spent
			var ids, channel int64
			final := ""
			if b.clickhouse {
				final = " FINAL"
			}
			err := b.usage.QueryRowContext(b.t.Context(), "SELECT COUNT(*), COUNT(DISTINCT request_id), MAX(channel_id), SUM(quota), SUM(prompt_tokens), SUM(completion_tokens) FROM ledger_usage"+
				final+" WHERE kind = 'usage.settled' AND user_id = ? AND token_id = ?", u.user, u.token).
				Scan(&got.Requests, &ids, &channel, &got.Quota, &got.Prompt, &got.Completion)
			if err != nil {
				return err
			}
			if got != sum || ids != sum.Requests {
				return fmt.Errorf("the usage log has %+v of %s, %d different ones; the clients saw %+v", got, u.name, ids, sum)
			}
			want[ledger.Account{Kind: ledger.UserAccount, ID: u.user}] = total{u.granted - sum.Quota, sum.Quota, sum.Requests}
			want[ledger.Account{Kind: ledger.TokenAccount, ID: u.token}] = total{u.limit - sum.Quota, sum.Quota, sum.Requests}
			ch := channels[channel]
			channels[channel] = total{ch.Left - sum.Quota, ch.Charged + sum.Quota, ch.Requests + sum.Requests}
		}
		for id, sum := range channels {
			want[ledger.Account{Kind: ledger.ChannelAccount, ID: id}] = sum
		}
		return b.compareColumns(want)
	})
}

// atRest reports what a node still has to do, if it runs.
func (n *node) atRest() error {
	if n.process == nil || !n.running() {
		return nil
	}
	for _, name := range []string{"ledgerline_desk_open_requests", "ledgerline_desk_release_queue", "ledgerline_desk_journals_adopted"} {
		if v := n.metric(name); v != 0 {
			return fmt.Errorf("%s: %s is %v", n.name, name, v)
		}
	}
	return nil
}

// compareBills holds every bill against what the upstream served and what the client got.
func (b *books) compareBills(bills map[string]billed, served map[string]servedRequest, saw []seen) {
	b.t.Helper()
	clients := make(map[string]seen, len(saw))
	for _, s := range saw {
		clients[s.id] = s
	}
	b.judged = b.judged[:0]
	for id, bill := range bills {
		up, known := served[id]
		if !known {
			if bill.quota != 0 {
				b.t.Errorf("request %s is billed %d and the upstream knows nothing of it", id, bill.quota)
			}
			continue
		}
		if bill.kind == "usage.recovered" {
			b.t.Logf("recovered: request %s, charged %d, the client got %d tokens, the upstream produced %d", id, bill.quota, clients[id].chunks, up.completion)
		}
		v := finding{when: time.Unix(bill.created, 0), recovered: bill.kind == "usage.recovered"}
		// Who was cut may have been billed by a count: that the upstream sent its figures to the end does not say that they were read.
		least, most := int64(0), price(up.prompt+frameTokens, up.completion)
		c, answered := clients[id]
		if answered {
			v.when = c.ended
		}
		if c.whole && up.finished {
			most = price(up.prompt, up.completion)
		}
		if c.chunks > 0 {
			least = price(up.prompt, c.chunks)
		}
		v.exact = least == most
		b.judged = append(b.judged, v)
		if bill.quota < least || bill.quota > most {
			b.t.Errorf("request %s (%s) is billed %d; the client got %d, the upstream produced %d (%+v)", id, bill.kind, bill.quota, least, most, up)
		}
	}
	b.t.Log(tallied(b.judged))
}

// finding is how a bill was found to be. A wrong one fails the test.
type finding struct {
	when      time.Time // the client had its answer, or as much as it got
	exact     bool      // it equals what the upstream served; else it lies between what the client got and the upstream produced
	recovered bool      // from the journal of a node that had died
}

// findings counts bills by how they were found to be. What is recovered may be exact or not.
type findings struct{ exact, bounded, recovered int }

func (n *findings) add(v finding) {
	if v.exact {
		n.exact++
	} else {
		n.bounded++
	}
	if v.recovered {
		n.recovered++
	}
}

func tallied(all []finding) (n findings) {
	for _, v := range all {
		n.add(v)
	}
	return n
}

func (n findings) String() string {
	return fmt.Sprintf("%d bills are exact, %d lie between what a client got that was cut off and what the upstream produced; %d were recovered from journals",
		n.exact, n.bounded, n.recovered)
}

// sums adds bills up per user, key and channel.
func sums(bills map[string]billed, accounts []*account) map[ledger.Account]total {
	want := map[ledger.Account]total{}
	for _, u := range accounts {
		want[ledger.Account{Kind: ledger.UserAccount, ID: u.user}] = total{Left: u.granted}
		want[ledger.Account{Kind: ledger.TokenAccount, ID: u.token}] = total{Left: u.limit}
	}
	for _, bill := range bills {
		for _, a := range []ledger.Account{
			{Kind: ledger.UserAccount, ID: bill.user}, {Kind: ledger.TokenAccount, ID: bill.token}, {Kind: ledger.ChannelAccount, ID: bill.channel},
		} {
			if t := want[a]; a.ID != 0 {
				want[a] = total{t.Left - bill.quota, t.Charged + bill.quota, t.Requests + bill.requests}
			}
		}
	}
	return want
}

// compareColumns holds every figure that the stores keep per account against what it must be.
func (b *books) compareColumns(want map[ledger.Account]total) error {
	return errors.Join(b.columns(want), b.truth(want), b.counters(want))
}

// columns compares New API's columns.
func (b *books) columns(want map[ledger.Account]total) error {
	for a, w := range want {
		var got total
		var err error
		switch a.Kind {
		case ledger.UserAccount:
			err = b.db.QueryRowContext(b.t.Context(), "SELECT quota, used_quota, request_count FROM users WHERE id = ?", a.ID).Scan(&got.Left, &got.Charged, &got.Requests)
		case ledger.TokenAccount:
			got.Requests = w.Requests
			err = b.db.QueryRowContext(b.t.Context(), "SELECT remain_quota, used_quota FROM tokens WHERE id = ?", a.ID).Scan(&got.Left, &got.Charged)
		case ledger.ChannelAccount:
			got.Left, got.Requests = w.Left, w.Requests
			err = b.db.QueryRowContext(b.t.Context(), "SELECT used_quota FROM channels WHERE id = ?", a.ID).Scan(&got.Charged)
		}
		if err != nil {
			return fmt.Errorf("columns of %v: %w", a, err)
		}
		if got != w {
			return fmt.Errorf("columns of %v (-want +got):\n%s", a, cmp.Diff(w, got))
		}
	}
	return nil
}

// truth compares ledger_accounts.
func (b *books) truth(want map[ledger.Account]total) error {
	got := map[string]total{}
	rows, err := b.db.QueryContext(b.t.Context(), "SELECT kind, id, SUM(granted), SUM(charged), SUM(requests) FROM ledger_accounts GROUP BY kind, id")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var kind string
		var id, granted, charged, requests int64
		if err := rows.Scan(&kind, &id, &granted, &charged, &requests); err != nil {
			return err
		}
		got[fmt.Sprint(kind, "/", id)] = total{granted - charged, charged, requests}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for a, w := range want {
		if diff := cmp.Diff(w, got[a.String()]); diff != "" {
			return fmt.Errorf("ledger_accounts of %v (-want +got):\n%s", a, diff)
		}
	}
	return nil
}

// counters compares what is loaded in Redis: nothing is held any more, and the sums are those of the bills.
func (b *books) counters(want map[ledger.Account]total) error {
	if b.hot == nil {
		return nil
	}
	for p := range partitions {
		err := b.hot.All(b.t.Context(), p, func(h ledger.HotAccount) error {
			w, asked := want[h.Account]
			if !h.Loaded || !asked {
				return nil
			}
			if h.Charged != w.Charged || h.Granted-h.Charged != w.Left || h.Held != 0 || h.Settled != 0 {
				return fmt.Errorf("Redis, %v: want charged %d, left %d, nothing open; got %+v", h.Account, w.Charged, w.Left, h)
			}
			return nil
		}, func(h ledger.OpenHold) error { return fmt.Errorf("Redis still has the hold %+v", h) })
		if err != nil {
			return err
		}
	}
	return nil
}

// verified runs `ledgerline verify` and requires that everything agrees.
func (s *site) verified() {
	s.t.Helper()
	if got := s.run("verify"); got.code != 0 || !strings.Contains(got.stdout, "verify: OK") {
		s.t.Errorf("verify: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
