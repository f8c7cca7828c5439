package sqlstore

import (
	"errors"
	"testing"

	"ledgerline/ledger"
)

// mover applies everything in the outbox, as mover, log and quota consumer would.
type mover struct {
	logs     map[int]*logOf
	producer ledger.ID
}

func newMover() *mover { return &mover{logs: map[int]*logOf{}, producer: id(77)} }

func (p *mover) apply(t testing.TB, s *Store) (events []ledger.Event) {
	t.Helper()
	for {
		rows := value[[]OutboxRow](t)(s.OutboxPending(t.Context(), 100))
		if len(rows) == 0 {
			return events
		}
		keys := make([]string, len(rows))
		for i, r := range rows {
			part := ledger.Partition(r.Event.User, testPartitions)
			if p.logs[part] == nil {
				p.logs[part] = newLog(part)
			}
			p.logs[part].add(p.producer, r.Event)
			keys[i] = r.Key
			events = append(events, r.Event)
		}
		must(t, s.OutboxMoved(t.Context(), keys...))
		for _, l := range p.logs {
			if r := l.flush(t, s); len(r.Dead) != 0 || r.Adopted != 0 || len(r.Alarms) != 0 {
				t.Fatalf("flush %+v", r)
			}
		}
	}
}

func left(t testing.TB, s *Store, user int64) int64 {
	t.Helper()
	return value[*UserView](t)(s.UserView(t.Context(), user)).Quota
}

// noHash is for a start that finds a user: it must not pay for a hash.
func noHash(t testing.TB) func() (string, error) {
	return func() (string, error) {
		t.Error("a password was hashed for a user that is not made")
		return "unused", nil
	}
}

func TestFirstStart(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		if !value[bool](t)(s.EnsureRoot(ctx, func() (string, error) { return "hash", nil })) {
			t.Error("the first call made no user")
		}
		if value[bool](t)(s.EnsureRoot(ctx, noHash(t))) {
			t.Error("the second call made another user")
		}
		if value[bool](t)(s.Adopted(ctx)) {
			t.Error("a fresh database counts as adopted")
		}
		done, root, err := s.SetUp(ctx)
		if must(t, err); !done || !root {
			t.Errorf("set up %v, root %v", done, root)
		}
		if err := s.SetUpRoot(ctx, "other", "h", nil); !errors.Is(err, ErrExists) {
			t.Errorf("a second set-up: %v", err)
		}
		newMover().apply(t, s)
		uid, hash, err := s.UserPassword(ctx, "root")
		must(t, err)
		v := value[*UserView](t)(s.UserView(ctx, uid))
		if hash != "hash" || v.Quota != rootQuota || v.Role != RoleRoot || v.Status != UserEnabled || v.AuthVersion != 1 {
			t.Errorf("root is %+v, hash %q", v, hash)
		}
	})
}

func TestFirstStartOnNewAPIsDatabase(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		exec(t, s, "INSERT INTO users (id, username, password, role) VALUES (4, 'boss', 'x', 100)")
		if value[bool](t)(s.EnsureRoot(t.Context(), noHash(t))) {
			t.Error("a user was made beside New API's")
		}
		if !value[bool](t)(s.Adopted(t.Context())) {
			t.Error("the database does not count as adopted")
		}
		if n := number(t, s, "SELECT COUNT(*) FROM setups"); n != 1 {
			t.Errorf("%d rows in setups", n)
		}
	})
}

func TestQuotaOfUsers(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := WithActor(t.Context(), Actor{User: 1, Username: "root", IP: "10.0.0.1", Request: "r1"})
		p := newMover()
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h", Role: RoleUser, Quota: 1000}))
		if got := left(t, s, uid); got != 0 {
			t.Errorf("before the event is applied the balance is %d", got)
		}
		// Override counts what is still on its way: 1000 of the sign-up are, and so is each change before it.
		for _, step := range []struct{ set, want int64 }{{777, 777}, {-5, -5}, {300, 300}} {
			_, key, err := s.EditUser(ctx, uid, func(e *UserEdit) error {
				e.Grant, e.Note = step.set-e.Quota, "set"
				return nil
			})
			must(t, err)
			if key == "" {
				t.Fatal("no outbox row")
			}
		}
		events := p.apply(t, s)
		if got := left(t, s, uid); got != 300 {
			t.Errorf("after overrides the balance is %d, want 300", got)
		}
		if got := number(t, s, "SELECT quota FROM users WHERE id = ?", uid); got != 300 {
			t.Errorf("New API's column is %d", got)
		}
		audits := 0
		for _, e := range events {
			if e.Kind == ledger.KindAudit {
				audits++
				if e.User != 1 || e.Request == nil || e.Request.IP != "10.0.0.1" || e.Request.ID != "r1" {
					t.Errorf("audit event %+v", e)
				}
			}
		}
		if audits != 4 { // created, and three changes
			t.Errorf("%d audit events", audits)
		}
		key := value[string](t)(s.GrantQuota(ctx, uid, -50, "admin"))
		if value[bool](t)(s.OutboxApplied(ctx, key)) {
			t.Error("applied before it was moved")
		}
		p.apply(t, s)
		if !value[bool](t)(s.OutboxApplied(ctx, key)) || left(t, s, uid) != 250 {
			t.Errorf("after a deduction the balance is %d", left(t, s, uid))
		}
		// A hand edit shows at once.
		exec(t, s, "UPDATE users SET quota = quota + 10 WHERE id = ?", uid)
		if got := left(t, s, uid); got != 260 {
			t.Errorf("with a hand edit the balance is %d", got)
		}
		if _, _, err := s.EditUser(ctx, uid, func(e *UserEdit) error { e.Grant = MaxGrant + 1; return nil }); err == nil {
			t.Error("a grant beyond the bound was taken")
		}
	})
}

func TestBalanceBeyondTheColumn(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		if !s.IsMySQL() {
			t.Skip("SQLite's columns have 64 bits")
		}
		exec(t, s, "ALTER TABLE users MODIFY quota int DEFAULT 0")
		p := newMover()
		uid := value[int64](t)(s.CreateUser(t.Context(), NewUser{Username: "rich", Password: "h"}))
		p.apply(t, s)
		key := value[string](t)(s.GrantQuota(t.Context(), uid, 5_000_000_000, ""))
		rows := value[[]OutboxRow](t)(s.OutboxPending(t.Context(), 10))
		part := ledger.Partition(uid, testPartitions)
		l := newLog(part)
		l.add(id(5), rows[0].Event)
		l.flush(t, s)
		if !value[bool](t)(s.OutboxApplied(t.Context(), key)) || left(t, s, uid) != 5_000_000_000 {
			t.Errorf("the balance shown is %d", left(t, s, uid))
		}
		if got := number(t, s, "SELECT quota FROM users WHERE id = ?", uid); got != 1<<31-1 {
			t.Errorf("the column is %d", got)
		}
	})
}

func TestEditUser(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "dave", Password: "h"}))
		other := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "erin", Password: "h", InviterID: uid}))
		before := value[int64](t)(s.LastChange(ctx))
		v, key, err := s.EditUser(ctx, uid, func(e *UserEdit) error {
			e.DisplayName, e.Group, e.Remark, e.Role, e.Status, e.AccessToken, e.Password = "Dave", "vip", "x", RoleAdmin, UserDisabled, "tok", "h2"
			return nil
		})
		if must(t, err); key != "" || v.DisplayName != "Dave" {
			t.Errorf("edited %+v, key %q", v, key)
		}
		diff(t, "changes", value[[]Change](t)(s.Changes(ctx, before, 10)), []Change{{Seq: before + 1, Kind: ChangeUser, ID: uid}})
		v = value[*UserView](t)(s.UserView(ctx, uid))
		if v.Group != "vip" || v.Remark != "x" || v.Role != RoleAdmin || v.Status != UserDisabled || v.AffCount != 1 || v.AccessToken != "tok" {
			t.Errorf("stored %+v", v)
		}
		if _, hash, err := s.UserPassword(ctx, "dave"); err != nil || hash != "h2" {
			t.Errorf("password %q, %v", hash, err)
		}
		if _, _, err := s.EditUser(ctx, other, func(e *UserEdit) error { e.Username = "dave"; return nil }); !errors.Is(err, ErrExists) {
			t.Errorf("a taken name: %v", err)
		}
		refusal := errors.New("no")
		if _, _, err := s.EditUser(ctx, other, func(*UserEdit) error { return refusal }); !errors.Is(err, refusal) {
			t.Errorf("a refusal: %v", err)
		}
		if _, err := s.UserByAccessToken(ctx, "TOK"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a token in other letters: %v", err)
		}
		if u, err := s.UserByAccessToken(ctx, "tok"); err != nil || u.ID != uid {
			t.Errorf("user by token: %v, %v", u, err)
		}
		if _, err := s.UserByAccessToken(ctx, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("the empty token: %v", err)
		}
		_, _, err = s.EditUser(ctx, uid, func(e *UserEdit) error { e.Delete = true; return nil })
		must(t, err)
		if _, err := s.UserView(ctx, uid); !errors.Is(err, ErrNotFound) {
			t.Errorf("a deleted user: %v", err)
		}
		if _, _, err := s.EditUser(ctx, uid, func(*UserEdit) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Errorf("change of a deleted user: %v", err)
		}
		if r := value[*UserRow](t)(s.User(ctx, uid)); !r.Deleted {
			t.Error("the catalog would not learn of the deletion")
		}
		list, total, err := s.Users(ctx, UserFilter{}, Page{Limit: 1})
		if must(t, err); total != 2 || len(list) != 1 || list[0].ID != other {
			t.Errorf("list: %d of %d", len(list), total)
		}
		list, total, err = s.Users(ctx, UserFilter{Keyword: "av"}, Page{Limit: 10})
		if must(t, err); total != 1 || list[0].ID != uid || list[0].DeletedAt.IsZero() {
			t.Errorf("search: %d", total)
		}
		for _, none := range []UserFilter{{Keyword: "%"}, {Keyword: "d_ve"}, {Group: "svip"}, {Role: RoleRoot}} {
			if _, total, err = s.Users(ctx, none, Page{Limit: 10}); err != nil || total != 0 {
				t.Errorf("%+v finds %d, %v", none, total, err)
			}
		}
	})
}

func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		uid := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "gail", Password: "h"}))
		far := s.now().Unix() + 1000
		one := value[Session](t)(s.BeginSession(ctx, Session{User: uid, Method: "password", ExpiresAt: far}))
		two := value[Session](t)(s.BeginSession(ctx, Session{User: uid, Method: "password", ExpiresAt: far}))
		got, user, err := s.Session(ctx, one.ID)
		if must(t, err); user.ID != uid || !got.InForce(s.now(), user.AuthVersion) {
			t.Errorf("session %+v", got)
		}
		// Refresh: the current cookie moves on, the one before is still taken, an older one ends the session.
		for _, step := range []struct {
			presented, want int64
			err             error
		}{{0, 1, nil}, {0, 1, nil}, {1, 2, nil}, {0, 0, ErrRotated}} {
			r, err := s.RotateSession(ctx, one.ID, step.presented)
			if !errors.Is(err, step.err) || err == nil && r.Rotation != step.want {
				t.Errorf("refresh with %d: %+v, %v", step.presented, r, err)
			}
		}
		if got, user, err = s.Session(ctx, one.ID); err != nil || got.InForce(s.now(), user.AuthVersion) {
			t.Errorf("after a stolen cookie: %+v, %v", got, err)
		}
		// A new password ends every session but the one that set it.
		three := value[Session](t)(s.BeginSession(ctx, Session{User: uid, Method: "password", ExpiresAt: far}))
		_, _, err = s.EditUser(ctx, uid, func(e *UserEdit) error { e.Revoke, e.Keep = true, three.ID; return nil })
		must(t, err)
		for id, want := range map[ledger.ID]bool{two.ID: false, three.ID: true} {
			got, user, err := s.Session(ctx, id)
			if must(t, err); got.InForce(s.now(), user.AuthVersion) != want {
				t.Errorf("session %s in force: %v", id, !want)
			}
		}
		must(t, s.EndSession(ctx, three.ID))
		if n := len(value[[]*Session](t)(s.Sessions(ctx, uid))); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		exec(t, s, "UPDATE ledger_sessions SET revoked_at = 5 WHERE user_id = ?", uid)
		if n := value[int64](t)(s.PruneSessions(ctx)); n != 3 {
			t.Errorf("forgot %d sessions", n)
		}
		for range maxSessions + 5 {
			value[Session](t)(s.BeginSession(ctx, Session{User: uid, Method: "password", ExpiresAt: far}))
		}
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_sessions WHERE revoked_at = 0"); n != maxSessions {
			t.Errorf("%d sessions, want %d", n, maxSessions)
		}
	})
}

func TestInvitations(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		m := newMover()
		one := value[int64](t)(s.CreateUser(ctx, NewUser{Username: "carol", Password: "h"}))
		for _, name := range []string{"dave", "erin"} {
			value[int64](t)(s.CreateUser(ctx, NewUser{Username: name, Password: "h", InviterID: one, Reward: 30}))
		}
		key := value[string](t)(s.TransferReward(ctx, one, 50))
		for _, amount := range []int64{11, 0, -1} {
			if _, err := s.TransferReward(ctx, one, amount); !errors.Is(err, ErrTooLittle) {
				t.Errorf("%d more: %v", amount, err)
			}
		}
		m.apply(t, s)
		v := value[*UserView](t)(s.UserView(ctx, one))
		if !value[bool](t)(s.OutboxApplied(ctx, key)) || v.Quota != 50 || v.AffQuota != 10 || v.AffHistory != 60 || v.AffCount != 2 {
			t.Errorf("the inviter is %+v", v)
		}
		if _, err := s.UserByAffCode(ctx, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("the empty code: %v", err)
		}
		if id := value[int64](t)(s.UserByAffCode(ctx, v.AffCode)); id != one {
			t.Errorf("the code is of user %d", id)
		}
	})
}

// Invitation codes are short; one that is taken is no reason to refuse a user.
func TestInvitationCodeTaken(t *testing.T) {
	s := initialised(t, openSQLite(t))
	exec(t, s, "CREATE UNIQUE INDEX one_of_each_length ON users (length(aff_code))")
	for _, name := range []string{"carol", "dave", "erin"} {
		value[int64](t)(s.CreateUser(t.Context(), NewUser{Username: name, Password: "h"}))
	}
	if n := number(t, s, "SELECT COUNT(*) FROM users WHERE length(aff_code) IN (4, 8, 12)"); n != 3 {
		t.Errorf("%d users", n)
	}
	if _, err := s.CreateUser(t.Context(), NewUser{Username: "carol", Password: "h"}); !errors.Is(err, ErrExists) {
		t.Errorf("a name twice: %v", err)
	}
}
