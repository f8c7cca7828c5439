// Package migrations holds the schema of Ledgerline's databases as embedded SQL files, forward only.
//
// It owns the files and nothing else: ledger/sqlstore and ledger/usagelog run them. Every statement can be run again
// after a crash in the middle of a file (IF NOT EXISTS), because MySQL commits each DDL statement by itself. Tables of
// New API are created only if they are missing and never altered here (P7: an operator can switch back); our own carry
// the prefix ledger_.
package migrations

import (
	"embed"
	"io/fs"
)

//go:embed mysql/*.sql
var mysqlFiles embed.FS

//go:embed sqlite/*.sql
var sqliteFiles embed.FS

// MySQL returns the files for MySQL and MariaDB, in the layout that goose reads.
func MySQL() fs.FS { return sub(mysqlFiles, "mysql") }

// SQLite returns the files for SQLite.
func SQLite() fs.FS { return sub(sqliteFiles, "sqlite") }

// sub panics only if the name is not a valid path, which is a bug of this package.
func sub(files embed.FS, dir string) fs.FS {
	f, err := fs.Sub(files, dir)
	if err != nil {
		panic("migrations: " + err.Error())
	}
	return f
}
