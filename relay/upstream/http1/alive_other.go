//go:build !unix

package http1

// watch has nothing to prepare: the system has no read that does not wait.
func (n *conn) watch() {}

// alive finds out by the next request.
func (n *conn) alive() bool { return true }

// more leaves it to the next read, which waits only if nothing has come.
func (n *conn) more([]byte) (int, error) { return 0, nil }
