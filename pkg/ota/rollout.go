package ota

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RolloutState is the state of a whole rollout.
type RolloutState string

// The states. COMPLETED, ABORTED and ROLLED_BACK are final, but that a COMPLETED one can
// be reverted.
const (
	RolloutDraft            RolloutState = "DRAFT"             // can be edited, does nothing
	RolloutAwaitingApproval RolloutState = "AWAITING_APPROVAL" // can be edited, starts when it is approved
	RolloutScheduled        RolloutState = "SCHEDULED"         // starts at its time, or as soon as its devices are arranged
	RolloutRunning          RolloutState = "RUNNING"
	RolloutPaused           RolloutState = "PAUSED"
	RolloutAborting         RolloutState = "ABORTING"
	RolloutRollingBack      RolloutState = "ROLLING_BACK" // aborted, and devices that changed go back
	RolloutFinishing        RolloutState = "FINISHING"    // a continuous one that an operator ends
	RolloutCompleted        RolloutState = "COMPLETED"
	RolloutAborted          RolloutState = "ABORTED"
	RolloutRolledBack       RolloutState = "ROLLED_BACK" // the rollouts that bring devices back have ended
)

// RolloutStates lists every state, in the order a rollout may take them.
var RolloutStates = []RolloutState{
	RolloutDraft, RolloutAwaitingApproval, RolloutScheduled, RolloutRunning, RolloutPaused, RolloutAborting, RolloutRollingBack, RolloutFinishing, RolloutCompleted, RolloutAborted, RolloutRolledBack,
}

// Terminal reports whether nothing more happens to the rollout.
func (s RolloutState) Terminal() bool {
	return s == RolloutCompleted || s == RolloutAborted || s == RolloutRolledBack
}

// Ending reports whether the rollout was aborted or finished and has not ended yet.
func (s RolloutState) Ending() bool {
	return s == RolloutAborting || s == RolloutRollingBack || s == RolloutFinishing
}

// Moves reports whether the rollout may move without anybody's doing.
func (s RolloutState) Moves() bool {
	return s == RolloutScheduled || s == RolloutRunning || s.Ending()
}

// Begun reports whether devices may have been given executions.
func (s RolloutState) Begun() bool {
	return s != RolloutDraft && s != RolloutAwaitingApproval && s != RolloutScheduled
}

// StageState is the state of one stage.
type StageState string

// A stage goes PENDING, OPEN, SOAKING, PASSED; or FAILED from OPEN or SOAKING.
const (
	StagePending StageState = "PENDING"
	StageOpen    StageState = "OPEN"
	StageSoaking StageState = "SOAKING"
	StagePassed  StageState = "PASSED"
	StageFailed  StageState = "FAILED"
)

// StageStates lists every state, in the order a stage may take them.
var StageStates = []StageState{StagePending, StageOpen, StageSoaking, StagePassed, StageFailed}

// Size is how much of the fleet has been reached when a stage is complete.
// Percent and Count are cumulative; a Selector adds the devices it means. Exactly
// one of the three is set.
type Size struct {
	Percent  float64 `json:"percent,omitempty"`  // over 0, up to 100, of the population
	Count    int     `json:"count,omitempty"`    // devices
	Selector string  `json:"selector,omitempty"` // those of the population that it means
}

// Of returns the cumulative number of devices for a population, at least 1 when
// there are any, never more than the population. That of a Selector depends on
// the devices, see Line.Arrange.
func (s Size) Of(population int) int {
	n := s.Count
	if s.Percent > 0 {
		// The small subtraction keeps 10 % of 20 at 2 in binary arithmetic.
		n = int(math.Ceil(s.Percent*float64(population)/100 - 1e-9))
	}
	return min(max(n, 1), population)
}

func (s Size) String() string {
	if s.Selector != "" {
		return "{" + s.Selector + "}"
	}
	if s.Percent > 0 {
		return strconv.FormatFloat(s.Percent, 'f', -1, 64) + "%"
	}
	return strconv.Itoa(s.Count)
}

// Gate is what lets the next stage start.
type Gate struct {
	Success     float64 `json:"success"`               // share of finished executions that must have succeeded, 0 to 1
	MinFinished int     `json:"minFinished,omitempty"` // executions of the stage that must have finished; 0: all of them
}

// Stage is an ordered step of a rollout.
type Stage struct {
	Size Size          `json:"size"`
	Gate Gate          `json:"gate"`
	Soak time.Duration `json:"soak,omitempty"` // how long the gate must hold before the next stage opens
	// Approval: the stage does not open before an operator approves it.
	Approval bool `json:"approval,omitempty"`

	State      StageState `json:"state"`
	Target     int        `json:"target,omitempty"` // cumulative devices, fixed by Line.Arrange
	ApprovedAt time.Time  `json:"approvedAt,omitzero"`
	OpenedAt   time.Time  `json:"openedAt,omitzero"`
	SoakingAt  time.Time  `json:"soakingAt,omitzero"`
	EndedAt    time.Time  `json:"endedAt,omitzero"`
	// SkippedAt is when an operator last passed by what had failed in the stage, so that
	// it is PASSED without its gate; the last one of a continuous rollout goes on. Zero:
	// never.
	SkippedAt time.Time `json:"skippedAt,omitzero"`
}

// AbortRule stops a rollout. It trips when the share of finished executions of
// the class is over Share (with at least MinSample finished), or when Count or
// more are of the class; a zero Count or a Share of 1 or more turns that half
// off.
type AbortRule struct {
	Class     Class   `json:"class"`
	Share     float64 `json:"share"`
	MinSample int     `json:"minSample,omitempty"`
	Count     int     `json:"count,omitempty"`
}

// Rollout is an operator's plan and where it stands.
type Rollout struct {
	ID       string
	Release  ReleaseID // zero exactly when there is a Command
	Command  *Command  // what devices run, instead of installing; nil: they install
	Selector string    // which devices; empty: every device the release fits
	Seed     string    // fixes the order of devices, see Bucket
	Stages   []Stage
	Abort    []AbortRule
	Priority int // higher first on a device
	// InProgressTimeout is how long an execution may be IN_PROGRESS before it is
	// TIMED_OUT, and can not be changed later; 0: for ever.
	InProgressTimeout time.Duration
	Terms             Terms
	Edits             int // how often all that was replaced, see Edit

	// RevertOf is the rollout whose devices this one brings back; empty: it is none
	// such.
	RevertOf string

	State      RolloutState
	Reason     string      // why PAUSED or aborted, and who went back
	Pause      PausePolicy // what was said with the pause in force, in place of Terms.OnPause; empty unless PAUSED
	Reverting  bool        // it was aborted, to be ROLLED_BACK, by Terms.OnAbort or by what was said with the abort; a pause keeps it from that
	Follows    bool        // continuous, and devices that change are looked at: from before they are arranged to its end
	Idle       bool        // continuous and RUNNING, with nothing to do until a device joins
	Population int         // eligible devices when it started; percentages are of this
	Line       string      // names the arrangement that they stand in
	Cursor     int         // how many of them, in order, have had their turn
	PacedAt    time.Time   // when the next execution would be due at an even rate, see Rate
	ApprovedAt time.Time   // zero: not yet, or edited since
	ArmedAt    time.Time
	Revision   int64 // raised by one on every change, for compare and set
	CreatedAt  time.Time
	StartedAt  time.Time // when its devices were arranged; zero before
	EndedAt    time.Time // zero until terminal
}

// PlanRevision is that of the plan: 1 as it was created, and raised by each edit, but by
// nothing that becomes of the rollout.
func (r Rollout) PlanRevision() int64 { return int64(r.Edits) + 1 }

// Supersedes reports whether what is QUEUED for o makes way on devices that r
// reaches: the same firmware, created earlier, of no higher priority.
func (r Rollout) Supersedes(o Rollout) bool {
	return r.ID != o.ID && r.Kind() == KindInstall && r.Release.Name == o.Release.Name && o.Priority <= r.Priority &&
		o.compareAge(r) < 0
}

// compareAge orders rollouts by when they were created.
func (r Rollout) compareAge(o Rollout) int {
	return cmp.Or(r.CreatedAt.Compare(o.CreatedAt), cmp.Compare(r.ID, o.ID))
}

// Limits of a rollout.
const (
	MaxStages     = 32
	MaxAbortRules = 16
	MaxSoak       = 90 * 24 * time.Hour
	MaxSelector   = 4096
)

// Validate reports the first part of the plan that could never work, as a FieldError.
func (r Rollout) Validate() error {
	if err := r.validateKind(); err != nil {
		return err
	}
	if len(r.Stages) == 0 || len(r.Stages) > MaxStages {
		return AtField("stages", invalid("%d stages: want 1 to %d; the least is one of 100%%", len(r.Stages), MaxStages))
	}
	if len(r.Abort) > MaxAbortRules {
		return AtField("abort", invalid("%d abort rules: at most %d", len(r.Abort), MaxAbortRules))
	}
	if len(r.Selector) > MaxSelector {
		return AtField("select", invalid("selector of %d bytes: at most %d", len(r.Selector), MaxSelector))
	}
	if t := r.InProgressTimeout; t != 0 && !validTimeout(t) {
		return AtField("timeout", invalid("timeout of %s: want %s to %s", t, MinTimeout, MaxTimeout))
	}
	if err := r.Terms.validate(); err != nil {
		return err
	}
	if err := r.validateContinuous(); err != nil {
		return err
	}
	for i, s := range r.Stages {
		if err := s.validate(); err != nil {
			return stageError(i, err)
		}
		if i > 0 && !ascending(r.Stages[i-1].Size, s.Size) {
			err := invalid("stages must ascend: stage %d is %s after %s; sizes are cumulative, each counts the devices before it too", i+1, s.Size, r.Stages[i-1].Size)
			return AtField(fmt.Sprintf("stages[%d].size", i), err)
		}
	}
	for i, a := range r.Abort {
		if err := a.validate(); err != nil {
			return AtField(fmt.Sprintf("abort[%d]", i), err)
		}
	}
	return nil
}

// stageError says which stage, counted from 0, err is about.
func stageError(i int, err error) error {
	return AtField(fmt.Sprintf("stages[%d]", i), fmt.Errorf("stage %d: %w", i+1, err))
}

func (s Stage) validate() error {
	switch {
	case s.Size.kinds() != 1:
		return invalid("a stage is a percentage, a number of devices or a selector")
	case len(s.Size.Selector) > MaxSelector:
		return AtField("select", invalid("selector of %d bytes: at most %d", len(s.Size.Selector), MaxSelector))
	case s.Size.Percent < 0 || s.Size.Percent > 100 || math.IsNaN(s.Size.Percent):
		return AtField("size", invalid("stage of %s: want over 0%% up to 100%%", s.Size))
	case s.Size.Count < 0:
		return AtField("size", invalid("stage of %d devices: want at least 1", s.Size.Count))
	case s.Gate.Success < 0 || s.Gate.Success > 1 || math.IsNaN(s.Gate.Success):
		return AtField("gate", invalid("gate of %g%%: want 0%% to 100%%", s.Gate.Success*100))
	case s.Gate.MinFinished < 0:
		return AtField("gate", invalid("gate minimum %d: must not be negative", s.Gate.MinFinished))
	case s.Soak < 0 || s.Soak > MaxSoak:
		return AtField("soak", invalid("soak of %s: want 0 to %s", s.Soak, MaxSoak))
	case !slices.Contains(StageStates, s.State):
		return invalid("stage in state %q: want one of %v; a new one is %s", s.State, StageStates, StagePending)
	}
	return nil
}

func (s Size) kinds() int {
	n := 0
	for _, set := range []bool{s.Percent != 0, s.Count != 0, s.Selector != ""} {
		if set {
			n++
		}
	}
	return n
}

// ascending compares sizes of one kind; a percentage and a number can not be
// compared before the population is known, so Of orders them then.
func ascending(a, b Size) bool {
	if a.Selector != "" || b.Selector != "" || (a.Percent > 0) != (b.Percent > 0) {
		return true
	}
	return b.Percent > a.Percent || b.Count > a.Count
}

func (a AbortRule) validate() error {
	known := a.Class == ClassAny
	for _, c := range Unsuccessful {
		known = known || a.Class == c
	}
	switch {
	case !known:
		return invalid("abort class %q: want any, failed, rolled_back, rejected, timed_out, silent or drifted", a.Class)
	case a.Share < 0 || a.Share > 1 || math.IsNaN(a.Share):
		return invalid("abort share %g%%: want 0%% to 100%%", a.Share*100)
	case a.MinSample < 0 || a.Count < 0:
		return invalid("abort rule for %s: numbers must not be negative", a.Class)
	}
	return nil
}

// Bucket places a device on the rollout's line: stages take devices in
// ascending order of it. The same seed always gives the same order.
func Bucket(seed, deviceID string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(deviceID))
	// FNV alone leaves close ids close together; the finalizer of
	// MurmurHash3 spreads them.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// ParseStages reads "1%,10%,50%,100%" or "5,50,100%"; every stage gets the gate
// and soak.
func ParseStages(s string, gate Gate, soak time.Duration) ([]Stage, error) {
	var stages []Stage
	for _, part := range strings.Split(s, ",") {
		size, err := parseSize(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		stages = append(stages, Stage{Size: size, Gate: gate, Soak: soak, State: StagePending})
	}
	return stages, nil
}

func parseSize(s string) (Size, error) {
	if p, ok := strings.CutSuffix(s, "%"); ok {
		v, err := parsePercent(p)
		if err != nil || v == 0 {
			return Size{}, invalid("stage %q: want over 0%% up to 100%%", s)
		}
		return Size{Percent: v}, nil
	}
	n, err := parseCount(s)
	if err != nil {
		return Size{}, invalid("stage %q: want a percentage such as 10%% or a number of devices", s)
	}
	return Size{Count: n}, nil
}

// What people write is read as it is described to them and no wider, since the schema of
// plan files says the same: a decimal number, with an exponent where it may be large.
var (
	percentPattern = regexp.MustCompile(`^(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?|\.[0-9]+)$`)
	numberPattern  = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
	countPattern   = regexp.MustCompile(`^[0-9]+$`)
)

func parsePercent(s string) (float64, error) {
	s = strings.TrimSpace(s)
	if !percentPattern.MatchString(s) {
		return 0, invalid("%q is not a percentage from 0 to 100", s)
	}
	return strconv.ParseFloat(s, 64)
}

// parseNumber reads a number without a sign.
func parseNumber(s string) (float64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !numberPattern.MatchString(s) {
		return 0, invalid("%q is no number", s)
	}
	return f, nil
}

// maxCount is the highest number of nine digits, which the API can carry.
const maxCount = 999_999_999

// parseCount reads how many, from 1 on.
func parseCount(s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxCount || !countPattern.MatchString(s) {
		return 0, invalid("%q is not a number from 1 to %d", s, maxCount)
	}
	return n, nil
}

// ParseGate reads "95%" or "95% min 20".
func ParseGate(s string) (Gate, error) {
	share, sample, err := parseShare(s)
	if err != nil {
		return Gate{}, fmt.Errorf("gate %q: %w; write it as '95%%' or '95%% min 20'", s, err)
	}
	return Gate{Success: share, MinFinished: sample}, nil
}

// ParseAbortRule reads "failed>5% min 20" (a share of finished executions) or
// "any>=3" (an absolute count).
func ParseAbortRule(s string) (AbortRule, error) {
	bad := func(err error) (AbortRule, error) {
		return AbortRule{}, fmt.Errorf("abort rule %q: %w; write it as 'failed>5%% min 20' or 'any>=3'", s, err)
	}
	i := strings.IndexByte(s, '>')
	if i < 0 {
		return bad(invalid("no '>' in it"))
	}
	rule := AbortRule{Class: Class(strings.TrimSpace(s[:i])), Share: 1}
	if count, ok := strings.CutPrefix(s[i:], ">="); ok {
		n, err := parseCount(count)
		if err != nil {
			return bad(err)
		}
		rule.Count = n
	} else {
		share, sample, err := parseShare(s[i+1:])
		if err != nil {
			return bad(err)
		}
		rule.Share, rule.MinSample = share, sample
	}
	if err := rule.validate(); err != nil {
		return bad(err)
	}
	return rule, nil
}

// parseShare reads "95%" or "95% min 20" as a share from 0 to 1 and a sample.
func parseShare(s string) (float64, int, error) {
	share, rest, ok := strings.Cut(strings.TrimSpace(s), "%")
	if !ok {
		return 0, 0, invalid("no %% in it")
	}
	v, err := parsePercent(share)
	if err != nil {
		return 0, 0, err
	}
	sample := 0
	if rest = strings.TrimSpace(rest); rest != "" {
		n, ok := strings.CutPrefix(rest, "min ")
		if !ok {
			return 0, 0, invalid("unexpected %q", rest)
		}
		if sample, err = parseCount(n); err != nil {
			return 0, 0, fmt.Errorf("min: %w", err)
		}
	}
	return v / 100, sample, nil
}

func (a AbortRule) String() string {
	if a.Count > 0 {
		return fmt.Sprintf("%s>=%d", a.Class, a.Count)
	}
	s := fmt.Sprintf("%s>%s%%", a.Class, strconv.FormatFloat(a.Share*100, 'f', -1, 64))
	if a.MinSample > 0 {
		s += fmt.Sprintf(" min %d", a.MinSample)
	}
	return s
}

func (g Gate) String() string {
	s := strconv.FormatFloat(g.Success*100, 'f', -1, 64) + "%"
	if g.MinFinished > 0 {
		s += fmt.Sprintf(" min %d", g.MinFinished)
	}
	return s
}
