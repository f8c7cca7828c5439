package relay_test

import "testing"
import "ledgerline/relay/relaytest"

func TestSmoke(t *testing.T) {
	n := newStack(t, relaytest.Script{}).start()
	a := n.account(1_000_000, 500_000)
	r := n.post(a.key, chatPath, chat("completion=12;prompt=40"))
	t.Log(r.status, r.body)
	ev := n.event(r.request())
	t.Logf("%+v %+v", ev, ev.Usage)
	t.Log(n.left(a.users, a.user), n.left(a.tokens, a.user))
	r = n.post(a.key, chatPath, chat("completion=12;prompt=40", streamed))
	t.Log(r.status, r.body)
	t.Log(n.left(a.users, a.user), n.left(a.tokens, a.user))
}
