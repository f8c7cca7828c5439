package engines

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
)

// Program is a server that is no engine: a node of ledgerline itself.
type Program struct {
	Name    string
	Command func(port int, dir string) *exec.Cmd // for each start; its environment is the whole one
	Ready   string                               // the path that answers 200 when it can be worked with
}

// StartProgram starts a program that serves HTTP.
func StartProgram(ctx context.Context, o Options, p Program) (*Server, error) {
	s, port, err := newServer(ctx, p.Name, o)
	if err != nil {
		return nil, err
	}
	s.command = func() *exec.Cmd { return p.Command(port, s.Dir) }
	s.ready = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+p.Ready, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", p.Ready, resp.Status)
		}
		return nil
	}
	return started(ctx, s)
}
