package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ledgerline/ledger"
)

// settle applies records, given by their places, or, if one of them can never be applied, finds it by halving and buries
// it. The halves go in order, so that keys and re-drives meet in the order of the log. Each record is tried at most
// 1 + log2(batch) times, so the work is bounded by the batch (L7).
func (f *flush) settle(ctx context.Context, places []int) error {
	var p *plan
	err := f.tx.savepoint(ctx, func() (err error) {
		if p, err = f.plan(places); err == nil {
			err = f.apply(ctx, p)
		}
		return err
	})
	if err == nil {
		f.accept(p)
		return nil
	}
	permanent := asPermanent(err)
	if permanent == nil {
		return err
	}
	if len(places) == 1 {
		return f.bury(ctx, places[0], permanent)
	}
	half := len(places) / 2
	if err := f.settle(ctx, places[:half]); err != nil {
		return err
	}
	return f.settle(ctx, places[half:])
}

// accept takes over what an applied plan decided, for the stretches after it.
func (f *flush) accept(p *plan) {
	f.result.Applied += p.applied
	f.result.Accounts += len(p.sums)
	f.result.Skipped = append(f.result.Skipped, p.skipped...)
	f.result.Adopted += p.adopted
	f.result.Saturated = append(f.result.Saturated, p.saturated...)
	f.result.Alarms = append(f.result.Alarms, p.alarms...)
	for _, e := range p.missing {
		f.result.Restored = append(f.result.Restored, e.Key)
	}
	for key := range p.used {
		f.keys[key] = outboxKey{state: outboxApplied}
	}
	for _, r := range p.redriven {
		delete(f.dead, r.event)
	}
	f.accounts = p.index
}

// apply writes a plan. Any error leaves the savepoint to undo all of it.
func (f *flush) apply(ctx context.Context, p *plan) error {
	if err := f.applyKeys(ctx, p); err != nil {
		return err
	}
	if len(p.sums) == 0 {
		return nil
	}
	sh, err := f.tx.lockAccounts(ctx, f.call.Partition, p.ids())
	if err != nil {
		return err
	}
	for i := range p.sums {
		if err := sh.add(&p.sums[i]); err != nil {
			return err
		}
	}
	if err := sh.write(ctx, false); err != nil {
		return err
	}
	p.adopted, p.saturated, p.alarms = len(sh.adopted), sh.saturated, append(p.alarms, sh.alarms...)
	return nil
}

// add changes one account by a sum: first what adoptions moved before, then the look at the column, then the balance, so that
// column − written is not touched by what is applied (model/edits.py, flush).
func (sh *sheet) add(s *sum) error {
	a := sh.by[s.account]
	if a.owner == 0 || sh.tx.s.foreignOwner(a) {
		a.owner = s.owner
	}
	if !addTo(&a.pending, -s.adopted) || !addTo(&a.written, s.known) || !addTo(&a.baseUsed, -s.opened.Charged) || !addTo(&a.baseRequests, -s.opened.Requests) {
		return &permanentError{"overflow", fmt.Sprintf("the adoptions of %s leave 64 bits", a.Account)}
	}
	if err := sh.adopt(a); err != nil {
		return err
	}
	a.stepCharged, a.stepRequests = s.charged, s.requests
	a.usedAt = max(a.usedAt, s.usedAt/1000)
	return a.plus(s.balance)
}

// foreignOwner reports whether New API's row names a user of another partition than the account's: the token was given
// to somebody else by hand. Its account stays where its events are.
func (s *Store) foreignOwner(a *account) bool {
	n := s.knownPartitions()
	return n > 0 && a.part >= 0 && ledger.Partition(a.owner, n) != a.part
}

// applyKeys marks the plan's keys and re-drives as used, and makes good what a restored database lost.
func (f *flush) applyKeys(ctx context.Context, p *plan) error {
	if err := f.tx.setKeys(ctx, p.flip, outboxApplied); err != nil {
		return err
	}
	if err := f.tx.setKeys(ctx, p.finished, outboxApplied); err != nil {
		return err
	}
	rows := make([]outboxRow, 0, len(p.missing))
	for _, e := range p.missing {
		rows = append(rows, outboxRow{key: e.Key, event: *e, state: outboxApplied})
		alarm, err := f.redo(ctx, e)
		if err != nil {
			return fmt.Errorf("redo the business row of %s: %w", e.Key, err)
		}
		if alarm != "" {
			p.alarms = append(p.alarms, alarm)
		}
	}
	if err := f.tx.insertOutbox(ctx, rows); err != nil {
		return fmt.Errorf("insert missing outbox rows: %w", err)
	}
	for _, r := range p.redriven {
		if err := f.tx.markRedriven(ctx, r.event, f.call.Partition, r.offset); err != nil {
			return err
		}
	}
	return nil
}

// New API's numbers and words for rows that are used up.
const (
	redemptionUnused = 1
	redemptionUsed   = 3
	topUpDone        = "success"
)

// redo brings the business row of a credit after its event, when the database lost the transaction that wrote both: a code
// must not be redeemed twice because of a restore. It returns an alarm if the row went to somebody else meanwhile.
func (f *flush) redo(ctx context.Context, e *ledger.Event) (alarm string, err error) {
	kind, rest, _ := strings.Cut(e.Key, ":")
	name := strings.TrimSuffix(rest, ":"+strconv.FormatInt(e.User, 10))
	at := e.Time / 1000
	var n int64
	switch kind {
	case "redeem":
		n, err = f.tx.affected(ctx, "UPDATE redemptions SET status = ?, used_user_id = ?, redeemed_time = ? WHERE `key` = ? AND (status = ? OR status = ? AND used_user_id = ?)",
			redemptionUsed, e.User, at, name, redemptionUnused, redemptionUsed, e.User)
	case "topup":
		n, err = f.tx.affected(ctx, "UPDATE top_ups SET status = ?, complete_time = ? WHERE trade_no = ? AND user_id = ?", topUpDone, at, name, e.User)
	case "invite":
		n, err = f.tx.affected(ctx, "UPDATE users SET aff_quota = aff_quota - ? WHERE id = ? AND aff_quota >= ?", e.Granted, e.User, e.Granted)
	case "signup":
		// The name and the password of the user are lost: nobody can log in. If the row is there, it is somebody's who was given
		// the id anew.
		var names sql.NullString
		err = f.tx.QueryRow(ctx, "SELECT username FROM users WHERE id = ?", []any{e.User}, &names)
		if err == nil && (e.Request == nil || e.Request.Username == names.String) {
			n = 1
		}
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
	default:
		return "", nil
	}
	if err == nil && n == 0 {
		alarm = fmt.Sprintf("%s: the credit is in the log, but its row is missing or taken by somebody else", e.Key)
	}
	return alarm, err
}

// affected runs a statement and returns how many rows matched.
func (tx *Tx) affected(ctx context.Context, query string, args ...any) (int64, error) {
	r, err := tx.Exec(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}
