package relaytest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

// maxRecords bounds the records kept in memory (L7): a whole hour of the trace twice over. Totals and the file go on.
const maxRecords = 50_000

// maxUsers bounds the users told apart in the totals; all beyond share the name "".
const maxUsers = 10_000

// Figures are token counts as the mock reported them.
type Figures struct {
	Prompt     int64 `json:"prompt"`
	Completion int64 `json:"completion"`
}

// Record is what the mock served to one request.
type Record struct {
	Seq      uint64 `json:"seq"`     // counts from 1 within a mock
	Request  string `json:"request"` // X-Oneapi-Request-Id, as the relay sent it
	Upstream string `json:"upstream"`
	Endpoint string `json:"endpoint"`
	Model    string `json:"model"`
	User     string `json:"user"`
	Key      string `json:"key,omitempty"` // the API key the relay used
	Stream   bool   `json:"stream,omitempty"`
	Status   int    `json:"status"`

	Prompt     int64    `json:"prompt"`             // tokens read
	Completion int64    `json:"completion"`         // tokens written, whatever was reported
	Chunks     int64    `json:"chunks,omitempty"`   // content chunks written
	Reported   *Figures `json:"reported,omitempty"` // the usage last sent; nil: none

	Finished bool  `json:"finished,omitempty"` // the answer went out whole
	Cut      bool  `json:"cut,omitempty"`      // it began and did not: the client left, or a fault was asked for
	Open     bool  `json:"open,omitempty"`     // the last line of a request whose end was not seen
	Millis   int64 `json:"ms"`                 // Unix milliseconds of this line
}

// Totals are sums over records. Prompt and completion tokens count for every request that was answered with 200.
type Totals struct {
	Requests   int64 `json:"requests"`
	Finished   int64 `json:"finished"`
	Cut        int64 `json:"cut"`
	Failed     int64 `json:"failed"` // answered with an error status
	Prompt     int64 `json:"prompt"`
	Completion int64 `json:"completion"`
	Chunks     int64 `json:"chunks"`
}

func (t *Totals) add(r *Record) {
	t.Requests++
	switch {
	case r.Status != 200:
		t.Failed++
		return
	case r.Finished:
		t.Finished++
	case r.Cut:
		t.Cut++
	}
	t.Prompt += r.Prompt
	t.Completion += r.Completion
	t.Chunks += r.Chunks
}

// Report is what GET /oracle answers.
type Report struct {
	Totals
	Active int64             `json:"active"` // requests not finished yet; they are in no sum
	Users  map[string]Totals `json:"users"`
}

// oracle keeps the records.
type oracle struct {
	sync bool

	mu      sync.Mutex
	idle    *sync.Cond // active fell to 0
	file    *os.File
	err     error // the first failed write; later ones are not tried
	seq     uint64
	active  int64
	totals  Totals
	users   map[string]*Totals
	records []Record
	line    []byte
}

func openOracle(path string, fsync bool) (*oracle, error) {
	o := &oracle{sync: fsync, users: map[string]*Totals{}}
	o.idle = sync.NewCond(&o.mu)
	if path == "" {
		return o, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open oracle file: %w", err)
	}
	o.file = f
	return o, nil
}

// begin numbers a record, names its answer after run, and writes the first line of a stream.
func (o *oracle) begin(r *Record, run string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	o.active++
	r.Seq = o.seq
	r.Upstream = run + "-" + strconv.FormatUint(r.Seq, 36)
	if r.Stream {
		o.write(r, true)
	}
}

// progress writes a line about a stream that goes on.
func (o *oracle) progress(r *Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.write(r, true)
}

// end writes the last line of a record and adds it to the sums.
func (o *oracle) end(r *Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.active--; o.active == 0 {
		o.idle.Broadcast()
	}
	o.totals.add(r)
	u := o.users[r.User]
	if u == nil {
		name := r.User
		if len(o.users) >= maxUsers {
			name = ""
		}
		if u = o.users[name]; u == nil {
			u = &Totals{}
			o.users[name] = u
		}
	}
	u.add(r)
	if len(o.records) >= 2*maxRecords {
		o.records = append(o.records[:0], o.records[maxRecords:]...)
	}
	o.records = append(o.records, *r)
	o.write(r, false)
}

func (o *oracle) write(r *Record, open bool) {
	if o.file == nil || o.err != nil {
		return
	}
	line := *r
	line.Open = open
	line.Millis = time.Now().UnixMilli()
	b, err := json.Marshal(&line)
	if err == nil {
		o.line = append(append(o.line[:0], b...), '\n')
		_, err = o.file.Write(o.line)
	}
	if err == nil && o.sync {
		err = o.file.Sync()
	}
	o.err = err
}

// report returns the sums so far.
func (o *oracle) report() Report {
	o.mu.Lock()
	defer o.mu.Unlock()
	rep := Report{Totals: o.totals, Active: o.active, Users: make(map[string]Totals, len(o.users))}
	for name, t := range o.users {
		rep.Users[name] = *t
	}
	return rep
}

// close waits for the answers under way, closes the file, and returns the first error that writing met.
func (o *oracle) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.active > 0 {
		o.idle.Wait()
	}
	if o.file == nil {
		return nil
	}
	err := errors.Join(o.err, o.file.Close())
	o.file, o.err = nil, nil
	if err != nil {
		return fmt.Errorf("write oracle file: %w", err)
	}
	return nil
}

// maxLineBytes bounds one line of an oracle file: a record is some 400 bytes, names of the client's making included.
const maxLineBytes = 1 << 20

// ReadOracle reads an oracle file: the last line of every record, in the order in which the requests came. A torn last
// line, of a mock that was killed, is left out.
func ReadOracle(path string) ([]Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open oracle file: %w", err)
	}
	defer f.Close()
	return readOracle(f)
}

func readOracle(in io.Reader) ([]Record, error) {
	var list []Record
	place := map[string]int{}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, maxLineBytes)
	var torn error
	for n := 1; sc.Scan(); n++ {
		if torn != nil {
			return nil, torn
		}
		var r Record
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			torn = fmt.Errorf("read oracle file, line %d: %w", n, err)
			continue
		}
		if i, ok := place[r.Upstream]; ok {
			list[i] = r
			continue
		}
		place[r.Upstream] = len(list)
		list = append(list, r)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read oracle file: %w", err)
	}
	return list, nil
}
