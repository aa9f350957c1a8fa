package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// snapshot is everything a store shows, as values that can be compared.
func snapshot(s fleet.Store) map[string]any {
	out := map[string]any{}
	note := func(what string, v any, err error) { out[what] = []any{v, answer("", err)} }
	out["devices"] = answer("", s.Devices(ctx, "", func(v fleet.DeviceView) bool {
		out["device "+v.ID] = fmt.Sprintf("%+v %s", v.Device, documentText(v.Shadow))
		for _, name := range []string{"", "n"} {
			doc, err := s.Shadow(ctx, v.ID, name)
			note("shadow "+v.ID+" "+name, documentText(doc), err)
		}
		e, err := s.NextExecution(ctx, v.ID)
		note("next of "+v.ID, e, err)
		list, err := s.Pending(ctx, v.ID, 10)
		note("pending of "+v.ID, list, err)
		credentials, err := s.Credentials(ctx, v.ID)
		note("credentials of "+v.ID, credentials, err)
		return true
	}))
	out["survey"] = answer("", s.Survey(ctx, fleet.DeviceQuery{}, nil, func(d fleet.Surveyed) bool {
		out["survey of "+d.ID] = d
		return true
	}))
	evictions, err := s.Evictions(ctx, epoch.Add(-time.Hour))
	note("evictions", evictions, err)
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		events, err := s.Events(ctx, id, 0, 99)
		note("events of "+id, events, err)
		d, err := s.ProvisionedDevice(ctx, id)
		note("certificate "+id, d, err)
	}
	revoked, err := s.RevokedCertificates(ctx, epoch.Add(-time.Hour))
	note("revoked certificates", fmt.Sprint(revoked), err)
	all, err := s.Groups(ctx)
	note("groups", all, err)
	for _, g := range all {
		ids, err := s.GroupMembers(ctx, g.Name, "", 1000)
		note("members of "+g.Name, ids, err)
	}
	tokens, err := s.EnrollmentTokens(ctx)
	note("tokens", tokens, err)
	releases, err := s.Releases(ctx)
	note("releases", releases, err)
	for _, role := range []fleet.Role{fleet.RoleRoot, fleet.RoleTargets, fleet.RoleSnapshot, fleet.RoleTimestamp} {
		m, err := s.Metadata(ctx, role, 0)
		note("metadata "+string(role), m, err)
	}
	list, err := s.Rollouts(ctx)
	note("rollouts", list, err)
	for _, r := range list {
		line, err := s.Candidates(ctx, r.ID, r.Line, 0, 99)
		note("line of "+r.ID, line, err)
		p, err := s.Progress(ctx, r, epoch)
		note("progress of "+r.ID, p, err)
	}
	uploads, err := s.Uploads(ctx, fleet.UploadFilter{}, 99)
	note("uploads", uploads, err)
	happened, err := s.Feed(ctx, fleet.FeedFilter{}, 0, 9999)
	note("feed", happened, err)
	old, err := s.OldUploads(ctx, epoch, 1, 99)
	note("old uploads", old, err)
	for _, f := range []fleet.ExecutionFilter{{}, {Latest: true}, {Active: true}} {
		var executions []ota.Execution
		err := s.Executions(ctx, f, func(e ota.Execution) bool {
			executions = append(executions, e)
			return true
		})
		note(fmt.Sprintf("executions %+v", f), executions, err)
	}
	return out
}

// standing are the marks of a store, by device, without their numbers.
func standing(s fleet.Store) (map[string]string, []fleet.Look) {
	list, err := s.Marked(ctx, 99)
	marks, looks := map[string]string{"": answer("", err)}, make([]fleet.Look, len(list))
	for i, m := range list {
		marks[m.ID] = fmt.Sprintf("%s %+v", m.ReportedAt, m.Places)
		looks[i] = fleet.Look{DeviceID: m.ID, Mark: m.Mark}
	}
	return marks, looks
}

// documentText is what is stored of a document.
func documentText(d shadow.Document) string { return string(d.Append(nil)) }
