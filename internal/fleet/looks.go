package fleet

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// MaxLooked is how many devices are looked at in one transaction.
const MaxLooked = 200

// LookStore keeps which devices are to be looked at again: what they say may no
// longer agree with what rollouts have made of them. The mark is written in the
// transaction that gives the reason, so it is as lasting as that: by UpdateShadow
// for which SaysFirmware holds, on a device that has a newest attempt that is QUEUED
// or SUCCEEDED; and by whatever makes or changes a device, or the groups it is in, if
// MustLook holds for the selector of a rollout that Follows. PublishMetadata and Withdraw
// mark who stands where Opened says. Who changes the members
// of a static group that such a selector names marks all that are named.
// Cancel marks whom it takes an execution from, if there is a rollout that Follows, is
// RUNNING or PAUSED and that theirs Supersedes: it may have passed them by, or made way.
type LookStore interface {
	// Marked returns up to limit marked devices, in order of their ids, as they
	// stand: in a moment after their marks.
	Marked(ctx context.Context, limit int) ([]Marked, error)
	// Settle writes what was decided of devices and takes their marks away, all in
	// one. A device that was marked anew since keeps its mark. One of which an
	// execution has changed since it was read keeps its mark too, and nothing that
	// was decided of it is written; nor is anything of one that is to move in a line
	// and that has another mark by now.
	//
	// Moves are made under the lock of their rollout, in order. MoveJoin gives the
	// device a turn at the end of the line, unless it has one that is still to come or
	// has an execution; then it only has not Left any more. MoveLeave has it Left, if
	// it stands in the line. A rollout that no longer Follows makes no move.
	// Of a device that is to leave and that was given an attempt since it was read, see
	// Look.Overtaken, nothing is written and the mark stays.
	// MoveLater and MoveAwait have the rollout remember the device, and the step by
	// which it begins, or ceases to follow, marks it. If that step is committed already,
	// see Moved.Late, the device keeps its mark and nothing that was decided of it is
	// written.
	// ota.Joined says how a rollout becomes; by a move or a change of its executions
	// one that Follows gets a new Revision, and is not Idle any more.
	Settle(ctx context.Context, looks []Look, now time.Time) error
}

// Marked is a device that is to be looked at, with what there is to see.
type Marked struct {
	DeviceView
	Mark       int64     // raised each time that it is marked
	ReportedAt time.Time // when the device said what firmware it runs
	// Executions are the newest attempt of each rollout on it and older ones that
	// drifted, were rolled back or came a leg of their path, by rollout and attempt.
	Executions []ota.Execution
	Places     []Place // in the lines of rollouts that Follow, by rollout; one in each
}

// Place is where a device stands in the line of a rollout.
type Place struct {
	RolloutID string
	Turn      int
	Left      bool // it has left, and gets no turn
}

// Look is what was decided of a marked device.
type Look struct {
	DeviceID string
	Mark     int64
	Changed  []Changed
	Events   []Event // for the device's history: Kind and Data
	Moves    []Moved // in lines of rollouts that Follow
}

// Overtaken reports whether the look has a device leave a rollout, whose newest
// attempt on it is given, without taking away what that has waiting: the device was
// given it since it was read. It is one of the rules of Settle.
func (l Look) Overtaken(m Moved, newest ota.Execution) bool {
	ends := func(c Changed) bool { return c.From.RolloutID == m.RolloutID }
	return m.Move == ota.MoveLeave && (newest.Status == ota.Queued || !newest.RetryAt.IsZero()) && !slices.ContainsFunc(l.Changed, ends)
}

// Moved is a move in the line of a rollout.
type Moved struct {
	RolloutID string
	Move      ota.Move
	Lane      string // of who joins: its value of what InFlight.Per names
}

// Late reports whether the move waits for what has come to pass meanwhile. The rollout
// is given as it stands. It is one of the rules of Settle.
func (m Moved) Late(r ota.Rollout) bool {
	switch m.Move {
	case ota.MoveAwait:
		return !r.Follows
	case ota.MoveLater:
		return !r.Follows || !r.StartedAt.IsZero()
	}
	return false
}

// Changed is an execution as it was read and as it becomes.
type Changed struct{ From, To ota.Execution }

// SameStanding reports whether an execution stands as it was read. It is one of
// the rules of Settle.
func SameStanding(a, b ota.Execution) bool {
	return a.Attempt == b.Attempt && a.Version == b.Version && a.Class == b.Class && a.RetryAt.Equal(b.RetryAt) && a.DriftedAt.Equal(b.DriftedAt) && a.WentBackAt.Equal(b.WentBackAt)
}

// SaysFirmware reports whether an update of the classic shadow says which image
// the device runs, be it the same as before. Whoever stores it marks the device.
func SaysFirmware(u shadow.Update) bool {
	v, _ := u.Reported.Object.At("firmware", "digest")
	digest, _ := v.Text()
	return u.Reported.Set && digest != ""
}

// LogServer is the log of events in a device's history that otad itself wrote.
const LogServer = "otad"

// Kinds of such events. Their data are those of driftEvent.
const (
	EventDrifted  = "rollout-drifted"
	EventReturned = "rollout-returned"
	EventArrived  = "rollout-arrived"
)

// RunLooks looks at marked devices until ctx ends. All it knows stands in the
// store, so it may be killed anywhere, and several replicas may run it.
func (s *Service) RunLooks(ctx context.Context) error {
	for {
		looked := time.Now()
		for more := true; more; {
			var err error
			if more, err = s.lookOnce(ctx); err != nil && ctx.Err() == nil {
				s.Log.Error("marked devices can not be looked at, trying again", "error", err)
			}
		}
		if !s.rest(ctx, s.Poll, s.look) || !s.rest(ctx, time.Until(looked.Add(lookEvery)), nil) {
			return nil
		}
	}
}

// Look has RunLooks look for marked devices soon. It never blocks.
func (s *Service) Look() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// lookOnce settles the first of the marked devices, and reports whether there may
// be more.
func (s *Service) lookOnce(ctx context.Context) (more bool, err error) {
	marked, err := s.Store.Marked(ctx, MaxLooked)
	if err != nil || len(marked) == 0 {
		return false, err
	}
	w, err := s.watched(ctx)
	if err != nil {
		return false, err
	}
	now := s.Now()
	looks := make([]Look, len(marked))
	for i, m := range marked {
		looks[i] = w.look(m, now)
	}
	if err := s.Store.Settle(ctx, looks, now); err != nil {
		return false, err
	}
	s.followLooks(ctx, looks)
	return len(marked) == MaxLooked, nil
}

// watched is what devices are held against.
type watched struct {
	rollouts  map[string]ota.Rollout
	digests   map[ota.ReleaseID]string
	followers []follower
}

func (s *Service) watched(ctx context.Context) (w watched, err error) {
	rollouts, err := s.Store.Rollouts(ctx)
	if err != nil {
		return w, err
	}
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return w, err
	}
	w.rollouts, w.digests = map[string]ota.Rollout{}, map[ota.ReleaseID]string{}
	for _, r := range rollouts {
		w.rollouts[r.ID] = r
	}
	for _, r := range releases {
		w.digests[r.ID()] = r.ImageDigest
	}
	w.followers, err = s.followers(ctx, rollouts, releases)
	return w, err
}

// look decides what becomes of a device's executions.
func (w watched) look(m Marked, now time.Time) Look {
	l := Look{DeviceID: m.ID, Mark: m.Mark}
	if m.Revoked() {
		return l
	}
	before := map[string]ota.Execution{}
	var list []ota.Standing
	for i, e := range m.Executions {
		before[e.RolloutID] = e
		if older := i+1 < len(m.Executions) && m.Executions[i+1].RolloutID == e.RolloutID; older && e.WentBack() {
			continue // that is for follow
		}
		list = append(list, ota.Standing{Execution: e, Rollout: w.rollouts[e.RolloutID], Digest: w.digests[e.Release], Goal: w.digests[w.rollouts[e.RolloutID].Release]})
	}
	for _, e := range ota.Compare(list, ota.Running{Digest: ReportedDigest(m.Shadow), At: m.ReportedAt}, now) {
		l.Changed = append(l.Changed, Changed{From: before[e.RolloutID], To: e})
		l.Events = append(l.Events, driftEvent(e, m.Firmware()))
	}
	w.follow(m, &l, now)
	w.letGo(m, list, &l, now)
	return l
}

// letGo adds to a look the attempts that are made again since a newer rollout, for which
// they made way, has let the device go. What was decided of it before comes first.
func (w watched) letGo(m Marked, list []ota.Standing, l *Look, now time.Time) {
	for i, s := range list {
		for _, c := range l.Changed {
			if c.From.RolloutID == s.RolloutID && c.From.Attempt == s.Attempt {
				list[i].Execution = c.To
			}
		}
	}
	list = slices.DeleteFunc(list, func(s ota.Standing) bool { return s.Superseded() != "" && !w.stillIn(m, s.Rollout) })
	for _, e := range ota.LetGo(list, ReportedDigest(m.Shadow), now) {
		l.change(m, e)
	}
}

// stillIn reports whether a rollout means the device as before: one that is continuous
// may not, or leave it to a newer one.
func (w watched) stillIn(m Marked, r ota.Rollout) bool {
	if !r.Terms.Continuous {
		return true
	}
	i := slices.IndexFunc(w.followers, func(f follower) bool { return f.ID == r.ID })
	return i >= 0 && w.followers[i].sel.Match(Facts(m.DeviceView)) && w.newer(w.followers[i], m) == ""
}

// driftEvent says in the history of a device what its word did to an execution.
func driftEvent(e ota.Execution, runs Firmware) Event {
	kind := EventReturned
	switch {
	case e.Class == ota.ClassDrifted:
		kind = EventDrifted
	case e.Reason() == ota.ArrivedReason:
		kind = EventArrived
	}
	data := map[string]any{"rollout": e.RolloutID, "firmware": e.Release.String(), "attempt": e.Attempt, "runs": runs.Name + "@" + runs.Version, "digest": runs.Digest}
	if !e.RetryAt.IsZero() {
		data["retryAt"] = e.RetryAt.UTC().Format(time.RFC3339)
	}
	text, err := json.Marshal(data)
	if err != nil || len(text) > MaxEventBytes { // names as long as a device likes
		text = []byte("{}")
	}
	return Event{Kind: kind, Data: string(text)}
}

// followLooks tells of what has changed.
func (s *Service) followLooks(ctx context.Context, looks []Look) {
	var ended []ota.Execution
	changed := false
	for _, l := range looks {
		for _, move := range l.Moves {
			changed = true
			s.signals.raise("rollout/" + move.RolloutID)
		}
		for _, c := range l.Changed {
			e := c.To
			changed = true
			s.Log.Info("a device's word changed an execution", "rollout", e.RolloutID, "device", e.DeviceID, "status", e.Status, "class", e.Class, "runs", e.Runs)
			s.signals.raise("rollout/" + e.RolloutID)
			if c.From.Status == ota.Queued {
				ended = append(ended, c.From)
			}
		}
	}
	if changed {
		s.Wake()
	}
	s.tellEach(ctx, ended, func(ota.Execution, []ota.Execution) bool { return true })
}
