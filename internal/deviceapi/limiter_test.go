package deviceapi

import (
	"fmt"
	"testing"
	"time"
)

func TestLimiterCountsWhoeverHasTheAddress(t *testing.T) {
	now := time.Unix(1000, 0)
	l := &limiter{now: func() time.Time { return now }, burst: EnrollBurst}
	allowed := func(format string, n int) (count int) {
		for i := range n {
			if l.allow(fmt.Sprintf(format, i+1)) {
				count++
			}
		}
		return count
	}
	if n := allowed("[2001:db8:1:2::%x]:99", 1000); n != EnrollBurst {
		t.Errorf("one /64 had %d tries", n)
	}
	if n := allowed("[2001:db8:1:3::%x%%eth0]:99", 10); n != 10 {
		t.Errorf("its neighbour had %d of 10", n)
	}
	if n := allowed("10.0.0.%d:99", 200); n != 200 {
		t.Errorf("200 addresses had %d tries", n)
	}
	if n := allowed("10.0.0.1:%d", 100) + allowed("[::ffff:10.0.0.1]:%d", 100); n != EnrollBurst-1 {
		t.Errorf("one address had %d more tries", n)
	}
	for i := range maxTracked {
		l.allow(fmt.Sprintf("10.%d.%d.%d:1", 1+i>>16, i>>8&255, i&255))
	}
	if l.allow("192.0.2.1:1") || len(l.tries) != maxTracked {
		t.Errorf("the table grows over its limit: %d", len(l.tries))
	}
	now = now.Add(EnrollWindow)
	if !l.allow("192.0.2.1:1") || len(l.tries) != 1 {
		t.Error("the next minute does not begin anew")
	}
}
