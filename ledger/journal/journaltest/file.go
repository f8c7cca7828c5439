package journaltest

import (
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"ledgerline/ledger/journal"
)

// file is an open file of one process.
type file struct {
	p *Process
	n *node
}

// Open implements journal.FS.
func (p *Process) Open(name string) (f journal.File, err error) {
	err = p.call(Op{Kind: "open", Path: name}, nil, func(bool) error {
		n, err := p.disk.find(name)
		if err != nil {
			return err
		}
		f = &file{p, n}
		return nil
	})
	return f, err
}

// Create implements journal.FS.
func (p *Process) Create(name string) (f journal.File, err error) {
	err = p.call(Op{Kind: "create", Path: name}, nil, func(bool) error {
		dir, base, err := p.disk.parent(name)
		if err != nil {
			return err
		}
		if dir.names[base] != nil {
			return fmt.Errorf("create %s: %w", name, fs.ErrExist)
		}
		n := &node{path: name}
		dir.change(func(m map[string]*node) { m[base] = n })
		f = &file{p, n}
		return nil
	})
	return f, err
}

// ReadAt implements journal.File.
func (f *file) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.p.call(Op{Kind: "read"}, f.n, func(bool) error {
		if off < int64(len(f.n.data)) {
			n = copy(b, f.n.data[off:])
		}
		if n < len(b) {
			return io.EOF
		}
		return nil
	})
	return n, err
}

// WriteAt implements journal.File.
func (f *file) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.call(Op{Kind: "write", Bytes: len(b)}, f.n, func(half bool) error {
		n = len(b)
		if half {
			n /= 2
		}
		grow := off + int64(n) - int64(len(f.n.data))
		var full error
		if d := f.p.disk; d.free >= 0 && grow > 0 {
			if grow > d.free {
				n = max(0, n-int(grow-d.free))
				grow, full = d.free, fmt.Errorf("write %s: %w", f.n.path, syscall.ENOSPC)
			}
			d.free -= grow
		}
		if n > 0 {
			data := append([]byte(nil), b[:n]...)
			f.n.data = overwrite(f.n.data, data, off)
			f.n.unsynced = append(f.n.unsynced, change{off, data})
		}
		return full
	})
	return n, err
}

// Truncate implements journal.File.
func (f *file) Truncate(size int64) error {
	return f.p.call(Op{Kind: "truncate"}, f.n, func(bool) error {
		f.n.data = resize(f.n.data, size)
		f.n.unsynced = append(f.n.unsynced, change{off: size})
		return nil
	})
}

// Sync implements journal.File.
func (f *file) Sync() error {
	return f.p.call(Op{Kind: "sync"}, f.n, func(bool) error {
		for _, c := range f.n.unsynced {
			if c.data == nil {
				f.n.synced = resize(f.n.synced, c.off)
			} else {
				f.n.synced = overwrite(f.n.synced, c.data, c.off)
			}
		}
		f.n.unsynced = nil
		return nil
	})
}

// Size implements journal.File.
func (f *file) Size() (int64, error) {
	f.p.disk.mu.Lock()
	defer f.p.disk.mu.Unlock()
	return int64(len(f.n.data)), nil
}

// Close implements journal.File.
func (f *file) Close() error { return nil }

// Map implements journal.File.
func (f *file) Map(size int64) (m journal.Mapping, err error) {
	err = f.p.call(Op{Kind: "map"}, f.n, func(bool) error {
		if int64(len(f.n.data)) < size {
			return fmt.Errorf("map %s: file has %d of %d bytes", f.n.path, len(f.n.data), size)
		}
		f.n.mapped, f.n.mapper = true, f.p
		f.p.maps = append(f.p.maps, f.n)
		m = mapping(f.n.data[:size:size])
		return nil
	})
	return m, err
}

type mapping []byte

// Bytes implements journal.Mapping.
func (m mapping) Bytes() []byte { return m }

// Unmap implements journal.Mapping.
func (m mapping) Unmap() error { return nil }
