package console

import (
	"fmt"
	"strings"
	"testing"

	"ledgerline/ledger/sqlstore"
)

// order inserts a payment order as New API does.
func (s *site) order(user, amount int64, trade, provider, status string) {
	s.t.Helper()
	check(s.t, s.store.Tx(s.t.Context(), func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(s.t.Context(), "INSERT INTO top_ups (user_id, amount, money, trade_no, payment_method, payment_provider, create_time, complete_time, status) "+
			"VALUES (?, ?, 36.5, ?, 'alipay', ?, 5, 0, ?)", user, amount, trade, provider, status)
		return err
	}))
}

// An order that was begun on New API is completed here, once, and its quota works when the answer comes.
func TestCompleteTopUp(t *testing.T) {
	s := newSite(t)
	carol, id := s.user("carol", sqlstore.RoleUser)
	_, other := s.user("dave", sqlstore.RoleUser)
	s.order(id, 20, "T-1", "epay", sqlstore.OrderPending)
	s.order(id, 5, "T-2", "stripe", sqlstore.OrderPending)
	s.order(other, 5, "T-3", "epay", "failed")
	long := strings.Repeat("T", 255)
	s.order(other, 5, long, "epay", sqlstore.OrderPending)
	root := s.root()
	complete := func(c *client, trade any) reply {
		return c.call("POST", "/api/user/topup/complete", map[string]any{"trade_no": trade})
	}
	if r := complete(carol, "T-1"); r.ok() {
		t.Error("a user completed an order")
	}
	if r := complete(root, long); r.ok() || !strings.Contains(r.raw, "trade_no has 255 characters, at most 18") {
		t.Errorf("a trade_no without room in the credit's key: %s", r.raw)
	}
	for range 2 {
		if r := complete(root, "T-1"); !r.ok() {
			t.Errorf("complete: %s", r.raw)
		}
		if got := carol.must("GET", "/api/user/self", nil).data()["quota"]; got != 10_000_000.0 {
			t.Errorf("the quota is %v", got)
		}
	}
	for trade, says := range map[any]string{"T-2": "add_quota", "T-3": "not pending", "T-4": "no such order", "": "trade_no", 7: "Invalid parameters"} {
		if r := complete(root, trade); r.ok() || !strings.Contains(r.raw, says) {
			t.Errorf("order %v: %s", trade, r.raw)
		}
	}
	own := carol.must("GET", "/api/user/topup/self", nil)
	if n := len(own.items()); n != 2 || own.items()[1].(map[string]any)["status"] != "success" {
		t.Errorf("own orders: %s", own.raw)
	}
	if n := len(root.must("GET", "/api/user/topup?keyword=T-", nil).items()); n != 3 {
		t.Errorf("%d orders of everybody", n)
	}
	if r := carol.call("GET", "/api/user/topup", nil); r.ok() {
		t.Error("a user saw everybody's orders")
	}
	if rows := fmt.Sprint(root.must("GET", "/api/log/?type=1&username=carol", nil).items()); !strings.Contains(rows, "order T-1") {
		t.Errorf("the log says %s", rows)
	}
}

// GENERATE_DEFAULT_TOKEN gives who registers a key, and nobody else.
func TestFirstKey(t *testing.T) {
	s := newSite(t)
	s.console.cfg.DefaultToken = true
	s.client().must("POST", "/api/user/register", map[string]string{"username": "carol", "password": "password1"})
	keys := s.login("carol", "password1").must("GET", "/api/token/", nil).items()
	if len(keys) != 1 {
		t.Fatalf("keys %v", keys)
	}
	if k := keys[0].(map[string]any); k["unlimited_quota"] != true || k["status"] != 1.0 || k["expired_time"] != -1.0 {
		t.Errorf("the key is %v", k)
	}
	s.root().must("POST", "/api/user/", map[string]any{"username": "dave", "password": "password1"})
	if keys := s.login("dave", "password1").must("GET", "/api/token/", nil).items(); len(keys) != 0 {
		t.Errorf("whom an administrator made has keys %v", keys)
	}
}

// The user that New API made first has no invitation code until somebody asks for it.
func TestInvitationCodeOfRoot(t *testing.T) {
	s := newSite(t)
	check(t, s.store.Tx(t.Context(), func(tx *sqlstore.Tx) error {
		tx.Changed(sqlstore.ChangeUser, 1)
		_, err := tx.Exec(t.Context(), "UPDATE users SET aff_code = '' WHERE id = 1")
		return err
	}))
	check(t, s.catalog.Refresh(t.Context()))
	root := s.root()
	code, _ := root.must("GET", "/api/user/aff", nil).body["data"].(string)
	if again := root.must("GET", "/api/user/aff", nil).body["data"]; len(code) < 4 || again != code {
		t.Errorf("the code is %q, then %v", code, again)
	}
}

// Many who redeem one code at once are no guessers: whoever is late is refused, and may log in and redeem another.
func TestLateRedeemersAreNotSlowed(t *testing.T) {
	s := newSite(t)
	carol, _ := s.user("carol", sqlstore.RoleUser)
	codes := s.root().must("POST", "/api/redemption/", map[string]any{"name": "gift", "quota": 100, "count": 2}).body["data"].([]any)
	for range freeAddressFailures + 10 {
		carol.call("POST", "/api/user/topup", map[string]any{"key": codes[0]})
	}
	if r := carol.call("POST", "/api/user/topup", map[string]any{"key": codes[1]}); !r.ok() {
		t.Errorf("the next code: %s", r.raw)
	}
	s.login("carol", "password1")
}
