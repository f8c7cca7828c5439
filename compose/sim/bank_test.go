package sim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// bank is the twin of sqlstore.Store: the same answers to the calls that the consumers and the desk make, with the database's
// tables as Go values. Every method is one transaction. TestBankIsTheStore runs random calls against both.
//
// It is not safe for concurrent use: the simulation's scheduler makes all calls.
type bank struct {
	tables
	partitions int
	ids        uint64
	// refuse says which event no database could ever apply (in the real one, a trigger): it is dead-lettered.
	refuse func(*ledger.Event) bool
}

// tables is the content of the database; clone is a dump of it.
type tables struct {
	parts     []sqlstore.PartitionState
	accounts  map[place]*account
	rows      map[ledger.Account]*row
	marks     map[markOf]*ledger.Watermark
	outbox    map[string]*outboxRow
	dead      []sqlstore.DeadLetter
	codes     map[string]*code
	producers []sqlstore.Producer
	epochs    []ledger.EpochRecord
}

// place is the key of ledger_accounts: a channel has one account per partition.
type place struct {
	ledger.Account
	slot int
}

// account is a row of ledger_accounts.
type account struct {
	part             int
	balance          ledger.Balance
	written, pending int64
}

// row is a row of users or tokens. edits is what people did to the column by hand, as far as this database remembers.
type row struct {
	owner, column, edits int64
}

type markOf struct {
	part     int
	producer ledger.ID
}

type outboxRow struct {
	event        ledger.Event
	amount       int64
	state        string
	created, due int64
}

type code struct {
	quota, usedBy int64
}

func newBank(partitions int) *bank {
	b := &bank{
		tables: tables{
			accounts: map[place]*account{}, rows: map[ledger.Account]*row{}, marks: map[markOf]*ledger.Watermark{},
			outbox: map[string]*outboxRow{}, codes: map[string]*code{},
		},
		partitions: partitions,
		refuse:     func(*ledger.Event) bool { return false },
	}
	for p := range partitions {
		b.parts = append(b.parts, sqlstore.PartitionState{Partition: p, LastOffset: -1})
	}
	return b
}

// clone copies the tables, as a dump or a lagging replica has them.
func (t *tables) clone() tables {
	c := tables{
		parts: slices.Clone(t.parts), accounts: map[place]*account{}, rows: map[ledger.Account]*row{}, marks: map[markOf]*ledger.Watermark{},
		outbox: map[string]*outboxRow{}, dead: slices.Clone(t.dead), codes: map[string]*code{}, producers: slices.Clone(t.producers),
		epochs: slices.Clone(t.epochs),
	}
	for k, v := range t.accounts {
		c.accounts[k] = new(*v)
	}
	for k, v := range t.rows {
		c.rows[k] = new(*v)
	}
	for k, v := range t.marks {
		c.marks[k] = &ledger.Watermark{Mark: v.Mark, Holes: slices.Clone(v.Holes)}
	}
	for k, v := range t.outbox {
		c.outbox[k] = new(*v)
	}
	for k, v := range t.codes {
		c.codes[k] = new(*v)
	}
	return c
}

// addUser makes a user and its tokens, with nothing on them.
func (b *bank) addUser(user int64, tokens ...int64) {
	add := func(a ledger.Account) {
		b.rows[a] = &row{owner: user}
		b.accounts[place{a, 0}] = &account{part: ledger.Partition(user, b.partitions)}
	}
	add(ledger.Account{Kind: ledger.UserAccount, ID: user})
	for _, t := range tokens {
		add(ledger.Account{Kind: ledger.TokenAccount, ID: t})
	}
}

func (b *bank) newID() (id ledger.ID) {
	b.ids++
	id[0] = 'b'
	for i := range 8 {
		id[15-i] = byte(b.ids >> (8 * i))
	}
	return id
}

// Partition is sqlstore.Store.Partition, and so are the others.
func (b *bank) Partition(partition int) (sqlstore.PartitionState, error) {
	if partition >= len(b.parts) {
		return sqlstore.PartitionState{}, sqlstore.ErrNotFound
	}
	p := b.parts[partition]
	p.Skipped = slices.Clone(p.Skipped)
	return p, nil
}

func (b *bank) AllocateEpoch(partition int, atLeast uint64, now time.Time) ledger.BeginCall {
	p := &b.parts[partition]
	var opened uint64
	for i := range b.epochs {
		if o := &b.epochs[i]; o.Partition == partition {
			opened = max(opened, o.Epoch)
		}
	}
	p.Epoch = max(p.Epoch, opened, atLeast, uint64(now.UnixMilli())) + 1
	return ledger.BeginCall{Partition: partition, Epoch: p.Epoch, Opened: opened, Offset: p.Offset}
}

func (b *bank) StoreEpoch(e ledger.EpochRecord) (stored bool) {
	if b.parts[e.Partition].Epoch > e.Epoch {
		return false
	}
	for i := range b.epochs {
		if o := &b.epochs[i]; o.Partition == e.Partition && o.Epoch == e.Epoch {
			if o.End <= e.End {
				*o = e
			}
			return true
		}
	}
	b.epochs = append(b.epochs, e)
	return true
}

func (b *bank) Balances(partition int, accounts []ledger.Account) (int64, map[ledger.Account]ledger.Balance, error) {
	out := map[ledger.Account]ledger.Balance{}
	for _, a := range accounts {
		out[a] = ledger.Balance{}
		if acc := b.accounts[b.placeOf(a, partition)]; acc != nil && acc.part == partition {
			out[a] = acc.balance
		}
	}
	return b.parts[partition].Offset, out, nil
}

func (b *bank) placeOf(a ledger.Account, partition int) place {
	if a.Kind == ledger.ChannelAccount {
		return place{a, partition}
	}
	return place{a, 0}
}

// Producers and their lives.

func (b *bank) producer(id ledger.ID) *sqlstore.Producer {
	for i := range b.producers {
		if b.producers[i].ID == id {
			return &b.producers[i]
		}
	}
	return nil
}

func (b *bank) Producers() []sqlstore.Producer {
	list := slices.Clone(b.producers)
	slices.SortFunc(list, func(x, y sqlstore.Producer) int {
		return cmp.Or(x.StartedAt.Compare(y.StartedAt), slices.Compare(x.ID[:], y.ID[:]))
	})
	return list
}

func (b *bank) RegisterProducer(id ledger.ID, node string, now time.Time) error {
	switch p := b.producer(id); {
	case p == nil:
		b.producers = append(b.producers, sqlstore.Producer{ID: id, Node: node, State: sqlstore.ProducerLive, StartedAt: now, UpdatedAt: now})
	case p.State == sqlstore.ProducerClosed:
		return sqlstore.ErrExists
	}
	return nil
}

func (b *bank) Heartbeat(ids []ledger.ID, now time.Time) (lost []ledger.ID) {
	for _, id := range ids {
		if p := b.producer(id); p != nil && p.State == sqlstore.ProducerLive {
			p.Beat, p.UpdatedAt = p.Beat+1, now
		} else {
			lost = append(lost, id)
		}
	}
	return lost
}

func (b *bank) CloseProducer(id ledger.ID, now time.Time) error {
	p := b.producer(id)
	if p == nil {
		return sqlstore.ErrNotFound
	}
	p.State, p.UpdatedAt = sqlstore.ProducerClosed, now
	return nil
}

func (b *bank) GiveUp(id ledger.ID, beat uint64, now time.Time) bool {
	p := b.producer(id)
	if p == nil || p.State != sqlstore.ProducerLive || p.Beat != beat {
		return false
	}
	p.State, p.UpdatedAt = sqlstore.ProducerGone, now
	return true
}

// The outbox.

const (
	outboxLease = 5 * time.Second
	outboxAgain = time.Minute
	// outboxFuture: a row that is due later was taken by somebody whose clock is ahead.
	outboxFuture = 2 * outboxAgain
)

func (b *bank) insert(key string, event ledger.Event, amount int64, state string, now time.Time) bool {
	if b.outbox[key] != nil {
		return false
	}
	event.Producer, event.Seq, event.Prev = ledger.ID{}, 0, 0
	b.outbox[key] = &outboxRow{event: event, amount: amount, state: state, created: now.UnixMilli()}
	return true
}

// stamp is Tx.stamp.
func (b *bank) stamp(event *ledger.Event, key string, now time.Time) {
	event.Version, event.Key = ledger.EventVersion, key
	if event.Time == 0 {
		event.Time = now.UnixMilli()
	}
	if event.ID.IsZero() {
		event.ID = b.newID()
	}
}

// Outbox is a transaction that does nothing but Tx.Outbox.
func (b *bank) Outbox(event ledger.Event, key string, now time.Time) error {
	b.stamp(&event, key, now)
	if !b.insert(key, event, 0, "new", now) {
		return sqlstore.ErrExists
	}
	return nil
}

// outboxStates are those that are moved, in the order in which they are looked for.
var outboxStates = []string{"new", "moved"}

func (b *bank) OutboxPending(limit int, now time.Time) (rows []sqlstore.OutboxRow) {
	var keys []string
	for _, state := range outboxStates {
		var due []string
		for key, r := range b.outbox {
			if r.state == state && (r.due <= now.UnixMilli() || r.due > now.Add(outboxFuture).UnixMilli()) {
				due = append(due, key)
			}
		}
		slices.SortFunc(due, func(x, y string) int {
			return cmp.Or(cmp.Compare(b.outbox[x].due, b.outbox[y].due), cmp.Compare(b.outbox[x].created, b.outbox[y].created), cmp.Compare(x, y))
		})
		keys = append(keys, due[:min(len(due), limit-len(keys))]...)
	}
	slices.SortFunc(keys, func(x, y string) int {
		return cmp.Or(cmp.Compare(b.outbox[x].created, b.outbox[y].created), cmp.Compare(x, y))
	})
	for _, key := range keys {
		b.outbox[key].due = now.Add(outboxLease).UnixMilli()
		rows = append(rows, sqlstore.OutboxRow{Key: key, Event: b.outbox[key].event})
	}
	return rows
}

func (b *bank) OutboxMoved(keys []string, now time.Time) {
	for _, key := range keys {
		if r := b.outbox[key]; r != nil && (r.state == "new" || r.state == "moved") {
			r.state, r.due = "moved", now.Add(outboxAgain).UnixMilli()
		}
	}
}

// waiting is how many rows are not applied yet.
func (b *bank) waiting() (n int) {
	for _, r := range b.outbox {
		if r.state == "new" || r.state == "moved" {
			n++
		}
	}
	return n
}

// What people do.

func (b *bank) addCode(name string, quota int64) { b.codes[name] = &code{quota: quota} }

// redeemKey is the business key of a redemption (DESIGN 9): it ends in the user, so that two users never meet in one.
func redeemKey(name string, user int64) string {
	return "redeem:" + name + ":" + strconv.FormatInt(user, 10)
}

func (b *bank) Redeem(user int64, name string, now time.Time) error {
	c := b.codes[name]
	key := redeemKey(name, user)
	switch {
	case c == nil:
		return sqlstore.ErrNotFound
	case c.usedBy != 0 || b.outbox[key] != nil:
		return sqlstore.ErrCodeUsed
	}
	c.usedBy = user
	return b.Outbox(ledger.Event{Kind: ledger.KindCreditGranted, User: user, Granted: c.quota}, key, now)
}

// Edit is somebody's UPDATE of a balance column.
func (b *bank) Edit(a ledger.Account, by int64) {
	b.rows[a].column += by
	b.rows[a].edits += by
}

func (b *bank) Redrive(event ledger.ID, now time.Time) error {
	for i := range b.dead {
		d := &b.dead[i]
		if d.Event != event || d.Redriven {
			continue
		}
		copied, err := ledger.Decode(d.Value)
		if err != nil {
			return errors.Join(sqlstore.ErrUndecodable, err)
		}
		copied.Redrive = true
		if !b.insert("redrive:"+event.String(), copied, 0, "new", now) {
			return sqlstore.ErrExists
		}
		return nil
	}
	return sqlstore.ErrNotFound
}

// due is what a column should hold.
func (a *account) due() int64 { return a.balance.Left() + a.pending }

// adoptKey is the business key of an adoption: random, so that a restored database gives none out twice (DESIGN 9).
func (b *bank) adoptKey(owner int64, _ *account) string {
	return "adopt:" + b.newID().String() + ":" + strconv.FormatInt(owner, 10)
}

// adopt looks for a hand edit, under the row locks.
func (b *bank) adopt(a ledger.Account, acc *account, owner int64, now time.Time) bool {
	r := b.rows[a]
	if r == nil {
		return false
	}
	column := r.column
	edit := column - acc.written
	if edit == 0 {
		return false
	}
	acc.pending += edit
	acc.written = column
	event := ledger.Event{Kind: ledger.KindCreditAdopted, User: owner, Account: a.Kind, Granted: edit}
	if a.Kind == ledger.TokenAccount {
		event.Token = a.ID
	}
	key := b.adoptKey(owner, acc)
	b.stamp(&event, key, now)
	b.insert(key, event, edit, "new", now)
	return true
}

// write brings the column after the account.
func (b *bank) write(a ledger.Account, acc *account) {
	if a.Kind == ledger.ChannelAccount {
		return
	}
	acc.written = acc.due()
	if r := b.rows[a]; r != nil {
		r.column = acc.written
	}
}

// ScanAll adopts the hand edits of all users and tokens.
func (b *bank) ScanAll(now time.Time) (adopted int) {
	for _, a := range slices.SortedFunc(maps.Keys(b.rows), compareAccounts) {
		acc := b.accounts[place{a, 0}]
		if acc == nil || b.rows[a].column == acc.written {
			continue
		}
		if b.adopt(a, acc, b.rows[a].owner, now) {
			adopted++
			b.write(a, acc)
		}
	}
	return adopted
}

func compareAccounts(x, y ledger.Account) int {
	order := func(k ledger.AccountKind) int {
		return strings.Index("user token channel", string(k))
	}
	return cmp.Or(cmp.Compare(order(x.Kind), order(y.Kind)), cmp.Compare(x.ID, y.ID))
}

// Replay sets a partition's balances to what a fold says at its offset.
func (b *bank) Replay(partition int, offset int64, balances map[ledger.Account]ledger.Balance, now time.Time) error {
	if b.parts[partition].Offset != offset {
		return fmt.Errorf("%w: it is %d", sqlstore.ErrFenced, b.parts[partition].Offset)
	}
	for a := range balances {
		if b.accounts[b.placeOf(a, partition)] == nil {
			b.accounts[b.placeOf(a, partition)] = &account{part: partition}
		}
	}
	inOrder := func(x, y place) int { return cmp.Or(compareAccounts(x.Account, y.Account), x.slot-y.slot) }
	for _, at := range slices.SortedFunc(maps.Keys(b.accounts), inOrder) {
		acc := b.accounts[at]
		if acc.part != partition {
			continue
		}
		if r := b.rows[at.Account]; r != nil {
			b.adopt(at.Account, acc, r.owner, now)
		}
		acc.balance = balances[at.Account]
		b.write(at.Account, acc)
	}
	return nil
}

// waitingKeys names the rows that are not applied yet.
func (b *bank) waitingKeys() (keys []string) {
	for _, key := range slices.Sorted(maps.Keys(b.outbox)) {
		if r := b.outbox[key]; r.state == "new" || r.state == "moved" {
			keys = append(keys, fmt.Sprintf("%s (%s, due at %d)", key, r.state, r.due))
		}
	}
	return keys
}
