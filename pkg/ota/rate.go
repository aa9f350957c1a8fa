package ota

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Rate bounds how many executions a rollout makes in a minute, whatever the stage
// and whoever joins late. In any span of time d it makes at most
// PerMinute*d/minute executions and one second's worth more, or one.
type Rate struct {
	PerMinute float64   `json:"perMinute,omitempty"` // 0: no bound
	Factor    float64   `json:"factor,omitempty"`    // over 1: the rate is multiplied by it ...
	Each      int       `json:"each,omitempty"`      // ... after each so many devices ...
	Of        RateBasis `json:"of,omitempty"`        // ... counted so ...
	Max       float64   `json:"max,omitempty"`       // ... up to so many a minute
}

// RateBasis is what an exponential rate counts.
type RateBasis string

// RateByNotified counts executions made, RateBySucceeded those that succeeded.
const (
	RateByNotified  RateBasis = "notified"
	RateBySucceeded RateBasis = "succeeded"
)

// Limits of a rate.
const (
	MinRate       = 1.0 / (24 * 60) // one device a day
	MaxRate       = 60_000_000.0
	MaxRateFactor = 10.0
)

func (r Rate) validate() error {
	outside := func(v float64) bool { return math.IsNaN(v) || v < MinRate || v > MaxRate }
	if r == (Rate{}) {
		return nil
	}
	if outside(r.PerMinute) {
		return invalid("rate of %g a minute: want one a day (%.4g a minute) to %.0f", r.PerMinute, MinRate, MaxRate)
	}
	if r.Factor == 0 && r.Each == 0 && r.Of == "" && r.Max == 0 {
		return nil
	}
	switch {
	case math.IsNaN(r.Factor) || r.Factor <= 1 || r.Factor > MaxRateFactor:
		return invalid("rate factor %g: want over 1 up to %g", r.Factor, MaxRateFactor)
	case r.Each < 1:
		return invalid("rate raised after each %d devices: want at least 1", r.Each)
	case r.Of != RateByNotified && r.Of != RateBySucceeded:
		return invalid("rate raised per device %q: want %s or %s", r.Of, RateByNotified, RateBySucceeded)
	case outside(r.Max) || r.Max < r.PerMinute:
		return invalid("rate of at most %g a minute: want %g to %.0f", r.Max, r.PerMinute, MaxRate)
	}
	return nil
}

// At is the rate in executions a minute of a rollout with these counts; 0: no
// bound.
func (r Rate) At(c Counts) float64 {
	if r.Factor == 0 {
		return r.PerMinute
	}
	n := c.Total()
	if r.Of == RateBySucceeded {
		n = c.Of(ClassSucceeded)
	}
	return math.Min(r.Max, r.PerMinute*math.Pow(r.Factor, float64(n/r.Each)))
}

// Least is how long n executions take at the least, when all that it counts on
// happens at once.
func (r Rate) Least(n int) time.Duration {
	if r.PerMinute == 0 {
		return 0
	}
	perMinute, minutes := r.PerMinute, 0.0
	for n > 0 {
		part := n
		if r.Factor != 0 && perMinute < r.Max {
			part = min(n, r.Each)
		}
		minutes += float64(part) / perMinute
		n -= part
		if r.Factor != 0 {
			perMinute = math.Min(r.Max, perMinute*r.Factor)
		}
	}
	return time.Duration(math.Min(minutes*float64(time.Minute), math.MaxInt64/2))
}

// pace is the generic cell rate algorithm (ITU-T I.371, virtual scheduling): at
// is when the next execution would be due at an even rate. It returns how many of
// want may be made at now, what at becomes with them, and when to ask again for
// the rest; zero: there is no rest.
func (r Rate) pace(c Counts, at, now time.Time, want int) (n int, next, again time.Time) {
	perMinute := r.At(c)
	if perMinute == 0 || want == 0 {
		return want, at, time.Time{}
	}
	interval := float64(time.Minute) / perMinute // nanoseconds
	burst := math.Ceil(perMinute / 60)
	ahead := math.Max(0, float64(at.Sub(now)))
	n = min(want, int(math.Max(0, math.Floor((burst*interval-ahead)/interval+1e-9))))
	next = at
	if n > 0 {
		next = now.Add(time.Duration(ahead + float64(n)*interval))
	}
	if n < want {
		// About a second's worth at a time, but never so late that some is lost.
		left := math.Max(float64(next.Sub(now))-(burst-1)*interval, float64(time.Millisecond))
		again = now.Add(time.Duration(math.Max(left, (burst-1)*interval)))
	}
	return n, next, again
}

// ParseRate reads "100/m" ("/s", "/h" and "/d" too), or "10/m x2 per 50 succeeded
// max 1000/m" for one that grows.
func ParseRate(s string) (Rate, error) {
	bad := func(err error) (Rate, error) {
		return Rate{}, fmt.Errorf("rate %q: %w; write it as '100/m' or '10/m x2 per 50 succeeded max 1000/m'", s, err)
	}
	words := strings.Fields(s)
	if len(words) != 1 && len(words) != 7 {
		return bad(invalid("%d words", len(words)))
	}
	var r Rate
	var err error
	if r.PerMinute, err = parsePerMinute(words[0]); err != nil {
		return bad(err)
	}
	if len(words) == 7 {
		if words[2] != "per" || words[5] != "max" || !strings.HasPrefix(words[1], "x") {
			return bad(invalid("unexpected words"))
		}
		if r.Factor, err = parseNumber(words[1][1:]); err != nil {
			return bad(invalid("factor %q", words[1]))
		}
		if r.Each, err = parseCount(words[3]); err != nil {
			return bad(invalid("per %q", words[3]))
		}
		if r.Max, err = parsePerMinute(words[6]); err != nil {
			return bad(err)
		}
		r.Of = RateBasis(words[4])
	}
	if r == (Rate{}) {
		return bad(invalid("a rate of 0 would make nothing"))
	}
	if err := r.validate(); err != nil {
		return bad(err)
	}
	return r, nil
}

var perMinute = map[string]float64{"s": 60, "m": 1, "h": 1.0 / 60, "d": 1.0 / (24 * 60)}

func parsePerMinute(s string) (float64, error) {
	number, unit, ok := strings.Cut(s, "/")
	v, err := parseNumber(number)
	if !ok || err != nil || perMinute[unit] == 0 {
		return 0, invalid("%q is not a number by s, m, h or d", s)
	}
	return v * perMinute[unit], nil
}

// String is what ParseRate reads, in devices a minute.
func (r Rate) String() string {
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	if r == (Rate{}) {
		return ""
	}
	s := number(r.PerMinute) + "/m"
	if r.Factor != 0 {
		s += fmt.Sprintf(" x%s per %d %s max %s/m", number(r.Factor), r.Each, r.Of, number(r.Max))
	}
	return s
}
