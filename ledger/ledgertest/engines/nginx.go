package engines

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// nginx returns the folder that holds nginx, "" for the system's own.
func (c *Cache) nginx(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("nginx"); err == nil {
		return "", nil
	}
	return c.debian(ctx, "nginx", "nginx")
}

// StartNginx starts nginx. configure gets its port and its folder, in which all that nginx writes has to lie, and returns its
// configuration. It runs as one process, without the workers that would outlive a parent that was killed, so it cannot reload.
func StartNginx(ctx context.Context, o Options, configure func(port int, dir string) string) (*Server, error) {
	root, err := o.Cache.nginx(ctx)
	if err != nil {
		return nil, err
	}
	path, err := unpacked(root).path("nginx")
	if err != nil {
		return nil, err
	}
	s, port, err := newServer(ctx, "nginx", o)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.Dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(configure(port, s.Dir)), 0o644); err != nil {
		return nil, fmt.Errorf("write the configuration of nginx: %w", err)
	}
	args := append([]string{"-p", s.Dir, "-c", file, "-e", "stderr", "-g", "daemon off; master_process off;"}, o.Args...)
	s.command = func() *exec.Cmd { return child(unpacked(root).environ(), path, args...) }
	s.ready = func(ctx context.Context) error { return listens(ctx, s.Addr) }
	return started(ctx, s)
}

// URL returns the address of a server that speaks HTTP.
func (s *Server) URL() string { return "http://" + s.Addr }

// listens reports whether a connection is taken.
func listens(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return conn.Close()
}

// NginxPaths are the directives, for the block http, that keep what nginx writes in dir.
func NginxPaths(dir string) string {
	text := "access_log off;\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		text += kind + "_temp_path " + strconv.Quote(filepath.Join(dir, kind)) + ";\n"
	}
	return text
}
