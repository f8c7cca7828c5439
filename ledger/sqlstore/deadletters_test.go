package sqlstore

import (
	"errors"
	"math"
	"testing"

	"ledgerline/ledger"
)

func TestDeadLettersAreIsolatedAndRedriven(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(1, 0)
		user(t, s, u)
		channel(t, s, 1)
		channel(t, s, poisonChannel)
		poison(t, s, true)
		l := newLog(1)
		p := id(1)
		var bad []ledger.ID
		for i := range 20 {
			e := usage(u, 0, 1, 1)
			if i == 3 || i == 17 {
				e.Channel = poisonChannel
			}
			r := l.add(p, e)
			if e.Channel == poisonChannel {
				bad = append(bad, r.Event.ID)
			}
		}
		l.records = append(l.records, ledger.Record{Partition: 1, Offset: 20, Value: []byte("{\xff"), Err: errors.New("not an event")})
		foreign := l.add(p, usage(userIn(2, 0), 0, 1, 5))
		r := l.flush(t, s)
		if r.Applied != 18 || len(r.Dead) != 4 {
			t.Fatalf("applied %d, dead %+v", r.Applied, r.Dead)
		}
		diff(t, "skipped", r.Skipped, []int64{3, 17, 20, foreign.Offset})
		diff(t, "kept with the position", value[PartitionState](t)(s.Partition(ctx, 1)).Skipped, r.Skipped)
		codes := map[string]int{}
		for _, d := range value[[]DeadLetter](t)(s.DeadLetters(ctx, -1, -1, 10)) {
			codes[d.Code]++
			if string(d.Value) != string(l.records[d.Offset].Value) {
				t.Errorf("the record at %d was not kept", d.Offset)
			}
		}
		if codes["undecodable"] != 1 || codes["foreign_user"] != 1 || len(codes) != 3 {
			t.Errorf("codes %v", codes)
		}

		if err := s.Redrive(ctx, id(404)); !errors.Is(err, ErrNotFound) {
			t.Errorf("re-drive of nothing: %v", err)
		}
		must(t, s.Redrive(ctx, bad[0]))
		if err := s.Redrive(ctx, bad[0]); !errors.Is(err, ErrExists) {
			t.Errorf("second re-drive: %v", err)
		}
		logs := map[int]*logOf{1: l}
		pump(t, s, logs) // the cause is still there: it fails again and stays
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_dead_letters WHERE state = 'dead'"); n != 4 {
			t.Errorf("%d dead letters wait, want 4", n)
		}
		poison(t, s, false)
		must(t, s.Redrive(ctx, bad[0]))
		pump(t, s, logs)
		again := l.records[l.end()-1].Event // a mover that moved it twice
		again.Producer, again.Seq, again.Prev = id(99), 1, 0
		l.put(again)
		if r := l.flush(t, s); r.Applied != 0 || len(r.Skipped) != 1 {
			t.Errorf("a second copy of a re-drive: %+v", r)
		}
		fold := ledger.NewFold(value[func(int, int64) ledger.DeadState](t)(s.DeadIndex(ctx)))
		for i := range l.records {
			fold.Apply(&l.records[i])
		}
		diff(t, "balances", balancesOf(t, s), fold.Balances())
		if got := fold.Balance(ledger.Account{Kind: ledger.UserAccount, ID: u}).Charged; got != 19 {
			t.Errorf("charged %d, want 19", got)
		}
	})
}

// A keyed event that is dead-lettered must not be moved again, and its re-drive uses up the original key.
func TestKeyedDeadLetter(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		u := userIn(1, 0)
		user(t, s, u)
		logs := map[int]*logOf{1: newLog(1)}
		l := logs[1]
		var event ledger.ID
		must(t, s.Tx(ctx, func(tx *Tx) (err error) {
			event, err = tx.Outbox(ctx, ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: math.MaxInt64 - 5}, businessKey(u, "admin", "a"))
			if err == nil {
				_, err = tx.Outbox(ctx, ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: 10}, businessKey(u, "admin", "b"))
			}
			return err
		}))
		pump(t, s, logs)
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_outbox WHERE state = 'dead'"); n != 1 {
			t.Fatalf("%d dead rows, want 1: two such credits do not fit into 64 bits", n)
		}
		if n, _, err := s.OutboxBacklog(ctx); n != 0 || err != nil {
			t.Errorf("backlog %d, %v: the dead row would be moved again", n, err)
		}
		dead := value[[]DeadLetter](t)(s.DeadLetters(ctx, -1, -1, 10))
		if len(dead) != 1 || dead[0].Code != "overflow" {
			t.Fatalf("dead letters %+v", dead)
		}
		if dead[0].Event == event {
			l.add(id(3), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: -10})
		} else {
			l.add(id(3), ledger.Event{Kind: ledger.KindCreditGranted, User: u, Granted: -100})
		}
		l.flush(t, s)
		must(t, s.Redrive(ctx, dead[0].Event))
		pump(t, s, logs)
		if n := number(t, s, "SELECT COUNT(*) FROM ledger_outbox WHERE state <> 'applied'"); n != 0 {
			t.Errorf("%d outbox rows are not applied", n)
		}
		// A mover that had the original in its journal ships it once more: the key is used.
		copied := l.records[dead[0].Offset].Event
		copied.Producer, copied.Seq, copied.Prev = id(77), 1, 0
		l.put(copied)
		if r := l.flush(t, s); r.Applied != 0 {
			t.Error("the original counted beside its re-drive")
		}
	})
}

// A database that lost its last transactions meets a dead letter and its re-drive in one batch.
func TestRedriveInTheBatchOfItsOriginal(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		u := userIn(1, 0)
		user(t, s, u)
		channel(t, s, poisonChannel)
		old := dumpAll(t, s)
		poison(t, s, true)
		l := newLog(1)
		bad := l.add(id(1), usage(u, 0, poisonChannel, 7)).Event.ID
		l.flush(t, s)
		must(t, s.Redrive(t.Context(), bad))
		poison(t, s, false)
		pump(t, s, map[int]*logOf{1: l})
		load(t, s, old)
		// The cause is still there for the original alone.
		l.records[0].Event.Channel = 14
		channel(t, s, 14)
		if s.mysql {
			exec(t, s, "CREATE TRIGGER poison BEFORE UPDATE ON channels FOR EACH ROW BEGIN IF NEW.id = 14 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'poison'; END IF; END")
		} else {
			exec(t, s, "CREATE TRIGGER poison BEFORE UPDATE ON channels WHEN NEW.id = 14 BEGIN SELECT RAISE(ABORT, 'poison'); END")
		}
		r := l.flush(t, s)
		if r.Applied != 1 || len(r.Dead) != 1 {
			t.Errorf("%+v", r)
		}
		if n := number(t, s, "SELECT charged FROM ledger_accounts WHERE kind = 'user'"); n != 7 {
			t.Errorf("charged %d, want 7", n)
		}
	})
}

func TestNewerEventsStopTheFlush(t *testing.T) {
	s := initialised(t, openSQLite(t))
	l := newLog(0)
	l.records = append(l.records, ledger.Record{Err: ledger.ErrNewer})
	if _, err := s.Flush(t.Context(), l.call(0, 1)); !errors.Is(err, ledger.ErrNewer) {
		t.Errorf("%v", err)
	}
}
