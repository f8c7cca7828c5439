package engines

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/go-sql-driver/mysql"
)

// mariadbFiles is what a started MariaDB needs: the folder with the programs ("" for the system's own) and a data folder
// that was made once and is copied for each server, which takes a tenth of the time of making one.
type mariadbFiles struct {
	root     string
	template string
}

// Sizes of the files that the server makes at its first start, in place of 96 MB of redo log and 128 MB of buffer pool:
// a test's database is small, and the copy of the data folder shall be, too.
var mariadbSizes = []string{"--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M", "--aria-log-file-size=8M"}

func (c *Cache) mariadb(ctx context.Context) (string, error) {
	f, err := c.mariadbFiles(ctx)
	return f.template, err
}

func (c *Cache) mariadbFiles(ctx context.Context) (mariadbFiles, error) {
	var f mariadbFiles
	if _, err := exec.LookPath("mariadbd"); err != nil {
		root, err := c.debian(ctx, "mariadb", "mariadb-server-core", "mariadb-client-core")
		if err != nil {
			return f, err
		}
		f.root = root
	}
	template, err := c.entry(ctx, "mariadb-data", "an empty MariaDB data folder", func(ctx context.Context, dir string) error {
		path, err := unpacked(f.root).path("mariadb-install-db")
		if err != nil {
			return err
		}
		args := append([]string{"--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--datadir=" + dir}, f.common()...)
		cmd := exec.CommandContext(ctx, path, append(args, mariadbSizes...)...)
		cmd.Env = unpacked(f.root).environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run mariadb-install-db: %w: %s", err, tail(string(out)))
		}
		return nil
	})
	f.template = template
	return f, err
}

// common are the arguments that the server and its installer share.
func (f mariadbFiles) common() []string {
	var args []string
	if f.root != "" {
		args = append(args, "--basedir="+filepath.Join(f.root, "usr"))
	}
	if os.Getuid() == 0 {
		args = append(args, "--user=root")
	}
	return args
}

// StartMariaDB starts mariadbd. User root has no password. The server flushes its log at every commit, as in production.
func StartMariaDB(ctx context.Context, o Options) (*Server, error) {
	f, err := o.Cache.mariadbFiles(ctx)
	if err != nil {
		return nil, err
	}
	path, err := unpacked(f.root).path("mariadbd")
	if err != nil {
		return nil, err
	}
	s, port, err := newServer(ctx, MySQL.Server(), o)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(s.Dir, "data")
	if _, err := os.Stat(data); err != nil {
		if err := os.CopyFS(data, os.DirFS(f.template)); err != nil {
			return nil, fmt.Errorf("make the data folder of mariadb: %w", err)
		}
	}
	args := append([]string{"--no-defaults"}, f.common()...)
	args = append(args,
		"--datadir="+data, "--port="+strconv.Itoa(port), "--bind-address=127.0.0.1",
		"--socket=s", // in the data folder: a longer path may exceed what a socket address holds
		"--pid-file="+filepath.Join(s.Dir, "pid"), "--character-set-server=utf8mb4", "--max-connections=500",
		"--skip-name-resolve", "--skip-log-bin")
	args = append(append(args, mariadbSizes...), o.Args...)
	s.command = func() *exec.Cmd {
		return child(unpacked(f.root).environ(), path, args...)
	}
	s.ready = func(ctx context.Context) error { return mysqlReady(ctx, s.MySQLDSN("")) }
	return started(ctx, s)
}

// MySQLDSN returns the data source name of a database on a MariaDB server, in the form that SQL_DSN takes.
func (s *Server) MySQLDSN(database string) string {
	return "root@tcp(" + s.Addr + ")/" + database + "?parseTime=true"
}

func mysqlReady(ctx context.Context, dsn string) error {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return err
	}
	cfg.Logger = &mysql.NopLogger{} // it would print each look that came too early
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	return db.PingContext(ctx)
}
