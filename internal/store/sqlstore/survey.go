package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// surveyRows is how many devices a survey reads at a time: its rows are small.
const surveyRows = 10_000

// Survey implements fleet.DeviceStore. What a selector can not be certain of
// without the documents is looked at one by one.
func (s *Store) Survey(ctx context.Context, q fleet.DeviceQuery, tags []string, f func(fleet.Surveyed) bool) error {
	p, err := s.plan(ctx, q)
	if err != nil {
		return fmt.Errorf("survey devices: %w", err)
	}
	if !p.certain() {
		return s.eachView(ctx, p, func(v fleet.DeviceView) bool { return f(fleet.Survey(v, tags)) })
	}
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	pages := make(chan surveyPage)
	reading.Go(func() { s.surveyPages(ctx, p, tags, pages) })
	for page := range pages {
		if page.err != nil {
			return fmt.Errorf("survey devices: %w", page.err)
		}
		for _, d := range page.devices {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !f(d) {
				return nil
			}
		}
	}
	return ctx.Err()
}

// surveyPage is some devices, or an error in their place.
type surveyPage struct {
	devices []fleet.Surveyed
	err     error
}

// surveyPages reads one page while the caller looks at another.
func (s *Store) surveyPages(ctx context.Context, p plan, tags []string, pages chan<- surveyPage) {
	defer close(pages)
	for after, more := p.query.After, true; more; {
		page := surveyPage{devices: make([]fleet.Surveyed, 0, surveyRows)}
		page.err = s.adhoc(ctx, func(r row) error {
			d, err := scanSurveyed(r, tags)
			page.devices = append(page.devices, d)
			return err
		}, p.survey(after, len(tags) > 0))
		select {
		case pages <- page:
		case <-ctx.Done():
			return
		}
		if more = page.err == nil && len(page.devices) == surveyRows; more {
			after = page.devices[surveyRows-1].ID
		}
	}
}

func scanSurveyed(r row, tags []string) (d fleet.Surveyed, err error) {
	if len(tags) == 0 {
		return d, r.Scan(&d.ID, &d.Hardware, &d.Digest)
	}
	var v fleet.DeviceView
	var digest string
	err = r.Scan(&v.ID, &v.Hardware, &digest, mapInto{&v.Tags})
	d = fleet.Survey(v, tags)
	d.Digest = digest
	return d, err
}

// certain reports whether what the plan selects matches, without a further look.
func (p plan) certain() bool {
	return !slices.ContainsFunc(p.parts, func(q part) bool { return q.Upper.SQL != q.Lower.SQL })
}

// survey is the page that Survey reads.
func (p plan) survey(after string, tags bool) Condition {
	columns := "d.id AS id, d.hardware, d.firmware_digest"
	if tags {
		columns += ", d.tags"
	}
	list := make([]Condition, len(p.parts))
	for i, q := range p.parts {
		from := q.from
		if from == anyShadow && !asksShadow(p.query.Selector) {
			from = "devices d"
		}
		list[i] = Say("SELECT "+columns+" FROM "+from+" WHERE "+q.id+" > ? AND ? AND ? ORDER BY "+q.id+" LIMIT ?", after, q.lead, q.Upper, surveyRows)
	}
	if len(list) == 1 {
		return list[0]
	}
	for i := range list {
		list[i] = Say("SELECT * FROM (?) AS p", list[i])
	}
	return Say("? ORDER BY id LIMIT ?", union(list), surveyRows)
}

// asksShadow reports whether the selector needs the shadow of a device.
func asksShadow(s selector.Selector) bool {
	return slices.ContainsFunc(s.Fields(), func(f selector.Field) bool {
		return f.Source == selector.Reported || f.Source == selector.Desired
	})
}
