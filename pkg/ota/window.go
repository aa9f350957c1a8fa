package ota

import (
	"fmt"
	"strings"
	"time"
)

// Window is a maintenance window: a recurrence rule of RFC 5545 (section 3.3.10)
// and how long it stays open each time. It has no zone; each device reads it by
// its own wall clock. The zero value is no window: always open.
//
// On days when clocks are changed: a window opens when the wall clock shows its
// time for the first time, and stays open for its duration as a stopwatch counts
// it. A time that the clock leaps over is taken by the offset before the leap (in
// Berlin in March, 02:30 is then 03:30), as section 3.3.5 says of such times.
// Section 3.3.10 would have that opening left out; a weekly window would be lost
// for a week.
type Window struct {
	// RRule is the rule, without DTSTART: FREQ of DAILY, WEEKLY, MONTHLY or YEARLY,
	// INTERVAL, COUNT, UNTIL (local), WKST, BYMONTH, BYMONTHDAY, BYYEARDAY, BYDAY,
	// BYHOUR, BYMINUTE, BYSETPOS.
	RRule string `json:"rrule"`
	// Start is DTSTART: a local date and time, 2006-01-02T15:04:05. The window
	// never opens before it, INTERVAL and COUNT begin with it, and what the rule
	// leaves open it gives. Empty: the beginning of 1990, for a rule that needs
	// none.
	Start string `json:"start,omitempty"`
	// Duration is how long it stays open, in seconds.
	Duration int64 `json:"duration"`
	// Fetch: "anytime" lets a device download before the window opens; "" and
	// "window" do not.
	Fetch string `json:"fetch,omitempty"`
}

// Values of Window.Fetch.
const (
	FetchInWindow = "window"
	FetchAnytime  = "anytime"
)

// Limits of a window.
const (
	MinWindow      = 5 * time.Minute
	MaxWindow      = 7 * 24 * time.Hour
	MaxWindowBytes = 400 // of the short form
)

const layoutStart = "2006-01-02T15:04:05"

// defaultStart is a Monday; a rule without a start says everything itself.
var defaultStart = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)

// Years that a start may be in.
const (
	minStartYear = 1970
	maxStartYear = 2200
)

// Schedule is a window that was read and checked, for many questions.
type Schedule struct {
	rule recurrence
	open time.Duration
}

// Schedule reads the window. The error says what is wrong and what to write.
func (w Window) Schedule() (Schedule, error) {
	open := time.Duration(w.Duration) * time.Second
	if w.Duration < int64(MinWindow/time.Second) || w.Duration > int64(MaxWindow/time.Second) {
		return Schedule{}, invalid("window of %d seconds: want %s to %s", w.Duration, shortDuration(MinWindow), shortDuration(MaxWindow))
	}
	switch w.Fetch {
	case "", FetchInWindow, FetchAnytime:
	default:
		return Schedule{}, invalid("window fetch %.40q: want %s or %s", w.Fetch, FetchInWindow, FetchAnytime)
	}
	start := defaultStart
	if w.Start != "" {
		var err error
		if start, err = parseStart(w.Start); err != nil {
			return Schedule{}, err
		}
	}
	rule, err := parseRecurrence(w.RRule, start, w.Start != "")
	if err != nil {
		return Schedule{}, err
	}
	return Schedule{rule: rule, open: open}, nil
}

// Validate reports a window that can not be meant: one that can not be read,
// never opens, or is longer than the time between two openings.
func (w Window) Validate() error {
	s, err := w.Schedule()
	if err != nil {
		return err
	}
	var last time.Time
	left, far := checkedOpenings, s.rule.start.AddDate(0, 0, maxSearchDays)
	s.rule.visit(s.rule.start, func(t time.Time) bool {
		if !last.IsZero() && t.Sub(last) < s.open {
			err = invalid("window of %s opens again after %s: shorten it, or make the rule rarer", shortDuration(s.open), shortDuration(t.Sub(last)))
		}
		last = t
		left--
		return err == nil && left > 0 && t.Before(far)
	})
	if err == nil && last.IsZero() {
		err = invalid("window %q never opens: the rule has no occurrence within 50 years of its start", w.RRule)
	}
	return err
}

// checkedOpenings is how many openings Validate looks at, and no further than a
// search goes.
const checkedOpenings = 400

// Open reports whether a device whose wall clock is that of loc may install now.
// The zero window is open, one that can not be read is not.
func (w Window) Open(now time.Time, loc *time.Location) bool {
	open, _ := w.State(now, loc)
	return open
}

// Next returns when the window opens next, later than now; ok is false when it
// never does.
func (w Window) Next(now time.Time, loc *time.Location) (opens time.Time, ok bool) {
	s, err := w.Schedule()
	if w == (Window{}) || err != nil {
		return time.Time{}, false
	}
	return s.Next(now, loc)
}

// State reports whether the window is open, and until when that stays so; zero:
// for ever.
func (w Window) State(now time.Time, loc *time.Location) (open bool, until time.Time) {
	if w == (Window{}) {
		return true, time.Time{}
	}
	s, err := w.Schedule()
	if err != nil {
		return false, time.Time{}
	}
	return s.State(now, loc)
}

// lastZone is where the same wall clock comes last: no zone is further behind.
var lastZone = time.FixedZone("UTC-12", -12*60*60)

// PossibleFrom reports a window that is not open from a moment on, and opens no more, on
// any device of the world: one that is over where its times come last is over everywhere.
func (w Window) PossibleFrom(moment time.Time) error {
	if w.Open(moment, lastZone) {
		return nil
	}
	if _, ok := w.Next(moment, lastZone); !ok {
		return invalid("window %q does not open any more from %s on, in no time zone: give a later UNTIL, a greater COUNT, or neither", w, moment.UTC().Format(time.RFC3339))
	}
	return nil
}

// Next is Window.Next.
func (s Schedule) Next(now time.Time, loc *time.Location) (opens time.Time, ok bool) {
	next, _ := s.around(now, loc)
	return next, !next.IsZero()
}

// State is Window.State.
func (s Schedule) State(now time.Time, loc *time.Location) (open bool, until time.Time) {
	next, closes := s.around(now, loc)
	if !closes.IsZero() {
		return true, closes
	}
	return false, next
}

// maxLeap is more than any clock change: Samoa left out a whole day in 2011.
const maxLeap = 25 * time.Hour

// around returns when the window opens next after now, and when the one that is
// open closes; zero: never, none. A leap may move an opening behind its
// successor, so all within a leap of the first are looked at.
func (s Schedule) around(now time.Time, loc *time.Location) (next, closes time.Time) {
	var first time.Time
	s.rule.visit(wallClock(now, loc).Add(-s.open-maxLeap), func(wall time.Time) bool {
		opens := instant(wall, loc)
		if !opens.After(now) {
			if end := opens.Add(s.open); end.After(now) && end.After(closes) {
				closes = end
			}
			return true
		}
		if first.IsZero() {
			first, next = wall, opens
		} else if opens.Before(next) {
			next = opens
		}
		return wall.Sub(first) < maxLeap
	})
	return next, closes
}

// wallClock is what a clock in loc shows at t, written as UTC.
func wallClock(t time.Time, loc *time.Location) time.Time {
	_, offset := t.In(loc).Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// instant is when a clock in loc shows wall for the first time; for a time that
// it leaps over, the moment by the offset before the leap.
func instant(wall time.Time, loc *time.Location) time.Time {
	y, m, d := wall.Date()
	t := time.Date(y, m, d, wall.Hour(), wall.Minute(), wall.Second(), 0, loc)
	switch shown := wallClock(t, loc); {
	case shown.After(wall): // already by the offset before the leap
		return t
	case shown.Before(wall):
		_, before := t.Zone()
		return wall.Add(-time.Duration(before) * time.Second).In(loc)
	}
	change, _ := t.ZoneBounds()
	if change.IsZero() {
		return t
	}
	_, before := change.Add(-time.Nanosecond).Zone()
	if first := wall.Add(-time.Duration(before) * time.Second).In(loc); first.Before(change) {
		return first
	}
	return t
}

func parseStart(s string) (time.Time, error) {
	t, err := time.Parse(layoutStart, s)
	if err != nil {
		t, err = time.Parse("2006-01-02T15:04", s)
	}
	if err != nil || t.Nanosecond() != 0 {
		return time.Time{}, invalid("window start %.40q: want a local time without a zone, as in 2026-11-28T02:00", s)
	}
	if t.Year() < minStartYear || t.Year() > maxStartYear {
		return time.Time{}, invalid("window start %s: want a year from %d to %d", s, minStartYear, maxStartYear)
	}
	return t, nil
}

// ParseWindow reads the short form that people write:
//
//	RULE [from START] for DURATION [fetch anytime]
//
// such as "FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h". A rule without a start has
// to say itself on which days and at which hour it opens. DURATION is made of
// d, h, m and s. The window is valid.
func ParseWindow(text string) (Window, error) {
	if len(text) > MaxWindowBytes {
		return Window{}, invalid("window of %d bytes: at most %d", len(text), MaxWindowBytes)
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return Window{}, invalid("window is empty: write it as %s", windowForm)
	}
	w := Window{RRule: strings.ToUpper(words[0])}
	for words = words[1:]; len(words) > 0; words = words[2:] {
		if len(words) == 1 {
			return Window{}, invalid("window %q: nothing follows %q; write it as %s", text, words[0], windowForm)
		}
		if err := w.read(words[0], words[1]); err != nil {
			return Window{}, err
		}
	}
	if w.Duration == 0 {
		return Window{}, invalid("window %q has no duration: write it as %s", text, windowForm)
	}
	return w, w.Validate()
}

// How a window is written, and how one with a start.
const (
	windowForm     = `"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h"`
	windowFromForm = `"FREQ=DAILY;COUNT=3 from 2026-12-01T02:00:00 for 3h"`
)

// read takes one pair of words of the short form.
func (w *Window) read(word, value string) error {
	switch word {
	case "from":
		start, err := parseStart(strings.ToUpper(value))
		if err != nil {
			return err
		}
		return once(&w.Start, word, start.Format(layoutStart))
	case "for":
		d, err := parseShortDuration(value)
		if err != nil {
			return err
		}
		if w.Duration != 0 {
			return invalid("window: %q is given twice", word)
		}
		w.Duration = int64(d / time.Second)
		return nil
	case "fetch":
		return once(&w.Fetch, word, value)
	}
	return invalid("window: unknown word %.40q; write it as %s", word, windowForm)
}

func once(field *string, word, value string) error {
	if *field != "" {
		return invalid("window: %q is given twice", word)
	}
	*field = value
	return nil
}

// parseShortDuration is time.ParseDuration with days before it, in whole seconds.
func parseShortDuration(s string) (time.Duration, error) {
	wrong := invalid("window duration %.40q: want one as in 3h, 90m or 1d12h", s)
	rest, whole := s, time.Duration(0)
	if days, after, ok := strings.Cut(s, "d"); ok {
		n, err := ruleNumber("days", days, 0, 366)
		if err != nil {
			return 0, wrong
		}
		rest, whole = after, time.Duration(n)*24*time.Hour
	}
	if rest == "" && whole > 0 {
		return whole, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d <= 0 || d > 366*24*time.Hour || d%time.Second != 0 || strings.HasPrefix(rest, "+") {
		return 0, wrong
	}
	return whole + d, nil
}

// shortDuration writes what parseShortDuration reads, without parts that are zero.
func shortDuration(d time.Duration) string {
	var b strings.Builder
	for _, unit := range []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if n := d / unit.of; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.of
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

// String is the short form; ParseWindow reads it back. Empty for no window.
func (w Window) String() string {
	if w == (Window{}) {
		return ""
	}
	text := w.RRule
	if w.Start != "" {
		text += " from " + w.Start
	}
	text += " for " + shortDuration(time.Duration(w.Duration)*time.Second)
	if w.Fetch != "" {
		text += " fetch " + w.Fetch
	}
	return text
}
