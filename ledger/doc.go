// Package ledger is the domain of Ledgerline: usage events and their canonical form, accounts and the fold that
// turns events into balances, pricing in exact arithmetic, and the refusals a client can meet.
//
// It is pure: it does no I/O, reads no clock and starts no goroutine, so every projection (MySQL, Redis, the usage
// log, replay, verify) runs the same functions and cannot disagree about what an event means (L4). Money is int64
// quota units, 500,000 to the US dollar (L8).
package ledger
