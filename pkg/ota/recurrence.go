package ota

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// recurrence is an RFC 5545 recurrence rule (section 3.3.10) over local time
// without a zone: its times are wall clocks, written as UTC. It is evaluated
// period by period, and the period of any moment is found by arithmetic, so that
// a date far from the start costs no more than one near it.
type recurrence struct {
	freq     frequency
	interval int
	start    time.Time // DTSTART
	until    time.Time // no occurrence after it; zero: for ever

	months, monthDays, yearDays []int
	days                        []weekdayNum
	times                       []time.Duration // of the day, ascending
	positions                   []int           // BYSETPOS
	weekStart                   time.Weekday
}

type frequency int

const (
	daily frequency = iota
	weekly
	monthly
	yearly
)

var frequencies = map[string]frequency{"DAILY": daily, "WEEKLY": weekly, "MONTHLY": monthly, "YEARLY": yearly}

// weekdayNum is a BYDAY value: a weekday, and which one of the month or year; 0: each.
type weekdayNum struct {
	day time.Weekday
	nth int
}

var weekdays = []string{"SU", "MO", "TU", "WE", "TH", "FR", "SA"}

// Limits of a rule. They bound the work of whoever evaluates it.
const (
	MaxRuleBytes     = 256
	MaxRuleInterval  = 366 // INTERVAL
	MaxRuleCount     = 366 // COUNT
	MaxOpeningsADay  = 24  // BYHOUR times BYMINUTE
	maxSearchDays    = 50 * 366
	secondsOfDay     = 24 * 60 * 60
	layoutDate       = "20060102"
	layoutDateTime   = "20060102T150405"
	remedySubDaily   = "write DAILY with BYHOUR and BYMINUTE"
	remedyBeginsWith = "it begins with FREQ=DAILY, WEEKLY, MONTHLY or YEARLY, as in FREQ=WEEKLY;BYDAY=SA;BYHOUR=2"
)

// parseRecurrence reads a rule with its DTSTART. A rule whose start was not given
// must not take anything from it.
func parseRecurrence(rule string, start time.Time, given bool) (recurrence, error) {
	r := recurrence{freq: -1, interval: 1, start: start, weekStart: time.Monday}
	if rule == "" || len(rule) > MaxRuleBytes {
		return r, invalid("recurrence rule of %d bytes: want 1 to %d; %s", len(rule), MaxRuleBytes, remedyBeginsWith)
	}
	p := ruleParser{rule: &r, seen: map[string]bool{}}
	for part := range strings.SplitSeq(strings.TrimPrefix(rule, "RRULE:"), ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || value == "" {
			return r, invalid("recurrence rule: %.40q: write each part as NAME=VALUE, with ; between", part)
		}
		if p.seen[name] {
			return r, invalid("recurrence rule: %s is given twice", name)
		}
		p.seen[name] = true
		if err := p.part(name, value); err != nil {
			return r, err
		}
	}
	if err := p.check(); err != nil {
		return r, err
	}
	if !given && !p.saysAll() {
		return r, invalid("recurrence rule %q without a start: it has to say its days and BYHOUR, and have no INTERVAL or COUNT; or give a start, as in %s", rule, windowFromForm)
	}
	p.fill()
	if p.count > 0 {
		r.until = r.end(p.count)
	}
	return r, nil
}

type ruleParser struct {
	rule           *recurrence
	seen           map[string]bool
	hours, minutes []int
	count          int
}

func (p *ruleParser) part(name, value string) (err error) {
	r := p.rule
	switch name {
	case "FREQ":
		return p.frequency(value)
	case "INTERVAL":
		r.interval, err = ruleNumber(name, value, 1, MaxRuleInterval)
	case "COUNT":
		p.count, err = ruleNumber(name, value, 1, MaxRuleCount)
	case "UNTIL":
		r.until, err = parseUntil(value)
	case "WKST":
		r.weekStart, err = parseWeekday(value)
	case "BYMONTH":
		r.months, err = ruleNumbers(name, value, 1, 12, false)
	case "BYMONTHDAY":
		r.monthDays, err = ruleNumbers(name, value, 1, 31, true)
	case "BYYEARDAY":
		r.yearDays, err = ruleNumbers(name, value, 1, 366, true)
	case "BYSETPOS":
		r.positions, err = ruleNumbers(name, value, 1, 366, true)
	case "BYHOUR":
		p.hours, err = ruleNumbers(name, value, 0, 23, false)
	case "BYMINUTE":
		p.minutes, err = ruleNumbers(name, value, 0, 59, false)
	case "BYDAY":
		for day := range strings.SplitSeq(value, ",") {
			d, err := parseWeekdayNum(day)
			if err != nil {
				return err
			}
			r.days = append(r.days, d)
		}
	case "BYSECOND":
		return invalid("recurrence rule: BYSECOND is not taken: the seconds are those of the start")
	case "BYWEEKNO":
		return invalid("recurrence rule: BYWEEKNO is not taken: write BYMONTH, BYMONTHDAY, BYYEARDAY or BYDAY")
	default:
		return invalid("recurrence rule: unknown part %.40q", name)
	}
	return err
}

func (p *ruleParser) frequency(value string) error {
	f, ok := frequencies[value]
	switch {
	case ok:
		p.rule.freq = f
		return nil
	case value == "SECONDLY" || value == "MINUTELY" || value == "HOURLY":
		return invalid("recurrence rule: FREQ=%s is not taken: %s", value, remedySubDaily)
	}
	return invalid("recurrence rule: FREQ=%.40s: want DAILY, WEEKLY, MONTHLY or YEARLY", value)
}

// check holds the parts against each other, by the table of section 3.3.10.
func (p *ruleParser) check() error {
	r := p.rule
	nth := slices.ContainsFunc(r.days, func(d weekdayNum) bool { return d.nth != 0 })
	var by bool
	for name := range p.seen {
		by = by || strings.HasPrefix(name, "BY") && name != "BYSETPOS"
	}
	switch {
	case r.freq < 0:
		return invalid("recurrence rule without FREQ: %s", remedyBeginsWith)
	case p.seen["COUNT"] && p.seen["UNTIL"]:
		return invalid("recurrence rule: COUNT or UNTIL, not both")
	case len(r.monthDays) > 0 && r.freq == weekly:
		return invalid("recurrence rule: BYMONTHDAY does not go with WEEKLY: write MONTHLY or YEARLY")
	case len(r.yearDays) > 0 && r.freq != yearly:
		return invalid("recurrence rule: BYYEARDAY goes with YEARLY only")
	case nth && r.freq != monthly && r.freq != yearly:
		return invalid("recurrence rule: a numbered BYDAY, such as 1SU, goes with MONTHLY or YEARLY only")
	case p.seen["BYSETPOS"] && !by:
		return invalid("recurrence rule: BYSETPOS needs another BY part to choose from")
	case max(len(p.hours), 1)*max(len(p.minutes), 1) > MaxOpeningsADay:
		return invalid("recurrence rule: %d openings a day: at most %d", len(p.hours)*max(len(p.minutes), 1), MaxOpeningsADay)
	}
	return nil
}

// fill takes from the start what the rule leaves open.
func (p *ruleParser) fill() {
	r := p.rule
	switch {
	case r.freq == weekly && len(r.days) == 0:
		r.days = []weekdayNum{{day: r.start.Weekday()}}
	case r.freq >= monthly && len(r.days)+len(r.monthDays)+len(r.yearDays) == 0:
		r.monthDays = []int{r.start.Day()}
		if r.freq == yearly && len(r.months) == 0 {
			r.months = []int{int(r.start.Month())}
		}
	}
	if p.hours == nil {
		p.hours = []int{r.start.Hour()}
	}
	if p.minutes == nil {
		p.minutes = []int{r.start.Minute()}
	}
	for _, h := range p.hours {
		for _, m := range p.minutes {
			r.times = append(r.times, time.Duration(h)*time.Hour+time.Duration(m)*time.Minute+time.Duration(r.start.Second())*time.Second)
		}
	}
	slices.Sort(r.times)
	r.times = slices.Compact(r.times)
}

// saysAll reports whether a rule says itself when it opens, so that it needs no
// start.
func (p *ruleParser) saysAll() bool {
	r := p.rule
	day := r.freq == daily || len(r.days)+len(r.monthDays)+len(r.yearDays) > 0
	return p.seen["BYHOUR"] && day && !p.seen["COUNT"] && r.interval == 1
}

func ruleNumber(name, value string, low, high int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < low || n > high || strings.HasPrefix(value, "+") {
		return 0, invalid("recurrence rule: %s=%.40s: want a number from %d to %d", name, value, low, high)
	}
	return n, nil
}

// ruleNumbers reads a list; signed allows the same numbers counted from the end.
func ruleNumbers(name, value string, low, high int, signed bool) ([]int, error) {
	var all []int
	for text := range strings.SplitSeq(value, ",") {
		digits, negative := text, false
		if signed {
			if digits, negative = strings.CutPrefix(text, "-"); !negative {
				digits = strings.TrimPrefix(text, "+")
			}
		}
		n, err := ruleNumber(name, digits, low, high)
		if err != nil || strings.HasPrefix(digits, "-") {
			return nil, invalid("recurrence rule: %s=%.40s: want numbers from %d to %d", name, value, low, high)
		}
		if negative {
			n = -n
		}
		all = append(all, n)
	}
	return all, nil
}

func parseWeekday(s string) (time.Weekday, error) {
	i := slices.Index(weekdays, s)
	if i < 0 {
		return 0, invalid("recurrence rule: weekday %.40q: want MO, TU, WE, TH, FR, SA or SU", s)
	}
	return time.Weekday(i), nil
}

func parseWeekdayNum(s string) (weekdayNum, error) {
	cut := max(len(s)-2, 0)
	day, err := parseWeekday(s[cut:])
	if err != nil || cut == 0 {
		return weekdayNum{day: day}, err
	}
	nth, err := ruleNumbers("BYDAY", s[:cut], 1, 53, true)
	if err != nil || len(nth) != 1 {
		return weekdayNum{}, invalid("recurrence rule: BYDAY %.40q: want a weekday, or a number from -53 to 53 before it", s)
	}
	return weekdayNum{day: day, nth: nth[0]}, nil
}

// parseUntil reads a local date, meaning all of that day, or a local time.
func parseUntil(s string) (time.Time, error) {
	if t, err := time.Parse(layoutDateTime, s); err == nil {
		return t, nil
	}
	if t, err := time.Parse(layoutDate, s); err == nil {
		return t.Add((secondsOfDay - 1) * time.Second), nil
	}
	return time.Time{}, invalid("recurrence rule: UNTIL=%.40s: want a local time as in 20261231T235959 (without Z, as the start has no zone) or a date", s)
}

// dayOf is the day that a wall clock shows, as its midnight.
func dayOf(wall time.Time) time.Time { return wall.Truncate(24 * time.Hour) }

// period returns the number of the period that holds a wall clock, from 0 at the
// start; negative before.
func (r recurrence) period(wall time.Time) int {
	days := func(a, b time.Time) int { return int((b.Unix() - a.Unix()) / secondsOfDay) }
	n := 0
	switch r.freq {
	case daily:
		n = days(dayOf(r.start), dayOf(wall))
	case weekly:
		n = days(r.weekOf(r.start), r.weekOf(wall)) / 7
	case monthly:
		n = (wall.Year()-r.start.Year())*12 + int(wall.Month()) - int(r.start.Month())
	case yearly:
		n = wall.Year() - r.start.Year()
	}
	if n < 0 {
		return -1 - (-n-1)/r.interval
	}
	return n / r.interval
}

// weekOf is the first day of the week that holds a wall clock.
func (r recurrence) weekOf(wall time.Time) time.Time {
	back := (int(wall.Weekday()) - int(r.weekStart) + 7) % 7
	return dayOf(wall).AddDate(0, 0, -back)
}

// bounds are the first day of a period and the first behind it.
func (r recurrence) bounds(period int) (first, behind time.Time) {
	n := period * r.interval
	y, m, _ := r.start.Date()
	switch r.freq {
	case daily:
		first = dayOf(r.start).AddDate(0, 0, n)
		return first, first.AddDate(0, 0, 1)
	case weekly:
		first = r.weekOf(r.start).AddDate(0, 0, 7*n)
		return first, first.AddDate(0, 0, 7)
	case monthly:
		first = time.Date(y, m+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
		return first, first.AddDate(0, 1, 0)
	}
	first = time.Date(y+n, 1, 1, 0, 0, 0, 0, time.UTC)
	return first, first.AddDate(1, 0, 0)
}

// matches reports whether the BY parts but BYMONTH allow a day.
func (r recurrence) matches(day time.Time) bool {
	if len(r.monthDays) > 0 && !fromEitherEnd(r.monthDays, day.Day(), daysIn(day.Year(), day.Month())) {
		return false
	}
	if len(r.yearDays) > 0 && !fromEitherEnd(r.yearDays, day.YearDay(), daysOf(day.Year())) {
		return false
	}
	return len(r.days) == 0 || slices.ContainsFunc(r.days, func(d weekdayNum) bool { return r.isWeekday(day, d) })
}

func fromEitherEnd(wanted []int, at, of int) bool {
	return slices.Contains(wanted, at) || slices.Contains(wanted, at-of-1)
}

func daysIn(year int, m time.Month) int { return time.Date(year, m+1, 0, 0, 0, 0, 0, time.UTC).Day() }

func daysOf(year int) int { return time.Date(year, 12, 31, 0, 0, 0, 0, time.UTC).YearDay() }

// isWeekday reports whether a day is the wanted weekday of its month, or of its
// year when the rule is YEARLY and names no month.
func (r recurrence) isWeekday(day time.Time, d weekdayNum) bool {
	if day.Weekday() != d.day {
		return false
	}
	at, of := day.Day(), daysIn(day.Year(), day.Month())
	if r.freq == yearly && len(r.months) == 0 {
		at, of = day.YearDay(), daysOf(day.Year())
	}
	return d.nth == 0 || d.nth == (at-1)/7+1 || d.nth == -((of-at)/7)-1
}

// occurrences appends those of a period, in order, to into.
func (r recurrence) occurrences(into []time.Time, period int) []time.Time {
	first, behind := r.bounds(period)
	begin := len(into)
	for day := first; day.Before(behind); day = day.AddDate(0, 0, 1) {
		if len(r.months) > 0 && !slices.Contains(r.months, int(day.Month())) {
			day = time.Date(day.Year(), day.Month()+1, 0, 0, 0, 0, 0, time.UTC) // the last of the month
			continue
		}
		if !r.matches(day) {
			continue
		}
		for _, t := range r.times {
			into = append(into, day.Add(t))
		}
	}
	if len(r.positions) > 0 {
		all := into[begin:]
		kept := slices.Clone(all[:0])
		for i, t := range all {
			if fromEitherEnd(r.positions, i+1, len(all)) {
				kept = append(kept, t)
			}
		}
		into = append(into[:begin], kept...)
	}
	return slices.DeleteFunc(into, func(t time.Time) bool {
		return t.Before(r.start) || !r.until.IsZero() && t.After(r.until)
	})
}

// visit calls f with the occurrences from the period of a wall clock on, in
// order, until it returns false, the rule is over or nothing came for as long as
// any rule may pause.
func (r recurrence) visit(from time.Time, f func(time.Time) bool) {
	var batch []time.Time
	period := max(r.period(from), 0)
	end, _ := r.bounds(period)
	end = end.AddDate(0, 0, maxSearchDays)
	for ; ; period++ {
		first, _ := r.bounds(period)
		if first.After(end) || !r.until.IsZero() && first.After(r.until) {
			return
		}
		batch = r.occurrences(batch[:0], period)
		for _, t := range batch {
			if !f(t) {
				return
			}
			end = t.AddDate(0, 0, maxSearchDays)
		}
	}
}

// end returns the count-th occurrence, or when there are not so many, the last;
// zero when it lies so far away that the rule has no end worth finding.
func (r recurrence) end(count int) time.Time {
	end := r.start.Add(-time.Second) // none at all
	far := r.start.AddDate(0, 0, maxSearchDays)
	r.visit(r.start, func(t time.Time) bool {
		end = t
		count--
		return count > 0 && t.Before(far)
	})
	if count > 0 && !end.Before(far) {
		return time.Time{}
	}
	return end
}
