package deviceapi

import (
	"net/netip"
	"sync"
	"time"
)

// limiter counts enrollments per address in fixed windows. An address that the
// full table does not know is turned away: the budget is global too.
type limiter struct {
	now    func() time.Time
	burst  int // tries of one address in a window
	mu     sync.Mutex
	window time.Time
	tries  map[string]int
}

func (l *limiter) allow(remote string) bool {
	host := source(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.now(); t.Sub(l.window) >= EnrollWindow || t.Before(l.window) {
		l.window, l.tries = t, map[string]int{}
	}
	if l.tries[host] >= l.burst || len(l.tries) >= maxTracked && l.tries[host] == 0 {
		return false
	}
	l.tries[host]++
	return true
}

// source is whom a try is counted for. Who has one address of IPv6 has a whole
// /64 of them.
func source(remote string) string {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	addr := at.Addr().Unmap().WithZone("")
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}
