// Package eventlog is the way to the event log: one Kafka topic, or the embedded broker that speaks the same protocol.
// It owns how events get there (Shipper), how they are read (Client), who reads which partition (Group) and the broker
// inside the process (Embedded). It knows no database.
//
// It promises that the events of one journal reach each partition in their order, each at least once (L5): a copy of an
// earlier record may follow a later one after a lost acknowledgement, and consumers drop it by its sequence (L2). A record
// read is the record stored: every batch is checked against its CRC32C.
//
// The relay ships through it; consumers, replay and verify read through it. When the process dies nothing is lost: what was
// not acknowledged is still in the journal, and readers start from the offset their sink stored.
package eventlog
