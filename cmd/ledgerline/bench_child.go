package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// childPatience bounds how long a child process may take to say where it serves, and how long it may take to stop.
const childPatience = 60 * time.Second

// child is a process of a benchmark.
type child struct {
	cmd  *exec.Cmd
	url  string
	said lastWords
}

// lastWords keeps the end of what a process writes to standard error, for the case that it fails.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

// maxLastWords bounds what is kept, in bytes: some twenty lines.
const maxLastWords = 4 << 10

// Write implements io.Writer.
func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if over := len(l.text) - maxLastWords; over > 0 {
		l.text = append(l.text[:0], l.text[over:]...)
	}
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.text))
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(childPatience):
		_ = c.cmd.Process.Kill()
		<-done
	}
}

var servesURL = regexp.MustCompile(`serves (http://[0-9.:]+)`)

// start runs this program with other arguments and waits until it says where it serves.
func (b *bench) start(ctx context.Context, name string, args ...string) (*child, error) {
	return b.startBuild(ctx, name, "", nil, args...)
}

// startBuild does it with another build of this program, if one is named.
func (b *bench) startBuild(ctx context.Context, name, build string, env map[string]string, args ...string) (*child, error) {
	if build == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		build = self
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), build, args...)
	c := &child{cmd: cmd}
	cmd.Stderr = &c.said
	if b.o.verbose {
		cmd.Stderr = b.errs
	}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	b.children = append(b.children, c)
	serves := make(chan string, 1)
	go func() {
		defer close(serves)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if m := servesURL.FindStringSubmatch(lines.Text()); m != nil {
				serves <- m[1]
			}
		}
	}()
	select {
	case c.url = <-serves:
		if c.url == "" {
			return nil, fmt.Errorf("start %s: it ended before it served: %s", name, &c.said)
		}
		return c, nil
	case <-time.After(childPatience):
		return nil, fmt.Errorf("start %s: it did not say where it serves: %s", name, &c.said)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func waitReady(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, childPatience)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("the node did not become ready")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func loopback(ln net.Listener) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// clockTick is the unit of CPU times in /proc, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// procStat returns the CPU time and the resident memory of a process; zeros where /proc does not tell.
func procStat(pid int) (cpu time.Duration, rss int64) {
	return readStat(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
}

// readStat reads such figures of a process, or of one thread.
func readStat(path string) (cpu time.Duration, rss int64) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, 0
	}
	return parseStat(string(raw))
}

// parseStat reads what Linux says of a process or a thread.
func parseStat(stat string) (cpu time.Duration, rss int64) {
	_, rest, _ := strings.Cut(stat, ") ")
	fields := strings.Fields(rest)
	if len(fields) < 22 {
		return 0, 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	pages, _ := strconv.ParseInt(fields[21], 10, 64)
	return time.Duration(user+system) * clockTick, pages * int64(os.Getpagesize())
}

// cpuOf is the CPU time of several processes.
func cpuOf(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		cpu, _ := procStat(pid)
		sum += cpu
	}
	return sum
}

// memoryOf returns the resident memory of a process, in bytes: its own, and what it maps of files, which the system can drop.
func memoryOf(pid int) (own, file int64) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:", "RssShmem:":
			own += kb << 10
		case "RssFile:":
			file = kb << 10
		}
	}
	return own, file
}

var hostPort = regexp.MustCompile(`127\.0\.0\.1:(\d+)`)

// listenerOf finds the process that listens on the loopback port named in an address or DSN; 0 if there is none.
func listenerOf(addr string) int {
	if u, err := url.PathUnescape(addr); err == nil {
		addr = u
	}
	m := hostPort.FindStringSubmatch(addr)
	if m == nil {
		return 0
	}
	port, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		raw, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			const listening = "0A"
			if len(f) > 9 && f[3] == listening && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && inodes[to] {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
			return pid
		}
	}
	return 0
}
