//go:build unix

package engines

import (
	"context"
	"testing"
)

// testServer starts an engine that is closed when t ends.
func testServer(t *testing.T, f func(context.Context, Options) (*Server, error), args ...string) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real engine")
	}
	c, err := Open(t.Output())
	must(t, err)
	s, err := f(t.Context(), Options{Cache: c, Args: args})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}
