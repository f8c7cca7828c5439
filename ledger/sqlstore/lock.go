package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Lock is a lock of the whole cluster, held by one connection of its own: it ends with Unlock, with the process, or with
// that connection.
type Lock struct {
	conn *sql.Conn
	file *sql.DB // SQLite: the lock's own file
	name string
}

// lockTimeout bounds the calls that give a lock back (L7): they happen at shutdown.
const lockTimeout = 5 * time.Second

// TryLock takes the cluster-wide lock of a name, if nobody has it, and reports whether it did. On MySQL it is GET_LOCK;
// on SQLite it is an exclusive transaction on a file beside the database, which the system ends with the process.
func (s *Store) TryLock(ctx context.Context, name string) (*Lock, bool, error) {
	if !s.mysql {
		return s.tryFileLock(ctx, name)
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	l := &Lock{conn: conn, name: s.lockName(name)}
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, 0)", l.name).Scan(&got); err != nil {
		_ = conn.Close()
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	if got.Int64 != 1 {
		return nil, false, conn.Close()
	}
	// The connection says nothing for as long as the lock is held.
	if _, err := conn.ExecContext(ctx, unboundedSilence); err != nil {
		l.Unlock()
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	return l, true, nil
}

// lockName is unique on the server, where lock names are shared by all databases, within MySQL's 64 characters.
func (s *Store) lockName(name string) string {
	sum := sha256.Sum256([]byte(s.name + "\x00" + name))
	return "ledgerline." + hex.EncodeToString(sum[:16])
}

func (s *Store) tryFileLock(ctx context.Context, name string) (*Lock, bool, error) {
	file, err := sql.Open("sqlite", "file:"+filepath.ToSlash(s.name)+".lock-"+name+"?_pragma=busy_timeout(0)")
	if err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	l := &Lock{file: file, name: name}
	if l.conn, err = file.Conn(ctx); err == nil {
		_, err = l.conn.ExecContext(ctx, "BEGIN EXCLUSIVE")
	}
	if err != nil {
		l.Unlock()
		if IsTransient(err) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", name, err)
	}
	return l, true, nil
}

// waitLock takes the lock, asking again until ctx ends.
func (s *Store) waitLock(ctx context.Context, name string) (*Lock, error) {
	tick := time.NewTicker(migrationPoll)
	defer tick.Stop()
	for {
		l, ok, err := s.TryLock(ctx, name)
		if ok || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s is held by another process: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}

// Held returns nil while the lock is certainly still held.
func (l *Lock) Held(ctx context.Context) error {
	if l.file != nil {
		return nil // held by a file lock of this process
	}
	var own sql.NullBool
	if err := l.conn.QueryRowContext(ctx, "SELECT IS_USED_LOCK(?) = CONNECTION_ID()", l.name).Scan(&own); err != nil {
		return fmt.Errorf("check lock: %w", err)
	}
	if !own.Bool {
		return errors.New("check lock: the connection that held it was lost")
	}
	return nil
}

// Unlock gives the lock back. It cannot fail in a way that keeps the lock: the connection is closed in any case.
func (l *Lock) Unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if l.file != nil {
		if l.conn != nil {
			_, _ = l.conn.ExecContext(ctx, "ROLLBACK")
			_ = l.conn.Close()
		}
		_ = l.file.Close()
		return
	}
	var released sql.NullInt64
	_ = l.conn.QueryRowContext(ctx, "SELECT RELEASE_LOCK(?)", l.name).Scan(&released)
	// Its end gives the lock back in any case, and nobody else should get a connection whose silence is borne.
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = l.conn.Close()
}
