//go:build unix

package engines

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// mysqlFiles is what a started MySQL needs: the folder with the program and all its libraries, and an empty data folder
// that is copied for each server.
type mysqlFiles struct {
	root     string
	template string
}

// mysqlRelease is the release of Debian that has MySQL itself; the stable ones have MariaDB only.
const mysqlRelease = "sid"

func (c *Cache) mysqlFiles(ctx context.Context) (mysqlFiles, error) {
	root, err := c.debianFrom(ctx, mysqlRelease, "mysql", "mysql-server-core")
	if err != nil {
		return mysqlFiles{}, err
	}
	f := mysqlFiles{root: root}
	f.template, err = c.entry(ctx, "mysql-data", "an empty MySQL data folder", func(ctx context.Context, dir string) error {
		cmd, err := f.command("--initialize-insecure", "--datadir="+dir)
		if err != nil {
			return err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run mysqld --initialize-insecure: %w: %s", err, tail(string(out)))
		}
		return nil
	})
	return f, err
}

// command builds a mysqld command. The program is younger than the system's C library, so it is started by the dynamic
// loader that came with it and sees that loader's libraries only.
func (f mysqlFiles) command(args ...string) (*exec.Cmd, error) {
	loaders, err := filepath.Glob(filepath.Join(f.root, "usr/lib/*-linux-gnu/ld-linux-*.so.*"))
	if err != nil || len(loaders) != 1 {
		return nil, fmt.Errorf("find the dynamic loader in %s: %w", f.root, fs.ErrNotExist)
	}
	share := filepath.Join(f.root, "usr", "share")
	all := []string{
		"--library-path", filepath.Dir(loaders[0]), filepath.Join(f.root, "usr", "sbin", "mysqld"),
		"--no-defaults", "--basedir=" + filepath.Join(f.root, "usr"), "--lc-messages-dir=" + filepath.Join(share, "mysql"),
		"--plugin-dir=" + filepath.Join(f.root, "usr", "lib", "mysql", "plugin"),
		"--innodb-redo-log-capacity=32M", "--innodb-buffer-pool-size=64M",
	}
	if os.Getuid() == 0 {
		all = append(all, "--user=root")
	}
	return child(os.Environ(), loaders[0], append(all, args...)...), nil
}

// StartMySQL starts MySQL itself, where MariaDB does not do. User root has no password.
func StartMySQL(ctx context.Context, o Options) (*Server, error) {
	f, err := o.Cache.mysqlFiles(ctx)
	if err != nil {
		return nil, err
	}
	s, port, err := newServer(ctx, MySQLServer.Server(), o)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(s.Dir, "data")
	if _, err := os.Stat(data); err != nil {
		if err := os.CopyFS(data, os.DirFS(f.template)); err != nil {
			return nil, fmt.Errorf("make the data folder of mysql: %w", err)
		}
		// Every server makes its own identity.
		if err := os.Remove(filepath.Join(data, "auto.cnf")); err != nil {
			return nil, fmt.Errorf("make the data folder of mysql: %w", err)
		}
	}
	cmd, err := f.command(append([]string{
		"--datadir=" + data, "--port=" + strconv.Itoa(port), "--bind-address=127.0.0.1", "--socket=s", "--mysqlx=OFF",
		"--pid-file=" + filepath.Join(s.Dir, "pid"), "--max-connections=500", "--skip-log-bin", "--secure-file-priv=NULL",
	}, o.Args...)...)
	if err != nil {
		return nil, err
	}
	s.command = func() *exec.Cmd { return child(cmd.Env, cmd.Path, cmd.Args[1:]...) }
	s.ready = func(ctx context.Context) error { return mysqlReady(ctx, s.MySQLDSN("")) }
	return started(ctx, s)
}
