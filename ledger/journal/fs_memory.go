package journal

import (
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
)

// Memory is a file system in memory, for the journal of a node that has no disk to keep (Config.AwaitLog). It ends with the process,
// so its fsync promises nothing; all else is as on a disk.
type Memory struct {
	mu    sync.Mutex
	files map[string]*memoryFile // a directory is nil
}

var _ FS = (*Memory)(nil)

// NewMemory returns an empty file system.
func NewMemory() *Memory { return &Memory{files: map[string]*memoryFile{}} }

// memoryFile is one file, open or not.
type memoryFile struct {
	mu     sync.RWMutex
	data   []byte
	locked bool // under Memory.mu
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// isDir is called with mu held. The root is always there.
func (m *Memory) isDir(name string) bool {
	f, ok := m.files[name]
	return ok && f == nil || name == filepath.Dir(name)
}

// MkdirAll implements FS.
func (m *Memory) MkdirAll(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; !m.isDir(dir); dir = filepath.Dir(dir) {
		if m.files[dir] != nil {
			return pathError("mkdir", dir, fs.ErrExist)
		}
		m.files[dir] = nil
	}
	return nil
}

// List implements FS.
func (m *Memory) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isDir(dir) {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	var names []string
	for name := range m.files {
		if filepath.Dir(name) == dir && name != dir {
			names = append(names, filepath.Base(name))
		}
	}
	return names, nil
}

// Open implements FS.
func (m *Memory) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.files[name]; f != nil {
		return f, nil
	}
	return nil, pathError("open", name, fs.ErrNotExist)
}

// Create implements FS.
func (m *Memory) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.files[name]; exists {
		return nil, pathError("create", name, fs.ErrExist)
	}
	if !m.isDir(filepath.Dir(name)) {
		return nil, pathError("create", name, fs.ErrNotExist)
	}
	f := &memoryFile{}
	m.files[name] = f
	return f, nil
}

// Rename implements FS.
func (m *Memory) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.files[from]; !exists {
		return pathError("rename", from, fs.ErrNotExist)
	}
	moved := map[string]*memoryFile{}
	for name, f := range m.files {
		if name == from || strings.HasPrefix(name, from+string(filepath.Separator)) {
			delete(m.files, name)
			moved[to+name[len(from):]] = f
		}
	}
	for name, f := range moved {
		m.files[name] = f
	}
	return nil
}

// Remove implements FS.
func (m *Memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.files[name]; !exists {
		return pathError("remove", name, fs.ErrNotExist)
	}
	delete(m.files, name)
	return nil
}

// SyncDir implements FS.
func (m *Memory) SyncDir(string) error { return nil }

// Lock implements FS. Only this process could ask for it.
func (m *Memory) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[name]
	if f == nil {
		if !m.isDir(filepath.Dir(name)) {
			return nil, pathError("lock", name, fs.ErrNotExist)
		}
		f = &memoryFile{}
		m.files[name] = f
	}
	if f.locked {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	f.locked = true
	return memoryLock{m, f}, nil
}

type memoryLock struct {
	m *Memory
	f *memoryFile
}

// Close implements io.Closer.
func (l memoryLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.f.locked = false
	return nil
}

// ReadAt implements File.
func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements File.
func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow(off)
	n := copy(f.data[off:], p)
	f.data = append(f.data, p[n:]...)
	return len(p), nil
}

// grow makes the file at least size bytes long.
func (f *memoryFile) grow(size int64) {
	if more := size - int64(len(f.data)); more > 0 {
		f.data = append(f.data, make([]byte, more)...)
	}
}

// Size implements File.
func (f *memoryFile) Size() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.data)), nil
}

// Truncate implements File.
func (f *memoryFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow(size)
	f.data = f.data[:size]
	return nil
}

// Sync implements File.
func (f *memoryFile) Sync() error { return nil }

// Close implements File.
func (f *memoryFile) Close() error { return nil }

// Map implements File. The mapping is the file's own memory; a file that is mapped keeps its size.
func (f *memoryFile) Map(size int64) (Mapping, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow(size)
	return memoryMapping(f.data[:size:size]), nil
}

type memoryMapping []byte

// Bytes implements Mapping.
func (m memoryMapping) Bytes() []byte { return m }

// Unmap implements Mapping.
func (m memoryMapping) Unmap() error { return nil }
