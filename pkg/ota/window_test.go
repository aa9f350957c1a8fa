package ota

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/teambition/rrule-go"
	"pgregory.net/rapid"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func window(t testing.TB, text string) Window {
	t.Helper()
	w, err := ParseWindow(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return w
}

// moment reads RFC 3339, and the wall clock that it shows must be that of loc.
func moment(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestWindowOpensAndCloses asks each window at moments around its edges: when is
// it open, and until when does that stay so.
func TestWindowOpensAndCloses(t *testing.T) {
	for _, c := range []struct{ window, zone, at, want string }{
		// An ordinary weekend, by the second.
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Europe/Berlin", "2026-11-27T12:00:00+01:00", "shut until 2026-11-28T02:00:00+01:00"},
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Europe/Berlin", "2026-11-28T01:59:59+01:00", "shut until 2026-11-28T02:00:00+01:00"},
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Europe/Berlin", "2026-11-28T02:00:00+01:00", "open until 2026-11-28T05:00:00+01:00"},
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Europe/Berlin", "2026-11-28T04:59:59+01:00", "open until 2026-11-28T05:00:00+01:00"},
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Europe/Berlin", "2026-11-28T05:00:00+01:00", "shut until 2026-11-29T02:00:00+01:00"},
		// The same moment is another wall clock elsewhere.
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "Asia/Tokyo", "2026-11-27T18:00:00+01:00", "open until 2026-11-28T05:00:00+09:00"},
		{"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "America/New_York", "2026-11-28T02:00:00+01:00", "shut until 2026-11-28T02:00:00-05:00"},
		// Over midnight, and over the end of a year.
		{"FREQ=DAILY;BYHOUR=22 for 6h", "Europe/Berlin", "2026-12-31T23:59:59+01:00", "open until 2027-01-01T04:00:00+01:00"},
		{"FREQ=DAILY;BYHOUR=22 for 6h", "Europe/Berlin", "2027-01-01T00:00:00+01:00", "open until 2027-01-01T04:00:00+01:00"},
		{"FREQ=DAILY;BYHOUR=22 for 6h", "Europe/Berlin", "2027-01-01T04:00:00+01:00", "shut until 2027-01-01T22:00:00+01:00"},
		{"FREQ=WEEKLY;BYDAY=FR;BYHOUR=20 for 2d12h", "Europe/Berlin", "2026-11-30T07:59:59+01:00", "open until 2026-11-30T08:00:00+01:00"},
		// The clock leaps from 02:00 to 03:00: what begins in the gap begins an hour
		// later by the wall clock, and lasts its whole time.
		{"FREQ=DAILY;BYHOUR=2;BYMINUTE=30 for 1h", "Europe/Berlin", "2026-03-29T01:59:59+01:00", "shut until 2026-03-29T03:30:00+02:00"},
		{"FREQ=DAILY;BYHOUR=2;BYMINUTE=30 for 1h", "Europe/Berlin", "2026-03-29T03:30:00+02:00", "open until 2026-03-29T04:30:00+02:00"},
		{"FREQ=DAILY;BYHOUR=1 for 3h", "Europe/Berlin", "2026-03-29T01:00:00+01:00", "open until 2026-03-29T05:00:00+02:00"},
		{"FREQ=DAILY;BYHOUR=2,3;BYMINUTE=30 for 30m", "Europe/Berlin", "2026-03-29T03:29:59+02:00", "shut until 2026-03-29T03:30:00+02:00"},
		// What leapt is overtaken by a later opening of the same night.
		{"FREQ=DAILY;BYHOUR=2,3;BYMINUTE=15,45;BYSETPOS=2,3 for 10m", "Europe/Berlin", "2026-03-29T01:00:00+01:00", "shut until 2026-03-29T03:15:00+02:00"},
		// The clock goes back from 03:00 to 02:00: the first of the two counts, once.
		{"FREQ=DAILY;BYHOUR=2;BYMINUTE=30 for 45m", "Europe/Berlin", "2026-10-25T02:30:00+02:00", "open until 2026-10-25T02:15:00+01:00"},
		{"FREQ=DAILY;BYHOUR=2;BYMINUTE=30 for 45m", "Europe/Berlin", "2026-10-25T02:30:00+01:00", "shut until 2026-10-26T02:30:00+01:00"},
		{"FREQ=DAILY;BYHOUR=1 for 3h", "Europe/Berlin", "2026-10-25T02:59:59+01:00", "open until 2026-10-25T03:00:00+01:00"},
		{"FREQ=DAILY;BYHOUR=22 for 8h", "Europe/Berlin", "2026-10-24T22:00:00+02:00", "open until 2026-10-25T05:00:00+01:00"},
		// A change of half an hour, and a day that never was.
		{"FREQ=DAILY;BYHOUR=2;BYMINUTE=15 for 1h", "Australia/Lord_Howe", "2026-10-04T01:59:00+10:30", "shut until 2026-10-04T02:45:00+11:00"},
		{"FREQ=DAILY;BYHOUR=12 for 1h", "Pacific/Apia", "2011-12-29T13:00:00-10:00", "shut until 2011-12-31T12:00:00+14:00"},
		// Rules of the calendar.
		{"FREQ=MONTHLY;BYDAY=-1SU;BYHOUR=3 for 2h", "UTC", "2026-11-01T00:00:00Z", "shut until 2026-11-29T03:00:00Z"},
		{"FREQ=MONTHLY;BYMONTHDAY=31;BYHOUR=3 for 2h", "UTC", "2026-11-01T00:00:00Z", "shut until 2026-12-31T03:00:00Z"},
		{"FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=3 for 2h", "UTC", "2026-10-31T00:00:00Z", "shut until 2026-11-30T03:00:00Z"},
		{"FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYHOUR=3 for 2h", "UTC", "2097-01-01T00:00:00Z", "shut until 2104-02-29T03:00:00Z"},
		{"FREQ=YEARLY;BYYEARDAY=-1;BYHOUR=0 for 1d", "UTC", "2026-12-31T23:00:00Z", "open until 2027-01-01T00:00:00Z"},
		{"FREQ=WEEKLY;INTERVAL=2;WKST=SU from 2026-11-03T02:00 for 1h", "UTC", "2026-11-04T00:00:00Z", "shut until 2026-11-17T02:00:00Z"},
		{"FREQ=DAILY;COUNT=3 from 2026-11-03T02:00 for 1h", "UTC", "2026-11-05T01:00:00Z", "shut until 2026-11-05T02:00:00Z"},
		{"FREQ=DAILY;COUNT=3 from 2026-11-03T02:00 for 1h", "UTC", "2026-11-05T02:30:00Z", "open until 2026-11-05T03:00:00Z"},
		{"FREQ=DAILY;COUNT=3 from 2026-11-03T02:00 for 1h", "UTC", "2026-11-05T03:00:00Z", "shut for ever"},
		{"FREQ=DAILY;BYHOUR=2;UNTIL=20261105 for 1h", "UTC", "2026-11-05T01:00:00Z", "shut until 2026-11-05T02:00:00Z"},
		{"FREQ=DAILY;BYHOUR=2;UNTIL=20261105T015959 for 1h", "UTC", "2026-11-05T01:00:00Z", "shut for ever"},
		{"FREQ=DAILY from 2026-11-03T02:00 for 1h", "Europe/Berlin", "1970-01-01T00:00:00Z", "shut until 2026-11-03T02:00:00+01:00"},
		// Always open, hour by hour.
		{"FREQ=DAILY;BYHOUR=0 for 1d", "UTC", "2026-11-05T00:00:00Z", "open until 2026-11-06T00:00:00Z"},
	} {
		loc := zone(t, c.zone)
		w := window(t, c.window)
		open, until := w.State(moment(t, c.at), loc)
		got := "shut"
		if open {
			got = "open"
		}
		if until.IsZero() {
			got += " for ever"
		} else {
			got += " until " + until.In(loc).Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%s in %s at %s: %s, want %s", c.window, c.zone, c.at, got, c.want)
		}
		if w.Open(moment(t, c.at), loc) != open {
			t.Errorf("%s: Open says %v", c.window, !open)
		}
		if next, ok := w.Next(moment(t, c.at), loc); !open && (ok == until.IsZero() || !next.Equal(until)) {
			t.Errorf("%s: Next says %s, %v", c.window, next, ok)
		}
	}
}

func TestNoWindowIsOpen(t *testing.T) {
	var w Window
	if open, until := w.State(time.Now(), time.UTC); !open || !until.IsZero() || w.String() != "" {
		t.Errorf("%v, %s, %q", open, until, w)
	}
	if _, ok := w.Next(time.Now(), time.UTC); ok {
		t.Error("no window opens")
	}
	broken := Window{RRule: "FREQ=DAILY", Duration: 1}
	if broken.Open(time.Now(), time.UTC) {
		t.Error("a window that can not be read is open")
	}
	if _, ok := broken.Next(time.Now(), time.UTC); ok {
		t.Error("a window that can not be read opens")
	}
}

// TestWindowIsPossibleWhileItOpensSomewhere: from a moment on it is possible exactly when
// it is open then, or opens later, in some zone.
func TestWindowIsPossibleWhileItOpensSomewhere(t *testing.T) {
	if err := (Window{}).PossibleFrom(t0); err != nil {
		t.Errorf("no window: %v", err)
	}
	if err := (Window{RRule: "FREQ=DAILY", Duration: 1}).PossibleFrom(t0); !errors.Is(err, ErrInvalid) {
		t.Errorf("one that can not be read: %v", err)
	}
	w, err := ParseWindow("FREQ=DAILY;BYHOUR=2;UNTIL=20260310T020000 for 3h")
	if err != nil {
		t.Fatal(err)
	}
	last := time.Date(2026, 3, 10, 5, 0, 0, 0, time.UTC) // when it closes, on the wall
	for hour := -40; hour <= 40; hour++ {
		from := last.Add(time.Duration(hour) * time.Hour)
		somewhere := false
		for offset := -12; offset <= 14; offset++ {
			zone := time.FixedZone("", offset*60*60)
			_, opens := w.Next(from, zone)
			somewhere = somewhere || opens || w.Open(from, zone)
		}
		if err := w.PossibleFrom(from); (err == nil) != somewhere || somewhere != (hour < 12) {
			t.Errorf("%d hours after: possible somewhere: %v, %v", hour, somewhere, err)
		}
	}
}

// TestWindowIsRefused: each fault is named, with what to write instead.
func TestWindowIsRefused(t *testing.T) {
	many := "FREQ=DAILY;BYHOUR=0,1,2,3,4;BYMINUTE=0,10,20,30,40 for 5m"
	for text, want := range map[string]string{
		"":                                                                "empty",
		"FREQ=DAILY":                                                      "duration",
		"3h":                                                              "no duration",
		"3h for 3h":                                                       "NAME=VALUE",
		"BYHOUR=2 for 3h":                                                 "without FREQ",
		"FREQ=DAILY;BYHOUR=2 for":                                         "nothing follows",
		"FREQ=DAILY;BYHOUR=2 since 3h":                                    "unknown word",
		"FREQ=DAILY;BYHOUR=2 for 3h for 4h":                               "twice",
		"FREQ=DAILY;BYHOUR=2 for 3h fetch never":                          "anytime",
		"FREQ=DAILY;BYHOUR=2;BYHOUR=3 for 3h":                             "BYHOUR is given twice",
		"FREQ=HOURLY for 3h":                                              "DAILY with BYHOUR",
		"FREQ=SECONDLY for 3h":                                            "DAILY with BYHOUR",
		"FREQ=FORTNIGHTLY for 3h":                                         "want DAILY",
		"FREQ=DAILY;BYSECOND=1;BYHOUR=2 for 3h":                           "BYSECOND",
		"FREQ=YEARLY;BYWEEKNO=1;BYHOUR=2 for 3h":                          "BYWEEKNO",
		"FREQ=DAILY;BYEASTER=1;BYHOUR=2 for 3h":                           "unknown part",
		"FREQ=DAILY;BYHOUR=24 for 3h":                                     "0 to 23",
		"FREQ=DAILY;BYHOUR=-2 for 3h":                                     "0 to 23",
		"FREQ=DAILY;BYHOUR=2;BYMONTH=13 for 3h":                           "1 to 12",
		"FREQ=DAILY;BYHOUR=2;BYMONTHDAY=0 for 3h":                         "1 to 31",
		"FREQ=MONTHLY;BYHOUR=2;BYMONTHDAY=--1 for 3h":                     "1 to 31",
		"FREQ=WEEKLY;BYDAY=1SA;BYHOUR=2 for 3h":                           "MONTHLY or YEARLY",
		"FREQ=WEEKLY;BYDAY=SA;BYMONTHDAY=1;BYHOUR=2 for 3h":               "WEEKLY",
		"FREQ=MONTHLY;BYYEARDAY=1;BYHOUR=2 for 3h":                        "YEARLY only",
		"FREQ=WEEKLY;BYDAY=XX;BYHOUR=2 for 3h":                            "weekday",
		"FREQ=MONTHLY;BYDAY=54SA;BYHOUR=2 for 3h":                         "-53 to 53",
		"FREQ=DAILY;BYSETPOS=1 from 2026-01-01T00:00 for 3h":              "another BY part",
		"FREQ=DAILY;COUNT=1;UNTIL=20260101;BYHOUR=2 for 3h":               "not both",
		"FREQ=DAILY;UNTIL=20260101T000000Z;BYHOUR=2 for 3h":               "without Z",
		"FREQ=DAILY for 3h":                                               "without a start",
		"FREQ=WEEKLY;BYHOUR=2 for 3h":                                     "without a start",
		"FREQ=DAILY;INTERVAL=2;BYHOUR=2 for 3h":                           "without a start",
		"FREQ=DAILY;COUNT=2;BYHOUR=2 for 3h":                              "without a start",
		"FREQ=DAILY;INTERVAL=0 from 2026-01-01T00:00 for 3h":              "1 to 366",
		"FREQ=DAILY;COUNT=367 from 2026-01-01T00:00 for 3h":               "1 to 366",
		"FREQ=DAILY from 2026-01-01T00:00:00Z for 3h":                     "without a zone",
		"FREQ=DAILY from 2026-02-30T00:00 for 3h":                         "without a zone",
		"FREQ=DAILY from 1969-12-31T00:00 for 3h":                         "1970 to 2200",
		"FREQ=DAILY;BYHOUR=2 for 4m59s":                                   "5m to 7d",
		"FREQ=DAILY;BYHOUR=2 for 7d1s":                                    "5m to 7d",
		"FREQ=DAILY;BYHOUR=2 for 3":                                       "3h, 90m",
		"FREQ=DAILY;BYHOUR=2 for 1.5s":                                    "3h, 90m",
		"FREQ=DAILY;BYHOUR=2 for -3h":                                     "3h, 90m",
		"FREQ=DAILY;BYHOUR=2 for 1d1s":                                    "opens again after 1d",
		"FREQ=DAILY;BYHOUR=2,4 for 3h":                                    "opens again after 2h",
		"FREQ=WEEKLY;BYDAY=FR,SA;BYHOUR=20 for 2d":                        "opens again after 1d",
		"FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=2 for 3h":             "never opens",
		"FREQ=MONTHLY;BYMONTHDAY=1;BYSETPOS=2;BYHOUR=2 for 3h":            "never opens",
		"FREQ=DAILY;UNTIL=20200101;BYHOUR=2 from 2026-01-01T00:00 for 3h": "never opens",
		many: "at most 24",
		"FREQ=DAILY;BYHOUR=" + strings.Repeat("2,", 150) + "2 for 3h": "want 1 to 256",
		strings.Repeat(" ", 401): "at most 400",
	} {
		w, err := ParseWindow(text)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v, %v; want %q", text, w, err, want)
		}
	}
}

// TestWindowText: what is read is written so that it reads the same.
func TestWindowText(t *testing.T) {
	for in, out := range map[string]string{
		"freq=weekly;byday=sa;byhour=2 for 3h":                       "FREQ=WEEKLY;BYDAY=SA;BYHOUR=2 for 3h",
		" FREQ=DAILY  for 90m   from 2026-11-28t02:00 ":              "FREQ=DAILY from 2026-11-28T02:00:00 for 1h30m",
		"FREQ=DAILY;BYHOUR=2 fetch anytime for 0d1h0m1s":             "FREQ=DAILY;BYHOUR=2 for 1h1s fetch anytime",
		"RRULE:FREQ=DAILY;BYHOUR=2 for 1d":                           "RRULE:FREQ=DAILY;BYHOUR=2 for 1d",
		"FREQ=WEEKLY;BYDAY=MO;BYHOUR=2 from 2026-01-01T00:00 for 7d": "FREQ=WEEKLY;BYDAY=MO;BYHOUR=2 from 2026-01-01T00:00:00 for 7d",
	} {
		w := window(t, in)
		if w.String() != out {
			t.Errorf("%q: %q, want %q", in, w, out)
		}
		if again := window(t, w.String()); again != w {
			t.Errorf("%q: read again as %+v", w, again)
		}
	}
}

// TestRecurrenceAgainstLibrary draws rules and compares the occurrences with
// those of another implementation, in a zone without clock changes.
func TestRecurrenceAgainstLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 3*366*24*60).Draw(t, "start")) * time.Minute)
		text := drawRule(t)
		ours, err := parseRecurrence(text, start, true)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		option, err := rrule.StrToROption(text)
		if err != nil {
			t.Fatalf("%s: the library: %v", text, err)
		}
		option.Dtstart = start
		horizon := start.AddDate(4, 0, 0)
		if option.Until.IsZero() {
			option.Until = horizon // it would look as far as the year 9999
		}
		theirs, err := rrule.NewRRule(*option)
		if err != nil {
			t.Fatalf("%s: the library: %v", text, err)
		}
		from := start.AddDate(0, 0, rapid.IntRange(0, 800).Draw(t, "from"))
		var got []time.Time
		ours.visit(from, func(at time.Time) bool {
			if at.After(horizon) || len(got) == 50 {
				return false
			}
			if !at.Before(from) {
				got = append(got, at)
			}
			return true
		})
		var want []time.Time
		next := theirs.Iterator()
		for at, more := next(); more && !at.After(horizon) && len(want) < 50; at, more = next() {
			if !at.Before(from) {
				want = append(want, at)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s from %s after %s:\n got %v\nwant %v", text, start, from, got, want)
		}
	})
}

func drawRule(t *rapid.T) string {
	freq := rapid.SampledFrom([]string{"DAILY", "WEEKLY", "MONTHLY", "YEARLY"}).Draw(t, "freq")
	parts := []string{"FREQ=" + freq}
	add := func(name string, chance bool, values *rapid.Generator[string], most int) bool {
		if !chance || !rapid.Bool().Draw(t, "has "+name) {
			return false
		}
		list := rapid.SliceOfNDistinct(values, 1, most, rapid.ID[string]).Draw(t, name)
		parts = append(parts, name+"="+strings.Join(list, ","))
		return true
	}
	number := func(low, high int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			n := rapid.IntRange(low, high).Draw(t, "n")
			if n == 0 && low < 0 {
				n = 1
			}
			return fmt.Sprint(n)
		})
	}
	day := rapid.SampledFrom(weekdays)
	if freq == "MONTHLY" || freq == "YEARLY" {
		// All with a number or none: of a mixture the library wants both to hold,
		// where the specification has a list of either.
		nth := []string{""}
		if rapid.Bool().Draw(t, "numbered") {
			nth = []string{"1", "2", "-1", "5"}
		}
		day = rapid.Custom(func(t *rapid.T) string {
			return rapid.SampledFrom(nth).Draw(t, "nth") + rapid.SampledFrom(weekdays).Draw(t, "day")
		})
	}
	add("INTERVAL", true, number(1, 9), 1)
	add("BYMONTH", true, number(1, 12), 4)
	by := add("BYMONTHDAY", freq != "WEEKLY", number(-31, 31), 4)
	by = add("BYYEARDAY", freq == "YEARLY", number(-366, 366), 4) || by
	by = add("BYDAY", true, day, 3) || by
	by = add("BYHOUR", true, number(0, 23), 3) || by
	by = add("BYMINUTE", true, number(0, 59), 2) || by
	// The library begins the set of the first week with the start's day.
	add("BYSETPOS", by && freq != "WEEKLY", number(-4, 4), 2)
	if !add("COUNT", true, number(1, 60), 1) && rapid.Bool().Draw(t, "has UNTIL") {
		parts = append(parts, "UNTIL="+time.Date(2020, 6, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, rapid.IntRange(0, 1500).Draw(t, "until")).Format(layoutDateTime))
	}
	if freq == "WEEKLY" {
		add("WKST", true, rapid.SampledFrom(weekdays), 1)
	}
	return strings.Join(parts, ";")
}

// FuzzParseWindow: whatever is typed, a window that is taken reads back the
// same, and every question about it is answered.
func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{
		"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h", "FREQ=DAILY;COUNT=3 from 2026-11-03T02:00 for 1h fetch anytime",
		"FREQ=MONTHLY;BYDAY=-1SU;BYHOUR=3;BYSETPOS=1;UNTIL=20301231 for 2d", "FREQ=YEARLY;INTERVAL=366;WKST=SU;BYYEARDAY=-366 from 2199-01-01T00:00 for 7d",
		"FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=1 for 1h",
	} {
		f.Add(s, int64(1_790_000_000))
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		w, err := ParseWindow(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseWindow(w.String())
		if err != nil || again != w {
			t.Fatalf("%q: written as %q, read as %+v, %v", s, w, again, err)
		}
		now := time.Unix(unix%(250*366*secondsOfDay), 0)
		open, until := w.State(now, berlin)
		if !until.IsZero() && !until.After(now) {
			t.Fatalf("%q at %s: open %v until %s", w, now, open, until)
		}
		if next, ok := w.Next(now, berlin); ok && !w.Open(next, berlin) {
			t.Fatalf("%q at %s: shut when it opens, %s", w, now, next)
		}
	})
}

// TestEveryQuestionIsCheap: rules made to be slow, asked far from their start.
func TestEveryQuestionIsCheap(t *testing.T) {
	for _, text := range []string{
		"FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO from 1970-01-01T00:00 for 1h",
		"FREQ=DAILY;COUNT=366;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO from 1970-01-01T00:00 for 1h",
		"FREQ=YEARLY;COUNT=366;BYMONTH=2;BYMONTHDAY=29 from 1970-01-01T00:00 for 1h",
		"FREQ=YEARLY;INTERVAL=366;BYMONTHDAY=1 from 1970-01-01T00:00 for 1h",
	} {
		s, err := window(t, text).Schedule()
		if err != nil {
			t.Fatal(err)
		}
		steps := 0
		s.rule.visit(time.Date(2190, 1, 1, 0, 0, 0, 0, time.UTC), func(time.Time) bool { steps++; return steps < 3 })
		if steps > 3 {
			t.Errorf("%s: %d steps", text, steps)
		}
	}
}

func BenchmarkWindowState(b *testing.B) {
	berlin := zone(b, "Europe/Berlin")
	now := time.Date(2040, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, text := range []string{
		"FREQ=WEEKLY;BYDAY=SA,SU;BYHOUR=2 for 3h",
		"FREQ=MONTHLY;BYDAY=-1SU from 2001-01-01T02:00 for 3h",
		"FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYHOUR=2 for 3h",
	} {
		b.Run(strings.ReplaceAll(text, " ", "_"), func(b *testing.B) {
			w := window(b, text)
			for b.Loop() {
				w.State(now, berlin)
			}
		})
	}
}

// TestFormsOfAWindowAreWindows: what refusals say to write can be written.
func TestFormsOfAWindowAreWindows(t *testing.T) {
	for _, form := range []string{windowForm, windowFromForm} {
		text, err := strconv.Unquote(form)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseWindow(text); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}
