package ota

import (
	"cmp"
	"slices"
	"time"
)

// EventKind is what an Event is about.
type EventKind string

// The kinds, from the largest to the smallest.
const (
	EventRelease   EventKind = "release"
	EventRollout   EventKind = "rollout"
	EventStage     EventKind = "stage"
	EventExecution EventKind = "execution"
)

// Event says that a release, a rollout, one of its stages, or executions of it went from one
// state to another. What one step does to many executions is one event for each
// stage with their number; what a device or a timer does to one names the device.
type Event struct {
	At        time.Time
	Release   ReleaseID // that it is about; zero unless of that kind
	RolloutID string    // empty: it is about a release
	Kind      EventKind
	Stage     int    // counted from 1; 0: the rollout as a whole
	DeviceID  string // of one execution; empty: Count of them
	Attempt   int    // of one execution
	From, To  string // a ReleaseState, RolloutState, StageState or Status; From is empty for what is new
	Class     Class  // of executions that ended with a verdict
	Count     int    // executions; 0: it is about none
	Reason    string
}

// SkippedReason is why a stage went on without its gate.
const SkippedReason = "skipped by an operator"

// Changes are the events of a rollout that stood as before, the zero one for a new
// rollout, and stands as after.
func Changes(before, after Rollout, now time.Time) []Event {
	var events []Event
	if before.State != after.State {
		events = append(events, Event{
			At: now, RolloutID: after.ID, Kind: EventRollout, From: string(before.State), To: string(after.State), Reason: after.Reason,
		})
	}
	for i, s := range after.Stages {
		was := Stage{State: StagePending}
		if i < len(before.Stages) {
			was = before.Stages[i]
		}
		if s.State == was.State {
			continue
		}
		reason := ""
		if !s.SkippedAt.Equal(was.SkippedAt) {
			reason = SkippedReason
		}
		events = append(events, Event{At: now, RolloutID: after.ID, Kind: EventStage, Stage: i + 1, From: string(was.State), To: string(s.State), Reason: reason})
	}
	return events
}

// Withdrawn is the event of a release that was withdrawn and stood as before.
func Withdrawn(before, after Release) Event {
	return Event{At: after.WithdrawnAt, Release: after.ID(), Kind: EventRelease, From: string(before.State), To: string(after.State), Reason: after.Reason}
}

// Moved is the event of one execution; false when its status and class are what
// they were.
func Moved(before, after Execution) (Event, bool) {
	at := after.UpdatedAt
	if after.DriftedAt.After(at) { // what a device says it runs changed the verdict later
		at = after.DriftedAt
	}
	return Event{
		At: at, RolloutID: after.RolloutID, Kind: EventExecution, Stage: after.Stage + 1, DeviceID: after.DeviceID, Attempt: after.Attempt,
		From: string(before.Status), To: string(after.Status), Class: after.Class, Count: 1, Reason: after.Reason(),
	}, before.Status != after.Status || before.Class != after.Class
}

// MovedTogether is the event of n executions of a stage that went from one status
// to that of e in one step. From is empty for those that were made.
func MovedTogether(from Status, e Execution, n int, now time.Time) Event {
	return Event{
		At: now, RolloutID: e.RolloutID, Kind: EventExecution, Stage: e.Stage + 1, From: string(from), To: string(e.Status), Class: e.Class, Count: n, Reason: e.Reason(),
	}
}

var eventOrder = []EventKind{EventRelease, EventRollout, EventStage, EventExecution}

// InOrder returns the events of one step as they are told: by rollout, the larger
// before the smaller, and what moved together as one.
func InOrder(events []Event) []Event {
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.RolloutID, b.RolloutID), slices.Index(eventOrder, a.Kind)-slices.Index(eventOrder, b.Kind),
			a.Stage-b.Stage, cmp.Compare(a.DeviceID, b.DeviceID), a.Attempt-b.Attempt,
			cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Reason, b.Reason))
	})
	told := events[:0]
	for _, e := range events {
		if last := len(told) - 1; last >= 0 && e.Kind == EventExecution && e.DeviceID == "" {
			same := told[last]
			same.Count = e.Count
			if same == e {
				told[last].Count += e.Count
				continue
			}
		}
		told = append(told, e)
	}
	return slices.DeleteFunc(told, func(e Event) bool { return e.Kind == EventExecution && e.Count == 0 })
}
