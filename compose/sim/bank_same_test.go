package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
	"ledgerline/ledger/ledgertest"
	"ledgerline/ledger/sqlstore"
)

// The twin gives the real store's answers: both get the same random calls, batches with duplicates, holes, used keys, lost rows, poison,
// re-drives, hand edits and replays among them, and are compared after each.
func TestBankIsTheStore(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { compareBanks(t, "", 16) })
	t.Run("mysql", func(t *testing.T) { compareBanks(t, ledgertest.MySQL(t), 4) })
}

func compareBanks(t *testing.T, dsn string, histories int) {
	for seed := range uint64(histories) {
		if testing.Short() && seed > 3 {
			break
		}
		p := newPair(t, dsn, seed)
		for step := range 60 {
			name := p.step()
			if t.Failed() {
				t.Fatalf("seed %d, step %d: %s", seed, step, name)
			}
		}
		must(t, p.store.Close())
	}
}

const pairPartitions = 2

// pair is the two of them.
type pair struct {
	t     *testing.T
	ctx   context.Context
	rand  *rand.Rand
	now   time.Time
	bank  *bank
	store *sqlstore.Store
	log   [pairPartitions][]ledger.Record
	seq   map[markOf]uint64
	last  map[ledger.ID]uint64
	codes []string
	ids   uint64
	users []int64
	fresh uint64
	// adoptions are the outbox keys of the two stores that stand for one another: they are random.
	adoptions map[string]string
}

func newPair(t *testing.T, dsn string, seed uint64) *pair {
	if dsn != "" {
		dsn = ledgertest.MySQL(t)
	}
	p := &pair{
		t: t, ctx: t.Context(), rand: rand.New(rand.NewPCG(seed, 3)), now: time.UnixMilli(1_800_000_000_000), bank: newBank(pairPartitions),
		seq: map[markOf]uint64{}, last: map[ledger.ID]uint64{}, adoptions: map[string]string{},
	}
	var err error
	p.store, err = sqlstore.Open(p.ctx, sqlstore.Config{
		DSN: dsn, SQLitePath: filepath.Join(t.TempDir(), "ledger.db"), Now: func() time.Time { return p.now },
	})
	must(t, err)
	must(t, p.store.Migrate(p.ctx))
	_, err = p.store.InitLog(p.ctx, sqlstore.LogInfo{Topic: "events", Partitions: pairPartitions})
	must(t, err)
	for user := int64(1); len(p.users) < 3; user++ {
		p.users = append(p.users, user)
		p.bank.addUser(user, 10*user, 10*user+1)
		p.addUser(user, 10*user, 10*user+1)
	}
	p.bank.refuse = refusePoison
	p.refusePoison()
	p.codes, err = p.store.CreateRedemptions(p.ctx, sqlstore.Redemption{Name: "c", Quota: 20, UserID: 1}, 4)
	must(t, err)
	for _, c := range p.codes {
		p.bank.addCode(c, 20)
	}
	return p
}

// poisonChannel is the first of the channels that a poisonous event names, each its own.
const poisonChannel = 1000

func refusePoison(e *ledger.Event) bool { return e.Channel >= poisonChannel && !e.Redrive }

// refusePoison makes the real database refuse what the twin refuses.
func (p *pair) refusePoison() {
	refuse := `BEFORE INSERT ON ledger_accounts FOR EACH ROW `
	cond := `NEW.kind = 'channel' AND NEW.id >= 1000 AND NOT EXISTS (SELECT 1 FROM ledger_dead_letters d WHERE d.state = 'redriven' AND ` +
		`CAST(d.value AS %s) LIKE %s)`
	lite := "CREATE TRIGGER poison " + refuse + "WHEN " + fmt.Sprintf(cond, "TEXT", `'%"channel":' || NEW.id || ',%'`) + " BEGIN SELECT RAISE(ABORT, 'poison'); END"
	my := "CREATE TRIGGER poison " + refuse + "BEGIN IF " + fmt.Sprintf(cond, "CHAR", `CONCAT('%"channel":', NEW.id, ',%')`) +
		" THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'poison'; END IF; END"
	must(p.t, p.store.Tx(p.ctx, func(tx *sqlstore.Tx) error {
		_, err := tx.Exec(p.ctx, lite)
		if err != nil {
			_, err = tx.Exec(p.ctx, my)
		}
		return err
	}))
}

func (p *pair) addUser(user int64, tokens ...int64) {
	must(p.t, p.store.Tx(p.ctx, func(tx *sqlstore.Tx) error {
		name := fmt.Sprintf("user%d", user)
		_, err := tx.Exec(p.ctx, "INSERT INTO users (id, username, password, aff_code) VALUES (?, ?, 'x', ?)", user, name, name)
		if err == nil {
			err = tx.EnsureAccount(p.ctx, ledger.Account{Kind: ledger.UserAccount, ID: user}, user)
		}
		for _, token := range tokens {
			if err == nil {
				_, err = tx.Exec(p.ctx, "INSERT INTO tokens (id, user_id, `key`, name) VALUES (?, ?, ?, 'n')", token, user, fmt.Sprintf("key%d", token))
			}
			if err == nil {
				err = tx.EnsureAccount(p.ctx, ledger.Account{Kind: ledger.TokenAccount, ID: token}, user)
			}
		}
		return err
	}))
}

func (p *pair) id(kind byte) (id ledger.ID) {
	p.ids++
	id[0], id[14], id[15] = kind, byte(p.ids>>8), byte(p.ids)
	return id
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// same compares two answers and the errors that callers tell apart.
func (p *pair) same(what string, a, b any, errA, errB error) {
	p.t.Helper()
	for _, known := range []error{sqlstore.ErrFenced, sqlstore.ErrExists, sqlstore.ErrNotFound, sqlstore.ErrCodeUsed} {
		if errors.Is(errA, known) != errors.Is(errB, known) {
			p.t.Errorf("%s: twin says %v, store %v", what, errA, errB)
		}
	}
	if (errA == nil) != (errB == nil) {
		p.t.Errorf("%s: twin says %v, store %v", what, errA, errB)
	}
	if d := cmp.Diff(b, a); d != "" && errA == nil {
		p.t.Errorf("%s: store −, twin +:\n%s", what, d)
	}
}

func (p *pair) step() string {
	p.now = p.now.Add(time.Duration(p.rand.IntN(4000)) * time.Millisecond)
	part, user := p.rand.IntN(pairPartitions), pick(p.rand, p.users)
	steps := []struct {
		name string
		do   func()
	}{
		{"append", func() { p.append(user) }},
		{"append", func() { p.append(user) }},
		{"append", func() { p.append(user) }},
		{"flush", func() { p.flush(part) }},
		{"flush", func() { p.flush(part) }},
		{"move", p.move},
		{"edit", func() { p.edit(user) }},
		{"scan", func() {
			r, err := p.store.ScanAll(p.ctx)
			p.same("scan", p.bank.ScanAll(p.now), r.Adopted, nil, err)
		}},
		{"redeem", func() {
			c := pick(p.rand, p.codes)
			_, _, err := p.store.Redeem(p.ctx, user, c)
			p.same("redeem", 0, 0, p.bank.Redeem(user, c, p.now), err)
		}},
		{"move", p.move},
		{"redeem", func() {
			c := pick(p.rand, p.codes)
			_, _, err := p.store.Redeem(p.ctx, user, c)
			p.same("redeem", 0, 0, p.bank.Redeem(user, c, p.now), err)
		}},
		{"redrive", p.redrive},
		{"epoch", func() { p.epoch(part) }},
		{"producers", p.producers},
		{"replay", func() { p.replay(part) }},
		{"forget", p.forget},
		{"clock", func() { p.now = p.now.Add(pick(p.rand, []time.Duration{-time.Hour, time.Hour})) }},
	}
	s := pick(p.rand, steps)
	s.do()
	p.compare()
	return s.name
}

// append writes an event into the log, as some producer would.
func (p *pair) append(user int64) {
	part := ledger.Partition(user, pairPartitions)
	e := ledger.Event{Version: ledger.EventVersion, ID: p.id('e'), User: user, Time: p.now.UnixMilli()}
	switch p.rand.IntN(6) {
	case 0:
		e.Kind, e.Granted = ledger.KindCreditGranted, 30
	case 1:
		e.Kind, e.Token, e.Granted = ledger.KindTokenLimited, 10*user, 15
	default:
		e.Kind, e.Token, e.Channel, e.Charged, e.Requests = ledger.KindUsageSettled, 10*user+p.rand.Int64N(2), 1+p.rand.Int64N(2), p.rand.Int64N(9), 1
		if p.rand.IntN(8) == 0 {
			p.fresh++
			e.Channel = poisonChannel + int64(p.fresh)
		}
	}
	if p.rand.IntN(12) == 0 {
		p.put(part, ledger.Record{Value: []byte("{"), Err: errors.New("no event")})
	}
	p.place(part, e)
}

// place gives an event a place in a producer's sequence: at times with a hole before it, or twice.
func (p *pair) place(part int, e ledger.Event) {
	var producer ledger.ID
	producer[0], producer[15] = 'p', byte(p.rand.IntN(3))
	of := markOf{part, producer}
	e.Producer, e.Prev = producer, p.seq[of]
	e.Seq = p.last[producer] + 1
	if p.rand.IntN(10) == 0 {
		e.Prev, e.Seq = e.Seq, e.Seq+1
	}
	p.seq[of], p.last[producer] = e.Seq, e.Seq
	value, err := e.Encode(nil)
	must(p.t, err)
	p.put(part, ledger.Record{Value: value, Event: e})
	if p.rand.IntN(6) == 0 {
		p.put(part, pick(p.rand, p.log[part]))
	}
}

func (p *pair) put(part int, r ledger.Record) {
	r.Partition, r.Offset = part, int64(len(p.log[part]))
	p.log[part] = append(p.log[part], r)
}

func (p *pair) flush(part int) {
	from, end := p.bank.parts[part].Offset, int64(len(p.log[part]))
	if p.rand.IntN(10) == 0 {
		from = p.rand.Int64N(end + 1)
	}
	to := from + p.rand.Int64N(end-from+1)
	call := sqlstore.FlushCall{Partition: part, From: from, To: to, Records: slices.Clone(p.log[part][from:to]), Now: p.now}
	a, errA := p.bank.Flush(call)
	b, errB := p.store.Flush(p.ctx, call)
	for _, r := range []*sqlstore.FlushResult{&a, &b} {
		for i := range r.Dead {
			r.Dead[i].Code, r.Dead[i].Reason = "", ""
		}
		slices.SortFunc(r.Dead, func(x, y sqlstore.DeadLetter) int { return int(x.Offset - y.Offset) })
		slices.Sort(r.Restored)
		r.Alarms = r.Alarms[:min(len(r.Alarms), 0):0]
		if len(r.Alarms) == 0 {
			r.Alarms = nil
		}
		if len(r.Skipped) == 0 {
			r.Skipped = nil
		}
		if len(r.Restored) == 0 {
			r.Restored = nil
		}
	}
	for i := range a.Restored {
		a.Restored[i] = p.real(a.Restored[i])
	}
	p.same("flush", a, b, errA, errB)
}

// move takes rows of the outbox into the log, as a mover does; some twice, some with their row forgotten.
func (p *pair) move() {
	limit := 1 + p.rand.IntN(4)
	a := p.bank.OutboxPending(limit, p.now)
	b, err := p.store.OutboxPending(p.ctx, limit)
	must(p.t, err)
	if len(a) != len(b) {
		p.t.Errorf("%d rows of the twin are due, %d of the store", len(a), len(b))
		return
	}
	p.learn()
	keys := []string{}
	byKey := map[string]sqlstore.OutboxRow{}
	for _, r := range b {
		byKey[r.Key] = r
	}
	for i := range a {
		key := p.real(a[i].Key)
		r, ok := byKey[key]
		if !ok {
			// Rows of the same millisecond may come in any order when a limit cuts them.
			p.t.Logf("row %s is not due in the store", a[i].Key)
			continue
		}
		e := r.Event
		p.bank.outbox[a[i].Key].event.ID = e.ID // random there
		if p.rand.IntN(4) > 0 {
			e.Time = p.now.UnixMilli()
			p.place(ledger.Partition(e.User, pairPartitions), e)
		}
		keys = append(keys, a[i].Key)
	}
	if p.rand.IntN(4) > 0 {
		p.bank.OutboxMoved(keys, p.now)
		for i := range keys {
			keys[i] = p.real(keys[i])
		}
		must(p.t, p.store.OutboxMoved(p.ctx, keys...))
	}
}

// real is the store's name of a row of the twin.
func (p *pair) real(key string) string {
	if k := p.adoptions[key]; k != "" {
		return k
	}
	return key
}

// learn pairs the random keys of adoptions: the newest of each, by user, amount and time. The twin takes over the store's.
func (p *pair) learn() {
	known := map[string]bool{}
	for _, k := range p.adoptions {
		known[k] = true
	}
	rows := p.outboxRows()
	for _, key := range slices.Sorted(maps.Keys(p.bank.outbox)) {
		r := p.bank.outbox[key]
		if !strings.HasPrefix(key, "adopt:") || known[key] {
			continue
		}
		for _, o := range rows {
			if strings.HasPrefix(o.key, "adopt:") && !known[o.key] && o.amount == r.amount && o.event.User == r.event.User &&
				o.event.Account == r.event.Account && o.event.Token == r.event.Token && o.created == r.created {
				known[o.key] = true
				p.adoptions[o.key] = o.key
				delete(p.bank.outbox, key)
				r.event.Key, r.event.ID = o.key, o.event.ID
				p.bank.outbox[o.key] = r
				break
			}
		}
	}
}

type storeRow struct {
	key             string
	amount, created int64
	state           string
	event           ledger.Event
}

func (p *pair) outboxRows() (rows []storeRow) {
	must(p.t, p.store.View(p.ctx, func(tx *sqlstore.Tx) error {
		list, err := tx.Query(p.ctx, "SELECT event_key, amount, state, created_at, event FROM ledger_outbox ORDER BY event_key")
		if err != nil {
			return err
		}
		defer list.Close()
		for list.Next() {
			var r storeRow
			var body []byte
			if err := list.Scan(&r.key, &r.amount, &r.state, &r.created, &body); err != nil {
				return err
			}
			if r.event, err = decodeOutbox(body); err != nil {
				return err
			}
			rows = append(rows, r)
		}
		return list.Err()
	}))
	return rows
}

func (p *pair) edit(user int64) {
	by := pick(p.rand, []int64{-7, 5, 10})
	a, q := ledger.Account{Kind: ledger.UserAccount, ID: user}, "UPDATE users SET quota = quota + ? WHERE id = ?"
	if p.rand.IntN(3) == 0 {
		a, q = ledger.Account{Kind: ledger.TokenAccount, ID: 10 * user}, "UPDATE tokens SET remain_quota = remain_quota + ? WHERE id = ?"
	}
	p.bank.Edit(a, by)
	p.exec(q, by, a.ID)
}

func (p *pair) exec(q string, args ...any) {
	must(p.t, p.store.Tx(p.ctx, func(tx *sqlstore.Tx) error { _, err := tx.Exec(p.ctx, q, args...); return err }))
}

func (p *pair) redrive() {
	if len(p.bank.dead) == 0 {
		return
	}
	d := pick(p.rand, p.bank.dead)
	if d.Event.IsZero() {
		return
	}
	p.same("redrive", 0, 0, p.bank.Redrive(d.Event, p.now), p.store.Redrive(p.ctx, d.Event))
}

func (p *pair) epoch(part int) {
	want := p.bank.AllocateEpoch(part, uint64(p.rand.IntN(5)), p.now)
	call, err := p.store.AllocateEpoch(p.ctx, part, 0)
	p.same("allocate epoch", want, call, nil, err)
	r := ledger.EpochRecord{Partition: part, Epoch: call.Epoch - uint64(p.rand.IntN(2)), End: int64(p.rand.IntN(20)), Reporters: []ledger.ID{p.id('n')}, OpenedAt: p.now}
	stored, err := p.store.StoreEpoch(p.ctx, r)
	p.same("store epoch", p.bank.StoreEpoch(r), stored, nil, err)
}

func (p *pair) producers() {
	var id ledger.ID
	id[0], id[15] = 'n', byte(p.rand.IntN(3))
	switch p.rand.IntN(4) {
	case 0:
		p.same("register", 0, 0, p.bank.RegisterProducer(id, "n", p.now), p.store.RegisterProducer(p.ctx, sqlstore.Producer{ID: id, Node: "n"}))
	case 1:
		lost, err := p.store.Heartbeat(p.ctx, id)
		p.same("beat", p.bank.Heartbeat([]ledger.ID{id}, p.now), append([]ledger.ID(nil), lost...), nil, err)
	case 2:
		p.same("close", 0, 0, p.bank.CloseProducer(id, p.now), p.store.CloseProducer(p.ctx, id))
	case 3:
		beat := uint64(p.rand.IntN(3))
		ok, err := p.store.GiveUp(p.ctx, id, beat)
		p.same("give up", p.bank.GiveUp(id, beat, p.now), ok, nil, err)
	}
}

func (p *pair) replay(part int) {
	// Whatever the balances are: they are set.
	offset := p.bank.parts[part].Offset
	balances := map[ledger.Account]ledger.Balance{}
	for at, acc := range p.bank.accounts {
		if acc.part == part && at.Kind != ledger.ChannelAccount {
			b := acc.balance
			b.Granted += p.rand.Int64N(3)
			balances[at.Account] = b
		}
	}
	for at, acc := range p.bank.accounts {
		if acc.part == part && at.Kind == ledger.ChannelAccount {
			balances[at.Account] = acc.balance
		}
	}
	_, err := p.store.ReplayPartition(p.ctx, sqlstore.ReplayCall{Partition: part, Offset: offset, Balances: balances})
	p.same("replay", 0, 0, p.bank.Replay(part, offset, balances, p.now), err)
}

// forget takes an outbox row and the business row of it away, as a promoted replica that lacks the last transactions does.
func (p *pair) forget() {
	p.learn()
	keys := slices.Sorted(maps.Keys(p.bank.outbox))
	if len(keys) == 0 {
		return
	}
	moved := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return p.bank.outbox[k].state != "moved" })
	if len(moved) > 0 {
		keys = moved // its event is on its way
	}
	key := pick(p.rand, keys)
	if p.bank.outbox[key].state == "applied" {
		return
	}
	delete(p.bank.outbox, key)
	p.exec("DELETE FROM ledger_outbox WHERE event_key = ?", key)
	if name, ok := strings.CutPrefix(key, "redeem:"); ok && p.rand.IntN(2) == 0 {
		name, _, _ = strings.Cut(name, ":")
		p.bank.codes[name].usedBy = 0
		p.exec("UPDATE redemptions SET status = 1, used_user_id = 0 WHERE `key` = ?", name)
	}
}

// compare holds the tables against each other.
func (p *pair) compare() {
	p.learn()
	for part := range pairPartitions {
		a, _ := p.bank.Partition(part)
		b, err := p.store.Partition(p.ctx, part)
		must(p.t, err)
		if len(a.Skipped)+len(b.Skipped) == 0 {
			a.Skipped, b.Skipped = nil, nil
		}
		p.same("partition", a, b, nil, nil)
		var accounts []ledger.Account
		for at, acc := range p.bank.accounts {
			if acc.part == part {
				accounts = append(accounts, at.Account)
			}
		}
		offA, balA, _ := p.bank.Balances(part, accounts)
		offB, balB, err := p.store.Balances(p.ctx, part, accounts)
		must(p.t, err)
		p.same("balances", []any{offA, balA}, []any{offB, balB}, nil, nil)
	}
	columns := func(list *map[string]int64, q string, name string) {
		must(p.t, p.store.View(p.ctx, func(tx *sqlstore.Tx) error {
			rows, err := tx.Query(p.ctx, q)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, n int64
				if err := rows.Scan(&id, &n); err != nil {
					return err
				}
				(*list)[fmt.Sprintf("%s/%d", name, id)] = n
			}
			return rows.Err()
		}))
	}
	have, want := map[string]int64{}, map[string]int64{}
	columns(&want, "SELECT id, quota FROM users", "user")
	columns(&want, "SELECT id, remain_quota FROM tokens", "token")
	columns(&want, "SELECT id, written FROM ledger_accounts WHERE kind = 'user'", "written user")
	columns(&want, "SELECT id, pending_adopt FROM ledger_accounts WHERE kind = 'user'", "pending user")
	columns(&want, "SELECT id, written FROM ledger_accounts WHERE kind = 'token'", "written token")
	columns(&want, "SELECT id, pending_adopt FROM ledger_accounts WHERE kind = 'token'", "pending token")
	for a, r := range p.bank.rows {
		have[a.String()] = r.column
	}
	for at, acc := range p.bank.accounts {
		if at.Kind != ledger.ChannelAccount {
			have["written "+at.String()], have["pending "+at.String()] = acc.written, acc.pending
		}
	}
	p.same("columns", have, want, nil, nil)
	codesA, codesB := map[string]int64{}, map[string]int64{}
	for name, c := range p.bank.codes {
		codesA[name] = c.usedBy
	}
	codes, _, err := p.store.Redemptions(p.ctx, "", sqlstore.Page{Limit: 100})
	must(p.t, err)
	for _, c := range codes {
		codesB[c.Key] = c.UsedBy
	}
	p.same("codes", codesA, codesB, nil, nil)
	rowsA, rowsB := map[string]string{}, map[string]string{}
	for key, r := range p.bank.outbox {
		rowsA[p.real(key)] = fmt.Sprint(r.state, r.amount, r.event.Kind, r.event.User, r.event.Granted)
	}
	for _, r := range p.outboxRows() {
		rowsB[r.key] = fmt.Sprint(r.state, r.amount, r.event.Kind, r.event.User, r.event.Granted)
	}
	p.same("outbox", rowsA, rowsB, nil, nil)
	letters, err := p.store.DeadLetters(p.ctx, -1, -1, 1000)
	must(p.t, err)
	dead := map[string]string{}
	for _, d := range letters {
		dead[fmt.Sprint(d.Partition, "/", d.Offset)] = fmt.Sprint(d.Event, d.Redriven, d.RedrivePartition, d.RedriveOffset)
	}
	mine := map[string]string{}
	for _, d := range p.bank.dead {
		mine[fmt.Sprint(d.Partition, "/", d.Offset)] = fmt.Sprint(d.Event, d.Redriven, d.RedrivePartition, d.RedriveOffset)
	}
	p.same("dead letters", mine, dead, nil, nil)
	producers, err := p.store.Producers(p.ctx)
	must(p.t, err)
	brief := func(list []sqlstore.Producer) (out []string) {
		for _, x := range list {
			out = append(out, fmt.Sprint(x.ID, x.State, x.Beat))
		}
		return out
	}
	p.same("producers", brief(p.bank.Producers()), brief(producers), nil, nil)
}

// decodeOutbox reads an event without an identity of its own.
func decodeOutbox(body []byte) (e ledger.Event, err error) { return e, json.Unmarshal(body, &e) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
