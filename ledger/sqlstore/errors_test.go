package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"testing"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
)

func TestErrorsAreClassified(t *testing.T) {
	my := func(n uint16) error { return fmt.Errorf("x: %w", &mysql.MySQLError{Number: n, Message: "m"}) }
	lost := &commitError{driver.ErrBadConn}
	for name, c := range map[string]struct {
		err                              error
		transient, repeatable, permanent bool
	}{
		"none":               {},
		"deadlock":           {my(1213), true, true, false},
		"lock timeout":       {my(1205), true, true, false},
		"replica":            {my(1290), true, true, false},
		"duplicate":          {my(1062), false, false, false},
		"syntax":             {my(1064), false, false, false},
		"out of range":       {my(1264), false, false, true},
		"signal":             {my(1644), false, false, true},
		"disk full":          {my(1114), false, false, false},
		"connection":         {driver.ErrBadConn, true, true, false},
		"torn packet":        {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), true, true, false},
		"answer of a commit": {lost, true, false, false},
		"deadlock in commit": {&commitError{my(1213)}, true, true, false},
		"cancelled":          {context.Canceled, false, false, false},
		"ours":               {&permanentError{"overflow", "x"}, false, false, true},
		"fenced":             {ErrFenced, false, false, false},
	} {
		if got := IsTransient(c.err); got != c.transient {
			t.Errorf("%s: transient %v", name, got)
		}
		if got := mayRepeat(c.err); got != c.repeatable {
			t.Errorf("%s: repeatable %v", name, got)
		}
		if got := c.err != nil && asPermanent(c.err) != nil; got != c.permanent {
			t.Errorf("%s: permanent %v", name, got)
		}
	}
}

// A server that dies in the middle: the error is transient, the same call works when it is back.
func TestServerRestart(t *testing.T) {
	server := ledgertest.StartMySQL(t)
	dsn := ledgertest.MySQLDatabase(t, server.MySQLDSN(""))
	s := initialised(t, openMySQL(t, dsn))
	u := userIn(0, 0)
	user(t, s, u)
	l := newLog(0)
	l.add(id(1), usage(u, 0, 0, 5))
	killed := false
	s.fault = func(q string) error {
		if !killed && q == "SAVEPOINT ledgerline" {
			killed = true
			server.Kill()
		}
		return nil
	}
	_, err := s.Flush(t.Context(), l.call(0, 1))
	if !IsTransient(err) {
		t.Fatalf("%v", err)
	}
	if _, err := s.Flush(t.Context(), l.call(0, 1)); !IsTransient(err) {
		t.Fatalf("while it is away: %v", err)
	}
	server.Start()
	_, err = s.Flush(t.Context(), l.call(0, 1))
	if err != nil && !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	diff(t, "balances", balancesOf(t, s), map[ledger.Account]ledger.Balance{{Kind: ledger.UserAccount, ID: u}: {Charged: 5, Requests: 1}})
}

func TestClip(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{{"abc", 5, "abc"}, {"abc", 2, "ab"}, {"aé", 2, "a"}, {"a\xff", 5, "a"}, {"\xffa", 5, "\ufffda"}, {"", 3, ""}} {
		if got := clip(c.in, c.n); got != c.want || !utf8.ValidString(got) {
			t.Errorf("clip(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}
