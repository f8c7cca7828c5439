package desk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"ledgerline/ledger"
)

func users(ids ...int64) (list []ledger.Account) {
	for _, id := range ids {
		list = append(list, ledger.Account{Kind: ledger.UserAccount, ID: id})
	}
	return list
}

// While a load is under way others gather for one more; who needs what is under way waits for that.
func TestLoadsGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, end := make(chan []ledger.Account, 1), make(chan error)
		l := &loads{by: map[loadKey]*gathering{}, now: func(_ context.Context, _ int, _ uint64, accounts []ledger.Account) error {
			begun <- accounts
			return <-end
		}}
		start := func(ctx context.Context, key loadKey, accounts []ledger.Account) <-chan error {
			ended := make(chan error, 1)
			go func() { ended <- l.load(ctx, key, accounts) }()
			synctest.Wait()
			return ended
		}
		want := func(ids ...int64) {
			t.Helper()
			if diff := cmp.Diff(users(ids...), <-begun); diff != "" {
				t.Fatalf("loaded are others (-want +got):\n%s", diff)
			}
		}
		key := loadKey{3, 7}
		gone, leave := context.WithCancel(t.Context())
		first := start(gone, key, users(1, 2))
		want(1, 2)
		same, second, third := start(t.Context(), key, users(2)), start(t.Context(), key, users(3)), start(t.Context(), key, users(4, 3))
		leave() // nothing of it depends on who began
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Fatalf("who left got %v", err)
		}
		end <- nil
		if err := <-same; err != nil {
			t.Fatal(err)
		}
		want(3, 4)
		lost := errors.New("lost")
		end <- lost
		if a, b := <-second, <-third; !errors.Is(a, lost) || !errors.Is(b, lost) {
			t.Fatalf("errors %v and %v", a, b)
		}
		synctest.Wait()
		if len(l.by) != 0 {
			t.Fatalf("%d loads are remembered that have ended", len(l.by))
		}
	})
}

func TestLoadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, end := make(chan int, 1), make(chan struct{})
		l := &loads{by: map[loadKey]*gathering{}, now: func(_ context.Context, _ int, _ uint64, accounts []ledger.Account) error {
			begun <- len(accounts)
			<-end
			return nil
		}}
		for id := range int64(2*maxLoad + 2) {
			go func() {
				if err := l.load(t.Context(), loadKey{}, users(id+1)); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait() // the first is under way before others come
		}
		for _, want := range []int{1, maxLoad, maxLoad, 1} {
			if got := <-begun; got != want {
				t.Fatalf("%d accounts are loaded at once, want %d", got, want)
			}
			end <- struct{}{}
		}
		synctest.Wait()
	})
}
