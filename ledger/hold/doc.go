// Package hold keeps the hot counters: what each account in use has granted, charged and held, so that admission is one
// trip to memory and never a query (DESIGN 6 and 7). It owns the keys of the counters in Redis, and nothing else; the truth
// is in the event log and in MySQL, and all that is here can be lost at any time.
//
// There are two implementations behind [Counters], held to the same answers by one conformance suite: [Redis] for any number
// of nodes, and [Local], its twin inside the process, for one. Relay nodes call [Admission] and [Membership]; the quota
// consumer calls [Upkeep]; verify calls [Inspection]; the catalog calls [News].
//
// # What it promises
//
// A hold is granted only while granted − charged − settled − held of each of its accounts pays for it (L3), in one atomic
// script. Every call may be repeated: reserves, settles and voids by hold id, extensions by total, applies by offset (L2).
// Only a call that names the open epoch is admitted.
//
// # Loss
//
// Counters belong to an epoch, and an epoch to the server that it began on. Each script that could grant or change anything
// reads the run_id of the very server that runs it and compares it with the one stored when the epoch began: after a
// restart with old data on disk, or on a promoted replica, the counters are foreign and all limited accounts are
// [ledger.OutcomeRebuilding] until the consumer begins a new epoch. Reading it in the script (about 4 µs, once
// per trip) leaves no window between a check on a connection and a command on another, and holds for Sentinel, Cluster and
// proxies alike. Its limit: two servers that both believe to be the primary (a split brain) each grant from their own copy
// until one of them stops taking writes; min-replicas-to-write on the servers bounds that time.
//
// An epoch names the newest one that was opened before it, as the database or the counters that it replaces know: nodes do not re-assert older
// holds. Both would have to be lost at once, while a node is away, for it not to be known.
//
// Redis unreachable is an error, in bounded time ([CallTimeout]), never a free pass. A trip without an answer is repeated
// once with the same ids. A crash of the caller leaves its holds where they are: they end when its journal is recovered.
//
// # Keys
//
// All keys of partition N begin with PREFIX{pN}: and so share a slot of a Redis Cluster; lua/common.lua lists them and their
// format. Scripts are given the first key and derive the others. No key expires, and [Redis.Check] refuses a server that
// evicts. Memory grows with the accounts in use within an epoch (about 120 bytes each) and with its open holds.
package hold
