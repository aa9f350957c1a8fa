package ota

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPlanProperty drives random rollouts over random fleets, with crashes (a
// decision that is lost), repetitions, clock jumps and operators, and holds the
// rules that must never break.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for step := 0; step < 400 && !m.r.State.Terminal(); step++ {
			m.step(t)
			m.check(t)
		}
		m.drain(t)
		m.check(t)
	})
}

// model is a store with one rollout, as simple as can be.
type model struct {
	r          Rollout
	now        time.Time
	devices    []Candidate // the fleet
	candidates []arranged  // the line
	meant      map[string]bool
	marked     map[string]bool // changed since the rollout looked
	left       map[string]bool
	took       map[string]bool // its turn, before it was given to it
	stuck      map[string]bool // no way leads on from where it stands
	revoked    map[string]bool
	executions map[string][]Execution // attempts by device
	made       []time.Time
	repeats    int                    // how often an operator gave a stage another go
	via        map[string][]ReleaseID // what devices have to pass through
	reverts    []Revert
}

func newModel(t *rapid.T) *model {
	m := &model{now: t0, executions: map[string][]Execution{}, revoked: map[string]bool{}, via: map[string][]ReleaseID{}, meant: map[string]bool{}, marked: map[string]bool{}, left: map[string]bool{}, took: map[string]bool{}, stuck: map[string]bool{}}
	for i := range rapid.IntRange(0, 40).Draw(t, "devices") {
		id := fmt.Sprintf("d%d", i)
		m.meant[id] = rapid.IntRange(0, 3).Draw(t, "meant") > 0
		m.devices = append(m.devices, Candidate{
			DeviceID: id, Bucket: Bucket("seed", id), Stratum: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "stratum"),
			Meant: rapid.Uint32Range(0, 3).Draw(t, "meant"),
		})
		for range rapid.IntRange(-3, 2).Draw(t, "legs") {
			m.via[id] = append(m.via[id], ReleaseID{"gw", "1"})
		}
	}
	m.r = Rollout{ID: "r", State: RolloutDraft, Terms: drawTerms(t)}
	gates := rapid.Float64Range(0, 1)
	if rapid.Bool().Draw(t, "command") {
		m.r.Command = &Command{Name: "x"}
		gates = rapid.SampledFrom([]float64{0, 0, 0.5})
	}
	if m.r.Command == nil {
		m.r.Terms.Continuous = rapid.Bool().Draw(t, "continuous")
	}
	last := 0.0
	for i := 0; last < 100; i++ {
		size := Size{}
		if i < 3 && !m.r.Terms.Continuous && rapid.IntRange(0, 4).Draw(t, "kind") == 0 {
			size.Selector = "x"
		} else {
			last = min(100, last+rapid.Float64Range(1, 100).Draw(t, "percent"))
			size.Percent = last
		}
		m.r.Stages = append(m.r.Stages, Stage{
			Size: size, State: StagePending, Soak: time.Duration(rapid.IntRange(0, 3).Draw(t, "soak")) * time.Minute,
			Gate:     Gate{Success: gates.Draw(t, "gate"), MinFinished: rapid.IntRange(0, 5).Draw(t, "min")},
			Approval: rapid.IntRange(0, 4).Draw(t, "approval") == 0,
		})
	}
	if rapid.Bool().Draw(t, "abort rule") {
		m.r.Terms.OnAbort = rapid.SampledFrom([]AbortPolicy{"", AbortKeep, AbortRevert}).Draw(t, "on abort")
		m.r.Abort = []AbortRule{{Class: ClassAny, Share: rapid.Float64Range(0, 1).Draw(t, "share"), Count: rapid.IntRange(0, 5).Draw(t, "count")}}
	}
	return m
}

func drawTerms(t *rapid.T) Terms {
	var terms Terms
	terms.Approval = rapid.Bool().Draw(t, "approve")
	if rapid.Bool().Draw(t, "scheduled") {
		terms.Start = t0.Add(time.Minute)
	}
	if rapid.Bool().Draw(t, "rated") {
		terms.Rate.PerMinute = rapid.Float64Range(0.2, 600).Draw(t, "rate")
	}
	if rapid.Bool().Draw(t, "retried") {
		terms.Retry = Retry{Attempts: rapid.IntRange(2, 4).Draw(t, "attempts"), Backoff: time.Duration(rapid.IntRange(0, 300).Draw(t, "backoff")) * time.Second}
	}
	if rapid.Bool().Draw(t, "timed") {
		terms.Timers = Timers{Claim: 5 * time.Minute, Fetch: 3 * time.Minute, Reboot: time.Minute}
	}
	return terms
}

func (m *model) newest(id string) *Execution {
	attempts := m.executions[id]
	if len(attempts) == 0 {
		return nil
	}
	return &attempts[len(attempts)-1]
}

func (m *model) progress() Progress {
	p := Progress{Stages: make([]Counts, len(m.r.Stages)), Armed: Counts{Finished: map[Class]int{}}}
	for i := range p.Stages {
		p.Stages[i].Finished = map[Class]int{}
	}
	for id := range m.executions {
		e := m.newest(id)
		c := &p.Stages[e.Stage]
		switch e.Status {
		case Queued:
			c.Queued++
		case InProgress:
			c.InProgress++
		default:
			c.Finished[e.Class]++
			if e.FinishedAt.After(m.r.ArmedAt) {
				p.Armed.Finished[e.Class]++
			}
		}
		if e.RetryAt.IsZero() {
			continue
		}
		c.Retrying++
		if !e.RetryAt.After(m.now) {
			p.Due++
		} else {
			p.NextRetry = earliest(p.NextRetry, e.RetryAt)
		}
	}
	if m.r.Reverting {
		p.Reverts = m.reverts
	}
	return p
}

func (m *model) plan(t *rapid.T) Decision {
	d := Plan(m.r, m.progress(), m.now)
	if rapid.IntRange(0, 9).Draw(t, "crash") == 0 {
		return d // before it was written
	}
	m.write(t, d)
	return d
}

func (m *model) write(t *rapid.T, d Decision) {
	if d.Arrange {
		if m.r.Terms.Continuous != m.r.Follows {
			t.Fatalf("arranged while it follows: %v", m.r.Follows)
		}
		var reached []Candidate
		for _, c := range m.devices {
			if !m.r.Terms.Continuous || m.meant[c.DeviceID] {
				reached = append(reached, c)
			}
		}
		var stages []Stage
		stages, m.candidates = arrange(m.r.Stages, reached)
		m.r = Begin(m.r, stages, len(reached), "line", m.now)
		return
	}
	if d.Revert {
		m.sendBack(t)
		return
	}
	before := m.r
	m.r = d.Rollout
	if d.Take != nil {
		if before.State != RolloutRunning {
			t.Fatalf("executions are made while the rollout is %s", before.State)
		}
		m.take(t, *d.Take)
	}
	for id := range m.executions {
		if e := m.newest(id); d.Cancel && (m.r.State != RolloutFinishing || e.Status == Queued) {
			*e, _ = Cancel(*e, m.r.Reason, m.now)
		}
	}
	for i, s := range m.r.Stages {
		if s.State == StagePassed && before.Stages[i].State != StagePassed {
			c := m.progress().Stages[i]
			unproved := m.r.Command != nil && s.Gate.Success == 0 && c.Sample() == 0 && c.Settled()
			closed := false
			if before.State == RolloutFinishing { // what an operator skipped is settled
				judged := before.judged(i, m.progress())
				closed = judged.Sample() == 0 || s.Gate.met(judged)
			}
			if (c.Total() > 0 || before.provesNothing(i)) && !s.Gate.met(c) && !unproved && !closed {
				t.Fatalf("stage %d passed without its gate: %+v", i+1, c)
			}
			if m.r.Cursor < s.Target {
				t.Fatalf("stage %d passed at %d of %d", i+1, m.r.Cursor, s.Target)
			}
		}
	}
}

// sendBack makes a revert for each half of the devices that changed.
func (m *model) sendBack(t *rapid.T) {
	if len(m.reverts) > 0 {
		t.Fatalf("reverts are made twice")
	}
	halves := map[string]*Return{}
	for id, attempts := range m.executions {
		for _, e := range attempts {
			if !e.Status.Terminal() {
				t.Fatalf("reverts are made while %s is %s", id, e.Status)
			}
		}
		if e := m.newest(id); e.Changed("digest") {
			half := fmt.Sprint(Bucket("half", id) % 2)
			if halves[half] == nil {
				halves[half] = &Return{Digest: half, To: ReleaseID{"gw", half}}
			}
			halves[half].Devices++
		}
	}
	var returns []Return
	for _, h := range halves {
		returns = append(returns, *h)
	}
	var made []Rollout
	m.r, made = SendBack(m.r, returns, m.now)
	for _, r := range made {
		m.reverts = append(m.reverts, Revert{r.ID, r.State})
	}
}

// endReverts ends up to n reverts.
func (m *model) endReverts(n int) {
	for i := range m.reverts {
		if !m.reverts[i].State.Terminal() && n > 0 {
			m.reverts[i].State = RolloutCompleted
			n--
		}
	}
}

func (m *model) take(t *rapid.T, k Taking) {
	for id := range m.executions {
		if e := m.newest(id); k.Repeat && e.Stage == k.Stage && e.Status.Terminal() && e.Status != Succeeded && !m.left[id] {
			e.RetryAt = m.now
		}
	}
	for _, id := range m.due() {
		if k.Retries == 0 {
			break
		}
		e := m.newest(id)
		e.RetryAt = time.Time{}
		if !m.left[id] {
			m.follow(t, *e)
		}
		k.Retries--
	}
	if to := m.r.Stages[k.Stage].Target; k.To > to || k.From < k.To && m.r.Cursor != k.To {
		t.Fatalf("turns %d to %d of %d, the cursor is at %d", k.From, k.To, to, m.r.Cursor)
	}
	for _, c := range m.candidates[k.From:k.To] {
		if m.took[c.DeviceID] {
			continue
		}
		if c.Stage != k.Stage || len(m.executions[c.DeviceID]) > 0 {
			t.Fatalf("candidate %+v in stage %d", c, k.Stage)
		}
		if !m.revoked[c.DeviceID] && !m.left[c.DeviceID] {
			m.add(Execution{DeviceID: c.DeviceID, Stage: k.Stage, Attempt: 1, Via: m.via[c.DeviceID]})
		}
	}
}

// ask has a device take its turn, if that is about to come.
func (m *model) ask(t *rapid.T) {
	stage, from, to := m.r.OpenTurns()
	if from == to {
		return
	}
	if m.r.State != RolloutRunning || m.r.Stages[stage].State != StageOpen || from != m.r.Cursor || to != m.r.Stages[stage].Target || m.r.Terms.Rate != (Rate{}) {
		t.Fatalf("turns %d to %d of stage %d may be taken of %+v", from, to, stage+1, m.r)
	}
	c := m.candidates[rapid.IntRange(from, to-1).Draw(t, "asks")]
	if len(m.executions[c.DeviceID]) == 0 && !m.revoked[c.DeviceID] && !m.left[c.DeviceID] {
		m.took[c.DeviceID] = true
		m.add(Execution{DeviceID: c.DeviceID, Stage: stage, Attempt: 1, Via: m.via[c.DeviceID]})
	}
}

// follow makes the attempt after one, or refuses it where no way leads on.
func (m *model) follow(t *rapid.T, e Execution) {
	id := e.DeviceID
	switch {
	case m.stuck[id]:
		next := Strand(e, "nothing leads on", ReleaseID{})
		reason := next.Reason()
		next.Status, next.Details = "", nil
		m.add(next)
		refused, err := Refuse(*m.newest(id), reason, m.now)
		if err != nil {
			t.Fatalf("refuse attempt %d on %s: %v", next.Attempt, id, err)
		}
		*m.newest(id) = refused
		m.marked[id] = m.marked[id] || m.r.Follows // a way may have been opened since
	case e.Stranded():
		m.add(Detour(e, Path{Via: m.via[id][min(e.Leg-1, len(m.via[id])):]}))
	default:
		m.add(Follow(e, Path{}))
	}
}

// block closes the way of a device on which there is something, or opens it.
func (m *model) block(t *rapid.T) {
	if len(m.executions) == 0 {
		return
	}
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(m.executions))).Draw(t, "blocked")
	if m.stuck[id] = !m.stuck[id]; !m.stuck[id] && m.r.Follows {
		m.marked[id] = true
	}
}

// checkStranded: an attempt that was refused was never offered nor at work, and ended, it
// counts as rejected, and the next one waits as after any other rejection.
func (m *model) checkStranded(t *rapid.T) {
	refused := make([]int, len(m.r.Stages))
	for id, attempts := range m.executions {
		for i, e := range attempts {
			if !e.Stranded() {
				continue
			}
			if e.Class != ClassRejected || e.Version != 2 || !e.StartedAt.Equal(e.FinishedAt) || !e.Expires.IsZero() || len(e.Via) > 0 {
				t.Fatalf("%s was refused and is %+v", id, e)
			}
			if i+1 == len(attempts) {
				refused[e.Stage]++
				continue
			}
			waited := attempts[i+1].QueuedAt.Sub(e.FinishedAt)
			if m.repeats == 0 && !m.r.Terms.Continuous && (m.r.Terms.Retry.Attempts <= e.Attempt || waited < m.r.Terms.Retry.Backoff) {
				t.Fatalf("%s was refused attempt %d and given another after %s, with %+v", id, e.Attempt, waited, m.r.Terms.Retry)
			}
		}
	}
	for i, c := range m.progress().Stages {
		if c.Finished[ClassRejected] < refused[i] || c.Sample() < refused[i] {
			t.Fatalf("stage %d counts %+v, with %d that were refused", i+1, c, refused[i])
		}
	}
}

func (m *model) add(e Execution) {
	e.Timers, e.Retry = m.r.Terms.Timers, m.r.Terms.Retry
	e = Queue(e, m.now)
	m.executions[e.DeviceID] = append(m.executions[e.DeviceID], e)
	m.made = append(m.made, m.now)
}

// due are the devices whose next attempt is due, in order.
func (m *model) due() []string {
	var ids []string
	for id := range m.executions {
		if e := m.newest(id); !e.RetryAt.IsZero() && !e.RetryAt.After(m.now) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (m *model) step(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(1, 90_000).Draw(t, "milliseconds")) * time.Millisecond)
	switch rapid.IntRange(0, 20).Draw(t, "what") {
	case 14, 15:
		m.change(t)
	case 16, 17:
		m.look(t)
	case 18, 19:
		m.block(t)
	case 20:
		m.ask(t)
	case 0, 1, 2, 3, 4:
		m.plan(t)
	case 5, 6, 7, 8, 9:
		m.report(t)
	case 10:
		for id := range m.executions {
			e := m.newest(id)
			if e.Status != Queued || m.r.State == RolloutRunning {
				*e, _ = Expire(*e, m.now)
			}
		}
	case 13:
		m.endReverts(1)
	case 11:
		if len(m.devices) > 0 {
			m.revoked[m.devices[rapid.IntRange(0, len(m.devices)-1).Draw(t, "revoked")].DeviceID] = true
		}
	default:
		m.operator(t)
	}
}

func (m *model) report(t *rapid.T) {
	if len(m.candidates) == 0 {
		return
	}
	e := m.newest(m.candidates[rapid.IntRange(0, len(m.candidates)-1).Draw(t, "device")].DeviceID)
	if e == nil || e.Status == Queued && m.r.State != RolloutRunning {
		return // the store holds it back
	}
	was := e.Status
	details := map[string]string{DetailStep: string(rapid.SampledFrom([]Step{"", StepFetching, StepStaged, StepRebooting, StepTrial}).Draw(t, "step"))}
	to := rapid.SampledFrom([]Status{InProgress, Succeeded, Succeeded, Failed, Rejected}).Draw(t, "status")
	next, err := Apply(*e, Report{Status: to, Details: details}, m.now)
	if err == nil && was.Terminal() {
		t.Fatalf("%s reopened as %s", was, to)
	}
	*e = next
}

func (m *model) operator(t *rapid.T) {
	var next Rollout
	var err error
	switch rapid.IntRange(0, 10).Draw(t, "operator") {
	case 10:
		next, err = Finish(m.r, "enough")
	case 0:
		next, err = Abort(m.r, "stop", rapid.SampledFrom([]AbortPolicy{"", AbortKeep, AbortRevert}).Draw(t, "policy"), m.now)
		if err == nil && CalledOff(m.r, m.progress().Reverts) == nil {
			m.write(t, Decision{Rollout: next})
		}
		return
	case 1, 2:
		next, err = Pause(m.r, "wait", rapid.SampledFrom([]PausePolicy{"", PauseLetFinish, PauseHoldBeforeInstall}).Draw(t, "pause policy"))
	case 3:
		if next, err = Resume(m.r, ResumeSkip, m.now); err == nil && next.Stages != nil {
			m.r = next // by the operator's word, without the gate
			return
		}
	case 4, 5:
		next, err = Submit(m.r)
	case 6, 7:
		next, err = Approve(m.r, m.now)
	case 8:
		next, err = ApproveStage(m.r, rapid.IntRange(1, len(m.r.Stages)).Draw(t, "stage"), m.now)
	default:
		if next, err = Resume(m.r, ResumeRepeat, m.now); err == nil {
			m.repeats++
		}
	}
	if err == nil {
		m.r = next
	}
}

func (m *model) check(t *rapid.T) {
	if m.r.State != RolloutPaused && m.r.Pause != "" {
		t.Fatalf("%s, and the pause in force is %s", m.r.State, m.r.Pause)
	}
	open := 0
	for i, s := range m.r.Stages {
		if err := s.validate(); err != nil {
			t.Fatalf("stage %d: %v", i+1, err)
		}
		if s.State == StageOpen || s.State == StageSoaking {
			open++
		}
		if s.State != StagePassed && i+1 < len(m.r.Stages) && m.r.Stages[i+1].State != StagePending {
			t.Fatalf("stage %d is %s while stage %d is %s", i+1, s.State, i+2, m.r.Stages[i+1].State)
		}
	}
	if open > 1 {
		t.Fatalf("%d stages are open", open)
	}
	// A stage that is not open yet has no execution, and no stage is over its size.
	size := make([]int, len(m.r.Stages))
	for id, attempts := range m.executions {
		size[attempts[0].Stage]++
		most := max(1, m.r.Terms.Retry.Attempts) + m.repeats
		if m.r.Terms.Continuous {
			most = MaxAttempts + m.repeats
		}
		most += attempts[len(attempts)-1].Leg - 1
		if len(attempts) > most {
			t.Fatalf("device %s has %d attempts, at most %d", id, len(attempts), most)
		}
		for i, e := range attempts {
			if e.Class == ClassSucceeded && len(m.via[id]) >= e.Leg {
				t.Fatalf("device %s is there after leg %d of %d", id, e.Leg, len(m.via[id])+1)
			}
			if i > 0 && (attempts[i-1].Class == ClassUnderway) != (e.Leg > attempts[i-1].Leg) {
				t.Fatalf("device %s is on leg %d after leg %d that ended %s", id, e.Leg, attempts[i-1].Leg, attempts[i-1].Class)
			}
		}
	}
	from := 0
	for i, s := range m.r.Stages {
		if s.OpenedAt.IsZero() && size[i] > 0 || size[i] > max(s.Target-from, 0) {
			t.Fatalf("stage %d (%s) has %d executions, from %d to %d", i+1, s.State, size[i], from, s.Target)
		}
		from = max(from, s.Target)
	}
	if !m.r.Reverting && len(m.reverts) > 0 {
		t.Fatalf("%s by itself, beside %+v", m.r.State, m.reverts)
	}
	if m.r.State == RolloutRolledBack && slices.ContainsFunc(m.reverts, func(v Revert) bool { return !v.State.Terminal() }) {
		t.Fatalf("ROLLED_BACK beside %+v", m.reverts)
	}
	m.checkRate(t)
	m.checkStranded(t)
}

// checkRate holds Rate's promise for every span of time.
func (m *model) checkRate(t *rapid.T) {
	perMinute := m.r.Terms.Rate.PerMinute
	if perMinute == 0 {
		return
	}
	burst := math.Ceil(perMinute / 60)
	for i := range m.made {
		for j := i; j < len(m.made); j++ {
			most := burst + m.made[j].Sub(m.made[i]).Minutes()*perMinute
			if float64(j-i+1) > most+1e-6 {
				t.Fatalf("%d executions within %s at %g a minute", j-i+1, m.made[j].Sub(m.made[i]), perMinute)
			}
		}
	}
}

// drain lets everything in flight finish, and approves: a running or aborting
// rollout then ends, or is paused with a reason.
func (m *model) drain(t *rapid.T) {
	for i := 0; i < 2000 && !m.r.State.Terminal() && m.r.State != RolloutPaused; i++ {
		if r, err := Submit(m.r); err == nil {
			m.r = r
		}
		if r, err := Approve(m.r, m.now); err == nil {
			m.r = r
		}
		for j := range m.r.Stages {
			if r, err := ApproveStage(m.r, j+1, m.now); err == nil {
				m.r = r
			}
		}
		for id := range m.executions {
			e := m.newest(id)
			if !e.Status.Terminal() && (e.Status == InProgress || m.r.State == RolloutRunning) {
				*e, _ = Apply(*e, Report{Status: Succeeded}, m.now)
			}
		}
		m.endReverts(1)
		m.look(t)
		d := Plan(m.r, m.progress(), m.now)
		m.write(t, d)
		if !d.Changed && !d.Arrange && !d.Revert {
			if m.r.State == RolloutRunning && m.r.Idle && len(m.marked) == 0 {
				m.checkFollowed(t)
				if r, err := Finish(m.r, "enough"); err == nil {
					m.r = r
				}
				continue
			}
			if d.Wake.IsZero() {
				continue
			}
			if !d.Wake.After(m.now) {
				t.Fatalf("asks for itself at %v, which is not after %v", d.Wake, m.now)
			}
			m.now = d.Wake // nothing else is needed to go on
		}
	}
	switch m.r.State {
	case RolloutCompleted, RolloutAborted, RolloutRolledBack:
	case RolloutPaused:
		if m.r.Reason == "" {
			t.Fatal("paused without a reason")
		}
	default:
		t.Fatalf("never ends: %s", m.r.State)
	}
}

// change has a device come to match, or match no longer; or there is a new one.
func (m *model) change(t *rapid.T) {
	i := rapid.IntRange(0, len(m.devices)).Draw(t, "changed")
	if i == len(m.devices) {
		m.devices = append(m.devices, Candidate{DeviceID: fmt.Sprintf("d%d", i)})
	}
	id := m.devices[i].DeviceID
	m.meant[id] = !m.meant[id]
	if m.r.Follows {
		m.marked[id] = true
	}
}

// look looks at the devices that changed.
func (m *model) look(t *rapid.T) {
	for _, id := range slices.Sorted(maps.Keys(m.marked)) {
		delete(m.marked, id)
		if !m.r.Follows || m.r.StartedAt.IsZero() || m.revoked[id] {
			continue // it is arranged later, as it stands then
		}
		b := Belonging{Meant: m.meant[id], Eligible: !m.stuck[id], Left: m.left[id], Newest: m.newest(id)}
		for turn, c := range m.candidates {
			if c.DeviceID == id {
				b.InLine, b.Turn = true, turn
			}
		}
		move, e := MoveOf(m.r, b, m.now)
		if e != nil {
			*b.Newest = *e
			m.r.Idle = false
		}
		switch {
		case move == MoveLeave:
			m.left[id] = true
		case move == MoveJoin:
			delete(m.left, id)
			if b.Newest == nil && (!b.InLine || b.Turn < m.r.Cursor) {
				m.candidates = append(m.candidates, arranged{Candidate{DeviceID: id}, len(m.r.Stages) - 1})
				devices := 1
				if b.InLine {
					devices = 0
				}
				m.r = Joined(m.r, 1, devices)
			}
		}
	}
}

// checkFollowed: of an idle continuous rollout, every device that matches has had an
// execution, and those that left have none that waits.
func (m *model) checkFollowed(t *rapid.T) {
	for _, c := range m.devices {
		id, e := c.DeviceID, m.newest(c.DeviceID)
		switch {
		case m.revoked[id], m.meant[id] && m.stuck[id]:
		case !m.meant[id]:
			if e != nil && (!e.Status.Terminal() || !e.RetryAt.IsZero()) {
				t.Fatalf("%s has left, and its execution is %+v", id, *e)
			}
		case e == nil:
			t.Fatalf("%s matches, and was given nothing: line %+v, cursor %d", id, m.candidates, m.r.Cursor)
		case (e.Left() || e.Stranded()) && e.Attempt < MaxAttempts:
			t.Fatalf("%s is back, and was given nothing more: %+v", id, *e)
		}
	}
	if last := m.r.Stages[len(m.r.Stages)-1]; len(m.candidates) != last.Target || last.State != StageOpen {
		t.Fatalf("%d turns beside %+v", len(m.candidates), last)
	}
}
