package console

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

// Failed logins are slowed per user and address: the first few are free, then the pause doubles with each. Per address
// alone there is a second, wider bound, so that one address cannot try one password on every user. Nobody is locked out of
// an account from elsewhere, which a bound per user alone would let anybody do.
const (
	freeFailures        = 5
	freeAddressFailures = 30
	freeRegistrations   = 20 // of an address: New API's limit of critical requests
	firstPause          = time.Second
	longestPause        = 5 * time.Minute
	// failuresKept is how long a failure counts.
	failuresKept = 20 * time.Minute
	// maxThrottled bounds the map (L7); when it is full the entry longest untouched goes.
	maxThrottled = 10_000
)

// throttle counts failed logins.
type throttle struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[string]*list.Element // guarded by mu, as all below
	order   *list.List               // of *failures, the latest touched first
}

type failures struct {
	name  string
	count int
	last  time.Time
	next  time.Time // no attempt before
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, entries: map[string]*list.Element{}, order: list.New()}
}

func throttleNames(user, address string) (pair, alone string) {
	user = strings.ToLower(user)
	if len(user) > 64 {
		user = user[:64] // longer names do not exist; a key stays small
	}
	return "u\x00" + user + "\x00" + address, "a\x00" + address
}

// wait returns how long the next attempt of a user from an address must wait; 0 or less: it may be made now.
func (t *throttle) wait(user, address string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, alone := throttleNames(user, address)
	return max(t.waitFor(pair), t.waitFor(alone))
}

func (t *throttle) waitFor(name string) time.Duration {
	e := t.entries[name]
	if e == nil {
		return 0
	}
	return e.Value.(*failures).next.Sub(t.now()) //nolint:forcetypeassert // the list holds nothing else
}

// failed counts a failed attempt.
func (t *throttle) failed(user, address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, alone := throttleNames(user, address)
	t.count(pair, freeFailures)
	t.count(alone, freeAddressFailures)
}

func (t *throttle) count(name string, free int) {
	now := t.now()
	e := t.entries[name]
	if e == nil {
		if len(t.entries) >= maxThrottled {
			oldest := t.order.Back()
			delete(t.entries, oldest.Value.(*failures).name) //nolint:forcetypeassert // the list holds nothing else
			t.order.Remove(oldest)
		}
		e = t.order.PushFront(&failures{name: name})
		t.entries[name] = e
	}
	t.order.MoveToFront(e)
	f := e.Value.(*failures) //nolint:forcetypeassert // the list holds nothing else
	if now.Sub(f.last) > failuresKept {
		f.count = 0
	}
	f.count++
	f.last = now
	if over := f.count - free; over >= 0 {
		pause := longestPause
		if over < 10 { // 2¹⁰ s is past the longest pause
			pause = min(longestPause, firstPause<<over)
		}
		f.next = now.Add(pause)
	}
}

// registrations is the name under which the sign-ups of an address are counted. No user can have it.
const registrations = "\x00registrations"

// registered counts a sign-up.
func (t *throttle) registered(address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, _ := throttleNames(registrations, address)
	t.count(pair, freeRegistrations)
}

// succeeded forgets the failures of a user from an address.
func (t *throttle) succeeded(user, address string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair, _ := throttleNames(user, address)
	if e := t.entries[pair]; e != nil {
		delete(t.entries, pair)
		t.order.Remove(e)
	}
}
