package sqlstore

import (
	"context"
	"fmt"
	"strings"

	"ledgerline/ledger"
)

// ScanCall names a stretch of users or tokens to look at.
type ScanCall struct {
	Kind  ledger.AccountKind // user or token
	After int64              // id to begin above
	Limit int                // rows to look at, > 0
}

// ScanResult says what a scan found.
type ScanResult struct {
	Next    int64 // After of the next call; 0 if there is nothing above
	Adopted int   // hand edits that went to the outbox
	Opened  int   // rows that somebody inserted, which got an account
	Alarms  []string
}

// scanLimit is how many rows ScanAll looks at in one step.
const scanLimit = 10_000

// ScanEdits finds accounts whose column in New API's table is not what we wrote there, and adopts the difference (DESIGN
// 9). It reads without locks and locks only the rows that differ, so a scan over accounts at rest costs one join.
func (s *Store) ScanEdits(ctx context.Context, call ScanCall) (ScanResult, error) {
	result, err := s.scanEdits(ctx, call)
	if err != nil {
		return ScanResult{}, fmt.Errorf("scan %ss for hand edits: %w", call.Kind, err)
	}
	return result, nil
}

func (s *Store) scanEdits(ctx context.Context, call ScanCall) (ScanResult, error) {
	var result ScanResult
	name, ok := quotaColumn[call.Kind]
	if !ok || call.Limit < 1 {
		return result, fmt.Errorf("%q accounts, %d at a time, cannot be scanned", call.Kind, call.Limit)
	}
	table, column, _ := strings.Cut(name, ".")
	var last, rows int64
	err := s.read(ctx, "SELECT COALESCE(MAX(id), 0), COUNT(*) FROM (SELECT id FROM "+table+" WHERE id > ? ORDER BY id LIMIT ?) w", []any{call.After, call.Limit},
		func(scan func(...any) error) error { return scan(&last, &rows) })
	if err != nil {
		return result, err
	}
	if rows == int64(call.Limit) {
		result.Next = last
	}
	var edited, missing []int64
	q := "SELECT t.id, a.id IS NULL FROM " + table + " t LEFT JOIN ledger_accounts a ON a.kind = ? AND a.id = t.id AND a.slot = 0" +
		" WHERE t.id > ? AND t.id <= ? AND (a.id IS NULL OR COALESCE(t." + column + ", 0) <> a.written) ORDER BY t.id"
	err = s.read(ctx, q, []any{string(call.Kind), call.After, last}, func(scan func(...any) error) error {
		var id int64
		var absent bool
		err := scan(&id, &absent)
		if absent {
			missing = append(missing, id)
		} else {
			edited = append(edited, id)
		}
		return err
	})
	if err != nil {
		return result, err
	}
	err = chunks(edited, func(list []int64) error { return s.adoptEdits(ctx, call.Kind, list, &result) })
	if err == nil {
		err = chunks(missing, func(list []int64) error {
			n := 0
			err := s.Tx(ctx, func(tx *Tx) error { var err error; n, err = tx.open(ctx, call.Kind, list); return err })
			result.Opened += n
			return err
		})
	}
	return result, err
}

// adoptEdits looks again, under the row locks, and adopts what is still there.
func (s *Store) adoptEdits(ctx context.Context, kind ledger.AccountKind, list []int64, result *ScanResult) error {
	var sh *sheet
	err := s.Tx(ctx, func(tx *Tx) error {
		if _, err := s.partitionCount(ctx, tx); err != nil {
			return err
		}
		want := ids{users: list}
		if kind == ledger.TokenAccount {
			want = ids{tokens: list}
		}
		var err error
		if sh, err = tx.lockAccounts(ctx, -1, want); err != nil {
			return err
		}
		locked := sh.accounts
		sh.accounts = nil
		for _, a := range locked {
			switch {
			case !a.stored || !a.listed || a.column == a.written:
				continue
			case a.owner <= 0 || s.foreignOwner(a):
				sh.alarms = append(sh.alarms, fmt.Sprintf("%s: its row names user %d, of another partition than the account: its edit is not adopted", a.Account, a.owner))
				continue
			}
			if err := sh.adopt(a); err != nil {
				return err
			}
			sh.accounts = append(sh.accounts, a)
		}
		if len(sh.accounts) == 0 {
			return nil
		}
		return sh.write(ctx, false)
	})
	if err != nil {
		return err
	}
	result.Adopted += len(sh.adopted)
	result.Alarms = append(result.Alarms, sh.alarms...)
	return nil
}

// ScanAll looks at all users and tokens, step by step.
func (s *Store) ScanAll(ctx context.Context) (ScanResult, error) {
	var total ScanResult
	for _, kind := range []ledger.AccountKind{ledger.UserAccount, ledger.TokenAccount} {
		for after := int64(0); ; {
			r, err := s.ScanEdits(ctx, ScanCall{Kind: kind, After: after, Limit: scanLimit})
			if err != nil {
				return total, err
			}
			total.Adopted += r.Adopted
			total.Opened += r.Opened
			total.Alarms = append(total.Alarms, r.Alarms...)
			if after = r.Next; after == 0 {
				break
			}
		}
	}
	return total, nil
}
