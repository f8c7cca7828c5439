package usagelog

import (
	"fmt"
	"strings"

	"ledgerline/ledger"
)

// cut is a stretch of the log: places below to and, where from is given, not below it.
type cut struct {
	from, to []int64    // offsets by partition, of the logs named in at; from may be nil
	at       []Position // the current positions
}

// newCut checks the ends of a stretch against the positions.
func newCut(from, to []int64, at []Position) (cut, error) {
	if from != nil && len(from) != len(to) {
		return cut{}, fmt.Errorf("sum usage log: %d partitions from and %d to", len(from), len(to))
	}
	for p := range to {
		if to[p] > at[p].Offset {
			return cut{}, fmt.Errorf("sum usage log: partition %d is at offset %d, not yet at %d", p, at[p].Offset, to[p])
		}
	}
	return cut{from, to, at}, nil
}

// below is the condition on (part, log_gen, log_offset) for places below the end.
func (c *cut) below() string {
	return "(log_gen < " + c.pick(c.log) + " OR log_gen = " + c.pick(c.log) + " AND log_offset < " + c.pick(c.end) + ")"
}

// within adds the beginning.
func (c *cut) within() string {
	if c.from == nil {
		return c.below()
	}
	return c.below() + " AND log_gen = " + c.pick(c.log) + " AND log_offset >= " + c.pick(c.begin)
}

// has reports whether a place that is below the end is not before the beginning.
func (c *cut) has(p Place) bool {
	return c.from == nil || p.Partition < len(c.from) && p.Log == c.at[p.Partition].Log && p.Offset >= c.from[p.Partition]
}

func (c *cut) log(p int) int64   { return int64(c.at[p].Log) }
func (c *cut) end(p int) int64   { return c.to[p] }
func (c *cut) begin(p int) int64 { return c.from[p] }

// pick is an expression for a number that depends on the partition. Partitions beyond the vector have nothing.
func (c *cut) pick(value func(p int) int64) string {
	var b strings.Builder
	b.WriteString("CASE part")
	for p := range c.to {
		fmt.Fprintf(&b, " WHEN %d THEN %d", p, value(p))
	}
	b.WriteString(" ELSE -1 END")
	return b.String()
}

// grouped returns the queries that sum the rows without a business key: one per kind of account, of (id, granted, charged,
// requests). signed casts a sum to an integer, table names the rows, each event once.
func (c *cut) grouped(table string, signed func(string) string) map[ledger.AccountKind]string {
	queries := map[ledger.AccountKind]string{}
	for kind, column := range accountColumns {
		queries[kind] = fmt.Sprintf("SELECT %s, %s, %s, %s FROM %s WHERE moves IN ('%s', '%s') AND %s <> 0 AND event_key = '' AND %s GROUP BY %s",
			column, signed("SUM(granted)"), signed("SUM(charged)"), signed("SUM(requests)"), table, MovesAll, kind, column, c.within(), column)
	}
	return queries
}

// accountColumns are the columns that say whose a row is.
var accountColumns = map[ledger.AccountKind]string{
	ledger.UserAccount: "user_id", ledger.TokenAccount: "token_id", ledger.ChannelAccount: "channel_id",
}

// shown returns the queries behind Shown: one per kind of account, of (id, more). RowOf says what quota shows.
func (c *cut) shown(table string, signed func(string) string) map[ledger.AccountKind]string {
	more := fmt.Sprintf("CASE WHEN type = %d THEN -quota ELSE quota END - charged", TypeRefund)
	queries := map[ledger.AccountKind]string{}
	for kind, column := range accountColumns {
		queries[kind] = fmt.Sprintf("SELECT %s, %s FROM %s WHERE type IN (%d, %d) AND %s <> 0 AND %s <> 0 AND %s GROUP BY %s",
			column, signed("SUM("+more+")"), table, TypeConsume, TypeRefund, column, more, c.below(), column)
	}
	return queries
}

// keyed returns the query for the rows with a business key, all of them below the end, copies of a key side by side and the
// lowest first: keyedRow says what it returns.
func (c *cut) keyed(table string, signed func(string) string) string {
	return "SELECT event_key, " + signed("part") + ", " + signed("log_gen") + ", log_offset, moves, user_id, token_id, channel_id, granted, charged, requests FROM " +
		table + " WHERE event_key <> '' AND moves <> '' AND " + c.below() + " ORDER BY event_key, log_gen, log_offset"
}

// keyedRow is a row with a business key.
type keyedRow struct {
	key                  []byte
	part, log, offset    int64
	moves                string
	user, token, channel int64
	ledger.Balance
}

func (k *keyedRow) fields() []any {
	return []any{
		&k.key, &k.part, &k.log, &k.offset, &k.moves, &k.user, &k.token, &k.channel, &k.Granted, &k.Charged, &k.Requests,
	}
}

// sums gathers what Totals reports.
type sums struct {
	cut  cut
	last string                            // key of the last row with a key
	keys map[ledger.Account]ledger.Balance // what rows with a key moved
	fn   func(ledger.Account, ledger.Balance) error
}

// addKeyed takes one row with a key: the first of each key counts, as in ledger.Fold.
func (s *sums) addKeyed(k *keyedRow) {
	if string(k.key) == s.last {
		return
	}
	s.last = string(k.key)
	if !s.cut.has(Place{int(k.part), int(k.log), k.offset}) {
		return
	}
	add := func(kind ledger.AccountKind, id int64) {
		if id != 0 && (k.moves == MovesAll || k.moves == string(kind)) {
			account := ledger.Account{Kind: kind, ID: id}
			s.keys[account] = s.keys[account].Plus(k.Balance)
		}
	}
	add(ledger.UserAccount, k.user)
	add(ledger.TokenAccount, k.token)
	add(ledger.ChannelAccount, k.channel)
}

// add reports an account with the sums of its rows without a key.
func (s *sums) add(account ledger.Account, b ledger.Balance) error {
	b = b.Plus(s.keys[account])
	delete(s.keys, account)
	if b.IsZero() {
		return nil
	}
	return s.fn(account, b)
}

// rest reports the accounts that only rows with a key moved.
func (s *sums) rest() error {
	for account, b := range s.keys {
		if b.IsZero() {
			continue
		}
		if err := s.fn(account, b); err != nil {
			return err
		}
	}
	return nil
}
