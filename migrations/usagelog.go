package migrations

import (
	"embed"
	"io/fs"
)

// The files of the usage log's databases. The log database may be the main one, so table names do not clash.
var (
	//go:embed clickhouse/*.sql
	clickhouseFiles embed.FS
	//go:embed usagelog-mysql/*.sql
	usagelogMySQLFiles embed.FS
	//go:embed usagelog-sqlite/*.sql
	usagelogSQLiteFiles embed.FS
)

// ClickHouse returns the files of the usage log on ClickHouse: NNNNN_name.sql, statements ended by a semicolon at the end
// of a line, each of which can be run again.
func ClickHouse() fs.FS { return sub(clickhouseFiles, "clickhouse") }

// UsageLogMySQL returns the files of the usage log on MySQL and MariaDB, in the same form.
func UsageLogMySQL() fs.FS { return sub(usagelogMySQLFiles, "usagelog-mysql") }

// UsageLogSQLite returns the files of the usage log on SQLite, in the same form.
func UsageLogSQLite() fs.FS { return sub(usagelogSQLiteFiles, "usagelog-sqlite") }
