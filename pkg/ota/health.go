package ota

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/pkg/sequential"
)

// Health compares devices that were updated with devices of the same strata that
// were not, each pair over the same time. The zero value compares nothing.
type Health struct {
	Signals []Signal      `json:"signals,omitempty"`
	Watch   time.Duration `json:"watch,omitempty"` // how long a pair is watched from the end of the update on; 0: DefaultWatch
	Wait    time.Duration `json:"wait,omitempty"`  // how long a stage waits for verdicts after its soak; 0: DefaultHealthWait
	OnFail  HealthPolicy  `json:"onFail,omitempty"`
}

// HealthPolicy says what becomes of a rollout with a signal that failed.
type HealthPolicy string

// HealthPause, also the empty policy, pauses it. HealthAbort aborts it, and
// Terms.OnAbort says whether devices go back.
const (
	HealthPause HealthPolicy = "pause"
	HealthAbort HealthPolicy = "abort"
)

// Signal is one thing that updated devices must not do worse in. Shares (of
// devices that had a crash, that booted, that are offline) may be higher by
// Tolerance. A number of the shadow may be worse by Margin on the median pair:
// higher, or for a negative Margin lower.
type Signal struct {
	Name      string  `json:"name"` // SignalCrash, SignalReboot, SignalOffline or ShadowSignals and a path
	Tolerance float64 `json:"tolerance,omitempty"`
	Margin    float64 `json:"margin,omitempty"`
	Alpha     float64 `json:"alpha,omitempty"`    // false alarms over all looks together; 0: DefaultAlpha
	MinPairs  int     `json:"minPairs,omitempty"` // it may pass from so many pairs on; 0: when all have been watched
}

// Names of signals.
const (
	SignalCrash   = "crash"
	SignalReboot  = "reboot"
	SignalOffline = "offline"
	ShadowSignals = "shadow.reported." // followed by the path of a number
)

// Defaults and limits of Health.
const (
	DefaultWatch      = 10 * time.Minute
	DefaultHealthWait = 24 * time.Hour
	DefaultAlpha      = 0.05
	MinWatch          = time.Second
	MaxWatch          = 7 * 24 * time.Hour
	MaxHealthWait     = 30 * 24 * time.Hour
	MaxSignals        = 8
	MinAlpha          = 0.0001
	MaxAlpha          = 0.5
	maxSignalDepth    = 8
)

// Set reports whether anything is compared.
func (h Health) Set() bool { return len(h.Signals) > 0 }

// Watching is how long each pair is watched.
func (h Health) Watching() time.Duration {
	if h.Watch == 0 {
		return DefaultWatch
	}
	return h.Watch
}

func (h Health) waiting() time.Duration {
	if h.Wait == 0 {
		return DefaultHealthWait
	}
	return h.Wait
}

func (h Health) validate() error {
	switch h.OnFail {
	case "", HealthPause, HealthAbort:
	default:
		return AtField("onFail", invalid("policy of a failed signal %q: want %s or %s", h.OnFail, HealthPause, HealthAbort))
	}
	switch {
	case len(h.Signals) > MaxSignals:
		return AtField("signals", invalid("%d health signals: at most %d", len(h.Signals), MaxSignals))
	case !h.Set() && (h.Watch != 0 || h.Wait != 0 || h.OnFail != ""):
		return invalid("health without a signal: say what to compare, as in 'crash +1%%'")
	case h.Watch != 0 && (h.Watch < MinWatch || h.Watch > MaxWatch):
		return AtField("watch", invalid("health watch of %s: want %s to %s", h.Watch, MinWatch, MaxWatch))
	case h.Wait < 0 || h.Wait > MaxHealthWait:
		return AtField("wait", invalid("health wait of %s: want 0 to %s", h.Wait, MaxHealthWait))
	}
	for i, s := range h.Signals {
		err := s.validate()
		if slices.ContainsFunc(h.Signals[:i], func(o Signal) bool { return o.Name == s.Name }) {
			err = invalid("health signal %s is given twice", s.Name)
		}
		if err != nil {
			return AtField(fmt.Sprintf("signals[%d]", i), err)
		}
	}
	return nil
}

func (s Signal) validate() error {
	bad := func(f float64) bool { return math.IsNaN(f) || math.IsInf(f, 0) }
	switch path := s.Path(); {
	case path == nil && s.Name != SignalCrash && s.Name != SignalReboot && s.Name != SignalOffline:
		return invalid("health signal %q: want %s, %s, %s or %sPATH", s.Name, SignalCrash, SignalReboot, SignalOffline, ShadowSignals)
	case path != nil && (len(path) > maxSignalDepth || len(s.Name) > MaxSelector || slices.Contains(path, "")):
		return invalid("health signal %.80q: want a path of 1 to %d words with dots between", s.Name, maxSignalDepth)
	case path == nil && s.Margin != 0 || path != nil && s.Tolerance != 0:
		return invalid("health signal %s: a share has a tolerance in percent, a number of the shadow one in its own unit", s.Name)
	case bad(s.Tolerance) || s.Tolerance < 0 || s.Tolerance >= 1 || bad(s.Margin):
		return invalid("health signal %s: tolerance of %g%%, margin %g: want 0%% to under 100%%, or a number", s.Name, s.Tolerance*100, s.Margin)
	case s.Alpha != 0 && !(s.Alpha >= MinAlpha && s.Alpha <= MaxAlpha):
		return invalid("health signal %s: alpha %g%%: want %g%% to %g%%", s.Name, s.Alpha*100, MinAlpha*100, MaxAlpha*100)
	case s.MinPairs < 0:
		return invalid("health signal %s: min %d: must not be negative", s.Name, s.MinPairs)
	}
	return nil
}

// Path is where the number of a signal stands in shadow.reported; nil for others.
func (s Signal) Path() []string {
	path, ok := strings.CutPrefix(s.Name, ShadowSignals)
	if !ok {
		return nil
	}
	return strings.Split(path, ".")
}

// ParseSignal reads "crash +1%", "offline +2% min 50 alpha 1%", or for a number of
// the shadow "shadow.reported.cpu.temp +5", "shadow.reported.battery -10".
func ParseSignal(text string) (Signal, error) {
	bad := func(err error) (Signal, error) {
		return Signal{}, fmt.Errorf("health signal %q: %w; write it as 'crash +1%% min 50' or 'shadow.reported.cpu.temp +5'", text, err)
	}
	words := strings.Fields(text)
	if len(words) < 2 || len(words)%2 != 0 {
		return bad(invalid("want a name and a tolerance, then min and alpha if they matter"))
	}
	s := Signal{Name: words[0]}
	err := s.readTolerance(words[1])
	for i := 2; i < len(words) && err == nil; i += 2 {
		switch share, percent := strings.CutSuffix(words[i+1], "%"); {
		case words[i] == "min" && s.MinPairs == 0:
			s.MinPairs, err = parseCount(words[i+1])
		case words[i] == "alpha" && percent && s.Alpha == 0:
			if s.Alpha, err = parsePercent(share); err == nil && s.Alpha == 0 {
				err = invalid("alpha 0%%: then nothing could ever fail")
			}
			s.Alpha /= 100
		default:
			err = invalid("unexpected %q", words[i]+" "+words[i+1])
		}
	}
	if err == nil {
		err = s.validate()
	}
	if err != nil {
		return bad(err)
	}
	return s, nil
}

// readTolerance reads "+1%" of a share, and "+5" or "-10" of a number of the shadow.
func (s *Signal) readTolerance(text string) (err error) {
	share, percent := strings.CutSuffix(text, "%")
	switch {
	case percent != (s.Path() == nil):
		return invalid("%s: a share has a tolerance in percent, a number of the shadow one in its own unit", s.Name)
	case percent:
		s.Tolerance, err = parsePercent(strings.TrimPrefix(share, "+"))
		s.Tolerance /= 100
		return err
	}
	number, lower := strings.CutPrefix(text, "-")
	if !lower {
		number = strings.TrimPrefix(text, "+")
	}
	if s.Margin, err = parseNumber(number); lower {
		s.Margin = 0 - s.Margin // -0 is 0
	}
	return err
}

func (s Signal) String() string {
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	text := s.Name + " +" + number(s.Tolerance*100) + "%"
	if s.Path() != nil {
		text = s.Name + " "
		if s.Margin >= 0 {
			text += "+"
		}
		text += number(s.Margin)
	}
	if s.MinPairs > 0 {
		text += fmt.Sprintf(" min %d", s.MinPairs)
	}
	if s.Alpha > 0 {
		text += " alpha " + number(s.Alpha*100) + "%"
	}
	return text
}

// AlphaOr is its rate of false alarms.
func (s Signal) AlphaOr() float64 {
	if s.Alpha == 0 {
		return DefaultAlpha
	}
	return s.Alpha
}

// Outcome is how an updated device did beside its partner, in one signal.
type Outcome byte

// The outcomes. Of a number that is worse by no more than the margin the pair counts as
// better for the test, whose question is on which side of the margin the median lies.
const (
	OutcomeWorse   Outcome = '+'
	OutcomeSame    Outcome = '='
	OutcomeBetter  Outcome = '-'
	OutcomeWithin  Outcome = '<' // not better, and within the margin
	OutcomeSilent  Outcome = '!' // only its partner has a value, which is worse
	OutcomeUnknown Outcome = '?' // neither has a value
	OutcomeChanged Outcome = '~' // its partner was changed meanwhile
)

// Compare says how an updated device did that has the first value beside one with
// the second; NaN: it has none. Of shares the value is 1 for a device that has it, else
// 0. Having no number of the shadow is worse than any: an update that ends what devices
// tell must not look fine. That holds for both of a pair, so what is silent for other
// reasons, the same for both, proves nothing.
func (s Signal) Compare(updated, other float64) Outcome {
	switch number, silent, alone := s.Path() != nil, math.IsNaN(updated), math.IsNaN(other); {
	case silent && alone, !number && (silent || alone):
		return OutcomeUnknown
	case silent:
		return OutcomeSilent
	case alone:
		return OutcomeBetter
	}
	worse := updated - other
	if s.Margin < 0 {
		worse = other - updated
	}
	switch margin := math.Abs(s.Margin); {
	case math.IsNaN(worse):
		return OutcomeUnknown
	case worse > margin:
		return OutcomeWorse
	case worse == margin:
		return OutcomeSame
	case worse >= 0:
		return OutcomeWithin
	}
	return OutcomeBetter
}

// Seen is what the pairs of a rollout have shown, of devices whose update
// succeeded after ArmedAt.
type Seen struct {
	Signals   []Compared // by signal of the plan
	Watched   int        // pairs that are being watched
	Alone     int        // devices for which there was no partner
	Unmatched int        // devices that were not looked at yet
}

// Compared counts the pairs of one signal.
type Compared struct {
	sequential.Pairs
	Within  int // of Better: OutcomeWithin
	Silent  int // of Worse: OutcomeSilent
	Unknown int // pairs that do not count
	Changed int // of Unknown: OutcomeChanged
}

// Add counts pairs with the given outcomes, one for each signal. Others are left
// out: the plan had other signals when they were stored.
func (s *Seen) Add(outcomes string, pairs int) {
	if len(outcomes) != len(s.Signals) {
		return
	}
	for i := range s.Signals {
		c := &s.Signals[i]
		switch Outcome(outcomes[i]) {
		case OutcomeWorse:
			c.Worse += pairs
		case OutcomeSame:
			c.Same += pairs
		case OutcomeBetter:
			c.Better += pairs
		case OutcomeWithin:
			c.Better += pairs
			c.Within += pairs
		case OutcomeSilent:
			c.Worse += pairs
			c.Silent += pairs
		case OutcomeChanged:
			c.Unknown += pairs
			c.Changed += pairs
		default:
			c.Unknown += pairs
		}
	}
}

// Judgement is a word on a signal.
type Judgement string

// A signal that is worse by more than its tolerance, as proven, has failed. One is
// held that lacks pairs, that has some of which none counts, or that seems worse without
// proof. One passes that seems not to be worse, and none can be given where no pair could
// be made.
const (
	HealthFail Judgement = "fail"
	HealthHold Judgement = "hold"
	HealthPass Judgement = "pass"
	HealthNone Judgement = "none"
)

// Verdict is a judgement with what it rests on.
type Verdict struct {
	Signal    Signal
	Judgement Judgement
	Compared
	P       float64 // of the signal being within its tolerance, valid at every look
	AtLeast float64 // the difference of shares that is proven, at the signal's alpha
	AtMost  float64 // and that is left possible
	Why     string  // for people
}

// Verdicts judges every signal of the plan.
func Verdicts(h Health, seen Seen) []Verdict {
	var list []Verdict
	for i, s := range h.Signals {
		v := Verdict{Signal: s, P: 1, AtLeast: -1, AtMost: 1}
		if i < len(seen.Signals) {
			v.Compared = seen.Signals[i]
		}
		alpha := s.AlphaOr()
		v.P, v.AtLeast, v.AtMost = v.Pairs.P(s.Tolerance), v.Pairs.AtLeast(alpha), v.Pairs.AtMost(alpha)
		all := seen.Watched == 0 && seen.Unmatched == 0
		switch {
		case v.P <= alpha:
			v.Judgement, v.Why = HealthFail, "worse than the tolerance, as proven"+v.silent()
		case all && v.provesNothing():
			v.Judgement, v.Why = HealthHold, noValues(h, v)
		case v.N() == 0 && all:
			v.Judgement, v.Why = HealthNone, noPairs(seen)
		case !all && (s.MinPairs == 0 || v.N() < s.MinPairs):
			v.Judgement, v.Why = HealthHold, fmt.Sprintf("%d pairs are still watched, %d devices not matched yet", seen.Watched, seen.Unmatched)
		case v.Difference() > s.Tolerance:
			v.Judgement, v.Why = HealthHold, "seems worse than the tolerance, without proof"+v.silent()
		default:
			v.Judgement, v.Why = HealthPass, "not seen to be worse"
		}
		list = append(list, v)
	}
	return list
}

// provesNothing reports whether there are pairs, and none of them counts.
func (v Verdict) provesNothing() bool { return v.N() == 0 && v.Unknown > 0 }

// silent says how many updated devices have no value.
func (v Verdict) silent() string {
	if v.Silent == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d updated devices told no value since, and their partners did)", v.Silent)
}

// noValues is why no pair of a signal counts, and what to do.
func noValues(h Health, v Verdict) string {
	silent := v.Unknown - v.Changed
	changed := fmt.Sprintf("the image of the partner of %d updated devices was changed while they were watched; let this rollout be the only one of these devices, then resume", v.Changed)
	switch {
	case silent == 0:
		return changed
	case v.Signal.Path() == nil:
		return fmt.Sprintf("of %d updated devices, or of their partners, nobody knows whether they are connected; leave the signal out for devices that never connect", silent)
	}
	why := fmt.Sprintf("none of %d updated devices, nor its partner, told a number at %s within %s of the update; make a new rollout with the path that they tell, or with a watch that is longer than the time between two of their reports",
		silent, v.Signal.Name, h.Watching())
	if v.Changed > 0 {
		why += "; and " + changed
	}
	return why
}

func noPairs(seen Seen) string {
	if seen.Alone > 0 {
		return fmt.Sprintf("nobody is left to compare with: %d devices without a partner", seen.Alone)
	}
	return "no device to compare"
}

// String is the verdict for people.
func (v Verdict) String() string {
	if v.provesNothing() {
		return fmt.Sprintf("%s: %s", v.Signal.Name, v.Why)
	}
	return fmt.Sprintf("%s: %s, %d worse and %d better of %d pairs, p %.2g", v.Signal.Name, v.Why, v.Worse, v.Better-v.Within, v.N(), v.P)
}

// worst returns the first verdict with the judgement.
func worst(list []Verdict, j Judgement) (Verdict, bool) {
	for _, v := range list {
		if v.Judgement == j {
			return v, true
		}
	}
	return Verdict{}, false
}

// unhealthy ends the stage of a rollout with a signal that failed.
func unhealthy(r Rollout, v Verdict, now time.Time) Decision {
	reason := "health " + v.String()
	if r.Terms.Health.OnFail == HealthAbort {
		return abort(r, reason, r.Terms.OnAbort, now)
	}
	if s := r.current(); s != nil && s.State != StagePending {
		s.State, s.EndedAt = StageFailed, now
		reason = fmt.Sprintf("stage %d failed: %s", r.Current()+1, reason)
	}
	r.State, r.Reason = RolloutPaused, reason
	return Decision{Rollout: r, Changed: true}
}

// held is a stage that has soaked and whose signals are not all settled.
func held(r Rollout, i int, v Verdict, now time.Time) Decision {
	stage := &r.Stages[i]
	end := stage.SoakingAt.Add(stage.Soak).Add(r.Terms.Health.waiting())
	if now.Before(end) {
		return Decision{Rollout: r, Wake: end}
	}
	stage.State, stage.EndedAt = StageFailed, now
	r.State = RolloutPaused
	r.Reason = fmt.Sprintf("stage %d has no verdict on its health after %s: %s", i+1, r.Terms.Health.waiting(), v)
	if v.provesNothing() {
		r.Reason = fmt.Sprintf("stage %d proves nothing of its health after %s: %s", i+1, r.Terms.Health.waiting(), v)
	}
	return Decision{Rollout: r, Changed: true}
}
