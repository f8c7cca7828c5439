//go:build !unix

package http1

// watch has nothing to prepare: the system has no read that does not wait.
func (n *conn) watch() {}

// alive finds out by the next request.
func (n *conn) alive() bool { return true }
