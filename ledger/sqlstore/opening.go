package sqlstore

import (
	"context"
	"fmt"
	"strconv"

	"ledgerline/ledger"
)

// OpenResult says how many opening balances were taken.
type OpenResult struct {
	Users, Tokens, Channels int
}

// openChunk accounts are opened in one transaction: enough that a hundred thousand take seconds, few enough that New
// API's rows are not locked for long.
const openChunk = 500

// OpenAccounts takes over a database that New API made (DESIGN 11): for each user and token without an account it makes
// one, with one account.opened event in the outbox under the key open:KIND:ID:USER. Until that event is applied the whole
// column counts as a pending adoption, so column = balance + pending holds from the first moment. It is idempotent,
// resumes after a kill, and two masters at once do no harm: New API's rows are locked, and the keys are unique.
//
// Channels have no balance; what a channel had used before is noted as its row of slot −1.
func (s *Store) OpenAccounts(ctx context.Context) (OpenResult, error) {
	var result OpenResult
	for _, group := range []struct {
		kind  ledger.AccountKind
		count *int
	}{{ledger.UserAccount, &result.Users}, {ledger.TokenAccount, &result.Tokens}} {
		for after, more := int64(0), true; more; {
			list, err := s.unopened(ctx, group.kind, after)
			if err != nil {
				return result, fmt.Errorf("open %s accounts: %w", group.kind, err)
			}
			if more = len(list) > 0; !more {
				break
			}
			after = list[len(list)-1]
			n := 0
			if err := s.Tx(ctx, func(tx *Tx) error { var err error; n, err = tx.open(ctx, group.kind, list); return err }); err != nil {
				return result, fmt.Errorf("open %s accounts: %w", group.kind, err)
			}
			*group.count += n
		}
	}
	err := s.Tx(ctx, func(tx *Tx) error { var err error; result.Channels, err = tx.openChannels(ctx); return err })
	if err != nil {
		return result, fmt.Errorf("open channel accounts: %w", err)
	}
	return result, nil
}

// openSource is where the opening balance of a kind is read.
var openSource = map[ledger.AccountKind]struct{ table, columns string }{
	ledger.UserAccount:  {"users", "id, id, COALESCE(quota, 0), COALESCE(used_quota, 0), COALESCE(request_count, 0)"},
	ledger.TokenAccount: {"tokens", "id, COALESCE(user_id, 0), COALESCE(remain_quota, 0), COALESCE(used_quota, 0), 0"},
}

// unopened returns the ids of the next rows without an account. A token without a user can never be used and is left out.
func (s *Store) unopened(ctx context.Context, kind ledger.AccountKind, after int64) ([]int64, error) {
	q := "SELECT t.id FROM " + openSource[kind].table + " t LEFT JOIN ledger_accounts a ON a.kind = '" + string(kind) + "' AND a.id = t.id AND a.slot = 0 WHERE a.id IS NULL AND t.id > ?"
	if kind == ledger.TokenAccount {
		q += " AND t.user_id > 0"
	}
	return s.readIDs(ctx, q+" ORDER BY t.id LIMIT ?", after, openChunk)
}

func (s *Store) readIDs(ctx context.Context, query string, args ...any) ([]int64, error) {
	var list []int64
	err := s.read(ctx, query, args, func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		list = append(list, id)
		return err
	})
	return list, err
}

func (tx *Tx) ids(ctx context.Context, query string, args ...any) ([]int64, error) {
	var list []int64
	err := tx.each(ctx, query, args, func(scan func(...any) error) error {
		var id int64
		err := scan(&id)
		list = append(list, id)
		return err
	})
	return list, err
}

// opening is the row of New API's that an account begins with.
type opening struct{ id, owner, left, used, requests int64 }

// event returns the opening event. Counters so large that their sum leaves 64 bits are not carried over; what is left is.
func (o *opening) event(kind ledger.AccountKind) ledger.Event {
	e := ledger.Event{Kind: ledger.KindAccountOpened, User: o.owner, Account: kind, Charged: o.used, Requests: o.requests}
	var ok bool
	if e.Granted, ok = add(o.left, o.used); !ok {
		e.Granted, e.Charged = o.left, 0
	}
	if kind == ledger.TokenAccount {
		e.Token = o.id
	}
	return e
}

// open opens those of the accounts, given by ascending ids, that still have none.
func (tx *Tx) open(ctx context.Context, kind ledger.AccountKind, list []int64) (int, error) {
	partitions, err := tx.s.partitionCount(ctx, tx)
	if err != nil {
		return 0, err
	}
	source := openSource[kind]
	var rows []opening
	q := new(statement).text("SELECT " + source.columns + " FROM " + source.table + tx.s.forcePK + " WHERE id IN (").ints(list).text(") ORDER BY id" + tx.ForUpdate())
	err = tx.each(ctx, q.String(), nil, func(scan func(...any) error) error {
		var o opening
		err := scan(&o.id, &o.owner, &o.left, &o.used, &o.requests)
		if o.owner > 0 {
			rows = append(rows, o)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("lock rows to open: %w", err)
	}
	taken, err := tx.taken(ctx, kind, rows)
	if err != nil {
		return 0, err
	}
	var outbox []outboxRow
	insert := new(statement).text("INSERT INTO ledger_accounts (kind, id, slot, part, written, pending_adopt, base_used, base_requests) VALUES ")
	for i := range rows {
		o := &rows[i]
		event := o.event(kind)
		key := businessKey(o.owner, "open", string(kind), strconv.FormatInt(o.id, 10))
		if taken[key] {
			continue
		}
		if err := tx.stamp(&event, key); err != nil {
			return 0, err
		}
		if len(outbox) > 0 {
			insert.text(",")
		}
		insert.text("('" + string(kind) + "',").ints([]int64{o.id, 0, int64(ledger.Partition(o.owner, partitions)), o.left, o.left, o.used, o.requests}).text(")")
		outbox = append(outbox, outboxRow{key: key, event: event, amount: o.left, state: outboxNew})
	}
	if len(outbox) == 0 {
		return 0, nil
	}
	if _, err := tx.Exec(ctx, insert.String()); err != nil {
		return 0, fmt.Errorf("insert opened accounts: %w", err)
	}
	if err := tx.insertOutbox(ctx, outbox); err != nil {
		return 0, fmt.Errorf("insert opening events: %w", err)
	}
	return len(outbox), nil
}

// taken returns the opening keys of rows that have an account by now, or whose opening is already in the outbox: if the account
// of such a row is missing, somebody emptied ledger_accounts, and only a replay can bring it back.
func (tx *Tx) taken(ctx context.Context, kind ledger.AccountKind, rows []opening) (map[string]bool, error) {
	taken := map[string]bool{}
	if len(rows) == 0 {
		return taken, nil
	}
	keyOf, list, args := map[int64]string{}, []int64(nil), []any(nil)
	for _, o := range rows {
		keyOf[o.id] = businessKey(o.owner, "open", string(kind), strconv.FormatInt(o.id, 10))
		list, args = append(list, o.id), append(args, keyOf[o.id])
	}
	q := new(statement).text("SELECT id FROM ledger_accounts WHERE kind = '" + string(kind) + "' AND slot = 0 AND id IN (").ints(list).text(")")
	have, err := tx.ids(ctx, q.String())
	if err != nil {
		return nil, fmt.Errorf("read opened accounts: %w", err)
	}
	for _, id := range have {
		taken[keyOf[id]] = true
	}
	err = tx.each(ctx, "SELECT event_key FROM ledger_outbox WHERE event_key IN ("+marks(len(args))+")", args, func(scan func(...any) error) error {
		var key string
		err := scan(&key)
		taken[key] = true
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read opening events: %w", err)
	}
	return taken, nil
}

// openChannels notes what each channel had used that no account of it says.
func (tx *Tx) openChannels(ctx context.Context) (int, error) {
	list, err := tx.ids(ctx, "SELECT t.id FROM channels t LEFT JOIN ledger_accounts a ON a.kind = 'channel' AND a.id = t.id AND a.slot = -1 WHERE a.id IS NULL ORDER BY t.id")
	if err != nil || len(list) == 0 {
		return 0, err
	}
	used, err := tx.lockChannels(ctx, list)
	if err != nil {
		return 0, err
	}
	sums, err := tx.channelSums(ctx, list)
	if err != nil {
		return 0, err
	}
	err = chunks(list, func(list []int64) error {
		q := new(statement).text("INSERT INTO ledger_accounts (kind, id, slot, part, charged) VALUES ")
		for i, id := range list {
			if i > 0 {
				q.text(",")
			}
			q.text("('channel',").ints([]int64{id, -1, -1, used[id] - sums[id]}).text(")")
		}
		_, err := tx.Exec(ctx, q.text(tx.s.onConflict("kind, id, slot")).String())
		return err
	})
	return len(list), err
}

// lockChannels locks New API's rows of channels and returns their used_quota.
func (tx *Tx) lockChannels(ctx context.Context, list []int64) (map[int64]int64, error) {
	return tx.idMap(ctx, "SELECT id, COALESCE(used_quota, 0) FROM channels"+tx.s.forcePK+" WHERE id IN (", list, ") ORDER BY id"+tx.ForUpdate())
}

// channelSums returns what all accounts of channels charged, together.
func (tx *Tx) channelSums(ctx context.Context, list []int64) (map[int64]int64, error) {
	return tx.idMap(ctx, "SELECT id, CAST(SUM(charged) AS "+tx.s.signed+") FROM ledger_accounts WHERE kind = 'channel' AND id IN (", list, ") GROUP BY id")
}

func (tx *Tx) idMap(ctx context.Context, head string, list []int64, tail string) (map[int64]int64, error) {
	found := make(map[int64]int64, len(list))
	err := chunks(list, func(list []int64) error {
		q := new(statement).text(head).ints(list).text(tail)
		return tx.each(ctx, q.String(), nil, func(scan func(...any) error) error {
			var id, n int64
			err := scan(&id, &n)
			found[id] = n
			return err
		})
	})
	return found, err
}

// EnsureAccount makes the account of a new user, or of a new token of user, with a zero balance. Insert New API's row
// first, in the same transaction, with a zero balance: anything else there would be taken for a hand edit.
func (tx *Tx) EnsureAccount(ctx context.Context, account ledger.Account, user int64) error {
	if account.Kind != ledger.UserAccount && account.Kind != ledger.TokenAccount {
		return fmt.Errorf("make account %s: only users and tokens have one account", account)
	}
	partitions, err := tx.s.partitionCount(ctx, tx)
	if err != nil {
		return fmt.Errorf("make account %s: %w", account, err)
	}
	_, err = tx.Exec(ctx, "INSERT INTO ledger_accounts (kind, id, slot, part) VALUES (?, ?, 0, ?)"+tx.s.onConflict("kind, id, slot"),
		string(account.Kind), account.ID, ledger.Partition(user, partitions))
	return wrapIf("make account "+account.String(), err)
}
