// Command local runs the engines of the cluster topology (Kafka, MariaDB, Redis, ClickHouse) as plain processes on
// loopback, for machines without containers; compose.yaml beside it is the same topology with them.
//
//	go run ./compose/local install          put the engines into the cache folder
//	go run ./compose/local up               start them for a person (make up), print and store the environment for ledgerline
//	                                        -topology sentinel or cluster: three Kafka nodes, and Redis with a replica and
//	                                        three sentinels, or a Redis Cluster of three; -nodes BINARY: a master, two slaves
//	                                        and nginx, too, as in compose.yaml; each topology has data of its own
//	go run ./compose/local status           say which of them run
//	go run ./compose/local down [-wipe]     end exactly those processes (make down); -wipe removes their data
//	go run ./compose/local run -- COMMAND   start fresh ones, run COMMAND with TEST_KAFKA_BROKERS, TEST_MYSQL_DSN,
//	                                        TEST_REDIS_URL and TEST_CLICKHOUSE_DSN set, stop them (make test);
//	                                        run -mysql takes MySQL in place of MariaDB (make test-mysql)
//
// What `up` started outlives it: its processes and ports are on record in the state folder (-dir), which also holds their
// data. What `run` started dies with it, however it ends. An address that the environment gives is used in place of an
// engine. Exit codes: that of COMMAND; 2 for wrong use; 1 for what failed.
package main
