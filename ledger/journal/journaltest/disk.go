// Package journaltest has a disk in memory for tests and simulations of package journal: many processes share it, any of
// them can be killed, the power can be cut, and reads, writes and fsyncs can fail on demand. It promises no more than
// package journal assumes of a real disk, and takes every liberty that leaves: a write that was not fsynced may
// survive a power loss wholly, in parts, or not at all; a mapped page may be old or new; a name that was not made durable
// by SyncDir may come back or vanish; data whose fsync failed is readable until the power goes, and then lost.
//
// Only tests and simulations call it.
package journaltest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"

	"ledgerline/ledger/journal"
)

// ErrKilled is what every call of a killed process returns.
var ErrKilled = errors.New("process was killed")

// Disk is one machine's disk.
type Disk struct {
	mu     sync.Mutex
	rand   *rand.Rand
	root   *node
	procs  map[*Process]bool
	free   int64 // bytes that files may still grow by; negative: no bound
	ops    int64
	inject func(Op) Fault
}

// node is a file or a directory. What is durable stands beside what processes see.
type node struct {
	isDir bool

	names   map[string]*node
	durable map[string]*node
	pending []func(map[string]*node) // changes of names since the last SyncDir

	data     []byte // what processes see; if mapped, the memory itself
	synced   []byte
	unsynced []change // since the last Sync
	mapped   bool
	mapper   *Process // who mapped it last
	lock     *Process
	path     string // of the latest name
}

// change is a write or, if data is nil, a truncation to off.
type change struct {
	off  int64
	data []byte
}

// Op is one call that can be made to fail.
type Op struct {
	Kind  string // "mkdir", "list", "open", "create", "rename", "remove", "syncdir", "lock", "read", "write", "truncate", "sync", "map"
	Path  string
	Bytes int   // of a write
	N     int64 // calls so far on this disk, this one included
}

// Fault is what happens to a call.
type Fault int

// The faults. A failed fsync loses what it should have made durable at the next power loss, although it stays readable
// until then and a later fsync succeeds, as on Linux.
const (
	NoFault     Fault = iota
	FailIO            // the call returns an error and does nothing
	ShortWrite        // half of a write is done and no error is returned; other calls: FailIO
	KillBefore        // the process is killed before the call
	KillWithin        // the process is killed after half of a write; other calls: KillBefore
	KillAfter         // the process is killed after the call
	PowerBefore       // the power goes before the call
	PowerAfter        // the power goes after the call
)

// errIO is the error of a call that FailIO hits.
var errIO = errors.New("input/output error")

// NewDisk returns an empty disk; seed decides what survives a power loss.
func NewDisk(seed uint64) *Disk {
	return &Disk{
		rand: rand.New(rand.NewPCG(seed, 0x6a6f75726e616c)),
		root: newDir(), procs: map[*Process]bool{}, free: -1,
	}
}

func newDir() *node {
	return &node{isDir: true, names: map[string]*node{}, durable: map[string]*node{}}
}

// Inject sets what decides about the fate of every later call; nil: nothing fails. It is called with the disk locked.
func (d *Disk) Inject(f func(Op) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inject = f
}

// SetFree bounds the bytes that files may still grow by, after which writes are cut short with an error (a full disk);
// negative: no bound.
func (d *Disk) SetFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = n
}

// Ops returns the number of calls so far.
func (d *Disk) Ops() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// Flip inverts one bit of a file, on the disk and in memory: damage.
func (d *Disk) Flip(name string, offset int64, bit uint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return err
	}
	for _, b := range [][]byte{n.data, n.synced} {
		if offset < int64(len(b)) {
			b[offset] ^= 1 << bit
		}
	}
	return nil
}

// ReadFile returns what a process would read.
func (d *Disk) ReadFile(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), n.data...), nil
}

// WriteFile replaces a file durably.
func (d *Disk) WriteFile(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, err := d.find(filepath.Dir(name))
	if err != nil {
		return err
	}
	n := &node{path: name, data: append([]byte(nil), data...), synced: append([]byte(nil), data...)}
	dir.names[filepath.Base(name)], dir.durable[filepath.Base(name)] = n, n
	return nil
}

// Process returns the disk as a new process sees it.
func (d *Disk) Process() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := &Process{disk: d}
	d.procs[p] = true
	return p
}

// find returns the node at a path.
func (d *Disk) find(name string) (*node, error) {
	n := d.root
	for part := range strings.SplitSeq(filepath.ToSlash(filepath.Clean(name)), "/") {
		if part == "" || part == "." {
			continue
		}
		if n = n.names[part]; n == nil {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
	}
	return n, nil
}

// kill ends a process: its locks are released, and the memory it mapped is the disk's alone from here on.
func (d *Disk) kill(p *Process) {
	p.killed = true
	delete(d.procs, p)
	for _, n := range p.locks {
		if n.lock == p {
			n.lock = nil
		}
	}
	for _, n := range p.maps {
		if n.mapper == p {
			n.data, n.mapper = append([]byte(nil), n.data...), nil
		}
	}
	p.locks, p.maps = nil, nil
}

var _ journal.FS = (*Process)(nil)

// Process is one process's view of the disk: a journal.FS.
type Process struct {
	disk   *Disk
	killed bool
	locks  []*node
	maps   []*node
}

// Kill is kill -9: locks are released, later calls fail with ErrKilled, and what was written or stored into mapped memory stays.
// Nobody may be storing into mapped memory meanwhile.
func (p *Process) Kill() {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	p.disk.kill(p)
}

// call runs one call with the disk locked, or what is injected in its place. half is told to do only half of a write. n is
// the file that is called upon, nil if it is a name.
func (p *Process) call(op Op, n *node, do func(half bool) error) error {
	d := p.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if n != nil {
		op.Path = n.path
	}
	if p.killed {
		return fmt.Errorf("%s %s: %w", op.Kind, op.Path, ErrKilled)
	}
	d.ops++
	op.N = d.ops
	fault := NoFault
	if d.inject != nil {
		fault = d.inject(op)
	}
	killed := fmt.Errorf("%s %s: %w", op.Kind, op.Path, ErrKilled)
	switch {
	case fault == NoFault:
		return do(false)
	case fault == ShortWrite && op.Kind == "write":
		return do(true)
	case fault == FailIO || fault == ShortWrite:
		if op.Kind == "sync" {
			n.unsynced = nil
		}
		return fmt.Errorf("%s %s: %w", op.Kind, op.Path, errIO)
	case fault == KillAfter || fault == PowerAfter:
		_ = do(false)
	case fault == KillWithin && op.Kind == "write":
		_ = do(true)
	}
	if fault == PowerAfter || fault == PowerBefore {
		d.powerLoss()
	} else {
		d.kill(p)
	}
	return killed
}

var errNotDir = errors.New("not a directory")

// parent returns the directory of a path, and its base name.
func (d *Disk) parent(name string) (*node, string, error) {
	n, err := d.find(filepath.Dir(name))
	if err != nil {
		return nil, "", err
	}
	if !n.isDir {
		return nil, "", fmt.Errorf("%s: %w", name, errNotDir)
	}
	return n, filepath.Base(name), nil
}

// change changes the names of a directory, now and at a later time on the disk.
func (n *node) change(f func(map[string]*node)) {
	f(n.names)
	n.pending = append(n.pending, f)
}

// MkdirAll implements journal.FS; the directories are durable at once.
func (p *Process) MkdirAll(dir string) error {
	return p.call(Op{Kind: "mkdir", Path: dir}, nil, func(bool) error {
		n := p.disk.root
		for part := range strings.SplitSeq(filepath.ToSlash(filepath.Clean(dir)), "/") {
			if part == "" || part == "." {
				continue
			}
			if n.names[part] == nil {
				child := newDir()
				n.names[part], n.durable[part] = child, child
			}
			n = n.names[part]
		}
		return nil
	})
}

// List implements journal.FS.
func (p *Process) List(dir string) (names []string, err error) {
	err = p.call(Op{Kind: "list", Path: dir}, nil, func(bool) error {
		n, err := p.disk.find(dir)
		if err != nil {
			return err
		}
		for name := range n.names {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// Rename implements journal.FS.
func (p *Process) Rename(from, to string) error {
	return p.call(Op{Kind: "rename", Path: from}, nil, func(bool) error {
		n, err := p.disk.find(from)
		if err != nil {
			return err
		}
		dir, old, err := p.disk.parent(from)
		if err != nil {
			return err
		}
		if filepath.Dir(from) != filepath.Dir(to) {
			return errors.New("rename within one directory only")
		}
		n.path = to
		dir.change(func(m map[string]*node) {
			delete(m, old)
			m[filepath.Base(to)] = n
		})
		return nil
	})
}

// Remove implements journal.FS.
func (p *Process) Remove(name string) error {
	return p.call(Op{Kind: "remove", Path: name}, nil, func(bool) error {
		n, err := p.disk.find(name)
		if err != nil {
			return err
		}
		if len(n.names) > 0 {
			return fmt.Errorf("%s: directory not empty", name)
		}
		dir, base, err := p.disk.parent(name)
		if err != nil {
			return err
		}
		dir.change(func(m map[string]*node) { delete(m, base) })
		return nil
	})
}

// SyncDir implements journal.FS.
func (p *Process) SyncDir(dir string) error {
	return p.call(Op{Kind: "syncdir", Path: dir}, nil, func(bool) error {
		n, err := p.disk.find(dir)
		if err != nil {
			return err
		}
		for _, apply := range n.pending {
			apply(n.durable)
		}
		n.pending = nil
		return nil
	})
}

// Lock implements journal.FS.
func (p *Process) Lock(name string) (lock io.Closer, err error) {
	err = p.call(Op{Kind: "lock", Path: name}, nil, func(bool) error {
		dir, base, err := p.disk.parent(name)
		if err != nil {
			return err
		}
		if dir.names[base] == nil {
			n := &node{path: name}
			dir.change(func(m map[string]*node) { m[base] = n })
		}
		n := dir.names[base]
		if n.lock != nil {
			return fmt.Errorf("lock %s: %w", name, journal.ErrLocked)
		}
		n.lock = p
		p.locks = append(p.locks, n)
		lock = &held{p, n}
		return nil
	})
	return lock, err
}

type held struct {
	p *Process
	n *node
}

// Close implements io.Closer.
func (h *held) Close() error {
	h.p.disk.mu.Lock()
	defer h.p.disk.mu.Unlock()
	if !h.p.killed && h.n.lock == h.p {
		h.n.lock = nil
	}
	return nil
}

// Alive reports whether the process was neither killed nor cut off from power.
func (p *Process) Alive() bool {
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	return !p.killed
}
