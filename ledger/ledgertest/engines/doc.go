// Package engines puts the real engines of Ledgerline on a machine without containers and runs them as child processes:
// Apache Kafka, MariaDB, Redis (and Sentinel) and ClickHouse.
//
// It owns two things. A cache folder of the user's ([Open]) holds what was installed, each engine once, without root and
// without touching the system: Kafka comes through Maven, MariaDB and Redis through apt into a private folder, ClickHouse
// as a library through npm served by compose/local/chserver. And a [Server] is one running process with its data folder.
// MySQL itself, which can take MariaDB's place, comes from a younger Debian, with its own C library.
//
// It promises: servers listen on 127.0.0.1 only, on ports outside the range that the kernel hands to outgoing connections,
// claimed against other processes of this package; a server is ready, for real work, when its Start function returns; it
// dies with the process that started it (by the kernel on Linux, whatever kills that process), unless [Options.Detach] was set.
//
// Callers are ledgertest (tests) and compose/local (make up, make test). After a crash of the caller nothing is left
// running; its scratch folders are removed by the next caller, which finds their locks free.
//
// It imports nothing of ours and only the drivers needed to see that a server is ready.
package engines
