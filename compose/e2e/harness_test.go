// Package e2e runs the program as its users do: the real binary as child processes, real HTTP, real SQL, and kill -9. The
// mock upstream lives in the test and is the oracle: what it served, priced here, is what every store must say.
//
// The same tests run on the embedded stack and on Apache Kafka, MariaDB, Redis and ClickHouse. README.md says what is
// covered and how to run it.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that must happen: generous, because a shared machine may be slow.
const patience = 60 * time.Second

var binary struct {
	dir  string
	once sync.Once
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

// ledgerline returns the path of the binary, built once per test run. LEDGERLINE_BINARY names one that is there already.
func ledgerline(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("LEDGERLINE_BINARY"); path != "" {
		return path
	}
	binary.once.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "ledgerline-e2e-"); binary.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", filepath.Join(binary.dir, "ledgerline"), "ledgerline/cmd/ledgerline")
		if out, err := build.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("build the program: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return filepath.Join(binary.dir, "ledgerline")
}

// output gathers what a process prints, and lets tests wait for a line of it.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await returns once the output contains text.
func (o *output) await(ctx context.Context, text string) error {
	for {
		o.mu.Lock()
		found, changed := strings.Contains(o.buf.String(), text), o.changed
		o.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w; the output so far:\n%s", text, ctx.Err(), o)
		}
	}
}

// process is one run of the binary.
type process struct {
	t              testing.TB
	cmd            *exec.Cmd
	stdout, stderr *output
	done           chan struct{} // closed when the process has ended
}

// command says how to run the binary: nothing of the test's own environment reaches it.
type command struct {
	args []string
	env  map[string]string
	dir  string // working directory; "": a temporary one
	// binary is another one than the one that is being tested.
	binary string
}

// start starts the binary. It is killed when the test ends, if it still runs; its log is shown if the test failed.
func start(t testing.TB, c command) *process {
	t.Helper()
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	p := &process{t: t, stdout: newOutput(), stderr: newOutput(), done: make(chan struct{})}
	if c.binary == "" {
		c.binary = ledgerline(t)
	}
	p.cmd = exec.Command(c.binary, c.args...)
	p.cmd.Dir = c.dir
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "TMPDIR=" + os.TempDir()}
	for name, value := range c.env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.SysProcAttr = attributes()
	started := make(chan error)
	go func() {
		// A child dies with the thread that started it, so that none outlives a test run that is killed. The thread is this
		// goroutine's own until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start ledgerline %s: %v", strings.Join(c.args, " "), err)
	}
	t.Cleanup(func() {
		p.kill()
		p.keepLog(strings.Join(c.args, "-"))
		for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "panic serving", "fatal error: "} {
			if i := strings.Index(p.stderr.String(), sign); i >= 0 {
				t.Errorf("ledgerline %s: %s", strings.Join(c.args, " "), p.stderr.String()[i:])
			}
		}
		if t.Failed() {
			t.Logf("ledgerline %s, standard output:\n%s\nstandard error:\n%s", strings.Join(c.args, " "), tail(p.stdout.String()), tail(p.stderr.String()))
		}
	})
	return p
}

// keepLog writes what the process printed into the folder that LEDGERLINE_E2E_LOGS names.
func (p *process) keepLog(what string) {
	dir := os.Getenv("LEDGERLINE_E2E_LOGS")
	if dir == "" {
		return
	}
	name := fmt.Sprintf("%s-%s-%d.log", strings.ReplaceAll(p.t.Name(), "/", "-"), what, p.cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(p.stderr.String()), 0o600); err != nil {
		p.t.Errorf("keep a log: %v", err)
	}
}

// tail returns the end of a long text.
func tail(s string) string {
	const most = 6000
	if len(s) <= most {
		return s
	}
	return "…" + s[len(s)-most:]
}

// freeze stops the process from running (SIGSTOP): its connections stay open and nothing answers, as on a host that hangs.
func (p *process) freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }

// thaw lets a frozen process go on (SIGCONT).
func (p *process) thaw() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// kill ends the process with SIGKILL, whatever it is doing, and returns when it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// terminate asks the process to stop (SIGTERM) and returns its exit code.
func (p *process) terminate() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal: %v", err)
	}
	return p.wait()
}

// wait returns the exit code once the process has ended.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("ledgerline did not end within %s; standard error:\n%s", patience, tail(p.stderr.String()))
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// await waits for text on standard output; a process that ends first fails the test.
func (p *process) await(text string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := p.stdout.await(ctx, text); err != nil && !strings.Contains(p.stdout.String(), text) {
		p.t.Fatalf("%v\nstandard error:\n%s", err, tail(p.stderr.String()))
	}
}

// ran is how a command ended.
type ran struct {
	code           int
	stdout, stderr string
}

// run runs the binary to its end.
func run(t testing.TB, c command) ran {
	t.Helper()
	p := start(t, c)
	code := p.wait()
	return ran{code, p.stdout.String(), p.stderr.String()}
}

// eventually polls until ok says so.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	within(t, patience, what, ok)
}

// within is eventually with a bound of its own. It returns how long it took.
func within(t testing.TB, bound time.Duration, what string, ok func() error) time.Duration {
	t.Helper()
	start := time.Now()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ok()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > bound {
			t.Fatalf("%s: not within %s: %v", what, bound, err)
		}
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}
