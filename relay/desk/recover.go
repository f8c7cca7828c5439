package desk

import (
	"time"

	"github.com/google/uuid"

	"ledgerline/ledger"
	"ledgerline/ledger/journal"
)

// FlagUpstreamCost marks a recovered request of which nothing had reached the client: it costs the user nothing, but the upstream may
// bill the operator.
const FlagUpstreamCost = "possible_upstream_cost"

// recovered makes the usage event of a request whose node died (DESIGN 5): nothing forwarded costs 0; otherwise the prompt estimate
// and what was streamed, the larger of tokens by chunk and bytes ÷ 4 (see meter.Streamed), at most the hold as last extended. The event id is
// derived from the hold, so a crash during recovery and a second recovery make the same event.
func recovered(o *journal.OpenState, now time.Time) *ledger.Event {
	rec := &o.OpenRecord
	ev := &ledger.Event{
		Version: ledger.EventVersion, Kind: ledger.KindUsageRecovered,
		ID:   ledger.ID(uuid.NewSHA1(uuid.UUID(rec.Hold), []byte("recovered"))),
		Time: now.UnixMilli(), Node: rec.Node,
		User: rec.User, Token: rec.Token, Channel: o.Slot.Channel,
		Request: &rec.Request, Rating: &rec.Rating, Source: ledger.SourceRecovered,
	}
	ev.Hold = &ledger.HoldRef{ID: rec.Hold, Epoch: rec.Epoch, Amount: max(rec.Amount, o.Slot.Total), Token: rec.TokenHeld}
	if o.Slot.Chunks == 0 && o.Slot.Bytes == 0 {
		ev.Flags = []string{FlagUpstreamCost}
		return ev
	}
	usage := ledger.Usage{Prompt: rec.PromptTokens, Completion: max(o.Slot.Chunks, o.Slot.Bytes/4)}
	ev.Usage = &usage
	ev.Charged = min(rec.Rating.Charge(usage), ev.Hold.Amount)
	ev.Requests = 1
	return ev
}
