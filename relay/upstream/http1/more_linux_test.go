package http1_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"ledgerline/relay/upstream/http1"
)

// What has come since the head is read with what came with it, and the state of the framing holds across the two. On Linux, where what a
// server has written is with a client of the same machine at once.
func TestWhatCameSinceTheHead(t *testing.T) {
	more := make(chan bool)
	s := serve(t, func(p *peer) {
		if r, _ := p.request(); r == nil {
			return
		}
		p.say(chunked + "3\r\nhel\r\n2")
		<-more
		p.say("\r\nlo\r\n3\r\nyou\r\n")
		more <- true
		<-more
		p.say("0\r\n\r\n")
	})
	defer s.stop()
	c := http1.New(config())
	defer c.Close()
	resp, err := c.Do(t.Context(), s.post("{}"))
	check(t, err)
	defer resp.Body.Close()
	if n := resp.Body.(interface{ Buffered() int }).Buffered(); n != len("3\r\nhel\r\n2") {
		t.Errorf("%d bytes came with the head", n)
	}
	more <- true
	<-more
	buf := make([]byte, 100)
	if n, err := resp.Body.Read(buf); string(buf[:n]) != "helloyou" || err != nil {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	more <- true
	if n, err := resp.Body.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %q, %v", buf[:n], err)
	}
	if n := resp.Body.(interface{ Buffered() int }).Buffered(); n != 0 {
		t.Errorf("%d bytes are buffered behind the end", n)
	}
}

// A connection that is reset behind the head is no end, even where closing it would be one.
func TestResetBehindTheHead(t *testing.T) {
	each(t, config(), func(t *testing.T, c doer) {
		for _, framing := range []string{"", "Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"} {
			reset := make(chan bool)
			s := serve(t, func(p *peer) {
				if r, _ := p.request(); r == nil {
					return
				}
				p.say("HTTP/1.1 200 OK\r\n" + framing + "\r\n5\r\nhello\r\n")
				<-reset
				_ = p.Conn.(*net.TCPConn).SetLinger(0)
				_ = p.Close()
				reset <- true
			})
			resp, err := c.do(t.Context(), s.post("{}"))
			check(t, err)
			reset <- true
			<-reset
			body, err := io.ReadAll(resp.Body)
			if !strings.Contains("5\r\nhello\r\n", string(body)) || err == nil {
				t.Errorf("%q: %q, %v", framing, body, err)
			}
			resp.Body.Close()
			s.stop()
		}
	})
}
