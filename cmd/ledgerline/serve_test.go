package main

import (
	"net"
	"strings"
	"testing"
)

// TestListenOnATakenPort holds the error to saying what to do.
func TestListenOnATakenPort(t *testing.T) {
	first, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = listen(t.Context(), first.Addr().(*net.TCPAddr).Port)
	if err == nil || !strings.Contains(err.Error(), "is taken") || !strings.Contains(err.Error(), "set PORT") {
		t.Errorf("a second listener on the port: %v", err)
	}
}
