// Package usagelog is the consumer that writes the usage log: it turns the records of the event log into rows and appends
// them to ledger/usagelog, in ClickHouse or its SQL twin.
//
// It owns no state but the batches in flight. Its promise is at least once with an idempotent key, which makes exactly once
// (L2): a batch's rows are stored before its position, rows are a pure function of their events, and copies collapse. A
// record that cannot be decoded becomes a dead letter of this sink and never blocks its partition (L6). The runner of package
// consumers calls it, one goroutine per partition; after a crash the runner starts again at the stored position.
package usagelog
