//go:build unix

package engines

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process names a process for good: a process id alone may belong to another one later.
type Process struct {
	PID   int    `json:"pid"`
	Began string `json:"began"` // when it started, in the system's own terms
}

// Process returns the name of a running server's process.
func (s *Server) Process() (Process, error) {
	pid := s.PID()
	began, err := processBegan(pid)
	if err != nil {
		return Process{}, fmt.Errorf("read the start time of %s: %w", s.Name, err)
	}
	return Process{PID: pid, Began: began}, nil
}

// Running says whether that very process runs.
func (p Process) Running() bool {
	began, err := processBegan(p.PID)
	return err == nil && began == p.Began
}

// Stop asks a detached process to end, kills it after 30 s, and returns when it is gone. Another process that has its id by
// now is left alone.
func (p Process) Stop() error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if !p.Running() {
			return nil
		}
		if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop process %d: %w", p.PID, err)
		}
		for deadline := time.Now().Add(stopTimeout); p.Running() && time.Now().Before(deadline); {
			time.Sleep(readyPoll)
		}
	}
	if p.Running() {
		return fmt.Errorf("stop process %d: it is still there %v after SIGKILL", p.PID, stopTimeout)
	}
	return nil
}

// processBegan reads when a process started: from /proc on Linux (clock ticks since boot, field 22 of stat), elsewhere as
// ps prints it. A process that ended but was not waited for by its parent counts as gone.
func processBegan(pid int) (string, error) {
	if pid <= 0 {
		return "", os.ErrProcessDone
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err == nil {
		_, rest, _ := strings.Cut(string(stat), ") ") // the name before it may hold anything
		f := strings.Fields(rest)
		const state, started = 0, 19 // fields 3 and 22 of the line
		if len(f) <= started || f[state] == "Z" {
			return "", os.ErrProcessDone
		}
		return f[started], nil
	}
	if _, procErr := os.Stat("/proc/self/stat"); procErr == nil {
		return "", os.ErrProcessDone
	}
	out, err := exec.Command("ps", "-o", "lstart=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // it reads a table
	if began := strings.TrimSpace(string(out)); err == nil && began != "" {
		return began, nil
	}
	return "", os.ErrProcessDone
}
