// Package sim runs the shipping packages that bill (ledger, ledger/journal, the shipper of ledger/eventlog, the in-process counters
// of ledger/hold, relay/desk, and the runner, the quota sink and the usage-log sink of consumers) in one process, under
// virtual time, against twins in memory of the disk, the log, the database and the usage log. A seeded adversary decides
// what happens next, and what breaks. Each history is held against ledger.Fold and against what the clients saw.
//
// All of it is in tests; README.md says how to run it and how to read what it prints.
package sim
