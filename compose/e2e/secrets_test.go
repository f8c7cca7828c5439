package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"ledgerline/ledger/ledgertest"
)

// TestSecretsAreSealedUnderTraffic: `secrets migrate`, killed on its way and run again, seals every key of a database that was New API's
// while two nodes serve it. No client is refused, before, during or after; nothing is left in plain text; and a node
// without the secret does not start.
func TestSecretsAreSealedUnderTraffic(t *testing.T) {
	if testing.Short() {
		t.Skip("needs real engines")
	}
	s := newSite(t)
	a := &adoption{site: s, newAPIDatabase: loadDump(t, "v0.6.3", s.upstream.URL), facts: readFacts(t)}
	// Many more keys, so that a kill meets the migration in its middle.
	a.exec("INSERT INTO tokens (user_id, `key`, status, name, expired_time, remain_quota, unlimited_quota, model_limits_enabled) SELECT 2, CONCAT('Z', LEFT(MD5(l.id), 23), LEFT(MD5(l.id + 1), 24)), 1, 'more', -1, 5, 0, 0 FROM logs l")
	maps.Copy(s.env, a.newAPIDatabase.env)
	s.env["KAFKA_BROKERS"], s.env["REDIS_CONN_STRING"] = strings.Join(ledgertest.Kafka(t), ","), ledgertest.Redis(t)
	s.env["KAFKA_TOPIC"], s.env["CRYPTO_SECRET"] = ledgertest.UniqueName("e2e"), "the secret of the e2e suite"
	s.addNode(map[string]string{"NODE_TYPE": "master"})
	s.addNode(map[string]string{"NODE_TYPE": "slave"})
	a.made = a.tables()
	a.before = a.contents(a.made)
	for _, n := range s.nodes {
		n.start()
	}
	for _, n := range s.nodes {
		n.ready()
	}
	root := login(t, s.nodes[0].url(), "root", "mockpass-1")
	var access string
	root.must(http.MethodGet, "/api/user/token", nil, &access)

	if got := s.run("secrets", "migrate"); got.code != 0 || !strings.Contains(got.stdout, "The way back ends there") || a.number("SELECT COUNT(*) FROM tokens WHERE `key` LIKE '$%'") != 0 {
		t.Fatalf("secrets migrate without -yes: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	tr := s.background(6, []*account{a.key(3), a.key(4), a.key(8), a.key(12)})
	tr.moreDone(t, 20)
	env := s.environment(nil)
	env["DATA_DIR"], env["JOURNAL_DIR"] = s.nodes[0].dir+"/data", s.nodes[0].dir+"/journal"
	for i := range 4 {
		p := start(t, command{args: []string{"secrets", "migrate", "-yes"}, env: env})
		eventually(t, "the migration is under way", func() error {
			if n := a.number("SELECT COUNT(*) FROM tokens WHERE `key` LIKE '$%'"); n < int64(i)*400+1 && p.running() {
				return fmt.Errorf("%d keys are sealed", n)
			}
			return nil
		})
		p.kill()
		tr.moreDone(t, 10)
	}
	if n := a.number("SELECT COUNT(*) FROM tokens WHERE `key` <> '' AND `key` NOT LIKE '$%'"); n == 0 {
		t.Log("no kill met the migration in its middle")
	}
	for range 2 {
		if got := s.run("secrets", "migrate", "-yes"); got.code != 0 || !strings.Contains(got.stdout, "Sealed:") {
			t.Fatalf("secrets migrate -yes: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
		}
	}
	tr.moreDone(t, 20)
	s.nodes[0].terminate() // what it remembered of plain keys is gone
	s.nodes[0].start()
	s.nodes[0].ready()
	tr.moreDone(t, 20)
	tr.stop()
	for _, r := range tr.seen() {
		if r.status == http.StatusUnauthorized || r.status == http.StatusForbidden {
			t.Fatalf("a client was refused: %+v", r)
		}
	}
	a.nothingInPlainText()

	_, stored := a.query("SELECT `key` FROM tokens WHERE id = 4")
	if status, body, err := getWith(s.nodes[1].url()+"/v1/models", "Bearer sk-"+stored[0][0].(string)); err != nil || status != http.StatusUnauthorized {
		t.Errorf("what stands for a key is taken for one: %d %s %v", status, body, err)
	}

	// Management goes on: passwords are hashed anew, tokens work, a new key is shown once.
	bob := login(t, s.nodes[0].url(), "bob", "password1")
	if n := a.number("SELECT COUNT(*) FROM users WHERE username = 'bob' AND password LIKE '$argon2id$%'"); n != 1 {
		t.Error("a login did not hash the password anew")
	}
	login(t, s.nodes[1].url(), "bob", "password1")
	(&admin{t: t, url: s.nodes[1].url(), id: 1, token: access, http: client}).must(http.MethodGet, "/api/user/self", nil, nil)
	var made struct {
		ID  int64
		Key string
	}
	bob.must(http.MethodPost, "/api/token/", map[string]any{"name": "sealed", "expired_time": -1, "unlimited_quota": true}, &made)
	s.everywhere("sk-" + made.Key)
	if status, out, err := bob.call(http.MethodPost, fmt.Sprintf("/api/token/%d/key", made.ID), nil); err != nil || out.Success {
		t.Errorf("a sealed key is shown: %d %+v %v", status, out, err)
	}
	a.verified()
	delete(env, "CRYPTO_SECRET")
	env["PORT"], env["NODE_NAME"] = "0", "third"
	if got := run(t, command{env: env}); got.code != 2 || !strings.Contains(got.stderr, "CRYPTO_SECRET") {
		t.Errorf("a node without the secret: exit code %d\n%s", got.code, got.stderr)
	}
}

// nothingInPlainText looks for every key that was there, in every column.
func (a *adoption) nothingInPlainText() {
	t := a.site.t
	t.Helper()
	secrets := map[string]string{}
	for table, columns := range map[string][]string{"tokens": {"key"}, "channels": {"key"}, "users": {"access_token"}} {
		for id, row := range a.before[table] {
			for _, c := range columns {
				if text, ok := row[c].(string); ok && text != "" {
					secrets[text] = table + " " + id
				}
			}
		}
	}
	for table, rows := range a.contents(a.tables()) {
		for id, row := range rows {
			for c, cell := range row {
				if of, found := secrets[fmt.Sprint(cell)]; found {
					t.Fatalf("%s/%s/%s is the plain secret of %s", table, id, c, of)
				}
			}
		}
	}
}
