package sqlstore

import (
	"context"

	"ledgerline/ledger"
)

// Actor is who makes a change, for the audit trail.
type Actor struct {
	User     int64
	Username string
	IP       string
	Request  string // id of the HTTP request
}

type actorKey struct{}

// WithActor returns a context whose management writes put an audit event into the outbox, in the transaction of the
// change itself: what happened and who did it commit together.
func WithActor(ctx context.Context, actor Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// maxNote bounds the text of an audit event, in bytes (L7): names in it come from clients.
const maxNote = 1000

// audit notes in the outbox that the context's actor did something. Without an actor nothing is noted.
func (tx *Tx) audit(ctx context.Context, note string, flags ...string) error {
	actor, ok := ctx.Value(actorKey{}).(Actor)
	if !ok || actor.User <= 0 {
		return nil
	}
	random, err := randomText(20)
	if err != nil {
		return err
	}
	_, err = tx.Outbox(ctx, ledger.Event{
		Kind: ledger.KindAudit, User: actor.User, Note: cut(note, maxNote), Flags: flags, Request: actor.request(actor.Username),
	}, businessKey(actor.User, "audit", random))
	return err
}

// request describes the HTTP request behind an event about a user.
func (a Actor) request(username string) *ledger.Request {
	return &ledger.Request{ID: a.Request, Username: username, IP: a.IP}
}

// by returns the request part of an event about a user, or nil if there is nothing to say.
func by(ctx context.Context, username string) *ledger.Request {
	actor, ok := ctx.Value(actorKey{}).(Actor)
	if !ok && username == "" {
		return nil
	}
	return actor.request(username)
}

// cut shortens text to at most n bytes of valid UTF-8.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && text[n]&0xc0 == 0x80 {
		n--
	}
	return text[:n]
}
