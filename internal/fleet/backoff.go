package fleet

import (
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of wrong passwords.
const (
	// FreeFailures is how many wrong passwords are taken of one user name from one
	// address before it must wait.
	FreeFailures = 10
	// MaxFailureWait is the longest wait after one more; it begins with a second and
	// doubles.
	MaxFailureWait = time.Minute
	// FailureMemory is after how long without a wrong one a user name starts anew.
	FailureMemory = 10 * time.Minute
	// FreeAddressFailures is how many are taken from one address, whatever the user
	// names; then one each AddressFailureInterval.
	FreeAddressFailures    = 100
	AddressFailureInterval = time.Second
	// maxFailing bounds each table; beyond it any entry is forgotten.
	maxFailing = 10_000
)

// tries slows down guessing, and bounds what the hashing of wrong passwords takes:
// who was wrong often has to wait. It is by user name and address, so that neither a
// stranger locks out a device, nor a device with an old password its neighbours;
// and, far wider, by address. Only passwords that can be guessed and cost much to
// look at are asked of: all others are certain without it.
//
// A try that comes during the wait is not looked at, so it is no failure and makes
// the wait no longer: who comes with the right one after it gets in.
type tries struct {
	now       func() time.Time
	mu        sync.Mutex
	users     map[string]failing   // by address and user name
	addresses map[string]time.Time // when the failures of each will be paid off
	waited    uint64
}

type failing struct {
	n     int
	last  time.Time
	until time.Time
	said  bool // that it waits
}

func newTries(now func() time.Time) *tries {
	return &tries{now: now, users: map[string]failing{}, addresses: map[string]time.Time{}}
}

// try is one password that is looked at.
type try struct{ address, user string }

func (t try) key() string { return t.address + " " + t.user }

// begin counts a failure ahead, so that those of many connections at once are no more
// than those of one after the other; right or unjudged take it back. Otherwise wait
// is how long it still is, and say that it is to be logged: once until FailureMemory
// has passed.
func (t *tries) begin(y try) (wait time.Duration, say bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	u := t.users[y.key()]
	if now.Sub(u.last) >= FailureMemory {
		u = failing{}
	}
	paid := t.addresses[y.address]
	if paid.Before(now) {
		paid = now
	}
	free := FreeAddressFailures * AddressFailureInterval
	if wait = max(u.until.Sub(now), paid.Add(AddressFailureInterval).Sub(now)-free); wait > 0 {
		t.waited++
		say = !u.said
		u.said = true
		if u.last.IsZero() {
			u.last = now
		}
		bound(t.users, func(f failing) bool { return now.Sub(f.last) >= FailureMemory })
		t.users[y.key()] = u
		return wait, say
	}
	u.n, u.last = u.n+1, now
	if over := u.n - FreeFailures; over >= 0 {
		u.until = now.Add(min(time.Second<<min(over, 16), MaxFailureWait))
	}
	bound(t.users, func(f failing) bool { return now.Sub(f.last) >= FailureMemory })
	bound(t.addresses, func(paid time.Time) bool { return !paid.After(now) })
	t.users[y.key()] = u
	t.addresses[y.address] = paid.Add(AddressFailureInterval)
	return 0, false
}

// right clears the failures of the user name.
func (t *tries) right(y try) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.users, y.key())
	t.addresses[y.address] = t.addresses[y.address].Add(-AddressFailureInterval)
}

// unjudged takes back a try that nobody came to look at.
func (t *tries) unjudged(y try) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u, ok := t.users[y.key()]; ok && u.n > 0 {
		u.n, u.until = u.n-1, time.Time{}
		t.users[y.key()] = u
	}
	t.addresses[y.address] = t.addresses[y.address].Add(-AddressFailureInterval)
}

// waiting is how many tries came during a wait.
func (t *tries) waiting() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waited
}

// bound makes room for one more: by what is over, else by any.
func bound[V any](m map[string]V, over func(V) bool) {
	if len(m) < maxFailing {
		return
	}
	maps.DeleteFunc(m, func(_ string, v V) bool { return over(v) })
	for k := range m {
		if len(m) < maxFailing {
			return
		}
		delete(m, k)
	}
}

// refusals counts logins that were denied, and says which are logged: the first of an
// address, and one each FailureMemory.
type refusals struct {
	now    func() time.Time
	mu     sync.Mutex
	of     map[string]refused
	denied uint64
}

type refused struct {
	logged time.Time
	silent int // since logged
}

func newRefusals(now func() time.Time) *refusals {
	return &refusals{now: now, of: map[string]refused{}}
}

// note counts one. say is true when it is to be logged; before is how many were not.
func (r *refusals) note(address string) (say bool, before int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.denied++
	now := r.now()
	e, known := r.of[address]
	if known && now.Sub(e.logged) < FailureMemory {
		e.silent++
		r.of[address] = e
		return false, 0
	}
	bound(r.of, func(e refused) bool { return now.Sub(e.logged) >= FailureMemory })
	r.of[address] = refused{logged: now}
	return true, e.silent
}

func (r *refusals) count() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.denied
}

// LoginFigures are what became of the logins of devices at the broker.
type LoginFigures struct {
	Denied uint64 // all that were
	Waited uint64 // those of them that were not looked at, as their user name or address has to wait
}

// LoginFigures returns the figures since the start.
func (s *Service) LoginFigures() LoginFigures {
	return LoginFigures{Denied: s.refusals.count(), Waited: s.tries.waiting()}
}

// addressOf is whom a failure is counted for. Who has one address of IPv6 has a
// whole /64 of them.
func addressOf(remote net.Addr) string {
	if remote == nil {
		return ""
	}
	at, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return remote.String()
	}
	addr := at.Addr().Unmap().WithZone("")
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}
