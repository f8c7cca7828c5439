package journal

import "io"

// FS is the little of a file system that a journal needs. OS is the real one; journaltest has one in memory that fails on
// demand. Paths use the separator of path/filepath. Missing files give fs.ErrNotExist, existing ones fs.ErrExist.
type FS interface {
	// MkdirAll makes the directory and its parents; one that exists is no error.
	MkdirAll(dir string) error
	// List returns the names in the directory, in no order.
	List(dir string) ([]string, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Create makes a new file, which must not exist.
	Create(name string) (File, error)
	// Rename moves a file or a directory, atomically; the entry is durable after SyncDir of its directory.
	Rename(from, to string) error
	// Remove removes a file or an empty directory; durable after SyncDir.
	Remove(name string) error
	// SyncDir makes the entries of the directory durable.
	SyncDir(dir string) error
	// Lock makes the file if it is missing and locks it until the Closer is closed or the process ends. It does not wait:
	// ErrLocked.
	Lock(name string) (io.Closer, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes contents and size durable.
	Sync() error
	// Map maps the first size bytes, shared with every other process and with ReadAt. Stores survive the death of the process at
	// no system call; after a power loss each page has some earlier state. Unmap ends it; the File may be closed before.
	Map(size int64) (Mapping, error)
}

// Mapping is a mapped file.
type Mapping interface {
	Bytes() []byte
	Unmap() error
}
