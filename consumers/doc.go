// Package consumers folds the event log into projections. It owns the one loop that does so, Runner, and the contract with a
// projection, Sink; each sub-package is one projection: a batch function and its sink.
//
// A runner promises its sink every record of a partition in offset order, from the position that the sink itself stores, again
// and again until the sink has it (L2); that nothing is skipped in silence (L6): what cannot be decoded is handed over as such,
// what is newer than this binary stops the partition with an alarm, and so does a log that is not the one the sink knows; and
// that a partition in trouble leaves the others alone.
//
// The serve and consume commands run one runner per projection. A crash at any point costs nothing: effect and position are
// stored together by the sink, so the next owner begins exactly where they ended.
package consumers
