package engines

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
)

// Ports are picked from this range: below Linux's default range for outgoing connections (32768 up), so that no client
// takes the port of a server that is down for a moment, and above the usual ports of services.
const (
	firstPort = 18000
	lastPort  = 31999
)

// portTries bounds the search for a free port; with a few dozen of 14,000 in use the first try nearly always succeeds.
const portTries = 200

// scratchRoot is where the data folders and port claims of this user's servers lie.
func scratchRoot() (string, error) {
	root := filepath.Join(os.TempDir(), "ledgerline-engines-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(filepath.Join(root, "ports"), 0o700); err != nil {
		return "", fmt.Errorf("make a scratch folder: %w", err)
	}
	return root, nil
}

// scratch is a folder that lives as long as the process that made it.
type scratch struct {
	dir  string
	lock *fileLock
}

func newScratch(ctx context.Context, name string) (*scratch, error) {
	root, err := scratchRoot()
	if err != nil {
		return nil, err
	}
	// Without the guard, the sweep of another process could take a lock file between its making and its locking.
	guard, err := acquire(ctx, filepath.Join(root, "guard"))
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	defer guard.release()
	sweep(root)
	dir, err := os.MkdirTemp(root, name+"-")
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	lock, err := tryLock(dir + ".lock")
	if err != nil {
		return nil, fmt.Errorf("lock the scratch folder: %w", err)
	}
	return &scratch{dir: dir, lock: lock}, nil
}

func (s *scratch) remove() error {
	err := os.RemoveAll(s.dir)
	os.Remove(s.dir + ".lock")
	s.lock.release()
	return err
}

// sweep removes the folders of processes that died: those whose lock file is there and free.
func sweep(root string) {
	locks, _ := filepath.Glob(filepath.Join(root, "*.lock"))
	for _, path := range locks {
		lock, err := tryLock(path)
		if err != nil {
			continue
		}
		if dir := path[:len(path)-len(".lock")]; os.RemoveAll(dir) == nil {
			os.Remove(path)
		}
		lock.release()
	}
}

// claimPort finds a free port and claims it against other processes that use this package, for as long as the lock is
// held, also while the server on it is down.
func claimPort() (int, *fileLock, error) {
	root, err := scratchRoot()
	if err != nil {
		return 0, nil, err
	}
	for range portTries {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		lock, err := tryLock(filepath.Join(root, "ports", strconv.Itoa(port)))
		if errors.Is(err, errLocked) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		if PortFree(port) {
			return port, lock, nil
		}
		lock.release()
	}
	return 0, nil, fmt.Errorf("find a free port: none in %d tries between %d and %d", portTries, firstPort, lastPort)
}

// ClaimPort finds a free port for a server of the caller's own and keeps it away from those of this package until release.
func ClaimPort() (port int, release func(), err error) {
	port, lock, err := claimPort()
	if err != nil {
		return 0, nil, err
	}
	return port, lock.release, nil
}

// PortFree says whether nothing listens on a port of 127.0.0.1.
func PortFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port)) //nolint:noctx // it does not wait
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
