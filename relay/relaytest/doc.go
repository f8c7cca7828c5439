// Package relaytest is the outside world of the relay, for its tests, the demo, load and bench: a mock upstream that
// speaks OpenAI's API and remembers what it served, a bare reverse proxy to compare with, and a trace of real traffic.
//
// The mock is the oracle: it counts for itself, shares no metering code with the relay, and its record of a request
// does not depend on what the relay makes of it, nor on the relay living on. What it answers is dictated by the request
// (Script), so that a row of a trace, or any misbehaviour of an upstream, can be played back. It holds its totals in
// memory and, if told to, appends every record to a file that ReadOracle reads; if the mock itself is killed, the
// records of streams then open stay marked so.
package relaytest
