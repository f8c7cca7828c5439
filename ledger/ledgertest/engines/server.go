//go:build unix

package engines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Options say how a server is started. The zero value is right for a test: scratch data, a free port, dies with its parent.
type Options struct {
	Cache  *Cache   // where the engine is installed; required
	Dir    string   // data folder, kept; "" makes a scratch folder that Close removes
	Port   int      // TCP port on 127.0.0.1; 0 picks a free one
	Detach bool     // outlive this process
	Args   []string // more arguments (Kafka: lines of server.properties), after and so before those of this package

	// Advertise, for Kafka, is given the address of each broker and returns the one that clients are told: a proxy's.
	Advertise func(addr string) (string, error)
}

// Server is one engine as a child process. Its methods are safe for concurrent use, but a caller that kills a server while
// another one restarts it gets what it asked for.
type Server struct {
	Name string // "kafka", "mariadb", "redis", "redis-sentinel", "clickhouse" or "nginx"
	Addr string // host:port, the same through restarts
	Dir  string // data and log of this server

	prepare func(context.Context) error // before each start; may be nil
	command func() *exec.Cmd            // builds the command line, for each start
	ready   func(context.Context) error // one look; nil when the server can be worked with
	detach  bool
	scratch *scratch
	claims  []*fileLock

	mu     sync.Mutex
	proc   *os.Process
	exited chan struct{} // closed when proc was waited for
}

// Bounds on waiting for an engine. They are what a loaded two-core machine needs, several times over.
const (
	startTimeout = 120 * time.Second
	stopTimeout  = 30 * time.Second
	lookTimeout  = 2 * time.Second // of one look whether a server is ready
	readyPoll    = 20 * time.Millisecond
)

// ErrRunning is what Start returns for a server that runs.
var ErrRunning = errors.New("server is running")

// newServer claims a port and a folder for a server named name.
func newServer(ctx context.Context, name string, o Options) (*Server, int, error) {
	s := &Server{Name: name, Dir: o.Dir, detach: o.Detach}
	if o.Dir == "" {
		sc, err := newScratch(ctx, name)
		if err != nil {
			return nil, 0, err
		}
		s.scratch, s.Dir = sc, sc.dir
	} else if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, 0, fmt.Errorf("make the data folder: %w", err)
	}
	port := o.Port
	if port == 0 {
		p, err := s.claim()
		if err != nil {
			return nil, 0, errors.Join(err, s.Close())
		}
		port = p
	} else if !PortFree(port) {
		return nil, 0, errors.Join(fmt.Errorf("start %s: port %d is taken", name, port), s.Close())
	}
	s.Addr = loopback(port)
	return s, port, nil
}

// claim returns a free port that stays this server's until Close.
func (s *Server) claim() (int, error) {
	port, lock, err := claimPort()
	if err == nil {
		s.claims = append(s.claims, lock)
	}
	return port, err
}

// LogFile returns the path of what the process printed, over all its starts.
func (s *Server) LogFile() string { return filepath.Join(s.Dir, s.Name+".log") }

// PID returns the process id, or 0 if the server is not running.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.Pid
}

// Start starts the server on its port and its data and returns when it is ready for work. A server that does not get
// ready is killed, and the error holds the end of its log.
func (s *Server) Start(ctx context.Context) error {
	if s.prepare != nil {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	exited, err := s.spawn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := s.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("start %s: it exited: %s", s.Name, s.logTail())
		case <-ctx.Done():
			s.Kill()
			return fmt.Errorf("start %s: not ready: %w: %s", s.Name, err, s.logTail())
		case <-time.After(readyPoll):
		}
	}
}

// spawn starts the process. A goroutine stays with it, locked to its thread, because the kernel takes the death of the
// thread that started a child for the death of the parent.
func (s *Server) spawn() (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, ErrRunning)
	}
	out, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open its log: %w", s.Name, err)
	}
	cmd := s.command()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = attributes(s.detach)
	started, exited := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		out.Close()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it ended is in its log; that it ended is what callers wait for
		s.mu.Lock()
		s.proc = nil
		s.mu.Unlock()
		close(exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	s.proc, s.exited = cmd.Process, exited
	return exited, nil
}

// Kill ends the process with SIGKILL (kill -9) and returns when it is gone. A server that is not running is left alone.
func (s *Server) Kill() {
	if exited, ok := s.signal(syscall.SIGKILL); ok {
		<-exited
	}
}

// Stop asks the process to end (SIGTERM) and returns when it is gone, after 30 s by SIGKILL.
func (s *Server) Stop() {
	exited, ok := s.signal(syscall.SIGTERM)
	if !ok {
		return
	}
	s.signal(syscall.SIGCONT) // a frozen process would not see the signal
	select {
	case <-exited:
	case <-time.After(stopTimeout):
		s.Kill()
	}
}

// Freeze stops the process from running (SIGSTOP): its connections stay open and nothing answers, as on a host that hangs.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on (SIGCONT).
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

// Restart stops the server, if it runs, and starts it on the same port and data.
func (s *Server) Restart(ctx context.Context) error {
	s.Stop()
	return s.Start(ctx)
}

// Close kills the server, gives its port back and removes its scratch folder.
func (s *Server) Close() error {
	s.Kill()
	for _, lock := range s.claims {
		lock.release()
	}
	s.claims = nil
	if s.scratch == nil {
		return nil
	}
	sc := s.scratch
	s.scratch = nil
	return sc.remove()
}

func (s *Server) signal(sig syscall.Signal) (<-chan struct{}, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil, false
	}
	// An error means that the process has just ended; then exited is closed in a moment.
	_ = s.proc.Signal(sig)
	return s.exited, true
}

func (s *Server) logTail() string {
	f, err := os.Open(s.LogFile())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-tailBytes), io.SeekStart)
	}
	b, err := io.ReadAll(io.LimitReader(f, tailBytes))
	if err != nil {
		return err.Error()
	}
	return tail(string(b))
}

// child builds a command. It is not bound to a context: a server outlives the call that starts it.
func child(env []string, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...) //nolint:noctx // see above
	cmd.Env = env
	return cmd
}

// started starts s, or closes it if that fails.
func started(ctx context.Context, s *Server) (*Server, error) {
	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}
