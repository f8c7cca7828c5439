package sqlstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"ledgerline/ledger"
)

// mark is a watermark with whether it must be stored.
type mark struct {
	ledger.Watermark
	changed bool
}

// loadMarks fills in the marks of the producers in want. The partition's row lock guards them.
func (tx *Tx) loadMarks(ctx context.Context, partition int, want map[ledger.ID]*mark) error {
	err := chunks(sortedIDs(want), func(ids []ledger.ID) error {
		q := new(statement).text("SELECT producer, mark, holes FROM ledger_watermarks WHERE part = ").int(int64(partition)).text(" AND producer IN (")
		for i, id := range ids {
			if i > 0 {
				q.text(",")
			}
			q.id(id)
		}
		return tx.each(ctx, q.text(")").String(), nil, func(scan func(...any) error) error {
			id, w, err := scanMark(scan)
			if err == nil {
				want[id].Watermark = w
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("read watermarks: %w", err)
	}
	return nil
}

func scanMark(scan func(...any) error) (ledger.ID, ledger.Watermark, error) {
	var id idColumn
	var w ledger.Watermark
	var holes string
	if err := scan(&id, &w.Mark, &holes); err != nil {
		return id.ID, w, err
	}
	if holes == "" {
		return id.ID, w, nil
	}
	return id.ID, w, json.Unmarshal([]byte(holes), &w.Holes)
}

// storeMarks upserts the changed marks.
func (tx *Tx) storeMarks(ctx context.Context, partition int, marks map[ledger.ID]*mark) error {
	ids := slices.DeleteFunc(sortedIDs(marks), func(id ledger.ID) bool { return !marks[id].changed })
	err := chunks(ids, func(ids []ledger.ID) error {
		q := new(statement).text("INSERT INTO ledger_watermarks (part, producer, mark, holes) VALUES ")
		var args []any
		for i, id := range ids {
			if i > 0 {
				q.text(",")
			}
			m := marks[id]
			q.text("(").int(int64(partition)).text(",").id(id).text(",").int(int64(m.Mark))
			if len(m.Holes) == 0 {
				q.text(",'')")
				continue
			}
			holes, err := json.Marshal(m.Holes)
			if err != nil {
				return err
			}
			q.text(",?)")
			args = append(args, string(holes))
		}
		_, err := tx.Exec(ctx, q.text(tx.s.onConflict("part, producer", "mark", "holes")).String(), args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("store watermarks: %w", err)
	}
	return nil
}

func sortedIDs(m map[ledger.ID]*mark) []ledger.ID {
	ids := make([]ledger.ID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b ledger.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}
