package main

import "ledgerline/relay/desk"

// A node that has no file left to open can neither write its journal nor reach an upstream, whoever holds the files (L7). So the
// connections of clients, and the upstream's of open requests, get shares of what the system allows, and the rest is kept for the journal,
// the databases, Redis, Kafka and the connections to upstreams that wait for their next request.
type fileShares struct {
	clients  int // connections of clients, idle ones included
	refused  int // connections beyond that, while they are told so
	pool     int // connections of each pool: two of idle connections to upstreams, and two of databases
	requests int // open requests
}

const (
	// keptFiles is the least that is kept for the node itself, and keptShare the part of the whole: a larger node has larger pools.
	keptFiles = 400
	keptShare = 8
	// poolShare is the part of what is kept that each pool may take, and connections that are refused: five of them leave a sixth for the
	// journal, Redis and Kafka.
	poolShare = 6
	// requestShare is the requests' part of the rest, in eighths. Clients keep connections that ask for nothing.
	requestShare = 3
	eighths      = 8
	// leastFiles is shared where next to nothing is allowed: such a node can be tried.
	leastFiles = 64
	// fewFiles is below what a node in use should have; many systems allow a million.
	fewFiles = 8192
)

// shareFiles divides what may be open at once.
func shareFiles(limit uint64) fileShares {
	all := int(min(limit, 1<<30))
	kept := max(keptFiles, all/keptShare)
	rest := max(leastFiles, all-kept)
	requests := min(desk.MaxOpen, rest*requestShare/eighths)
	return fileShares{clients: rest - requests, refused: kept / poolShare, pool: kept / poolShare, requests: requests}
}

// fit keeps the pools that a configuration allows within their shares.
func (f fileShares) fit(cfg *config) {
	cfg.RelayMaxIdle, cfg.SQLMaxOpen = min(cfg.RelayMaxIdle, f.pool), min(cfg.SQLMaxOpen, f.pool)
}
