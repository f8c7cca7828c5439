package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// The errors that callers tell apart.
var (
	// ErrFenced means that the partition's stored offset is not the one the caller expected: somebody else moved it, or
	// the caller's own lost answer was a commit. Read the position again.
	ErrFenced = errors.New("the partition's position is another than expected")
	// ErrNotFound means that the row asked for is not there.
	ErrNotFound = errors.New("not found")
	// ErrExists means that a unique key is taken: the business event already happened.
	ErrExists = errors.New("already exists")
	// ErrUndecodable means that a dead letter cannot be re-driven because its record is no event.
	ErrUndecodable = errors.New("the dead letter holds no event that could be applied")
	// ErrSchemaNewer means that the database was migrated by a newer binary.
	ErrSchemaNewer = errors.New("the database schema is newer than this binary")
	// ErrSchemaOlder means that migrations are due; a slave waits for the master to run them.
	ErrSchemaOlder = errors.New("the database schema is older than this binary")
)

// SchemaError says which schema versions met. It wraps ErrSchemaNewer or ErrSchemaOlder.
type SchemaError struct {
	Database, Binary int64
}

func (e *SchemaError) Error() string {
	if e.Database > e.Binary {
		return fmt.Sprintf("%v: version %d, this binary knows %d; start the newer binary", ErrSchemaNewer, e.Database, e.Binary)
	}
	return fmt.Sprintf("%v: version %d, this binary needs %d; run migrations on the master first", ErrSchemaOlder, e.Database, e.Binary)
}

func (e *SchemaError) Unwrap() error {
	if e.Database > e.Binary {
		return ErrSchemaNewer
	}
	return ErrSchemaOlder
}

// IsTransient reports whether the same call may succeed if repeated: a deadlock, a lock that was not granted in time, a
// server that went away or became a replica, a busy SQLite file.
func IsTransient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch my.Number {
		case 1040, 1203, 1205, 1213, 1053, 1180, 1290, 1317, 1792, 1836, 1927, 3024, 3101, 4031:
			return true
		}
		return false
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		switch lite.Code() & 0xff {
		case lib.SQLITE_BUSY, lib.SQLITE_LOCKED, lib.SQLITE_INTERRUPT:
			return true
		}
		return false
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// isDuplicate reports whether a unique key refused a row.
func isDuplicate(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return my.Number == 1062
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return lite.Code() == lib.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == lib.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// permanentError is an error that a repeated call would meet again, caused by what a record holds: the record belongs into
// the dead-letter store (L6).
type permanentError struct {
	code   string // short, for the column code
	reason string
}

func (e *permanentError) Error() string { return e.code + ": " + e.reason }

// asPermanent returns the permanent error in err, or nil. The list is closed: what is not on it is retried for ever.
func asPermanent(err error) *permanentError {
	if p, ok := errors.AsType[*permanentError](err); ok {
		return p
	}
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		switch my.Number {
		case 1048, 1264, 1265, 1292, 1366, 1406, 1452, 1644, 1690, 3819, 4025:
			return &permanentError{fmt.Sprintf("mysql_%d", my.Number), my.Message}
		}
		return nil
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		if isDuplicate(err) {
			return nil
		}
		switch lite.Code() & 0xff {
		case lib.SQLITE_CONSTRAINT, lib.SQLITE_TOOBIG, lib.SQLITE_MISMATCH:
			return &permanentError{fmt.Sprintf("sqlite_%d", lite.Code()), strings.TrimSpace(lite.Error())}
		}
	}
	return nil
}

// isNoTable reports whether a statement named a table that is not there.
func isNoTable(err error) bool {
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return my.Number == 1146
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return strings.Contains(lite.Error(), "no such table")
	}
	return false
}
