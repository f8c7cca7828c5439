package sqlstore

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ledgerline/ledger"
)

// order inserts a payment order as New API does.
func order(t testing.TB, s *Store, user, amount int64, trade, method, provider, status string) {
	t.Helper()
	exec(t, s, "INSERT INTO top_ups (user_id, amount, money, trade_no, payment_method, payment_provider, create_time, complete_time, status) VALUES (?, ?, 7.3, ?, ?, ?, 5, 0, ?)",
		user, amount, trade, method, provider, status)
}

func TestTopUps(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		m := newMover()
		u := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h"}))
		other := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "dave", Password: "h"}))
		order(t, s, u, 20, "T-1", "alipay", "epay", OrderPending)
		order(t, s, u, 3, "T-2", "wxpay", "", OrderPending) // of a version that did not name the provider
		order(t, s, other, 1, "T-3", "stripe", "", OrderPending)
		order(t, s, u, 1, "T-4", "card", "stripe", OrderPending)
		order(t, s, u, 1, "T-5", "alipay", "epay", "expired")
		order(t, s, u, 1, "T-6", "alipay", "epay", OrderDone)
		order(t, s, u, 1<<60, "T-7", "alipay", "epay", OrderPending)
		order(t, s, 99, 1, "T-8", "alipay", "epay", OrderPending)
		key := value[string](t)(s.CompleteTopUp(ctx, "T-1", 500_000))
		if key != businessKey(u, "topup", "T-1") {
			t.Errorf("the key is %q", key)
		}
		for _, trade := range []string{"T-1", "T-6"} { // done: nothing more happens
			if key := value[string](t)(s.CompleteTopUp(ctx, trade, 500_000)); key != "" {
				t.Errorf("order %s was credited under %q", trade, key)
			}
		}
		value[string](t)(s.CompleteTopUp(ctx, "T-2", 500_000))
		for trade, want := range map[string]error{
			"T-3": ErrOrderProvider, "T-4": ErrOrderProvider, "T-5": ErrOrderState, "T-7": ErrOrderAmount, "T-8": ErrNotFound, "T-9": ErrNotFound, "t-1": ErrNotFound,
		} {
			if _, err := s.CompleteTopUp(ctx, trade, 500_000); !errors.Is(err, want) {
				t.Errorf("order %s: %v, want %v", trade, err, want)
			}
		}
		// Whatever happens to the row, the order counts once.
		exec(t, s, "UPDATE top_ups SET status = 'pending' WHERE trade_no = 'T-1'")
		if _, err := s.CompleteTopUp(ctx, "T-1", 500_000); !errors.Is(err, ErrOrderState) {
			t.Errorf("an order whose row was reset: %v", err)
		}
		m.apply(t, s)
		if got := left(t, s, u); got != 23*500_000 {
			t.Errorf("the balance is %d", got)
		}
		list, total, err := s.TopUps(ctx, u, "", Page{Limit: 3})
		if must(t, err); total != 6 || len(list) != 3 || list[0].TradeNo != "T-7" {
			t.Errorf("%d of %d orders, first %+v", len(list), total, list[0])
		}
		list, total, err = s.TopUps(ctx, 0, "-2", Page{Limit: 10})
		if must(t, err); total != 1 || list[0].Status != OrderDone || list[0].CompleteTime == 0 || list[0].Money != 7.3 || list[0].Method != "wxpay" {
			t.Errorf("found %d, %+v", total, list)
		}
	})
}

// Two administrators and their impatience: one order, completed by many at once, counts once.
func TestTopUpOnce(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		m := newMover()
		u := value[int64](t)(s.CreateUser(t.Context(), NewUser{Username: "carol", Password: "h"}))
		order(t, s, u, 2, "T", "alipay", "epay", OrderPending)
		var wg sync.WaitGroup
		var credited atomic.Int64
		for range 20 {
			wg.Go(func() {
				key, err := s.CompleteTopUp(t.Context(), "T", 500_000)
				for IsTransient(err) {
					key, err = s.CompleteTopUp(t.Context(), "T", 500_000)
				}
				if err != nil {
					t.Error(err)
				}
				if key != "" {
					credited.Add(1)
				}
			})
		}
		wg.Wait()
		m.apply(t, s)
		if got := left(t, s, u); got != 1_000_000 || credited.Load() != 1 {
			t.Errorf("the balance is %d, credited %d times", got, credited.Load())
		}
	})
}

// Every way in which a balance moves by a person's doing is one transaction: killed before any of its statements it leaves
// nothing, and repeated it counts once.
func TestBusinessKilledBetweenStatements(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := WithActor(t.Context(), Actor{User: 1, Username: "root", Request: "r"})
		m := newMover()
		u := value[int64](t)(s.CreateUser(t.Context(), NewUser{Username: "carol", Password: "h"}))
		key, _, err := s.CreateToken(t.Context(), TokenRow{UserID: u, Name: "k", ExpiredTime: -1}, 0)
		must(t, err)
		codes := value[[]string](t)(s.CreateRedemptions(t.Context(), Redemption{UserID: 1, Name: "x", Quota: 100}, 1))
		order(t, s, u, 2, "T", "alipay", "epay", OrderPending)
		var dave int64
		m.apply(t, s)
		for _, c := range []struct {
			what string
			left int64 // of carol, then of her key
			key  int64
			fn   func() error
		}{
			{"redeem", 100, 0, func() error { _, _, err := s.Redeem(ctx, u, codes[0]); return err }},
			{"complete an order", 100 + 2*50, 0, func() error { _, err := s.CompleteTopUp(ctx, "T", 50); return err }},
			{"sign up, invited", 200, 0, func() (err error) {
				dave, _, err = s.CreateUserKey(ctx, NewUser{Username: "dave", Password: "h", Quota: 7, InviterID: u, Reward: 30, FirstKey: "first"})
				return err
			}},
			{"transfer a reward", 220, 0, func() error { _, err := s.TransferReward(ctx, u, 20); return err }},
			{"give quota", 225, 0, func() error {
				_, _, err := s.EditUser(ctx, u, func(e *UserEdit) error { e.Grant, e.Note = 5, "gift"; return nil })
				return err
			}},
			{"raise a limit", 225, 9, func() error {
				_, _, err := s.EditToken(ctx, u, key.ID, func(e *TokenEdit) error { e.Raise = 9; return nil })
				return err
			}},
		} {
			if n := killedAt(t, s, c.what, c.fn); n < 5 {
				t.Errorf("%s: only %d statements", c.what, n)
			}
			m.apply(t, s)
			token := value[*TokenView](t)(s.TokenView(t.Context(), u, key.ID))
			if got := left(t, s, u); got != c.left || token.Remain != c.key {
				t.Errorf("%s: the balance is %d, the key has %d, want %d and %d", c.what, got, token.Remain, c.left, c.key)
			}
		}
		if got := left(t, s, dave); got != 7 {
			t.Errorf("who signed up has %d", got)
		}
		v := value[*UserView](t)(s.UserView(t.Context(), u))
		if v.AffCount != 1 || v.AffQuota != 10 || v.AffHistory != 30 {
			t.Errorf("the inviter is %+v", v)
		}
		list, total, err := s.Tokens(t.Context(), TokenFilter{User: dave}, Page{Limit: 10})
		if must(t, err); total != 1 || !list[0].Unlimited || len(list[0].Key) != KeyLength || list[0].Name != "first" || list[0].ExpiredTime != -1 {
			t.Errorf("who signed up has %d keys, %+v", total, list)
		}
		want := map[ledger.Account]ledger.Balance{
			{Kind: ledger.UserAccount, ID: u}: {Granted: 225}, {Kind: ledger.UserAccount, ID: dave}: {Granted: 7}, {Kind: ledger.TokenAccount, ID: key.ID}: {Granted: 9},
		}
		diff(t, "balances", balancesOf(t, s), want)
		for _, l := range m.logs { // and from the log alone they are the same
			r, err := replayed(t, s, l, nil)
			if must(t, err); r.Changed != 0 {
				t.Errorf("replay changed %d balances", r.Changed)
			}
		}
	})
}

// New API's first user has no invitation code; whoever asks for it gets one that stays.
func TestInvitationCodeIsMade(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		exec(t, s, "INSERT INTO users (id, username, password, aff_code) VALUES (1, 'root', 'x', '')")
		code := value[string](t)(s.GiveAffCode(t.Context(), 1))
		if again := value[string](t)(s.GiveAffCode(t.Context(), 1)); len(code) != shortAffCode || again != code || strings.TrimSpace(code) == "" {
			t.Errorf("the code is %q, then %q", code, again)
		}
		if id := value[int64](t)(s.UserByAffCode(t.Context(), code)); id != 1 {
			t.Errorf("the code is of user %d", id)
		}
		if _, err := s.GiveAffCode(t.Context(), 2); !errors.Is(err, ErrNotFound) {
			t.Errorf("nobody's code: %v", err)
		}
	})
}
