package main

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// library holds the C functions of libchdb that are used here.
type library struct {
	connect     func(argc int32, argv unsafe.Pointer) uintptr // a pointer to a connection
	closeConn   func(conn uintptr)                            // takes that pointer
	query       func(conn uintptr, query unsafe.Pointer, queryBytes uint64, format unsafe.Pointer, formatBytes uint64) uintptr
	buffer      func(result uintptr) unsafe.Pointer
	length      func(result uintptr) uint64
	failure     func(result uintptr) string
	rowsRead    func(result uintptr) uint64
	rowsWritten func(result uintptr) uint64
	destroy     func(result uintptr)
}

func loadLibrary(path string) (*library, error) {
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("load libchdb: %w", err)
	}
	var l library
	for name, f := range map[string]any{
		"chdb_connect":              &l.connect,
		"chdb_close_conn":           &l.closeConn,
		"chdb_query_n":              &l.query,
		"chdb_result_buffer":        &l.buffer,
		"chdb_result_length":        &l.length,
		"chdb_result_error":         &l.failure,
		"chdb_result_rows_read":     &l.rowsRead,
		"chdb_result_rows_written":  &l.rowsWritten,
		"chdb_destroy_query_result": &l.destroy,
	} {
		purego.RegisterLibFunc(f, handle, name)
	}
	return &l, nil
}

// engine is ClickHouse over one data folder. A process can open one.
type engine struct {
	lib  *library
	path string
	base *session // keeps the engine open while no request is served
}

func openEngine(libPath, data string) (*engine, error) {
	lib, err := loadLibrary(libPath)
	if err != nil {
		return nil, err
	}
	data, err = filepath.Abs(data)
	if err != nil {
		return nil, fmt.Errorf("find the data folder: %w", err)
	}
	e := &engine{lib: lib, path: data}
	if e.base, err = e.session(); err != nil {
		return nil, fmt.Errorf("open %s: %w", data, err)
	}
	return e, nil
}

func (e *engine) close() { e.base.close() }

// session is one connection into the engine, with a database, settings and parameters of its own. It takes one query at a
// time; opening one costs less than a millisecond.
type session struct {
	lib  *library
	conn uintptr
}

func (e *engine) session() (*session, error) {
	args := [][]byte{[]byte("chdb\x00"), []byte("--path=" + e.path + "\x00")}
	var pin runtime.Pinner
	defer pin.Unpin()
	argv := make([]unsafe.Pointer, len(args))
	for i, a := range args {
		pin.Pin(&a[0])
		argv[i] = unsafe.Pointer(&a[0])
	}
	pin.Pin(&argv[0])
	conn := e.lib.connect(int32(len(argv)), unsafe.Pointer(&argv[0]))
	if conn == 0 {
		return nil, errors.New("connect to the ClickHouse engine: it refused (is the data folder in use?)")
	}
	return &session{lib: e.lib, conn: conn}, nil
}

func (s *session) close() { s.lib.closeConn(s.conn) }

// result is what a query gave.
type result struct {
	body        []byte
	rowsRead    uint64
	rowsWritten uint64
}

// query runs one statement, which may carry the data of an INSERT behind it. format is that of a result whose statement
// names none. An error's text is ClickHouse's: "Code: N. DB::Exception: … (NAME)".
func (s *session) query(text []byte, format string) (result, error) {
	name := []byte(format)
	// The connection is behind the pointer that connect returned.
	conn := **(**uintptr)(unsafe.Pointer(&s.conn))
	r := s.lib.query(conn, first(text), uint64(len(text)), first(name), uint64(len(name)))
	if r == 0 {
		return result{}, errors.New("Code: 1000. DB::Exception: the engine gave no result. (POCO_EXCEPTION)")
	}
	defer s.lib.destroy(r)
	if text := s.lib.failure(r); text != "" {
		return result{}, errors.New(text)
	}
	out := result{rowsRead: s.lib.rowsRead(r), rowsWritten: s.lib.rowsWritten(r)}
	if n := s.lib.length(r); n > 0 {
		out.body = bytes.Clone(unsafe.Slice((*byte)(s.lib.buffer(r)), n))
	}
	return out, nil
}

func first(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
