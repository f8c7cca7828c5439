// Package usagelog is the usage log: every event of the ledger in a form that people and programs query, in ClickHouse
// or in its SQL twin (MySQL, MariaDB or SQLite).
//
// It owns five tables of the log database. ledger_usage has one row per event, a pure function of the event and its
// place in the log, with the columns of New API's logs and more; copies of an event at other places collapse to the lowest
// place, so that a retry, a zombie consumer, a Kafka duplicate or a re-driven copy never counts twice nor moves a row past
// a verify cut (L2). ledger_events is the log itself, one row per place with the canonical JSON and with every copy, so
// that a replay from here folds exactly what a replay from Kafka would (L4). ledger_usage_positions, ledger_usage_dead
// and ledger_usage_schema hold the consumer's positions, what could not be decoded (L6), and the schema version.
//
// A table `logs` that New API made stays as it is and is read together with ours; where there is none, a view of that name
// serves the queries that were written for it.
//
// Its users are the usage-log consumer (Writer), the console and the API (Reader), verify and replay (Auditor), and the
// master's duties (Keeper). A crash between the INSERTs of a batch and its position makes the consumer write the batch
// again, which changes nothing.
package usagelog
