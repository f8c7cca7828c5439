package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ledgerline/ledger"
)

// Session is one login. It holds no secret: who presents its id has proved it by a signature.
type Session struct {
	ID          ledger.ID
	User        int64
	AuthVersion int64 // the user's, when the session began; another one ends the session
	Rotation    int64 // number of the refresh cookie that counts
	RotatedAt   int64 // Unix seconds, as all times here
	Method      string
	IP          string
	Agent       string
	CreatedAt   int64
	ActiveAt    int64
	ExpiresAt   int64
	RevokedAt   int64 // 0: in force
}

// InForce reports whether the session may be used at a time by a user of this auth version.
func (s *Session) InForce(now time.Time, authVersion int64) bool {
	return s.RevokedAt == 0 && s.ExpiresAt > now.Unix() && s.AuthVersion == authVersion
}

var sessionRows = source[Session]{"ledger_sessions", sessionColumns, scanSession, nil}

const (
	sessionColumns = "sid, user_id, auth_version, rotation, rotated_at, method, ip, agent, created_at, active_at, expires_at, revoked_at"
	// maxSessions bounds the sessions of a user that are in force (L7), as New API does; the oldest give way.
	maxSessions = 50
	// revokedKept is how long a session that ended is remembered, so that its user is told so.
	revokedKept = 7 * 24 * time.Hour
)

func scanSession(scan func(...any) error) (*Session, error) {
	var s Session
	var id idColumn
	err := scan(&id, &s.User, &s.AuthVersion, &s.Rotation, &s.RotatedAt, &s.Method, &s.IP, &s.Agent, &s.CreatedAt, &s.ActiveAt, &s.ExpiresAt, &s.RevokedAt)
	s.ID = id.ID
	return &s, err
}

// BeginSession stores a new session for a user that is not deleted and notes the login. Sessions of the user beyond the bound, and those that
// ended long ago, go. It fills in ID, AuthVersion and the times but ExpiresAt. ErrNotFound: the user is gone.
func (s *Store) BeginSession(ctx context.Context, session Session) (Session, error) {
	err := s.Tx(ctx, func(tx *Tx) error {
		id, err := newID()
		if err != nil {
			return err
		}
		now := s.now().Unix()
		session.ID, session.RotatedAt, session.CreatedAt, session.ActiveAt = id, now, now, now
		session.IP, session.Agent = cut(session.IP, 64), cut(session.Agent, 255)
		user, err := pick(ctx, tx, userRows, " WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), session.User)
		if err != nil {
			return err
		}
		session.AuthVersion = user.AuthVersion
		if err := tx.pruneSessions(ctx, session.User, now); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "INSERT INTO ledger_sessions ("+sessionColumns+") VALUES (?,?,?,?,?,?,?,?,?,?,?,0)",
			session.ID[:], session.User, session.AuthVersion, session.Rotation, session.RotatedAt, session.Method, session.IP, session.Agent,
			session.CreatedAt, session.ActiveAt, session.ExpiresAt)
		if err != nil {
			return err
		}
		if err := tx.loggedIn(ctx, session.User, now); err != nil {
			return err
		}
		return tx.audit(ctx, "logged in via "+session.Method, "login")
	})
	if err != nil {
		return Session{}, fmt.Errorf("begin session of user %d: %w", session.User, err)
	}
	return session, nil
}

// loggedIn notes when a user logged in, where New API's table has room for it.
func (tx *Tx) loggedIn(ctx context.Context, user, now int64) error {
	known, err := tx.s.loadShapes(ctx, tx.each)
	if err != nil || !known["users"]["last_login_at"] {
		return err
	}
	return tx.update(ctx, "users", user, []assignment{{"last_login_at", now}})
}

func (tx *Tx) pruneSessions(ctx context.Context, user, now int64) error {
	past := now - int64(revokedKept/time.Second)
	_, err := tx.Exec(ctx, "DELETE FROM ledger_sessions WHERE user_id = ? AND (expires_at < ? OR (revoked_at > 0 AND revoked_at < ?))", user, past, past)
	if err != nil {
		return fmt.Errorf("forget old sessions: %w", err)
	}
	n := 0
	var surplus [][]byte
	err = tx.each(ctx, "SELECT sid FROM ledger_sessions WHERE user_id = ? AND revoked_at = 0 AND expires_at >= ? ORDER BY created_at DESC, sid DESC", []any{user, now},
		func(scan func(...any) error) error {
			var id idColumn
			err := scan(&id)
			if n++; n >= maxSessions {
				surplus = append(surplus, id.ID[:])
			}
			return err
		})
	if err != nil {
		return fmt.Errorf("count sessions: %w", err)
	}
	for _, id := range surplus {
		if _, err := tx.Exec(ctx, "UPDATE ledger_sessions SET revoked_at = ? WHERE sid = ?", now, id); err != nil {
			return fmt.Errorf("end the oldest sessions: %w", err)
		}
	}
	return nil
}

// Session reads a session and its user, who may be deleted, in one snapshot. ErrNotFound.
func (s *Store) Session(ctx context.Context, id ledger.ID) (session *Session, user *UserView, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		if session, err = pick(ctx, tx, sessionRows, " WHERE sid = ?", id[:]); err != nil {
			return err
		}
		if user, err = pick(ctx, tx, userViews, " WHERE id = ?", session.User); err != nil {
			return err
		}
		return tx.freshenUsers(ctx, []*UserView{user})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read session: %w", err)
	}
	return session, user, nil
}

// rotationGrace is how long the refresh cookie before the current one is still taken: two tabs may refresh at once.
const rotationGrace = 30 * time.Second

// ErrRotated means that a refresh cookie was presented that has been replaced: a copy of it may be in other hands. The
// session has been ended.
var ErrRotated = errors.New("the refresh cookie was used before; the session has ended")

// RotateSession moves a session to its next refresh cookie, given the number of the one that was presented. The one before it is accepted for
// a few seconds without a further move; an older one ends the session (ErrRotated).
func (s *Store) RotateSession(ctx context.Context, id ledger.ID, presented int64) (session *Session, err error) {
	stolen := false
	err = s.Tx(ctx, func(tx *Tx) error {
		stolen = false
		if session, err = pick(ctx, tx, sessionRows, " WHERE sid = ?"+tx.ForUpdate(), id[:]); err != nil {
			return err
		}
		now := s.now().Unix()
		switch {
		case presented == session.Rotation:
			session.Rotation, session.RotatedAt = session.Rotation+1, now
		case presented == session.Rotation-1 && now-session.RotatedAt <= int64(rotationGrace/time.Second):
		default:
			stolen = true
			if session.RevokedAt == 0 {
				session.RevokedAt = now
			}
		}
		session.ActiveAt = now
		_, err := tx.Exec(ctx, "UPDATE ledger_sessions SET rotation = ?, rotated_at = ?, active_at = ?, revoked_at = ? WHERE sid = ?",
			session.Rotation, session.RotatedAt, session.ActiveAt, session.RevokedAt, id[:])
		return err
	})
	if err == nil && stolen {
		err = ErrRotated
	}
	if err != nil {
		return nil, fmt.Errorf("rotate session: %w", err)
	}
	return session, nil
}

// EndSession ends one session. One that ended before stays so.
func (s *Store) EndSession(ctx context.Context, id ledger.ID) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, "UPDATE ledger_sessions SET revoked_at = ? WHERE sid = ? AND revoked_at = 0", s.now().Unix(), id[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("end session: %w", err)
	}
	return nil
}

// Sessions lists the sessions of a user that are in force, newest first.
func (s *Store) Sessions(ctx context.Context, user int64) ([]*Session, error) {
	var list []*Session
	err := s.View(ctx, func(tx *Tx) (err error) {
		list, err = rowsOf(ctx, tx, sessionRows, " WHERE user_id = ? AND revoked_at = 0 AND expires_at > ? ORDER BY created_at DESC, sid DESC LIMIT ?",
			user, s.now().Unix(), maxSessions)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return list, nil
}

// PruneSessions forgets sessions that ended a while ago, those of users who never log in again, and returns how many went.
func (s *Store) PruneSessions(ctx context.Context) (n int64, err error) {
	past := s.now().Add(-revokedKept).Unix()
	err = s.Tx(ctx, func(tx *Tx) error {
		result, err := tx.Exec(ctx, "DELETE FROM ledger_sessions WHERE expires_at < ? OR (revoked_at > 0 AND revoked_at < ?)", past, past)
		if err != nil {
			return err
		}
		n, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget old sessions: %w", err)
	}
	return n, nil
}
