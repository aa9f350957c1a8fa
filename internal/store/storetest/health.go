package storetest

import (
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/sequential"
	"github.com/otad/otad/pkg/shadow"
)

// compared is a running rollout of one stage with these signals, over a line of
// devices of which the first succeeded.
func (s *suite) compared(signals []ota.Signal, succeeded int, devices ...string) ota.Rollout {
	s.Helper()
	s.enrolled(devices...)
	r := newRollout("r", len(devices))
	r.Line, r.Terms.Health.Signals, r.Terms.Strata = "l", signals, []string{"site"}
	s.must(s.createRollout(r))
	var line []ota.Candidate
	for _, d := range devices {
		line = append(line, ota.Candidate{DeviceID: d})
	}
	s.must(s.PutCandidates(ctx, "r", "l", 0, line))
	r = s.open(r, epoch, queued(0, 1, devices[:succeeded]...)...)
	for _, d := range devices[:succeeded] {
		s.report("r", d, ota.Succeeded, at(1))
	}
	return r
}

func (s *suite) health(r ota.Rollout) ota.Seen {
	s.Helper()
	p, err := s.Progress(ctx, r, epoch)
	s.must(err)
	return p.Health
}

var healthTests = []test{
	{"updated devices wait for a partner", func(s *suite) {
		r := s.compared([]ota.Signal{{Name: ota.SignalCrash}}, 2, "a", "b", "c", "d", "e", "f")
		s.must(s.ChangeTags(ctx, "a", map[string]string{"site": "x", "other": "y"}, nil))
		s.must(s.RevokeDevice(ctx, "d", epoch))
		s.equal("seen", s.health(r), ota.Seen{Signals: make([]ota.Compared, 1), Unmatched: 2})
		members, err := s.Unmatched(ctx, r, 10)
		s.must(err)
		s.equal("members", []any{len(members), members[0].ID, members[0].Attempt, members[0].FinishedAt, members[0].Tags}, []any{2, "a", 1, keptAt(1), map[string]string{"site": "x"}})
		few, err := s.Unmatched(ctx, r, 1)
		s.must(err)
		s.equal("at most", len(few), 1)
		partners := func(turn, limit int) (ids []string) {
			list, err := s.Partners(ctx, r, turn, limit)
			s.must(err)
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			return ids
		}
		s.equal("partners", partners(0, 10), []string{"c", "e", "f"})
		s.equal("from a turn on", partners(3, 1), []string{"e"})
		pair := fleet.Pair{DeviceID: "a", Attempt: 1, PartnerID: "c", From: at(1), Until: at(11)}
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{pair, {DeviceID: "b", Attempt: 1, From: at(1), Until: at(1), Outcomes: fleet.PairAlone}}))
		s.equal("partners then", partners(0, 10), []string{"e", "f"})
		s.equal("seen then", s.health(r), ota.Seen{Signals: make([]ota.Compared, 1), Watched: 1, Alone: 1})
		pair.PartnerID = "e"
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{pair, {DeviceID: "b", Attempt: 2, PartnerID: "c", From: at(1), Until: at(1)}}))
		s.equal("a device has one partner, a partner one device", partners(0, 10), []string{"e", "f"})
		r.ArmedAt = at(1)
		r = s.open(r, at(2))
		s.equal("since the resume", s.health(r), ota.Seen{Signals: make([]ota.Compared, 1)})
		members, err = s.Unmatched(ctx, r, 10)
		s.must(err)
		s.equal("none since then", len(members), 0)
	}},
	{"pairs tell what happened to both in their time", func(s *suite) {
		signals := []ota.Signal{{Name: ota.SignalCrash}, {Name: "shadow.reported.temp", Margin: 5}}
		r := s.compared(signals, 2, "a", "b", "c", "d")
		event := func(device, log, kind string, minute int) {
			_, err := s.AppendEvents(ctx, device, log, []fleet.Event{{Seq: 1, Kind: kind, Data: "{}"}}, at(minute))
			s.must(err)
		}
		event("a", "1", fleet.EventCrash, 1) // before
		event("a", "2", fleet.EventCrash, 2)
		event("a", "3", fleet.EventReboot, 11)
		event("a", "4", fleet.EventCrash, 12) // after
		event("c", "1", "other", 5)
		event("c", "2", fleet.EventReboot, 6)
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{
			"a": {Connected: true, Since: epoch, Began: epoch}, "c": {Since: epoch, Began: epoch, Reason: "x"},
		}))
		_, err := s.UpdateShadow(ctx, "c", "", shadow.NewUpdate(nil, map[string]any{"temp": 40}), epoch)
		s.must(err)
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{
			{DeviceID: "a", Attempt: 1, PartnerID: "c", From: at(1), Until: at(11)}, {DeviceID: "b", Attempt: 1, PartnerID: "d", From: at(2), Until: at(12)},
		}))
		due, err := s.DuePairs(ctx, r, at(11), 10)
		s.must(err)
		s.equal("due", len(due), 1)
		p := due[0]
		s.equal("pair", p.Pair, fleet.Pair{DeviceID: "a", Attempt: 1, PartnerID: "c", From: keptAt(1), Until: keptAt(11)})
		s.equal("device", []any{p.Device.Crashes, p.Device.Reboots, p.Device.Known, p.Device.Connected, p.Device.Shadow.Exists()}, []any{1, 1, true, true, false})
		s.equal("partner", []any{p.Partner.Crashes, p.Partner.Reboots, p.Partner.Known, p.Partner.Connected, p.Partner.Shadow.Exists(), p.Changed}, []any{0, 1, true, false, true, false})
		s.open(r, at(11), queued(0, 1, "d")...)
		due, err = s.DuePairs(ctx, r, at(60), 10)
		s.must(err)
		s.equal("all", []any{len(due), due[1].DeviceID, due[1].Changed, due[1].Device.Known}, []any{2, "b", true, false})
		due[0].Outcomes, due[1].Outcomes = "+?", "=-"
		s.must(s.PutOutcomes(ctx, "r", []fleet.Pair{due[0].Pair, due[1].Pair}))
		due[0].Outcomes = "=="
		s.must(s.PutOutcomes(ctx, "r", []fleet.Pair{due[0].Pair}))
		s.equal("seen", s.health(r), ota.Seen{Signals: []ota.Compared{
			{Pairs: sequential.Pairs{Worse: 1, Same: 1}}, {Pairs: sequential.Pairs{Better: 1}, Unknown: 1},
		}})
		due, err = s.DuePairs(ctx, r, at(60), 10)
		s.must(err)
		s.equal("none is left", len(due), 0)
	}},
	{"a pair whose partner runs another image says so", func(s *suite) {
		one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
		says := func(device, digest string) {
			s.Helper()
			_, err := s.UpdateShadow(ctx, device, "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": digest}}), at(1))
			s.must(err)
		}
		r := s.compared([]ota.Signal{{Name: ota.SignalCrash}}, 4, "a", "b", "c", "d", "e", "f", "g", "h")
		says("e", one)
		says("f", one)
		pair := func(device, partner, digest string) fleet.Pair {
			return fleet.Pair{DeviceID: device, Attempt: 1, PartnerID: partner, PartnerDigest: digest, From: at(1), Until: at(11)}
		}
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{pair("a", "e", one), pair("b", "f", one), pair("c", "g", ""), pair("d", "h", "")}))
		says("e", two)
		says("f", one) // again
		says("g", one) // for the first time
		due, err := s.DuePairs(ctx, r, at(11), 10)
		s.must(err)
		changed := map[string]bool{}
		for _, p := range due {
			changed[p.DeviceID] = p.Changed
		}
		s.equal("changed", changed, map[string]bool{"a": true, "b": false, "c": true, "d": false})
		s.equal("digest", due[0].PartnerDigest, one)
	}},
	{"a plan keeps its health terms", func(s *suite) {
		r := newRollout("r", 1)
		r.Terms.Health = ota.Health{
			Signals: []ota.Signal{{Name: ota.SignalOffline, Tolerance: 0.02, MinPairs: 5}, {Name: "shadow.reported.x", Margin: -1.5, Alpha: 0.01}},
			Watch:   time.Minute, Wait: time.Hour, OnFail: ota.HealthAbort,
		}
		s.must(s.createRollout(r))
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("rollout", got, r)
	}},
}
