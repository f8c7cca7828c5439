package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"ledgerline/ledger"
)

// Page selects a part of a list.
type Page struct {
	Skip  int // rows before the first, ≥ 0
	Limit int // rows at the most, 1 to MaxPage
}

// MaxPage bounds a page (L7), as New API does.
const MaxPage = 100

func (p Page) clause() (string, []any) {
	return " LIMIT ? OFFSET ?", []any{min(max(p.Limit, 1), MaxPage), max(p.Skip, 0)}
}

// What an account has left is granted − charged of ledger_accounts, plus what stands in New API's column beyond what we
// wrote there, plus edits that are on their way. That is the column itself, except where the column's type is too narrow
// for the balance; there the ledger's figure is the true one.

type leftParts struct{ granted, charged, pending, written int64 }

func (p leftParts) left(column int64) int64 {
	left := int64(0)
	for _, n := range []int64{p.granted, -p.charged, p.pending, column, -p.written} {
		left = clampedAdd(left, n)
	}
	return left
}

func clampedAdd(a, b int64) int64 {
	sum, ok := add(a, b)
	if !ok && b > 0 {
		return math.MaxInt64
	}
	if !ok && b < 0 {
		return math.MinInt64 + 1
	}
	return sum
}

// freshen replaces column values, by account id, with what the accounts have left. An account without a row keeps its column.
func (tx *Tx) freshen(ctx context.Context, kind ledger.AccountKind, columns map[int64]*int64) error {
	list := make([]int64, 0, len(columns))
	for id := range columns {
		list = append(list, id)
	}
	err := chunks(list, func(list []int64) error {
		q := new(statement).text("SELECT id, granted, charged, pending_adopt, written FROM ledger_accounts WHERE kind = '" + string(kind) + "' AND slot = 0 AND id IN (").
			ints(list).text(")")
		return tx.each(ctx, q.String(), nil, func(scan func(...any) error) error {
			var id int64
			var p leftParts
			if err := scan(&id, &p.granted, &p.charged, &p.pending, &p.written); err != nil {
				return err
			}
			*columns[id] = p.left(*columns[id])
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read balances: %w", err)
	}
	return nil
}

// lockedLeft returns what an account has left once every event of the outbox that moves it is applied. New API's row must be
// locked already: a flush needs that lock to apply anything, so balance and outbox are read in step.
func (tx *Tx) lockedLeft(ctx context.Context, account ledger.Account, user, column int64) (int64, error) {
	var p leftParts
	err := tx.QueryRow(ctx, "SELECT granted, charged, pending_adopt, written FROM ledger_accounts WHERE kind = ? AND id = ? AND slot = 0"+tx.ForUpdate(),
		[]any{string(account.Kind), account.ID}, &p.granted, &p.charged, &p.pending, &p.written)
	left := column
	switch {
	case err == nil:
		left = p.left(column)
	case !errors.Is(err, ErrNotFound):
		return 0, fmt.Errorf("lock %s: %w", account, err)
	}
	kind := ledger.KindCreditGranted
	if account.Kind == ledger.TokenAccount {
		kind = ledger.KindTokenLimited
	}
	err = tx.each(ctx, "SELECT event FROM ledger_outbox WHERE state IN ('new', 'moved') AND user_id = ? AND kind = ?", []any{user, string(kind)},
		func(scan func(...any) error) error {
			var body []byte
			if err := scan(&body); err != nil {
				return err
			}
			var e ledger.Event
			if err := json.Unmarshal(body, &e); err != nil {
				return err
			}
			if account.Kind == ledger.UserAccount || e.Token == account.ID {
				left = clampedAdd(left, e.Granted)
			}
			return nil
		})
	if err != nil {
		return 0, fmt.Errorf("read the outbox of user %d: %w", user, err)
	}
	return left, nil
}
