// Package sqlstore keeps quotas and the catalog in MySQL, MariaDB or SQLite: one code path over a small dialect.
//
// It owns every table with the prefix ledger_ and writes New API's tables beside them. Its promises:
//
//   - A flush applies a range of one partition of the log in one transaction: effects, watermarks, dead letters and
//     the position commit together or not at all (L2). A writer that lost its partition is fenced by the position.
//   - Every event born here (credits, limits, adoptions, openings, re-drives) commits in one transaction with the row
//     that caused it, in the outbox, under a unique key; applying it flips that key, so it counts once (L2, L4).
//   - ledger_accounts is the truth of balances, in int64 quota units (L8). New API's balance columns are written
//     through; what somebody else wrote there is found, kept and put into the log.
//   - What cannot be applied goes to ledger_dead_letters in the same transaction (L6).
//
// Consumers call Flush and the epoch functions, relay nodes the producer, outbox and balance functions, the management
// API the business transactions. Every write is one transaction, so a crash at any statement leaves the state before it;
// the caller repeats the call, which is fenced if the lost answer was a commit.
package sqlstore
