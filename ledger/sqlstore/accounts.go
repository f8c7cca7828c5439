package sqlstore

import (
	"context"
	"fmt"
	"math"
	"slices"

	"ledgerline/ledger"
)

// account is one locked row of ledger_accounts with New API's row beside it.
type account struct {
	ledger.Account
	owner  int64 // user id; 0 if nobody knows it
	part   int
	stored bool // there is a row in ledger_accounts
	listed bool // there is a row in New API's table

	column           int64 // New API's quota or remain_quota
	used, counted    int64 // New API's used_quota and request_count
	balance          ledger.Balance
	written, pending int64
	baseUsed         int64 // what New API's counters hold beyond charged and requests: used = charged + baseUsed
	baseRequests     int64
	usedAt           int64 // Unix seconds of the last use
	saturated        bool  // when it was locked, the column could not hold what was due

	stepCharged, stepRequests int64 // by which New API's counters are raised
}

// due is what New API's column should hold.
func (a *account) due() (int64, error) {
	left, ok := sub(a.balance.Granted, a.balance.Charged)
	if ok {
		left, ok = add(left, a.pending)
	}
	if !ok {
		return 0, &permanentError{"overflow", fmt.Sprintf("the balance of %s leaves 64 bits", a.Account)}
	}
	return left, nil
}

// plus adds b to the balance.
func (a *account) plus(b ledger.Balance) error {
	granted, ok1 := add(a.balance.Granted, b.Granted)
	charged, ok2 := add(a.balance.Charged, b.Charged)
	requests, ok3 := add(a.balance.Requests, b.Requests)
	if !ok1 || !ok2 || !ok3 {
		return &permanentError{"overflow", fmt.Sprintf("the balance of %s leaves 64 bits", a.Account)}
	}
	a.balance = ledger.Balance{Granted: granted, Charged: charged, Requests: requests}
	return nil
}

// add returns a + b and whether it stayed above the lowest int64, which is never used.
func add(a, b int64) (int64, bool) {
	sum := a + b
	return sum, (sum > a) == (b > 0) && sum != math.MinInt64
}

func sub(a, b int64) (int64, bool) {
	if b == math.MinInt64 {
		return 0, false
	}
	return add(a, -b)
}

// sheet is a set of accounts locked by one transaction. Every change of a balance goes through one: lock, adopt,
// change, write. Flush, scan and replay differ only in the change (DESIGN 9).
type sheet struct {
	tx       *Tx
	part     int // < 0: accounts of any partition (scan)
	accounts []*account
	by       map[ledger.Account]*account

	adopted   []outboxRow
	alarms    []string
	saturated []ledger.Account
}

// ids are the accounts to lock, each list ascending and without repeats.
type ids struct{ users, tokens, channels []int64 }

// quotaColumn is New API's balance column of a kind.
var quotaColumn = map[ledger.AccountKind]string{ledger.UserAccount: "users.quota", ledger.TokenAccount: "tokens.remain_quota"}

// lockAccounts locks New API's rows first, users then tokens, and the accounts after them, all in id order. An account
// that has no row yet is in the sheet with zeros; nobody else can make it, because all who do hold New API's row.
func (tx *Tx) lockAccounts(ctx context.Context, part int, want ids) (*sheet, error) {
	sh := &sheet{tx: tx, part: part, by: make(map[ledger.Account]*account, len(want.users)+len(want.tokens)+len(want.channels))}
	if err := tx.s.loadColumns(ctx, tx); err != nil {
		return nil, err
	}
	for _, group := range []struct {
		kind ledger.AccountKind
		list []int64
	}{{ledger.UserAccount, want.users}, {ledger.TokenAccount, want.tokens}, {ledger.ChannelAccount, want.channels}} {
		for _, id := range group.list {
			a := &account{Account: ledger.Account{Kind: group.kind, ID: id}, part: part}
			sh.accounts = append(sh.accounts, a)
			sh.by[a.Account] = a
		}
	}
	if err := sh.lockColumns(ctx, ledger.UserAccount, want.users, "id, COALESCE(quota, 0), COALESCE(used_quota, 0), COALESCE(request_count, 0) FROM users"); err != nil {
		return nil, err
	}
	if err := sh.lockColumns(ctx, ledger.TokenAccount, want.tokens, "COALESCE(user_id, 0), COALESCE(remain_quota, 0), COALESCE(used_quota, 0), 0 FROM tokens"); err != nil {
		return nil, err
	}
	return sh, sh.lockRows(ctx, want)
}

func (sh *sheet) lockColumns(ctx context.Context, kind ledger.AccountKind, list []int64, columns string) error {
	err := chunks(list, func(list []int64) error {
		q := new(statement).text("SELECT id, " + columns + sh.tx.s.forcePK + " WHERE id IN (").ints(list).text(") ORDER BY id" + sh.tx.ForUpdate())
		return sh.tx.each(ctx, q.String(), nil, func(scan func(...any) error) error {
			var n account
			if err := scan(&n.ID, &n.owner, &n.column, &n.used, &n.counted); err != nil {
				return err
			}
			a := sh.by[ledger.Account{Kind: kind, ID: n.ID}]
			a.listed, a.owner, a.column, a.used, a.counted = true, n.owner, n.column, n.used, n.counted
			a.baseUsed, a.baseRequests = n.used, n.counted // unless there is an account, which knows better
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("lock %s rows: %w", kind, err)
	}
	return nil
}

const accountColumns = "kind, id, part, granted, charged, requests, written, pending_adopt, base_used, base_requests, used_at"

func (sh *sheet) lockRows(ctx context.Context, want ids) error {
	lock := func(kind ledger.AccountKind, slot int, list []int64) error {
		return chunks(list, func(list []int64) error {
			q := new(statement).text("SELECT " + accountColumns + " FROM ledger_accounts" + sh.tx.s.forcePK + " WHERE kind = '" + string(kind) + "' AND slot = ").
				int(int64(slot)).text(" AND id IN (").ints(list).text(") ORDER BY id" + sh.tx.ForUpdate())
			return sh.tx.each(ctx, q.String(), nil, sh.scanRow)
		})
	}
	// Kinds in the order of the primary key.
	err := lock(ledger.ChannelAccount, sh.part, want.channels)
	if err == nil {
		err = lock(ledger.TokenAccount, 0, want.tokens)
	}
	if err == nil {
		err = lock(ledger.UserAccount, 0, want.users)
	}
	if err != nil {
		return fmt.Errorf("lock accounts: %w", err)
	}
	return nil
}

func (sh *sheet) scanRow(scan func(...any) error) error {
	var r account
	err := scan(&r.Kind, &r.ID, &r.part, &r.balance.Granted, &r.balance.Charged, &r.balance.Requests, &r.written, &r.pending, &r.baseUsed, &r.baseRequests, &r.usedAt)
	if err != nil {
		return err
	}
	a := sh.by[r.Account]
	if sh.part >= 0 && r.part != sh.part {
		return &permanentError{"foreign_account", fmt.Sprintf("%s belongs to partition %d, not %d", r.Account, r.part, sh.part)}
	}
	a.stored, a.part, a.balance, a.written, a.pending = true, r.part, r.balance, r.written, r.pending
	a.baseUsed, a.baseRequests, a.usedAt = r.baseUsed, r.baseRequests, r.usedAt
	if name, ok := quotaColumn[r.Kind]; ok {
		due, err := a.due()
		if err != nil {
			return err
		}
		a.saturated = !sh.tx.s.column(name).holds(due)
	}
	return nil
}

// adopt looks for an edit that somebody made to New API's column: what it holds beyond what we put there. The
// difference becomes pending and an outbox event; a saturated column says nothing about the balance, and an event of a
// user of another partition could never be applied, so such edits are alarmed and overwritten.
func (sh *sheet) adopt(a *account) error {
	edit, ok := sub(a.column, a.written)
	if !a.listed || edit == 0 {
		return nil
	}
	if a.saturated || !ok {
		sh.alarms = append(sh.alarms, fmt.Sprintf("%s: somebody set the saturated column %s to %d: ignored", a.Account, quotaColumn[a.Kind], a.column))
		return nil
	}
	if a.owner <= 0 || sh.tx.s.foreignOwner(a) { // only a replay comes here with one: a flush knows whose records touch the account
		sh.alarms = append(sh.alarms, fmt.Sprintf("%s: its row names user %d, of another partition than the account: that somebody set %s to %d is ignored",
			a.Account, a.owner, quotaColumn[a.Kind], a.column))
		return nil
	}
	if a.pending, ok = add(a.pending, edit); !ok {
		return &permanentError{"overflow", fmt.Sprintf("the edits of %s leave 64 bits", a.Account)}
	}
	a.written = a.column
	event := ledger.Event{Kind: ledger.KindCreditAdopted, User: a.owner, Account: a.Kind, Granted: edit}
	if a.Kind == ledger.TokenAccount {
		event.Token = a.ID
	}
	random, err := newID()
	if err != nil {
		return err
	}
	key := businessKey(a.owner, "adopt", random.String())
	if err := sh.tx.stamp(&event, key); err != nil {
		return err
	}
	sh.adopted = append(sh.adopted, outboxRow{key: key, event: event, amount: edit, state: outboxNew})
	return nil
}

// write stores every account of the sheet and writes New API's columns through. absolute sets New API's counters to
// what the account says (replay); otherwise they are raised by the steps.
func (sh *sheet) write(ctx context.Context, absolute bool) error {
	for _, a := range sh.accounts {
		name, limited := quotaColumn[a.Kind]
		if !limited {
			continue
		}
		due, err := a.due()
		if err != nil {
			return err
		}
		r := sh.tx.s.column(name)
		if a.written = r.clip(due); a.written != due {
			sh.saturated = append(sh.saturated, a.Account)
		}
	}
	if err := sh.tx.insertOutbox(ctx, sh.adopted); err != nil {
		return fmt.Errorf("note hand edits: %w", err)
	}
	if err := chunks(sh.accounts, func(list []*account) error { return sh.upsert(ctx, list) }); err != nil {
		return fmt.Errorf("store balances: %w", err)
	}
	if err := sh.writeThrough(ctx, absolute); err != nil {
		return fmt.Errorf("write balances through: %w", err)
	}
	return nil
}

func (sh *sheet) upsert(ctx context.Context, list []*account) error {
	q := new(statement).text("INSERT INTO ledger_accounts (kind, id, slot, part, granted, charged, requests, written, pending_adopt, base_used, base_requests, step_charged, step_requests, used_at) VALUES ")
	for i, a := range list {
		if i > 0 {
			q.text(",")
		}
		slot := int64(0)
		if a.Kind == ledger.ChannelAccount {
			slot = int64(a.part)
		}
		q.text("('").text(string(a.Kind)).text("',").ints([]int64{
			a.ID, slot, int64(a.part), a.balance.Granted, a.balance.Charged, a.balance.Requests,
			a.written, a.pending, a.baseUsed, a.baseRequests, a.stepCharged, a.stepRequests, a.usedAt,
		}).text(")")
	}
	q.text(sh.tx.s.onConflict("kind, id, slot", "granted", "charged", "requests", "written", "pending_adopt", "base_used", "base_requests", "step_charged", "step_requests", "used_at"))
	_, err := sh.tx.Exec(ctx, q.String())
	return err
}

// writeThrough brings New API's rows after ledger_accounts, by joins: two statements' text for any number of accounts.
func (sh *sheet) writeThrough(ctx context.Context, absolute bool) error {
	s := sh.tx.s
	counter := func(table, column, step, value string) string {
		if absolute {
			return s.set(table, column, value)
		}
		return s.raise(table, column, step)
	}
	users := "quota = s.written, " + counter("users", "used_quota", "s.step_charged", "s.charged + s.base_used") + ", " +
		counter("users", "request_count", "s.step_requests", "s.requests + s.base_requests")
	tokens := "remain_quota = s.written, " + counter("tokens", "used_quota", "s.step_charged", "s.charged + s.base_used") +
		", accessed_time = CASE WHEN s.used_at > COALESCE(accessed_time, 0) THEN s.used_at ELSE accessed_time END"
	channels := s.raise("channels", "used_quota", "s.step_charged")
	for _, group := range []struct {
		kind       ledger.AccountKind
		table, set string
	}{{ledger.UserAccount, "users", users}, {ledger.TokenAccount, "tokens", tokens}, {ledger.ChannelAccount, "channels", channels}} {
		slot := 0
		if group.kind == ledger.ChannelAccount {
			slot = sh.part
		}
		on := new(statement).text("s.kind = '" + string(group.kind) + "' AND s.id = t.id AND s.slot = ").int(int64(slot)).String()
		err := chunks(sh.list(group.kind), func(list []int64) error {
			q := new(statement).text(s.updateFrom(group.table, "ledger_accounts", on, group.set)).text(" AND t.id IN (")
			_, err := sh.tx.Exec(ctx, q.ints(list).text(")").String())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// list returns the ids of the accounts of a kind that New API's table has, ascending.
func (sh *sheet) list(kind ledger.AccountKind) []int64 {
	var list []int64
	for _, a := range sh.accounts {
		if a.Kind == kind && (a.listed || kind == ledger.ChannelAccount && (a.stepCharged != 0)) {
			list = append(list, a.ID)
		}
	}
	slices.Sort(list)
	return list
}
