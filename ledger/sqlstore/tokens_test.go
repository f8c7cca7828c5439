package sqlstore

import (
	"errors"
	"testing"

	"ledgerline/ledger"
)

func TestTokens(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		m := newMover()
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h"}))
		other := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "dave", Password: "h"}))
		row, key, err := s.CreateToken(ctx, TokenRow{UserID: uid, Name: "one", ExpiredTime: -1}, 500)
		if must(t, err); len(row.Key) != KeyLength || key == "" {
			t.Errorf("made %+v, event %q", row, key)
		}
		free, key, err := s.CreateToken(ctx, TokenRow{UserID: uid, Name: "free_100%", ExpiredTime: -1, Unlimited: true}, 0)
		if must(t, err); key != "" {
			t.Error("a limit of 0 made an event")
		}
		if _, _, err := s.CreateToken(ctx, TokenRow{UserID: uid, Key: row.Key}, 0); !errors.Is(err, ErrExists) {
			t.Errorf("a key twice: %v", err)
		}
		if _, _, err := s.CreateToken(ctx, TokenRow{UserID: uid, Name: "other"}, 10_000); err != nil { // its limit is on its way, too
			t.Fatal(err)
		}
		// The limit set counts what is on its way, and what is used.
		for _, limit := range []int64{800, 20, 300} {
			v, _, err := s.EditToken(ctx, uid, row.ID, func(e *TokenEdit) error { e.Raise = limit - e.Remain; return nil })
			if must(t, err); v.Remain != limit {
				t.Errorf("set to %d, it is %d", limit, v.Remain)
			}
		}
		m.apply(t, s)
		l := m.logs[ledger.Partition(uid, testPartitions)]
		l.add(id(5), usage(uid, row.ID, 0, 40))
		l.add(id(5), usage(uid, free.ID, 0, 7))
		l.flush(t, s)
		v := value[*TokenView](t)(s.TokenView(ctx, uid, row.ID))
		if v.Remain != 260 || v.Used != 40 || v.Name != "one" || v.Status != TokenEnabled {
			t.Errorf("after use: %+v", v)
		}
		if v := value[*TokenView](t)(s.TokenView(ctx, 0, free.ID)); v.Remain != -7 || !v.Unlimited {
			t.Errorf("an unlimited key after use: %+v", v)
		}
		if got := number(t, s, "SELECT remain_quota FROM tokens WHERE id = ?", row.ID); got != 260 {
			t.Errorf("New API's column is %d", got)
		}
		// Everything but the limit.
		before := value[int64](t)(s.LastChange(ctx))
		_, key, err = s.EditToken(ctx, uid, row.ID, func(e *TokenEdit) error {
			e.Name, e.Status, e.ExpiredTime, e.Unlimited, e.ModelLimitsEnabled, e.ModelLimits = "two", TokenDisabled, 99, true, true, "a,b"
			e.AllowIPs, e.Group, e.CrossGroupRetry, e.AutoGroups = "10.0.0.1", "vip", true, `["default"]`
			return nil
		})
		if must(t, err); key != "" {
			t.Error("an edit without a limit made an event")
		}
		got := value[*TokenRow](t)(s.Token(ctx, row.ID))
		diff(t, "row", *got, TokenRow{
			ID: row.ID, UserID: uid, Key: row.Key, Status: TokenDisabled, Name: "two", CreatedTime: got.CreatedTime, AccessedTime: got.AccessedTime,
			ExpiredTime: 99, Unlimited: true, ModelLimitsEnabled: true, ModelLimits: "a,b", AllowIPs: "10.0.0.1", Group: "vip", CrossGroupRetry: true,
			AutoGroups: `["default"]`,
		})
		diff(t, "changes", value[[]Change](t)(s.Changes(ctx, before, 10)), []Change{{Seq: before + 1, Kind: ChangeToken, ID: row.ID}})
		// Lists, and whose keys they are.
		for _, c := range []struct {
			f    TokenFilter
			want int
		}{
			{TokenFilter{User: uid}, 3},
			{TokenFilter{User: other}, 0},
			{TokenFilter{}, 3},
			{TokenFilter{User: uid, Keyword: "0%"}, 1},
			{TokenFilter{User: uid, Keyword: "%"}, 1},
			{TokenFilter{User: uid, Keyword: "_"}, 1},
			{TokenFilter{Key: row.Key[5:20]}, 1},
		} {
			if list, total, err := s.Tokens(ctx, c.f, Page{Limit: 10}); err != nil || total != c.want || len(list) != c.want {
				t.Errorf("%+v finds %d, %v", c.f, total, err)
			}
		}
		if _, err := s.TokenView(ctx, other, row.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("another user's key: %v", err)
		}
		if _, _, err := s.EditToken(ctx, other, row.ID, func(*TokenEdit) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Errorf("change of another user's key: %v", err)
		}
		if n := value[int](t)(s.DeleteTokens(ctx, other, []int64{row.ID, free.ID})); n != 0 {
			t.Errorf("another user deleted %d keys", n)
		}
		if n := value[int](t)(s.DeleteTokens(ctx, uid, nil)); n != 0 {
			t.Errorf("deleted %d of none", n)
		}
		// Deleted keys keep their account: usage that arrives late is still charged.
		before = value[int64](t)(s.LastChange(ctx))
		if n := value[int](t)(s.DeleteTokens(ctx, uid, []int64{free.ID, row.ID, 999})); n != 2 {
			t.Errorf("deleted %d", n)
		}
		if n := len(value[[]Change](t)(s.Changes(ctx, before, 10))); n != 2 {
			t.Errorf("%d changes", n)
		}
		if n := value[int](t)(s.CountTokens(ctx, uid)); n != 1 {
			t.Errorf("%d keys are left", n)
		}
		l.add(id(5), usage(uid, row.ID, 0, 1))
		if r := l.flush(t, s); r.Applied != 1 {
			t.Errorf("late usage: %+v", r)
		}
	})
}

func TestRedemptions(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		m := newMover()
		one := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h"}))
		two := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "dave", Password: "h"}))
		codes := value[[]string](t)(s.CreateRedemptions(ctx, Redemption{UserID: one, Name: "spring", Quota: 100}, 3))
		if len(codes) != 3 || len(codes[0]) != 32 || codes[0] == codes[1] {
			t.Fatalf("codes %v", codes)
		}
		quota, key, err := s.Redeem(ctx, one, codes[0])
		if must(t, err); quota != 100 || key != businessKey(one, "redeem", codes[0]) {
			t.Errorf("redeemed %d under %q", quota, key)
		}
		if _, _, err := s.Redeem(ctx, two, codes[0]); !errors.Is(err, ErrCodeUsed) {
			t.Errorf("a code twice: %v", err)
		}
		// Whatever happens to the row, the code counts once.
		exec(t, s, "UPDATE redemptions SET status = 1")
		if _, _, err := s.Redeem(ctx, one, codes[0]); !errors.Is(err, ErrCodeUsed) {
			t.Errorf("a code whose row was reset: %v", err)
		}
		list, total, err := s.Redemptions(ctx, "spr", Page{Limit: 10})
		if must(t, err); total != 3 {
			t.Fatalf("%d codes", total)
		}
		if _, total, err = s.Redemptions(ctx, "ring", Page{Limit: 10}); err != nil || total != 0 {
			t.Errorf("a part of a name finds %d, %v", total, err)
		}
		_, err = s.EditRedemption(ctx, list[0].ID, func(r *Redemption) error { r.Status, r.Quota, r.Name = RedemptionDisabled, 7, "x"; return nil })
		must(t, err)
		if _, _, err := s.Redeem(ctx, one, list[0].Key); !errors.Is(err, ErrCodeExpired) {
			t.Errorf("a disabled code: %v", err)
		}
		_, err = s.EditRedemption(ctx, list[1].ID, func(r *Redemption) error { r.ExpiredTime = 5; return nil })
		must(t, err)
		if _, _, err := s.Redeem(ctx, one, list[1].Key); !errors.Is(err, ErrCodeExpired) {
			t.Errorf("an expired code: %v", err)
		}
		if _, _, err := s.Redeem(ctx, one, "nope"); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown code: %v", err)
		}
		if n := value[int64](t)(s.DeleteInvalidRedemptions(ctx)); n != 2 {
			t.Errorf("deleted %d", n)
		}
		if _, err := s.Redemption(ctx, list[0].ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("a deleted code: %v", err)
		}
		for _, bad := range []struct {
			quota int64
			count int
		}{{0, 1}, {-5, 1}, {MaxGrant + 1, 1}, {5, 0}, {5, MaxCodes + 1}} {
			if _, err := s.CreateRedemptions(ctx, Redemption{UserID: one, Name: "x", Quota: bad.quota}, bad.count); err == nil {
				t.Errorf("%+v were made", bad)
			}
		}
		m.apply(t, s)
		if got := left(t, s, one); got != 100 {
			t.Errorf("the balance is %d", got)
		}
	})
}
