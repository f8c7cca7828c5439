package engines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// CacheEnv names the environment variable that moves the cache folder from its default, ~/.cache/ledgerline/engines.
const CacheEnv = "LEDGERLINE_ENGINES"

// Cache is the folder that holds the installed engines. Several processes may use one at a time: each entry is made under
// a file lock, in a folder beside its place, and renamed into place when complete, so a half-made entry is never used.
type Cache struct {
	dir string
	log io.Writer
}

// Open returns the cache named by LEDGERLINE_ENGINES, or else the one below the user's cache folder, and makes the folder
// where it is missing. What is installed later is announced on log, one line each.
func Open(log io.Writer) (*Cache, error) {
	dir := os.Getenv(CacheEnv)
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a cache folder: %w (set %s)", err, CacheEnv)
		}
		dir = filepath.Join(base, "ledgerline", "engines")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache folder: %w (set %s to a folder you can write)", err, CacheEnv)
	}
	return &Cache{dir: dir, log: log}, nil
}

// Dir returns the folder.
func (c *Cache) Dir() string { return c.dir }

// Install makes sure that all engines are in the cache.
func (c *Cache) Install(ctx context.Context) error {
	for _, install := range []func(context.Context) (string, error){c.kafka, c.redis, c.mariadb, c.clickhouse, c.nginx} {
		if _, err := install(ctx); err != nil {
			return err
		}
	}
	return nil
}

// entry returns the folder of the named entry, made by fill if it is not there. fill gets an empty folder, and what it
// left there is the entry as soon as it returns nil.
func (c *Cache) entry(ctx context.Context, name, what string, fill func(ctx context.Context, dir string) error) (string, error) {
	place := filepath.Join(c.dir, name)
	if _, err := os.Stat(place); err == nil {
		return place, nil
	}
	lock, err := acquire(ctx, filepath.Join(c.dir, "."+name+".lock"))
	if err != nil {
		return "", fmt.Errorf("lock the cache entry %s: %w", name, err)
	}
	defer lock.release()
	if _, err := os.Stat(place); err == nil { // made while this process waited for the lock
		return place, nil
	}
	c.say("installing %s into %s", what, place)
	start := time.Now()
	dir := filepath.Join(c.dir, "."+name+".new")
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear an unfinished cache entry: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache entry %s: %w", name, err)
	}
	if err := fill(ctx, dir); err != nil {
		return "", fmt.Errorf("install %s: %w", what, err)
	}
	if err := os.Rename(dir, place); err != nil {
		return "", fmt.Errorf("put the cache entry %s in its place: %w", name, err)
	}
	c.say("installed %s in %.1f s", what, time.Since(start).Seconds())
	return place, nil
}

func (c *Cache) say(format string, args ...any) {
	fmt.Fprintf(c.log, "engines: "+format+"\n", args...)
}

// need returns the path of a program, or an error that says which package brings it.
func need(program, hint string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is not on the PATH: %s, or give the address of a running engine in TEST_KAFKA_BROKERS, TEST_MYSQL_DSN, TEST_REDIS_URL or TEST_CLICKHOUSE_DSN", program, hint)
	}
	return path, nil
}

// output runs a program in dir to its end and returns what it printed on standard output. The error holds the tail of
// what it printed.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err == nil {
		return string(out), nil
	}
	said := string(out) // Maven reports its errors here
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		said += "\n" + string(e.Stderr)
	}
	return "", fmt.Errorf("run %s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, tail(said))
}

// tailBytes bounds how much of a program's output goes into an error: enough for the last few lines.
const tailBytes = 2000

func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > tailBytes {
		s = "…" + s[len(s)-tailBytes:]
	}
	return s
}
