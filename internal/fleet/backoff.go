package fleet

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of failed logins from one address.
const (
	// FreeFailures is how many failed logins an address has before it must wait.
	FreeFailures = 10
	// MaxFailureWait is the longest wait after one more failure; it begins with a
	// second and doubles.
	MaxFailureWait = time.Minute
	// FailureMemory is after how long without a failure an address starts anew.
	FailureMemory = 10 * time.Minute
	// maxFailing bounds the table; beyond it any entry is forgotten.
	maxFailing = 10_000
)

// failures slows down guessing: who fails often from one address has to wait.
// Logins that cost nothing and can not be guessed (certificates, passwords that
// were right before) do not ask it, so that a stranger behind the same address
// does not lock a fleet out.
type failures struct {
	now  func() time.Time
	mu   sync.Mutex
	from map[string]failing
}

type failing struct {
	n      int
	last   time.Time
	until  time.Time
	logged time.Time
	silent int // failures since logged
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, from: map[string]failing{}}
}

// wait returns how long the address still has to wait; 0: it may try.
func (f *failures) wait(address string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.from[address].until.Sub(f.now()), 0)
}

// failed counts a failure. say is true when it is to be logged: the first of an
// address, and one each FailureMemory; before is how many were not.
func (f *failures) failed(address string) (say bool, before int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	e, known := f.from[address]
	for old := range f.from {
		if known || len(f.from) < maxFailing {
			break
		}
		delete(f.from, old)
	}
	if now.Sub(e.last) >= FailureMemory {
		e.n = 0
	}
	e.n, e.last = e.n+1, now
	if over := e.n - FreeFailures; over >= 0 {
		e.until = now.Add(min(time.Second<<min(over, 16), MaxFailureWait))
	}
	before = e.silent
	if say = e.logged.IsZero() || now.Sub(e.logged) >= FailureMemory; say {
		e.logged, e.silent = now, 0
	} else {
		e.silent++
	}
	f.from[address] = e
	return say, before
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
