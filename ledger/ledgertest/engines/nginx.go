package engines

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
func StartNginx(ctx context.Context, o Options, configure func(port int, dir string) (string, error)) (*Server, error) {
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
	text, err := configure(port, s.Dir)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("configure nginx: %w", err), s.Close())
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

// NginxInFront returns the configuration in file, made for containers, for an nginx on port of this machine: the services listen
// at addrs, and what nginx writes lies in dir.
func NginxInFront(file string, services, addrs []string, port int, dir string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read nginx's configuration: %w", err)
	}
	paths := "access_log off;\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		paths += kind + "_temp_path " + strconv.Quote(filepath.Join(dir, kind)) + ";\n"
	}
	change := []string{
		// A container's address may change, and the name server that knows it is Docker's.
		"resolver 127.0.0.11 valid=2s;", paths, " resolve;", ";",
		"listen 80;", "listen " + loopback(port) + ";", "worker_processes auto;", "pid " + filepath.Join(dir, "nginx.pid") + ";",
	}
	for i, name := range services {
		change = append(change, "server "+name+":3000 ", "server "+addrs[i]+" ")
	}
	for i := 0; i < len(change); i += 2 {
		if !strings.Contains(string(text), change[i]) {
			return "", fmt.Errorf("read nginx's configuration: %s has no %q", file, change[i])
		}
	}
	return strings.NewReplacer(change...).Replace(string(text)), nil
}
