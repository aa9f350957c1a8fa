package ota

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/pkg/sequential"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]Signal{
		"crash +1%":                       {Name: "crash", Tolerance: 0.01},
		" offline  2% min 50  alpha 1% ":  {Name: "offline", Tolerance: 0.02, MinPairs: 50, Alpha: 0.01},
		"reboot +0%":                      {Name: "reboot"},
		"shadow.reported.cpu.temp +5":     {Name: "shadow.reported.cpu.temp", Margin: 5},
		"shadow.reported.battery -10":     {Name: "shadow.reported.battery", Margin: -10},
		"shadow.reported.x 0.5 alpha 50%": {Name: "shadow.reported.x", Margin: 0.5, Alpha: 0.5},
	} {
		got, err := ParseSignal(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := ParseSignal(got.String()); err != nil || again != got {
			t.Errorf("%q writes %q: %+v, %v", text, got, again, err)
		}
	}
	for text, words := range map[string]string{
		"":                                    "want a name",
		"crash":                               "want a name",
		"crash 1":                             "tolerance in percent",
		"temp +1%":                            `want crash, reboot`,
		"crash +1% min":                       "want a name",
		"crash +1% min 0":                     "from 1",
		"crash +1% min 5 min 6":               "unexpected",
		"crash +1% alpha 0%":                  "nothing could ever fail",
		"crash +1% alpha 60%":                 "alpha 60%",
		"crash +1% alpha 5":                   "unexpected",
		"crash +100%":                         "under 100%",
		"crash -1%":                           "not a percentage",
		"crash NaN%":                          "not a percentage",
		"crash 0":                             "tolerance in percent",
		"crash ++1%":                          "not a percentage",
		"crash +1% min +5":                    "not a number from 1",
		"shadow.reported. +1":                 "path of 1 to",
		"shadow.reported.a..b +1":             "path of 1 to",
		"shadow.reported.a.b.c.d.e.f.g.h.i 1": "path of 1 to",
		"shadow.reported.a +1%":               "tolerance in percent",
		"shadow.reported.a Inf":               "is no number",
		"shadow.reported.a 0x1p3":             "is no number",
		"shadow.reported.a +-5":               "is no number",
		"shadow.reported.a much":              "is no number",
	} {
		if _, err := ParseSignal(text); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	f.Add("crash +1% min 50 alpha 1%")
	f.Add("shadow.reported.cpu.temp -5.5")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSignal(text)
		if err != nil {
			return
		}
		again, err := ParseSignal(s.String())
		near := math.Abs(again.Tolerance-s.Tolerance) < 1e-9 && math.Abs(again.Alpha-s.Alpha) < 1e-9
		again.Tolerance, again.Alpha = s.Tolerance, s.Alpha
		if err != nil || !near || again != s {
			t.Errorf("%q is %+v, writes %q: %+v, %v", text, s, s, again, err)
		}
	})
}

func TestHealthPlanRefusals(t *testing.T) {
	crash := Signal{Name: SignalCrash}
	for words, h := range map[string]Health{
		"without a signal": {Watch: time.Hour},
		"at most 8":        {Signals: make([]Signal, MaxSignals+1)},
		"given twice":      {Signals: []Signal{crash, crash}},
		"health watch":     {Signals: []Signal{crash}, Watch: time.Millisecond},
		"health wait":      {Signals: []Signal{crash}, Wait: -1},
		"policy":           {Signals: []Signal{crash}, OnFail: "burn"},
	} {
		if err := (Terms{Health: h}).validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
	if err := (Terms{Health: Health{Signals: []Signal{crash}, Watch: MaxWatch, Wait: MaxHealthWait, OnFail: HealthAbort}}).validate(); err != nil {
		t.Error(err)
	}
}

func TestCompareAPair(t *testing.T) {
	share, number := Signal{Name: SignalCrash}, Signal{Name: "shadow.reported.x"}
	up, down := number, number
	up.Margin, down.Margin = 5, -5
	none := math.NaN()
	for _, c := range []struct {
		s              Signal
		updated, other float64
		want           Outcome
	}{
		{share, 1, 0, OutcomeWorse}, {share, 0, 0, OutcomeSame}, {share, 1, 1, OutcomeSame}, {share, 0, 1, OutcomeBetter},
		{up, 56, 50, OutcomeWorse}, {up, 55, 50, OutcomeSame}, {up, 54, 50, OutcomeWithin}, {up, 50, 50, OutcomeWithin}, {up, 49, 50, OutcomeBetter},
		{down, 44, 50, OutcomeWorse}, {down, 45, 50, OutcomeSame}, {down, 46, 50, OutcomeWithin}, {down, 90, 50, OutcomeBetter},
		{number, 51, 50, OutcomeWorse}, {number, 50, 50, OutcomeSame}, {number, 49, 50, OutcomeBetter},
		{up, none, 50, OutcomeSilent}, {down, none, 50, OutcomeSilent}, {up, 99, none, OutcomeBetter}, {up, none, none, OutcomeUnknown},
		{share, none, 1, OutcomeUnknown}, {share, 0, none, OutcomeUnknown}, {share, none, none, OutcomeUnknown},
		{up, math.Inf(1), math.Inf(1), OutcomeUnknown},
	} {
		if got := c.s.Compare(c.updated, c.other); got != c.want {
			t.Errorf("%+v: %g beside %g is %c, want %c", c.s, c.updated, c.other, got, c.want)
		}
	}
}

func compared(worse, same, better int) Compared {
	return Compared{Pairs: sequential.Pairs{Worse: worse, Same: same, Better: better}}
}

// TestVerdicts walks the table of Judgement.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Signal
		seen Seen
		want Judgement
	}{
		{"nothing yet", Signal{}, Seen{Signals: []Compared{{}}, Unmatched: 3}, HealthHold},
		{"still watched", Signal{}, Seen{Signals: []Compared{compared(0, 40, 0)}, Watched: 1}, HealthHold},
		{"enough of them", Signal{MinPairs: 40}, Seen{Signals: []Compared{compared(0, 40, 0)}, Watched: 1}, HealthPass},
		{"too few", Signal{MinPairs: 41}, Seen{Signals: []Compared{compared(0, 40, 0)}, Watched: 1}, HealthHold},
		{"all watched, fewer than asked for", Signal{MinPairs: 41}, Seen{Signals: []Compared{compared(0, 40, 0)}}, HealthPass},
		{"seems worse", Signal{Tolerance: 0.05}, Seen{Signals: []Compared{compared(3, 37, 0)}}, HealthHold},
		{"within the tolerance", Signal{Tolerance: 0.1}, Seen{Signals: []Compared{compared(3, 37, 0)}}, HealthPass},
		{"proven while others are watched", Signal{Tolerance: 0.05}, Seen{Signals: []Compared{compared(20, 20, 0)}, Watched: 9}, HealthFail},
		{"better", Signal{}, Seen{Signals: []Compared{compared(0, 20, 20)}}, HealthPass},
		{"nobody to compare with", Signal{}, Seen{Signals: []Compared{{}}, Alone: 7}, HealthNone},
		{"no values", Signal{}, Seen{Signals: []Compared{{Unknown: 7}}}, HealthHold},
		{"no values, and none to compare with", Signal{}, Seen{Signals: []Compared{{Unknown: 7}}, Alone: 3}, HealthHold},
		{"values of some", Signal{}, Seen{Signals: []Compared{{Pairs: sequential.Pairs{Same: 1}, Unknown: 7}}}, HealthPass},
		{"not counted", Signal{}, Seen{}, HealthNone},
	} {
		got := Verdicts(Health{Signals: []Signal{c.s}}, c.seen)
		if len(got) != 1 || got[0].Judgement != c.want || got[0].Why == "" {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestSeenCountsOutcomes(t *testing.T) {
	seen := Seen{Signals: make([]Compared, 2)}
	seen.Add("+=", 2)
	seen.Add("-?", 3)
	seen.Add("<!", 4)
	seen.Add("~~", 1)
	seen.Add("+", 9) // of another plan
	want := []Compared{
		{Pairs: sequential.Pairs{Worse: 2, Better: 7}, Within: 4, Unknown: 1, Changed: 1},
		{Pairs: sequential.Pairs{Worse: 4, Same: 2}, Silent: 4, Unknown: 4, Changed: 1},
	}
	if !reflect.DeepEqual(seen.Signals, want) {
		t.Errorf("%+v", seen.Signals)
	}
}

// TestHealthInThePlan walks what verdicts do to a rollout, in every state of it
// and of its stage.
func TestHealthInThePlan(t *testing.T) {
	sick := Seen{Signals: []Compared{compared(20, 0, 0)}}
	unsure := Seen{Signals: []Compared{compared(1, 0, 0)}}
	well := Seen{Signals: []Compared{compared(0, 9, 0)}}
	alone := Seen{Signals: []Compared{{}}, Alone: 50}
	blind := Seen{Signals: []Compared{{Unknown: 50}}}
	done := counts(0, 0, 50, 0)
	for _, c := range []struct {
		name    string
		r       Rollout
		seen    Seen
		counts  Counts
		at      time.Duration
		state   RolloutState
		stage   StageState
		wake    time.Duration
		cancels bool
	}{
		{"well", rollout(StageSoaking, StagePending), well, done, time.Hour, RolloutRunning, StagePassed, 0, false},
		{"no partners", rollout(StageSoaking, StagePending), alone, done, time.Hour, RolloutRunning, StagePassed, 0, false},
		{"unsure, soaking", rollout(StageSoaking, StagePending), unsure, done, time.Minute, RolloutRunning, StageSoaking, time.Hour, false},
		{"unsure, soaked", rollout(StageSoaking, StagePending), unsure, done, time.Hour, RolloutRunning, StageSoaking, 3 * time.Hour, false},
		{"unsure for too long", rollout(StageSoaking, StagePending), unsure, done, 3 * time.Hour, RolloutPaused, StageFailed, 0, false},
		{"blind, soaked", rollout(StageSoaking, StagePending), blind, done, time.Hour, RolloutRunning, StageSoaking, 3 * time.Hour, false},
		{"blind for too long", rollout(StageSoaking, StagePending), blind, done, 3 * time.Hour, RolloutPaused, StageFailed, 0, false},
		{"sick while it soaks", rollout(StageSoaking, StagePending), sick, done, time.Minute, RolloutPaused, StageFailed, 0, false},
		{"sick while devices are at work", rollout(StageOpen, StagePending), sick, counts(10, 10, 30, 0), 0, RolloutPaused, StageFailed, 0, false},
		{"sick before the next stage", rollout(StagePassed, StagePending), sick, done, 0, RolloutPaused, StagePassed, 0, false},
		{"sick behind the last stage", rollout(StagePassed, StagePassed), sick, counts(0, 1, 49, 0), 0, RolloutPaused, StagePassed, 0, false},
		{"sick, to be aborted", onFail(rollout(StageOpen, StagePending), HealthAbort, ""), sick, counts(10, 10, 30, 0), 0, RolloutAborting, StageFailed, 0, false},
		{"sick, to be reverted", onFail(rollout(StageOpen, StagePending), HealthAbort, AbortRevert), sick, counts(10, 10, 30, 0), 0, RolloutRollingBack, StageFailed, 0, false},
		{"sick, but paused", paused(), sick, done, 0, RolloutPaused, StageOpen, 0, false},
	} {
		c.r.Terms.Health.Signals, c.r.Terms.Health.Wait = []Signal{{Name: SignalCrash, Tolerance: 0.01}}, 2*time.Hour
		p := progress(c.counts)
		p.Health = c.seen
		d := Plan(c.r, p, t0.Add(c.at))
		if d.Rollout.State != c.state || d.Rollout.Stages[0].State != c.stage || d.Cancel != c.cancels || d.Take != nil {
			t.Errorf("%s: %s, stage %s, cancels %v, takes %+v", c.name, d.Rollout.State, d.Rollout.Stages[0].State, d.Cancel, d.Take)
		}
		if wake := t0.Add(c.wake); c.wake != 0 && !d.Wake.Equal(wake) {
			t.Errorf("%s: wakes at %s", c.name, d.Wake)
		}
		if d.Changed && d.Rollout.State != RolloutRunning && !strings.Contains(d.Rollout.Reason, "crash: ") {
			t.Errorf("%s: %s", c.name, d.Rollout.Reason)
		}
	}
}

// A stage whose pairs do not count says so, with the path, how many and the remedy.
func TestAStageThatProvesNothingOfItsHealth(t *testing.T) {
	for _, c := range []struct {
		signal  string
		changed int
		want    string
	}{
		{"shadow.reported.cpu.tmp", 0, "none of 5 updated devices, nor its partner, told a number at shadow.reported.cpu.tmp within 10m0s of the update; make a new rollout with the path"},
		{"shadow.reported.cpu.tmp", 1, "none of 4 updated devices, nor its partner, told a number at shadow.reported.cpu.tmp within 10m0s of the update; make a new rollout with the path"},
		{"offline", 0, "of 5 updated devices, or of their partners, nobody knows whether they are connected"},
		{"crash", 5, "the image of the partner of 5 updated devices was changed"},
	} {
		r := rollout(StageSoaking, StagePending)
		r.Terms.Health.Signals = []Signal{{Name: c.signal}}
		p := progress(counts(0, 0, 5, 0))
		p.Health = Seen{Signals: []Compared{{Unknown: 5, Changed: c.changed}}}
		want := "stage 1 proves nothing of its health after 24h0m0s: " + c.signal + ": " + c.want
		if d := Plan(r, p, t0.Add(48*time.Hour)); !strings.HasPrefix(d.Rollout.Reason, want) {
			t.Errorf("%s: %q", c.signal, d.Rollout.Reason)
		}
	}
}

func onFail(r Rollout, h HealthPolicy, a AbortPolicy) Rollout {
	r.Terms.Health.OnFail, r.Terms.OnAbort = h, a
	return r
}

// TestHealthProperty: whatever is seen, a stage fails by health only
// on proof or at the end of its wait, and passes only when nothing is held.
func TestHealthProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rollout(StageSoaking, StagePending)
		n := rapid.IntRange(0, 60)
		r.Terms.Health = Health{Signals: []Signal{{Name: SignalCrash, Tolerance: rapid.Float64Range(0, 0.3).Draw(t, "tolerance"), MinPairs: rapid.IntRange(0, 20).Draw(t, "min")}}, Wait: time.Hour}
		p := progress(counts(0, 0, 50, 0))
		p.Health = Seen{Signals: []Compared{compared(n.Draw(t, "worse"), n.Draw(t, "same"), n.Draw(t, "better"))}, Watched: rapid.IntRange(0, 2).Draw(t, "watched")}
		at := time.Duration(rapid.IntRange(0, 180).Draw(t, "minutes")) * time.Minute
		v := Verdicts(r.Terms.Health, p.Health)[0]
		got := Plan(r, p, t0.Add(at)).Rollout.Stages[0].State
		want := StageSoaking
		switch {
		case v.Judgement == HealthFail:
			want = StageFailed
		case at < time.Hour:
		case v.Judgement != HealthHold:
			want = StagePassed
		case at >= 2*time.Hour:
			want = StageFailed
		}
		if got != want {
			t.Fatalf("%+v after %s: %s, want %s", v, at, got, want)
		}
		if v.AtLeast > v.Difference() || v.AtMost < v.Difference() {
			t.Fatalf("%+v: %g", v, v.Difference())
		}
	})
}
