package sqlstore

import "strings"

// dialect is what differs between MySQL (with MariaDB) and SQLite in the statements of this package. Both take ? for
// parameters, backticks around names, x'00' for bytes.
type dialect struct {
	mysql     bool
	forUpdate string // ends a SELECT that locks; SQLite's write transactions are alone anyway
	forShare  string // ends a SELECT whose row must stay until the transaction ends, in the form that MySQL and MariaDB share
	forcePK   string // keeps a locking SELECT on the rows it names: a small table would otherwise be scanned, and locked, whole
	least     string // scalar minimum
	greatest  string
	signed    string // CAST target of a signed integer
}

var (
	dialectMySQL = dialect{
		mysql: true, forUpdate: " FOR UPDATE", forShare: " LOCK IN SHARE MODE", forcePK: " FORCE INDEX (PRIMARY)",
		least: "LEAST", greatest: "GREATEST", signed: "SIGNED",
	}
	dialectSQLite = dialect{least: "MIN", greatest: "MAX", signed: "INTEGER"}
)

// onConflict returns the clause that turns an INSERT into an upsert: keys names the primary key, cols the columns to
// take from the new row. With no cols an existing row stays as it is. VALUES(col) is old, but the only form that MySQL
// 5.7 to 9 and MariaDB share.
func (d *dialect) onConflict(keys string, cols ...string) string {
	var b strings.Builder
	if d.mysql {
		b.WriteString(" ON DUPLICATE KEY UPDATE ")
		if len(cols) == 0 {
			first, _, _ := strings.Cut(keys, ",")
			cols = []string{first}
		}
	} else {
		b.WriteString(" ON CONFLICT (" + keys + ") DO ")
		if len(cols) == 0 {
			b.WriteString("NOTHING")
			return b.String()
		}
		b.WriteString("UPDATE SET ")
	}
	for i, c := range cols {
		if i > 0 {
			b.WriteString(", ")
		}
		if d.mysql {
			b.WriteString(c + " = VALUES(" + c + ")")
		} else {
			b.WriteString(c + " = excluded." + c)
		}
	}
	return b.String()
}

// updateFrom returns an UPDATE of table (named t) with columns of source (named s) where on holds; further conditions
// may follow with AND. The set list must name columns that only table has.
func (d *dialect) updateFrom(table, source, on, set string) string {
	if d.mysql {
		return "UPDATE " + table + " t JOIN " + source + " s SET " + set + " WHERE " + on
	}
	return "UPDATE " + table + " AS t SET " + set + " FROM " + source + " AS s WHERE " + on
}
