package sim

import (
	"context"
	"math"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// feed retells the history from its events alone: that has to lead to what there
// is, and every step of it to be one that follows from those before.
func (k *checker) feed() {
	events, err := k.sim.store.Feed(context.Background(), fleet.FeedFilter{}, 0, math.MaxInt32)
	if err != nil {
		k.say("feed: %v", err)
	}
	rollouts, stages := map[string]string{}, map[stageOf]string{}
	counts, withdrawn := map[countOf]int{}, map[ota.ReleaseID]int{}
	for i, e := range events {
		if e.Seq != int64(i+1) {
			k.say("event %d stands at place %d", e.Seq, i+1)
		}
		stage := stageOf{e.RolloutID, e.Stage}
		switch e.Kind {
		case ota.EventRelease:
			withdrawn[e.Release]++
		case ota.EventRollout:
			if rollouts[e.RolloutID] != e.From {
				k.say("event %d: rollout %s went from %s, and was %s", e.Seq, e.RolloutID, e.From, rollouts[e.RolloutID])
			}
			rollouts[e.RolloutID] = e.To
		case ota.EventStage:
			if was := stages[stage]; was != e.From && !(was == "" && e.From == string(ota.StagePending)) {
				k.say("event %d: stage %d of rollout %s went from %s, and was %s", e.Seq, e.Stage, e.RolloutID, e.From, was)
			}
			stages[stage] = e.To
		default:
			if e.From != "" {
				if counts[countOf{stage, e.From}] -= e.Count; counts[countOf{stage, e.From}] < 0 {
					k.say("event %d: %d executions of rollout %s went from %s, and there were not as many", e.Seq, e.Count, e.RolloutID, e.From)
				}
			}
			counts[countOf{stage, e.To}] += e.Count
		}
	}
	for id := range k.withdrawn {
		if withdrawn[id]--; withdrawn[id] != 0 {
			k.say("that release %s is withdrawn was told %d times", id, withdrawn[id]+1)
		}
	}
	for id, r := range k.rollouts {
		if rollouts[id] != string(r.State) {
			k.say("rollout %s is %s, the feed says %s", id, r.State, rollouts[id])
		}
		for i, s := range r.Stages {
			if told := stages[stageOf{id, i + 1}]; told != string(s.State) && !(told == "" && s.State == ota.StagePending) {
				k.say("stage %d of rollout %s is %s, the feed says %s", i+1, id, s.State, told)
			}
		}
	}
	for at, attempts := range k.executions {
		for _, e := range attempts {
			counts[countOf{stageOf{at.rollout, e.Stage + 1}, string(e.Status)}]--
		}
	}
	for at, n := range counts {
		if n != 0 {
			k.say("the feed has %d executions %s too many in stage %d of rollout %s", n, at.status, at.stage, at.rollout)
		}
	}
}

type stageOf struct {
	rollout string
	stage   int
}

type countOf struct {
	stageOf
	status string
}
