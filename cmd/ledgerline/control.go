package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A node whose log or counters live in its own process cannot be looked at from another one. It therefore does what an
// audit command asks for by itself: it listens on a port of the loopback address that the file below names, with a secret
// that only who may read the data folder knows. A command finds the file, hands over its arguments, and prints what comes
// back. A node that was killed leaves the file: nobody answers there, and the command opens the stores itself.
const (
	controlFile   = "control.json"
	controlHeader = "X-Ledgerline-Control"
	// maxControlBytes bounds what a command sends: its arguments.
	maxControlBytes = 16 << 10
	// controlDial bounds the wait for a node on the same machine to answer the connection.
	controlDial = 2 * time.Second
)

// controlAddress is what the file holds.
type controlAddress struct {
	Address string `json:"address"`
	Secret  string `json:"secret"`
}

// controlCall is what a command asks for.
type controlCall struct {
	Command string   `json:"command"`
	Args    []string `json:"args"`
}

// controlFrame is a piece of the answer, one a line: text for one of the outputs, or the end.
type controlFrame struct {
	Out   string `json:"out,omitempty"`
	Err   string `json:"err,omitempty"`
	End   bool   `json:"end,omitempty"`
	Error string `json:"error,omitempty"` // why the command failed, "" if it has said so itself or did not
	Code  int    `json:"code,omitempty"`
}

// startControl lets commands reach the node until stop is called. A node that need not be asked has none.
func (n *node) startControl(ctx context.Context) (stop func(), err error) {
	if n.lock == nil {
		return func() {}, nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	at := controlAddress{Address: ln.Addr().String(), Secret: rand.Text()}
	text, err := json.Marshal(at) //nolint:gosec // the file is for the owner of the data folder alone
	if err != nil {
		panic("control: an address does not encode: " + err.Error())
	}
	path := dataPath(n.cfg, controlFile)
	_ = os.Remove(path) // a file of a node that was killed may have other rights
	if err := os.WriteFile(path, text, 0o600); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("write the address for commands: %w", err)
	}
	server := &http.Server{Handler: n.controlHandler(at.Secret), ReadHeaderTimeout: headerTimeout}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(ln) }) // it ends by Close
	return func() {
		_ = os.Remove(path)
		_ = server.Close()
		served.Wait()
	}, nil
}

// controlHandler runs audit commands on the node's own stores, one at a time.
func (n *node) controlHandler(secret string) http.Handler {
	var one sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get(controlHeader)), []byte(secret)) != 1 {
			http.Error(w, "wrong secret", http.StatusForbidden)
			return
		}
		var call controlCall
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBytes)).Decode(&call); err != nil {
			http.Error(w, "no call", http.StatusBadRequest)
			return
		}
		w.Header().Set(controlHeader, "1")
		frames := &frameWriter{to: json.NewEncoder(w), flush: http.NewResponseController(w).Flush}
		one.Lock()
		defer one.Unlock()
		err := n.runAudit(r.Context(), call, frames)
		end := controlFrame{End: true, Code: exitCode(err, io.Discard)}
		if err != nil && !errors.Is(err, errReported) {
			end.Error = oneLine(err)
		}
		frames.send(end)
	})
}

func (n *node) runAudit(ctx context.Context, call controlCall, frames *frameWriter) error {
	stderr := frameOutput{frames, func(s string) controlFrame { return controlFrame{Err: s} }}
	parse, ok := auditCommands[call.Command]
	if !ok {
		return usagef("the node does not know the command %q; is it of another version?", call.Command)
	}
	job, err := parse(call.Args, stderr)
	if err != nil {
		return err
	}
	return job(ctx, n.auditStores(), frameOutput{frames, func(s string) controlFrame { return controlFrame{Out: s} }}, stderr)
}

// frameWriter sends frames; what a client that left does not get is lost.
type frameWriter struct {
	mu    sync.Mutex
	to    *json.Encoder
	flush func() error
}

func (f *frameWriter) send(frame controlFrame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.to.Encode(frame) == nil {
		_ = f.flush() // the next frame's error tells the same
	}
}

// frameOutput is one of the outputs of a command that runs in the node.
type frameOutput struct {
	frames *frameWriter
	frame  func(string) controlFrame
}

// Write implements io.Writer.
func (o frameOutput) Write(p []byte) (int, error) {
	o.frames.send(o.frame(string(p)))
	return len(p), nil
}

// askNode lets the node that runs on the data folder do a command, if there is one that must be asked. asked is false if the
// command has to open the stores itself.
func askNode(ctx context.Context, cfg *config, call controlCall, stdout, stderr io.Writer) (asked bool, err error) {
	if !cfg.embedded() && cfg.RedisURL != "" {
		return false, nil
	}
	text, err := os.ReadFile(filepath.Join(cfg.DataDir, controlFile))
	if err != nil {
		return false, nil //nolint:nilerr // no node runs here, or it is none of ours: opening the stores tells
	}
	var at controlAddress
	if err := json.Unmarshal(text, &at); err != nil {
		return false, fmt.Errorf("read %s of the data folder: %w", controlFile, err)
	}
	resp, err := sendControl(ctx, at, call)
	if err != nil {
		return false, nil //nolint:nilerr // a file that a killed node left
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get(controlHeader) == "" {
		return false, nil // another program's port by now
	}
	return true, printFrames(resp.Body, stdout, stderr)
}

func sendControl(ctx context.Context, at controlAddress, call controlCall) (*http.Response, error) {
	reader, writer := io.Pipe()
	go func() { _ = writer.CloseWithError(json.NewEncoder(writer).Encode(call)) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.Address+"/", reader)
	if err != nil {
		return nil, fmt.Errorf("ask the node: %w", err)
	}
	req.Header.Set(controlHeader, at.Secret)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: controlDial}).DialContext,
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the node: %w", err)
	}
	return resp, nil
}

// printFrames prints the answer and returns the command's own error.
func printFrames(body io.Reader, stdout, stderr io.Writer) error {
	frames := json.NewDecoder(bufio.NewReader(body))
	for {
		var f controlFrame
		if err := frames.Decode(&f); err != nil {
			return fmt.Errorf("the node stopped while it worked on the command: %w", err)
		}
		_, _ = io.WriteString(stdout, f.Out)
		_, _ = io.WriteString(stderr, f.Err)
		switch {
		case !f.End:
		case f.Code == 0:
			return nil
		case f.Error == "":
			return errReported
		case f.Code == 2: //nolint:mnd // a mistake in the command line
			return usagef("%s", f.Error)
		default:
			return errors.New(f.Error)
		}
	}
}
