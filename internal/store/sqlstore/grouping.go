package sqlstore

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// membership is a device in a group.
type membership struct{ group, device string }

func (m membership) compare(other membership) int {
	return cmp.Or(strings.Compare(m.group, other.group), strings.Compare(m.device, other.device))
}

// flushGroups brings the members of dynamic groups in line with what the batch
// changed, in its transaction: whoever sees the change sees the members with it.
//
// Another otad that makes a group waits until every batch that did not know of
// it has ended, and then finds what they wrote; see dynamicGroups.
func (t *tx) flushGroups() error {
	subjects := t.subjects()
	if len(subjects) == 0 {
		return nil
	}
	set, err := t.dynamicGroups()
	if err != nil || len(set.list) == 0 {
		return err
	}
	var joined, gone []membership
	for _, id := range slices.Sorted(maps.Keys(subjects)) { // in order, as they are locked
		if joined, gone, err = t.regroup(set, subjects[id], joined, gone); err != nil {
			return err
		}
	}
	return t.writeMembers(joined, gone)
}

// subject is a device that the batch made or changed.
type subject struct {
	id            string
	created       bool
	retagged      bool
	device        fleet.Device // before the batch, of one that was retagged
	before, after shadow.Document
}

func (t *tx) subjects() map[string]*subject {
	list := map[string]*subject{}
	of := func(id string) *subject {
		s := list[id]
		if s == nil {
			s = &subject{id: id}
			list[id] = s
		}
		return s
	}
	for _, d := range t.enrolled {
		of(d.ID).created = true
	}
	for id, before := range t.retagged {
		s := of(id)
		s.retagged, s.device = true, before
		if c := t.shadows[shadowKey{device: id}]; c != nil {
			s.before, s.after = c.doc, c.doc
		}
	}
	for _, c := range t.dirty {
		if c.key.name == "" {
			s := of(c.key.device)
			s.before, s.after = c.before, c.doc
		}
	}
	return list
}

// regroup adds to joined and gone what the change of a device changes.
func (t *tx) regroup(set *groupSet, s *subject, joined, gone []membership) (_, _ []membership, err error) {
	touched := set.touched(s.before, s.after)
	switch {
	case s.created:
		touched = set.all
	case s.retagged:
		touched = append(touched, set.device...)
		slices.Sort(touched)
		touched = slices.Compact(touched)
	}
	if len(touched) == 0 {
		return joined, gone, nil
	}
	had := len(joined) + len(gone)
	d := fleet.Device{ID: s.id}
	if s.created || s.retagged || slices.ContainsFunc(touched, func(i int) bool { return set.list[i].device }) {
		if d, err = t.deviceFacts(s.id); err != nil {
			return nil, nil, err
		}
	}
	was := d
	if s.retagged {
		was = s.device
	}
	before, after := facts(was, s.before), facts(d, s.after)
	for _, i := range touched {
		g := set.list[i]
		if g.rollout {
			continue
		}
		is := g.sel.Match(after)
		was := !s.created && g.sel.Match(before)
		if t.filled[g.name] {
			was = !is // it was filled with what the batch had made of the device by then
		}
		joined, gone = moved(membership{g.name, s.id}, was, is, joined, gone)
	}
	t.markFollowed(set, s, touched, was, d, len(joined)+len(gone) != had)
	return joined, gone, nil
}

// markFollowed marks a device that a continuous rollout has to look at. Which groups
// it is in does not matter beyond that they changed, see fleet.MustLook.
func (t *tx) markFollowed(set *groupSet, s *subject, touched []int, was, is fleet.Device, regrouped bool) {
	before, after := fleet.DeviceView{Device: was, Shadow: s.before}, fleet.DeviceView{Device: is, Shadow: s.after}
	if s.created {
		before = fleet.DeviceView{}
	}
	if regrouped {
		after.Groups = []string{"another"}
		touched = append(touched, set.grouped...)
	}
	for _, i := range touched {
		if g := set.list[i]; g.rollout && fleet.MustLook(g.sel, before, after) {
			t.markAnyway(s.id)
		}
	}
}

// moved adds a membership that has come or gone.
func moved(m membership, was, is bool, joined, gone []membership) (_, _ []membership) {
	switch {
	case is && !was:
		joined = append(joined, m)
	case was && !is:
		gone = append(gone, m)
	}
	return joined, gone
}

// deviceFacts is what selectors ask of the device itself.
func (t *tx) deviceFacts(id string) (fleet.Device, error) {
	d := fleet.Device{ID: id}
	err := t.row(`SELECT hardware, tags FROM devices WHERE id = ?`+t.w.dialect.ForShare, id).Scan(&d.Hardware, mapInto{&d.Tags})
	return d, err
}

const (
	addMembers    = `INSERT INTO group_members (group_name, device_id) SELECT v.grp, v.device FROM {rows} WHERE 1 = 1 ON CONFLICT (group_name, device_id) DO NOTHING`
	removeMembers = `DELETE FROM group_members WHERE (group_name, device_id) IN (SELECT v.grp, v.device FROM {rows})`
)

// writeMembers writes in order, so that two otad that lock rows do not wait for
// each other.
func (t *tx) writeMembers(joined, gone []membership) error {
	for statement, list := range map[string][]membership{addMembers: joined, removeMembers: gone} {
		if _, err := t.changeMembers(t.write, statement, list); err != nil {
			return fmt.Errorf("write members of groups: %w", err)
		}
	}
	return nil
}

func (t *tx) changeMembers(run func(string, ...any) (int64, error), statement string, members []membership) (int64, error) {
	slices.SortFunc(members, membership.compare)
	return t.bulk(run, statement, len(members), nil,
		texts("grp", list(members, func(m membership) string { return m.group })),
		texts("device", list(members, func(m membership) string { return m.device })))
}

// dynamicGroups returns the dynamic groups, and keeps them from changing until
// the transaction ends. They are read anew only when their generation is
// another than that of the last time.
func (t *tx) dynamicGroups() (*groupSet, error) {
	if t.groups != nil {
		return t.groups, nil
	}
	var generation int64
	err := t.row(`SELECT generation FROM group_generation WHERE one = 1` + t.w.dialect.ForShare).Scan(&generation)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if kept := t.w.groups; kept != nil && kept.generation == generation {
		t.groups = kept
		return kept, nil
	}
	var all []dynamicGroup
	err = t.rows(func(r row) error {
		var name, expr string
		if err := r.Scan(&name, &expr); err != nil {
			return err
		}
		sel, err := selector.Parse(expr)
		if err != nil {
			return fmt.Errorf("group %s: %w", name, err)
		}
		all = append(all, dynamicGroup{name: name, sel: sel})
		return nil
	}, `SELECT name, selector FROM device_groups WHERE dynamic = 1 ORDER BY name`)
	if err != nil {
		return nil, err
	}
	err = t.rows(func(r row) error {
		var id, expr string
		if err := r.Scan(&id, &expr); err != nil {
			return err
		}
		sel, err := selector.Parse(expr)
		if err != nil {
			return fmt.Errorf("rollout %s: %w", id, err)
		}
		all = append(all, dynamicGroup{name: id, sel: sel, rollout: true})
		return nil
	}, `SELECT id, selector FROM rollouts WHERE follows = 1 ORDER BY id`)
	if err != nil {
		return nil, err
	}
	t.groups = newGroupSet(generation, all)
	t.w.groups = nil
	if !t.regrouped { // what it reads of its own may be rolled back
		t.w.groups = t.groups
	}
	return t.groups, nil
}

const raiseGeneration = `INSERT INTO group_generation (one, generation) VALUES (1, 1)
	ON CONFLICT (one) DO UPDATE SET generation = group_generation.generation + 1`

// regroups announces that the transaction changes the dynamic groups. It waits
// for every transaction that works with the ones there are.
func (t *tx) regroups() error {
	t.groups, t.regrouped, t.w.groups = nil, true, nil
	_, err := t.exec(raiseGeneration)
	return err
}
