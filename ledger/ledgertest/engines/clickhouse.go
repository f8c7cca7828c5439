package engines

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// chdbVersion is the release of the npm packages that carry the ClickHouse engine as a library.
const chdbVersion = "26.7.3-stable.1"

// chdbPackages names the package per platform.
var chdbPackages = map[string]string{
	"linux/amd64":  "@chdb/lib-linux-x64-gnu",
	"linux/arm64":  "@chdb/lib-linux-arm64-gnu",
	"darwin/amd64": "@chdb/lib-darwin-x64",
	"darwin/arm64": "@chdb/lib-darwin-arm64",
}

// clickhouse returns the path of the ClickHouse library.
func (c *Cache) clickhouse(ctx context.Context) (string, error) {
	name, ok := chdbPackages[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("install ClickHouse: no library for %s/%s: give the address of a server in TEST_CLICKHOUSE_DSN", runtime.GOOS, runtime.GOARCH)
	}
	dir, err := c.entry(ctx, "chdb-"+chdbVersion, "ClickHouse (npm "+name+")", func(ctx context.Context, dir string) error {
		npm, err := need("npm", "install Node.js with npm")
		if err != nil {
			return err
		}
		if _, err := output(ctx, dir, npm, "pack", "--silent", name+"@"+chdbVersion); err != nil {
			return err
		}
		return extractLibrary(dir)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "libchdb.so"), nil
}

// extractLibrary takes libchdb.so out of the one package in dir and removes the package.
func extractLibrary(dir string) error {
	packages, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("find the package that npm left: %d files: %w", len(packages), errors.Join(err, fs.ErrNotExist))
	}
	f, err := os.Open(packages[0])
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("find libchdb.so in the package: %w", err)
		}
		if filepath.Base(h.Name) != "libchdb.so" {
			continue
		}
		lib, err := os.OpenFile(filepath.Join(dir, "libchdb.so"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(lib, r, h.Size); err != nil {
			return errors.Join(err, lib.Close())
		}
		return errors.Join(lib.Close(), os.Remove(packages[0]))
	}
}

// chserver returns the program that serves the library, built from compose/local/chserver of this source tree. It is a
// module of its own, so that the library's loader stays out of Ledgerline's requirements.
func (c *Cache) chserver(ctx context.Context) (string, error) {
	root, err := SourceTree()
	if err != nil {
		return "", err
	}
	source := filepath.Join(root, "compose", "local", "chserver")
	sum, err := hashSources(source)
	if err != nil {
		return "", fmt.Errorf("read the source of chserver: %w", err)
	}
	dir, err := c.entry(ctx, "chserver-"+sum, "chserver (go build)", func(ctx context.Context, dir string) error {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "chserver"), ".")
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build chserver: %w: %s", err, tail(string(out)))
		}
		return nil
	})
	return filepath.Join(dir, "chserver"), err
}

// hashSources names a build by what it was built from.
func hashSources(dir string) (string, error) {
	h := sha256.New()
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if name := e.Name(); (strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")) || strings.HasPrefix(name, "go.") {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n%s", name, len(text), text)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], err
}

// SourceTree finds the source tree: the folder above the current one whose go.mod names this module. Tests run in the
// folder of their package, compose/local in the root.
func SourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		text, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil && bytes.HasPrefix(text, []byte("module ledgerline\n")) {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("find the source tree of ledgerline above %s: %w", dir, fs.ErrNotExist)
		}
	}
}

// StartClickHouse starts the ClickHouse engine behind its HTTP interface. What it has acknowledged survives Kill.
func StartClickHouse(ctx context.Context, o Options) (*Server, error) {
	lib, err := o.Cache.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	program, err := o.Cache.chserver(ctx)
	if err != nil {
		return nil, err
	}
	s, _, err := newServer(ctx, "clickhouse", o)
	if err != nil {
		return nil, err
	}
	args := append([]string{"-lib", lib, "-data", filepath.Join(s.Dir, "data"), "-addr", s.Addr}, o.Args...)
	s.command = func() *exec.Cmd { return child(os.Environ(), program, args...) }
	s.ready = func(ctx context.Context) error {
		_, err := clickhouseDo(ctx, s.Addr, "SELECT 1 FORMAT TabSeparated")
		return err
	}
	return started(ctx, s)
}

// ClickHouseDSN returns the data source name of a database on a ClickHouse server, in the form that LOG_SQL_DSN takes.
func (s *Server) ClickHouseDSN(database string) string { return "http://" + s.Addr + "/" + database }

// clickhouseDo runs one statement over HTTP and returns what it answered.
func clickhouseDo(ctx context.Context, addr, query string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	u := url.URL{Scheme: "http", Host: addr, Path: "/"}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(query))
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, tailBytes))
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", res.Status, tail(string(body)))
	}
	return string(body), nil
}

// ClickHouseExec runs one statement without a result.
func (s *Server) ClickHouseExec(ctx context.Context, statement string) error {
	_, err := clickhouseDo(ctx, s.Addr, statement)
	return err
}
